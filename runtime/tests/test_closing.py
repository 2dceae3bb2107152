"""How a run ends in its journal, however large and deep its results are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import closing as closing_
from daskade_runtime.closing import INLINE, closing
from daskade_runtime.fold import fold
from daskade_runtime.journal import Journal, pack_record, read_all
from daskade_runtime.limits import CLOSING_RESULTS, FINAL_VALUES
from daskade_runtime.storage import Store, open_store

WHERE = "file:///store/runs/r/journal"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store({"url": f"file://{tmp_path}/store"})


def ended(store: Store, final: dict[str, Any]) -> Any:
    journal, _ = Journal.open(store, "r", None, True, {"spec": b"{}", "spec_digest": "aa"})
    journal.append(closing(final, WHERE))
    return read_all(store, "r").final


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_small_results_stand_in_the_record_itself() -> None:
    final = {"state": "Succeeded", "results": {"a": [1, {"b": None}], "c": "x"}}
    assert closing(final, WHERE) == [["final", final]]
    assert closing({"state": "Failed"}, WHERE) == [["final", {"state": "Failed"}]]


def test_a_run_ends_with_results_nested_deeper_than_a_record(store: Store) -> None:
    results = {"deep": nested(63), "deeper": nested(125), "flat": [1]}
    assert ended(store, {"state": "Succeeded", "results": results}) == {"state": "Succeeded", "results": results}


def test_a_run_ends_with_more_than_one_record_has_room_for(store: Store) -> None:
    results = {str(n): "ä" * (INLINE // 2) for n in range(20)}
    assert ended(store, {"state": "Succeeded", "results": results})["results"] == results
    records = closing({"state": "Succeeded", "results": results}, WHERE)
    assert max(len(pack_record(record)) for record in records) < INLINE + 1000


def test_who_does_not_know_parts_reads_where_a_result_is() -> None:
    large = "x" * (INLINE + 1)
    *_, last = closing({"state": "Succeeded", "results": {"large": large, "small": 1}}, WHERE)
    stub = {"uri": WHERE, "size": INLINE + 3, "serializer": "json"}
    assert last == ["final", {"state": "Succeeded", "results": {"large": stub, "small": 1}}]


@pytest.mark.parametrize(
    "large",
    [
        pytest.param({str(n): "x" * (8 << 20) for n in range(9)}, id="72 MiB"),
        pytest.param({"a": [0] * (FINAL_VALUES + 1)}, id="values"),
    ],
)
def test_a_run_that_ends_with_too_much_is_closed_and_can_be_read(store: Store, large: dict[str, Any]) -> None:
    final = ended(store, {"state": "Succeeded", "results": {"small": 1, **large}})
    assert (final["state"], final["results"]["small"]) == ("Succeeded", 1)
    left_out = {name for name, value in final["results"].items() if value != {"small": 1, **large}[name]}
    assert left_out and all(final["results"][name]["uri"] == WHERE for name in left_out)
    read = sum(len(json.dumps(value)) for value in final["results"].values())
    assert read <= CLOSING_RESULTS


def test_a_closing_that_did_not_come_to_its_end_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing_, "INLINE", 10)
    monkeypatch.setattr(closing_, "PART", 4)
    first = closing({"results": {"a": "x" * 20, "b": "y" * 20}}, WHERE)
    again = closing({"results": {"a": "z" * 20, "b": 1}}, WHERE)
    assert len(first) == 13 and len(again) == 7
    opened = ["opened", {"epoch": 1, "t": 1.0, "spec": None, "spec_digest": "aa", "code": None}]
    broken_off = [opened, *first[:9], *again]
    assert fold(broken_off).final == {"results": {"a": "z" * 20, "b": 1}}
    taken_over = [opened, *first[:-1], opened, again[-1]]
    assert fold(taken_over).final == again[-1][1], "parts of another opening are not taken"


def test_a_final_record_that_no_reader_takes_is_not_written() -> None:
    with pytest.raises(ValueError, match=f"more than {FINAL_VALUES} values"):
        pack_record(["final", {"results": [0] * FINAL_VALUES}])
