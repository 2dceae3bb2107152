"""All that the operator asked for while the tests of this cluster ran is granted, and what is granted it asked for.

``DASKADE_TEST_AUDIT_LOGS`` names the folder of the API server's audit logs; `./test` runs this after all others, on real nodes.
Which right is there for what is told and tested in test_granted.py, with what happens too rarely to wait for here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.audit import Right, granted, lines, rights, used_by
from support import TOP
from support.charts import objects

FOLDER = os.environ.get("DASKADE_TEST_AUDIT_LOGS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="runs after all other tests of a cluster, with its API server's audit log")
# The operators of conftest.py and kube.py: `install` gives each the rights of deploy/operator.yaml.
OPERATOR = re.compile(r"system:serviceaccount:(daskade-system-(?P<run>[0-9a-f]{6})):daskade-operator-(?P=run)")
# After an upgrade from a version that made other children, at names that others have taken, when keys have been spoilt.
RARE = rights("served", "services: delete; networkpolicies: get delete; configmaps: delete; pipelineruns: get") | rights(
    "own", "secrets: patch"
)


def uses() -> Iterator[tuple[Right, str]]:
    """Each right with the request that used it."""
    for log in sorted(Path(FOLDER).glob("audit*.jsonl")):
        for line in lines(log):
            event = json.loads(line)
            account = OPERATOR.fullmatch(event["user"]["username"])
            for right in used_by(event, account[1]) if account else ():
                yield right, event["requestURI"]


def test_what_is_granted_was_used_and_what_was_used_is_granted() -> None:
    granted_ones = granted(objects((TOP / "deploy/operator.yaml").read_text()), "daskade-operator")
    used = dict(uses())
    assert len(used) > 50, "the log has next to nothing of the operators: was the cluster used?"
    # For finalizers an admission plugin asks, nobody else.
    missing = {right for right in granted_ones - set(used) if not right.resource.endswith("/finalizers")}
    assert sorted(missing - RARE) == [], "granted and not used"
    # What is granted for the namespaces that it serves holds in its own, too, where it serves all.
    everywhere = {right._replace(where="own") for right in granted_ones if right.where == "served"}
    assert {right: used[right] for right in set(used) - granted_ones - everywhere} == {}, "used and not granted"
