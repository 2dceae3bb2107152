"""Steps in processes of a real pool, without Dask."""

from __future__ import annotations

import pickle
import textwrap
import time
from pathlib import Path
from typing import Any

from daskade_runtime import channel
from daskade_runtime.pool import Pool
from support import RUNTIME
from support.dask.steps import args


class Lines:
    """Collects what an attempt writes."""

    def __init__(self) -> None:
        self.raw: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self.records: list[tuple[str, str]] = []

    def feed(self, stream: str, data: bytes) -> None:
        self.raw[stream] += data

    def record(self, at: float, level: str, text: str) -> None:
        assert abs(at - time.time()) < 60
        self.records.append((level, text))


class Runner:
    """Runs scripts as steps, the way the worker does."""

    def __init__(self, directory: Path, limit: int = 2) -> None:
        self.directory = directory
        self.pool = Pool(limit, str(RUNTIME), str(directory))
        self.count = 0

    def start(self, kind: Any = "k", env: dict[str, str] | None = None) -> Any:
        env = env or {}
        return self.pool.acquire((kind, tuple(env.items())), lambda: {"env": env, "path": []}, env)

    def ask(
        self, child: Any, script: str, sink: Any = None, timeout: Any = None, memory: Any = None, **more: Any
    ) -> Any:
        self.count += 1
        key = f"step{self.count}"
        definition = {"name": key, "script": textwrap.dedent(script), "args": args(), **more}
        path = str(self.directory / key)
        request: dict[str, Any] = {"def": key, "env": {}, "v": None, "h": [], "all": [], "e": [], "path": path}
        data = channel.frame(["define", key, definition]) + channel.frame(["run", request])
        return child.exchange(data, sink or Lines(), timeout, memory)

    def run(self, script: str, sink: Any = None, kind: Any = "k", **more: Any) -> Any:
        child = self.start(kind)
        good = False
        try:
            answer = self.ask(child, script, sink, **more)
            good = True
            return answer
        finally:
            self.pool.release(child, good)

    def value(self, script: str, **more: Any) -> Any:
        kind, answer = self.run(script, **more)
        assert kind == "ok", answer
        return pickle.loads(answer["b"])
