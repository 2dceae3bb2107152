"""The API server by kubectl and, for what is asked often, by a `kubectl proxy`."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import urllib.error
import urllib.request
from typing import Any

from support.kube.settings import Object


def kubectl(*words: str, stdin: str | None = None, check: bool = True) -> str:
    """Runs kubectl; its output."""
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


class Refused(AssertionError):
    """The API server's word against a request."""

    def __init__(self, what: str, status: int, body: str) -> None:
        super().__init__(f"{what}: {status} {_message(body)}")
        self.status, self.body = status, body


class Proxy:
    """`kubectl proxy`: what is asked often is asked here. A kubectl of its own each time costs a fifth of a second of CPU."""

    def __init__(self) -> None:
        words = ["kubectl", "proxy", "--port=0"]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        self._port = int(said.rsplit(":", 1)[1])
        atexit.register(self._process.kill)

    def ask(self, method: str, path: str, body: Object | None = None, kind: str = "application/json", who: str = "") -> str:
        """The body of the answer, or `Refused`. ``who`` asks, if not the administrator."""
        headers = {"Content-Type": kind, **({"Impersonate-User": who} if who else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            raise Refused(f"{method} {path}", error.code, error.read().decode(errors="replace")) from error

    def get(self, path: str) -> str | None:
        """The body, or none for what does not exist."""
        try:
            return self.ask("GET", path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, made: Object, who: str) -> str:
        """Makes an object in the name of somebody, as a dry run; what the server says against it, or nothing."""
        try:
            self.ask("POST", f"{path}?dryRun=All", made, who=who)
        except Refused as error:
            return error.body or str(error)
        return ""

    def put(self, path: str, made: Object) -> str:
        """Makes the object, or puts it in place of the one that is there; what was done. Unknown fields are refused."""
        strictly = "fieldValidation=Strict"
        for _ in range(10):
            try:
                self.ask("POST", f"{path}?{strictly}", made)
                return "created"
            except Refused as error:
                if error.status != 409:
                    raise
            there = f"{path}/{made['metadata']['name']}"
            found = json.loads(self.get(there) or "{}")
            if not found:
                continue
            meta = {**found["metadata"], **made["metadata"]}
            try:
                # Not its status, which is another resource.
                self.ask("PUT", f"{there}?{strictly}", {**made, "metadata": meta})
                return "configured"
            except Refused as error:
                # Somebody else has changed or deleted it meanwhile.
                if error.status not in (404, 409):
                    raise
        raise AssertionError(f"{path}: always changed by somebody else")

    def delete(self, path: str, grace: int | None = None) -> bool:
        """Asks for its end; whether it was there."""
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        try:
            self.ask("DELETE", path, body if grace is None else {**body, "gracePeriodSeconds": grace})
        except Refused as error:
            if error.status == 404:
                return False
            raise
        return True

    @functools.cache  # noqa: B019 - there is one of them in a process
    def resource(self, api: str, kind: str) -> tuple[str, bool]:
        """The plural of a kind, and whether its objects are in namespaces."""
        base = f"/api/{api}" if api == "v1" else f"/apis/{api}"
        for found in json.loads(self.ask("GET", base))["resources"]:
            if found["kind"] == kind and "/" not in found["name"]:
                return f"{base}/{{}}{found['name']}", found["namespaced"]
        raise AssertionError(f"{api} has no {kind}")

    def collection(self, made: Object, namespace: str) -> str:
        """Path of the objects of its kind."""
        path, namespaced = self.resource(made["apiVersion"], made["kind"])
        where = made["metadata"].get("namespace") or namespace
        return path.format(f"namespaces/{where}/" if namespaced else "")


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body


def apply(*objects: Object, namespace: str = "default") -> str:
    """Makes objects, or puts them in place of those that are there; what was done, for each a line."""
    lines = []
    for made in objects:
        given = without_nulls(made)
        lines.append(f"{made['kind']} {made['metadata']['name']} {proxy().put(proxy().collection(given, namespace), given)}")
    return "\n".join(lines)


def without_nulls(value: Any) -> Any:
    """A field that is null is one that is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


@functools.cache
def proxy() -> Proxy:
    return Proxy()


# Paths of kinds in a namespace, by the names that these tests use.
KINDS = {
    **dict.fromkeys(("daskclusters", "pipelines", "pipelineruns"), "/apis/daskade.dev/v1alpha1"),
    **dict.fromkeys(
        ("daskclusters.daskade.dev", "pipelines.daskade.dev", "pipelineruns.daskade.dev"), "/apis/daskade.dev/v1alpha1"
    ),
    "daskclusters.kubernetes.dask.org": "/apis/kubernetes.dask.org/v1",
    "controllerrevisions": "/apis/apps/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "events": "/apis/events.k8s.io/v1",
    **dict.fromkeys(
        ("pods", "services", "secrets", "configmaps", "serviceaccounts", "resourcequotas", "limitranges"), "/api/v1"
    ),
    "persistentvolumeclaims": "/api/v1",
    **dict.fromkeys(("roles", "rolebindings"), "/apis/rbac.authorization.k8s.io/v1"),
}


def path_of(namespace: str, kind: str) -> str:
    """Path of a kind, given in the singular or plural."""
    plural = {"dsk": "daskclusters", "dpr": "pipelineruns", "networkpolicy": "networkpolicies"}.get(kind, kind)
    plural = plural if plural in KINDS else f"{plural}s"
    return f"{KINDS[plural]}/namespaces/{namespace}/{plural.split('.')[0]}"
