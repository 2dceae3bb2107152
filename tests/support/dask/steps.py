"""Definitions of steps, their arguments and their code, as the driver writes them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Any

import msgpack


def ref(*fields: Any) -> msgpack.ExtType:
    """A reference in an argument template."""
    return msgpack.ExtType(1, msgpack.packb(list(fields)))


def args(*positional: Any, **keywords: Any) -> bytes:
    """An argument template."""
    packed: bytes = msgpack.packb([list(positional), keywords])
    return packed


def values(*items: Any) -> bytes:
    """The per-item values of a mapped step's item."""
    packed: bytes = msgpack.packb(list(items))
    return packed


def step(name: str = "s", call: str | None = None, template: bytes | None = None, **fields: Any) -> dict[str, Any]:
    """A step definition with defaults."""
    defaults: dict[str, Any] = {
        "name": name, "call": call, "script": None, "args": template or args(), "serializer": "pickle",
        "container": False, "lens": [], "result": 0, "resources": {}, "group": None, "gpu_ok": False,
        "isolation": "process", "timeout": None, "env": {},
    }  # fmt: skip
    return {**defaults, **fields}


def code(**files: str) -> dict[str, Any]:
    """An archive of modules; ``a__b`` is ``a/b.py``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, text in files.items():
            file.writestr(name.replace("__", "/") + ".py", text)
    data = out.getvalue()
    return {"digest": hashlib.sha256(data).hexdigest(), "zip": data}
