"""Small results of steps as JSON text: in memory as long as there is room, else in the journal."""

from __future__ import annotations

from typing import Any, NamedTuple


class Away(NamedTuple):
    """A result that is not in memory: it is in this segment of the journal, and has so many bytes."""

    seg: int
    size: int


def size_of(json: Any) -> int:
    """Bytes of the JSON text of a result as a journal keeps it, wherever it is; 0 for none."""
    if json is None:
        return 0
    if isinstance(json, Away):
        return json.size
    return len(json) if isinstance(json, bytes) or json.isascii() else len(json.encode("utf-8", "replace"))
