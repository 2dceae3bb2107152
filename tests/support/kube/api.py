"""The API server by kubectl and, for what is asked often, by a `kubectl proxy`."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import urllib.error
import urllib.request

from support.kube.settings import Object


def kubectl(*words: str, stdin: str | None = None, check: bool = True) -> str:
    """Runs kubectl; its output."""
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


class Proxy:
    """`kubectl proxy`: what is asked often is asked here, since a kubectl of its own each time costs too much."""

    def __init__(self) -> None:
        words = ["kubectl", "proxy", "--port=0"]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        self._port = int(said.rsplit(":", 1)[1])
        atexit.register(self._process.kill)

    def get(self, path: str) -> str | None:
        """The body, or none for what does not exist."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=60) as answer:
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise AssertionError(f"GET {path}: {error.code} {error.read()[:500]!r}") from error

    def create(self, path: str, made: Object, who: str) -> str:
        """Makes an object in the name of somebody, as a dry run; what the server says against it, or nothing."""
        headers = {"Content-Type": "application/json", "Impersonate-User": who}
        url = f"http://127.0.0.1:{self._port}{path}?dryRun=All"
        request = urllib.request.Request(url, json.dumps(made).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60):
                return ""
        except urllib.error.HTTPError as error:
            return str(error.read().decode(errors="replace")) or str(error)


@functools.cache
def proxy() -> Proxy:
    return Proxy()


# Paths of kinds in a namespace, by the names that these tests use.
KINDS = {
    **dict.fromkeys(("daskclusters", "pipelines", "pipelineruns"), "/apis/daskade.dev/v1alpha1"),
    "daskclusters.daskade.dev": "/apis/daskade.dev/v1alpha1",
    "daskclusters.kubernetes.dask.org": "/apis/kubernetes.dask.org/v1",
    "controllerrevisions": "/apis/apps/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "events": "/apis/events.k8s.io/v1",
    **dict.fromkeys(
        ("pods", "services", "secrets", "configmaps", "serviceaccounts", "resourcequotas", "limitranges"), "/api/v1"
    ),
    "persistentvolumeclaims": "/api/v1",
}


def path_of(namespace: str, kind: str) -> str:
    """Path of a kind, given in the singular or plural."""
    plural = {"dsk": "daskclusters", "networkpolicy": "networkpolicies"}.get(kind, kind)
    plural = plural if plural in KINDS else f"{plural}s"
    return f"{KINDS[plural]}/namespaces/{namespace}/{plural.split('.')[0]}"
