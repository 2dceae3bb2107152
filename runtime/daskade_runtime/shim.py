"""``get_client`` and ``worker_client`` inside a step process: best effort, one client made on first use."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any


def install(address: str, security: dict[str, Any] | None) -> None:
    """Tells the process its scheduler. ``distributed`` is patched when (and only if) the step imports it."""
    os.environ.setdefault("DASK_SCHEDULER_ADDRESS", address)
    os.environ["DASK_SCHEDULER_ADDRESS"] = address
    if "distributed" in sys.modules:
        _patch(sys.modules["distributed"], address, security)
    else:
        sys.meta_path.insert(0, _Finder(address, security))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, address: str, security: dict[str, Any] | None) -> None:
        self._setup = (address, security)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "distributed":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader, setup = spec.loader, self._setup
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            original(module)
            _patch(module, *setup)

        # Patched in place, so that the module keeps its real `__loader__` and `__spec__`.
        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _patch(distributed: Any, address: str, security: dict[str, Any] | None) -> None:
    made: list[Any] = []

    def get_client(*args: Any, **kwargs: Any) -> Any:
        if not made:
            own = distributed.Security(**security) if security else None
            made.append(distributed.Client(address, security=own, set_as_default=True, name="daskade-step"))
        return made[0]

    @contextlib.contextmanager
    def worker_client(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield get_client()

    for name in ("distributed", "distributed.worker", "distributed.worker_client"):
        module: Any = sys.modules.get(name)
        for function in (get_client, worker_client):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
