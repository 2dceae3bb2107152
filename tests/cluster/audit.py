"""The API server's audit log as rights that were used, and roles as rights that are granted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from support.kube.settings import Object

# Every request of the accounts of a namespace, with what was asked and how it ended, and nothing else.
POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:%s"]
- level: None
"""


class Right(NamedTuple):
    """Where: `served`, `own` (the operator's namespace) or `cluster`."""

    where: str
    resource: str
    verb: str


def rights(where: str, text: str) -> set[Right]:
    """From a text like `pods: create delete; services: get`."""
    parts = [part.split(":") for part in text.split(";")]
    return {Right(where, resource.strip(), verb) for resource, verbs in parts for verb in verbs.split()}


def lines(log: Path) -> list[str]:
    """Those that are complete."""
    return log.read_text().split("\n")[:-1]


def used(log: Path, own: str, begin: int = 0) -> set[Right]:
    """Rights that requests made use of, from a line on, without those that were refused."""
    found = set()
    for line in lines(log)[begin:]:
        found |= used_by(json.loads(line), own)
    return found


def used_by(event: Object, own: str) -> set[Right]:
    """The rights of one request."""
    about, status = event.get("objectRef"), event.get("responseStatus", {}).get("code", 0)
    # Versions and groups of the API are everybody's.
    if about is None or status in (401, 403):
        return set()
    resource = about["resource"] + (f"/{about['subresource']}" if "subresource" in about else "")
    space = about.get("namespace")
    where = "own" if space == own else "cluster" if resource == "namespaces" or not space else "served"
    # Objects of all namespaces are asked for at once.
    where = "served" if where == "cluster" and resource != "namespaces" else where
    found = {Right(where, resource, event["verb"])}
    # An apply of what is not there asks for the right to create, too.
    if event["verb"] == "patch" and status == 201:
        found.add(Right(where, resource, "create"))
    return found


def granted(objects: list[Object], name: str) -> set[Right]:
    """Every right of the operator's roles, one by one."""
    places = {("ClusterRole", name): "served", ("ClusterRole", f"{name}-namespaces"): "cluster", ("Role", name): "own"}
    places["Role", f"{name}-lease"] = "own"
    found = set()
    for role in objects:
        where = places.get((role["kind"], role["metadata"]["name"]))
        for rule in role.get("rules", []) if where else []:
            for resource in rule["resources"]:
                found |= {Right(str(where), resource, verb) for verb in rule["verbs"]}
    return found
