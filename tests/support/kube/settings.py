"""What the environment says about the cluster, and the names of this run of the tests."""

from __future__ import annotations

import os
from typing import Any

Object = dict[str, Any]

IMAGE = os.environ.get("DASKADE_TEST_IMAGE", "localhost/daskade-worker:test")
OTHER_IMAGE = os.environ.get("DASKADE_TEST_OTHER_IMAGE", "localhost/daskade-worker:other")
BARE_IMAGE = os.environ.get("DASKADE_TEST_BARE_IMAGE", "localhost/bare:test")
OPERATOR_IMAGE = os.environ.get("DASKADE_TEST_OPERATOR_IMAGE", "localhost/daskade:test")
S3_IMAGE = os.environ.get("DASKADE_TEST_S3_IMAGE", "localhost/s3:test")

# The operator of this run serves the namespaces with this label, and no others.
RUN = os.urandom(3).hex()
LABEL = "daskade.dev/test-run"
SYSTEM = f"daskade-system-{RUN}"

# Resources of a scheduler's or a worker's pod: several clusters fit on a node of two cores.
SMALL: Object = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
