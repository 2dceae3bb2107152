"""A run on a cluster, driven by a test over the wire."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from support.dask.wire import Conn, Follower


class Run:
    """Opened, submitted to, followed and closed by hand."""

    def __init__(
        self, address: str, storage: str, steps: list[dict[str, Any]], uid: str | None = None, **fields: Any
    ) -> None:
        self.address = address
        self.uid = uid or str(uuid.uuid4())
        spec = b'{"test": true}'
        code = fields.pop("code", None)
        self.tls = fields.pop("tls", None)
        self.request = {

                "run": self.uid,
                "name": "test",
                "spec": spec,
                "spec_digest": hashlib.sha256(spec).hexdigest()
            ,
            "storage": {"url": storage}, "code": code or {"digest": None, "zip": None},

                "steps": steps,
                "settings": {
                    "inline_max": 65536,
                    "cache_bytes": 1 << 28,
                    "log_cap": 1 << 20,
                    "tasks_per_slot": 2,
                }
            ,
            **fields,
        }
        self.conn = Conn(address, self.tls)
        self.epoch = 0
        self.cursor = 0
        self.snapshot: dict[str, Any] = {}

    def open(self, create: bool = True, epoch: int | None = None, **more: Any) -> Run:
        reply = self.conn.rpc("daskade-open", create=create, epoch=epoch, **self.request, **more)
        self.epoch, self.cursor, self.snapshot = reply["epoch"], reply["cursor"], reply["snapshot"]
        return self

    def follow(self, **options: Any) -> Follower:
        options = {"since": self.cursor, **options}
        return Follower(self.address, self.uid, self.epoch, **options)

    def rpc(self, op: str, **arguments: Any) -> Any:
        return self.conn.rpc(f"daskade-{op}", run=self.uid, epoch=self.epoch, **arguments)

    def submit(self, *items: Any) -> None:
        """Items ``(step, item, attempt=1, values=None, data=[], after=[], priority=0)`` as maps or short
        tuples.
        """
        full = []
        for item in items:
            m = (
                item
                if isinstance(item, dict)
                else dict(zip(("s", "i", "v", "data", "after", "a", "p"), item, strict=False))
            )
            full.append(
                [
                    m["s"],
                    m.get("i", -1),
                    m.get("a", 1),
                    m.get("p", 0),
                    m.get("v"),
                    m.get("data", []),
                    m.get("after", []),
                ]
            )
        self.rpc("submit", items=full)

    def close(self, state: str = "Succeeded") -> None:
        self.rpc("close", final={"state": state, "reason": "", "message": "", "results": {}})
