"""The charts as tests use them: a copy, with helm built by ``tests/chart/build`` on the PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from support import TOP

GOLDEN = TOP / "tests/chart/golden"
ARGOCD = TOP / "deploy/argocd/resource_customizations"
ARGOCD_PATCH = TOP / "deploy/argocd/argocd-cm.patch.yaml"
Object = dict[str, Any]


def check_file(path: Path, expected: str) -> None:
    """It is what it is made from; written again if that is asked for."""
    if os.environ.get("DASKADE_UPDATE"):
        path.write_text(expected)
    assert path.exists() and path.read_text() == expected, f"{path} is out of step: DASKADE_UPDATE=1 ./test chart"


class Charts:
    """A copy of ``charts``, its dependency built without a network, and a helm that knows nothing of this machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(TOP / "charts", folder / "charts")
        self.chart = folder / "charts/daskade"
        homes = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        # No proxy answers at this port: whatever asks the network fails.
        offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
        self.environment = {**os.environ, **homes}
        self.helm("dependency", "build", str(self.chart), environment={**self.environment, **offline})

    def helm(self, *words: str, check: bool = True, environment: dict[str, str] | None = None, stdin: str = "") -> str:
        done = subprocess.run(
            ["helm", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment or self.environment,
        )
        if check and done.returncode:
            raise AssertionError(f"helm {' '.join(words)}: {done.stderr}")
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def render(
        self,
        *options: str,
        values: Object | None = None,
        namespace: str = "daskade-system",
        check: bool = True,
        tests: bool = False,
    ) -> str:
        words = ["template", "daskade", str(self.chart), "-n", namespace, *options]
        words += [] if tests else ["--skip-tests"]
        words += ["-f", "-"] if values is not None else []
        return self.helm(*words, check=check, stdin=json.dumps(values or {}))


def objects(text: str) -> list[Object]:
    # Written in C where it can be had: the definitions are long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [found for found in yaml.load_all(text, Loader=loader) if found]


def leaves(values: Object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value by its path; a mapping without entries and a list are values."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        inner = leaves(value, (*path, key)) if isinstance(value, dict) and value else {(*path, key): value}
        found.update(inner)
    return found
