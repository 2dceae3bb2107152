"""The admission policies know every field by which an object names a Secret or a service account.

What they do with them is tried in tests/cluster/test_rights.py; a new field fails here first.
"""

from __future__ import annotations

from collections.abc import Iterator

from support import TOP
from support.charts import GOLDEN, Object, objects

CLUSTER = {
    "imagePullSecrets",
    "scheduler.env[].valueFrom.secretKeyRef",
    "scheduler.serviceAccountName",
    "scheduler.volumes[].secret",
    "storage.secretRef",
    "storage.serviceAccountName",
    "tls.secretRef",
    "workers[].env[].valueFrom.secretKeyRef",
    "workers[].serviceAccountName",
    "workers[].volumes[].secret",
}
PIPELINE = {f"cluster.template.{path}" for path in CLUSTER} | {
    "cluster.tls.secretRef",
    "storage.secretRef",
    "storage.serviceAccountName",
}
KNOWN = {"DaskCluster": CLUSTER, "Pipeline": PIPELINE, "PipelineRun": {f"pipelineSpec.{path}" for path in PIPELINE}}


def naming(schema: Object, path: str = "") -> Iterator[str]:
    """Fields whose name or text speaks of a Secret or a service account that is named there."""
    for name, field in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        text = field.get("description", "")
        if name == "serviceAccountToken":
            # Of the account as which the pod runs anyway.
            continue
        if any(word in name.lower() for word in ("secret", "serviceaccount")):
            yield at
            continue
        assert not text.startswith(("Name of a Secret", "Names of Secrets", "Service account")), at
        yield from naming(field, at)
        yield from naming(field.get("items", {}), f"{at}[]")


def test_every_field_that_names_a_secret_or_an_account_is_known_to_the_policies() -> None:
    for file in sorted((TOP / "crds").iterdir()):
        (definition,) = objects(file.read_text())
        kind = definition["spec"]["names"]["kind"]
        (version,) = definition["spec"]["versions"]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert set(naming(spec)) == KNOWN[kind], f"a field of {kind} is new: teach it to templates/policies.yaml"
    policy = (GOLDEN / "selector.yaml").read_text()
    for word in (
        "imagePullSecrets",
        "secretRef",
        "secretKeyRef",
        "?secret.",
        "serviceAccountName",
        "?tls.",
        "?storage.",
    ):
        assert word in policy, word
