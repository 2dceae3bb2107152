"""Rights that the operator has and rights that it uses are the same, over all that the tests of this cluster made it do.

``DASKADE_TEST_AUDIT_LOGS`` names the folder of the API server's audit logs; `./test` runs this after all others, on real nodes.
Which right is there for what is told and tested in test_granted.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chart"))

from audit import Right, granted, lines, used_by
from charts import TOP, objects

FOLDER = os.environ.get("DASKADE_TEST_AUDIT_LOGS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="runs after all other tests of a cluster, with its API server's audit log")
# The operators of conftest.py and kube.py: `install` gives each the rights of deploy/operator.yaml.
OPERATOR = re.compile(r"system:serviceaccount:(daskade-system-(?P<run>[0-9a-f]{6})):daskade-operator-(?P=run)")


def uses() -> Iterator[tuple[Right, str]]:
    """Each right with the request that used it."""
    for log in sorted(Path(FOLDER).glob("audit*.jsonl")):
        for line in lines(log):
            event = json.loads(line)
            account = OPERATOR.fullmatch(event["user"]["username"])
            for right in used_by(event, account[1]) if account else ():
                yield right, event["requestURI"]


def test_what_is_granted_was_used_and_what_was_used_is_granted() -> None:
    rights = granted(objects((TOP / "deploy/operator.yaml").read_text()), "daskade-operator")
    # No request of their own: an admission plugin asks for them.
    rights = {right for right in rights if not right.resource.endswith("/finalizers")}
    used = dict(uses())
    assert len(used) > 50, "the log has next to nothing of the operators: was the cluster used?"
    assert sorted(rights - set(used)) == [], "granted and not used"
    assert {right: used[right] for right in set(used) - rights} == {}, "used and not granted by the manifest"
