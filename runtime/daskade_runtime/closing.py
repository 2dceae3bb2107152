"""The end of a run in its journal: what its results need beyond one record.

Results that are too large for the ``final`` record stand before it as ``result`` records, cut into parts of
JSON text. In ``final`` itself stands where they are, so a reader that knows no ``result`` record is still right.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from daskade_runtime.limits import CLOSING_RESULTS, FINAL_VALUES, RECORD_DEPTH
from daskade_runtime.records import is_plain

# Bytes of the results within the ``final`` record, as JSON.
INLINE = 1 << 20
# Characters of a part: each has four bytes at most.
PART = 256 << 10
# Values of results within that record, as many as a reader takes of all that a run ends with.
INLINE_VALUES = 200_000
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# What is within a result of ``final`` is within the record and the mapping of results too.
_DEPTH = RECORD_DEPTH - 2


def closing(final: dict[str, Any], where: str) -> list[list[Any]]:
    """The records that end a run, ``final`` as the last of them. ``where``: the URL of the journal."""
    results = final.get("results")
    if type(results) is not dict or not all(type(name) is str for name in results):
        return [["final", final]]
    records: list[list[Any]] = []
    kept: dict[str, Any] = {}
    room, values = INLINE, INLINE_VALUES
    for name, value in results.items():
        try:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):  # no JSON: refused as a record
            return [["final", final]]
        size, count = _size(text), _values(text)
        if size <= room and count <= values and is_plain(value, _DEPTH, True):
            room -= size
            values -= count
            kept[name] = value
            continue
        kept[name] = {"uri": where, "size": size, "serializer": "json"}
        records += (["result", name, *part] for part in _parts(text))
    return [*records, ["final", {**final, "results": kept}]]


def _parts(text: str) -> Iterator[tuple[int, int, str]]:
    """Index, number of all, and text of each part."""
    count = -(-len(text) // PART)
    for index in range(count):
        yield index, count, text[index * PART : (index + 1) * PART]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _values(text: str) -> int:
    """No fewer values than the JSON text has: what begins or separates them, outside of texts."""
    bare = _TEXT.sub("", text)
    return 1 + sum(bare.count(sign) for sign in ",:[{")


class Parts:
    """Results of a run that is about to end, as far as their records have come."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._room = CLOSING_RESULTS

    def add(self, name: str, index: int, count: int, text: str) -> None:
        """The next part; what is more than a run can end with, or out of order, is left out."""
        if index == 0:
            self._drop(name)
            self._texts[name], self._counts[name] = [], count
        texts = self._texts.get(name)
        if texts is None or len(texts) != index or self._counts[name] != count or _size(text) > self._room:
            self._drop(name)
            return
        self._room -= _size(text)
        texts.append(text)

    def _drop(self, name: str) -> None:
        self._room += sum(map(_size, self._texts.pop(name, ())))

    def _whole(self) -> Iterator[tuple[str, str]]:
        """Name and JSON text of each result all parts of which have come."""
        for name, texts in self._texts.items():
            if len(texts) == self._counts[name]:
                yield name, "".join(texts)

    def into(self, final: dict[str, Any]) -> dict[str, Any]:
        """``final`` with these results in their places."""
        results = final.get("results")
        if not self._texts or type(results) is not dict:
            return final
        whole, values = {}, FINAL_VALUES
        for name, text in self._whole():
            values -= _values(text)
            if name in results and values >= 0:
                with contextlib.suppress(ValueError, RecursionError):
                    whole[name] = json.loads(text)
        return {**final, "results": {**results, **whole}}
