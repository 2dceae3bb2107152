"""Outputs to bytes and back, with everything that must be refused."""

from __future__ import annotations

import enum
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import limits, serialize
from daskade_runtime.errors import StepFailure


def dump(
    value: Any, path: Path, serializer: str = "pickle", container: bool = False, inline: int = 65536
) -> serialize.Output:
    return serialize.dump(value, serializer, container, inline, str(path / "out"))


def content(out: serialize.Output) -> bytes:
    if out.data is not None:
        return out.data
    assert out.path is not None
    return Path(out.path).read_bytes()


def refused(value: Any, path: Path, type_: str = "NotSerializable", **more: Any) -> str:
    (path / "out").unlink(missing_ok=True)
    with pytest.raises(StepFailure) as caught:
        dump(value, path, **more)
    assert (caught.value.class_, caught.value.type_) == ("data", type_)
    assert not (path / "out").exists()
    return caught.value.message


@pytest.mark.parametrize("inline", [0, 1 << 30])
@pytest.mark.parametrize("value", [None, 0, [], {"a": [1, (2,)]}, b"", b"x" * 300_000, "ä" * 100_000])
def test_pickle_round_trips_inline_and_through_a_file(tmp_path: Path, value: Any, inline: int) -> None:
    out = dump(value, tmp_path, inline=inline)
    data = content(out)
    assert serialize.load("pickle", data) == value
    assert (out.size, out.digest) == (len(data), hashlib.sha256(data).digest())
    assert (out.path is None) == (len(data) <= inline)


def test_functions_and_local_classes_fall_back_to_cloudpickle(tmp_path: Path) -> None:
    out = dump([1, lambda x: x + 1], tmp_path)
    assert serialize.load("pickle", content(out))[1](2) == 3
    assert out.digest == hashlib.sha256(content(out)).digest()


def test_what_no_pickler_takes_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("no way")

    message = refused([b"x" * 200_000, Stubborn()], tmp_path, inline=10)
    assert "RuntimeError: no way" in message
    refused([1, Stubborn()], tmp_path, container=True)
    refused((k for k in range(3)), tmp_path)


def test_a_container_holds_its_elements_apart(tmp_path: Path) -> None:
    values = [None, "a", [1] * 1000, b"x" * 100_000, lambda: 5]
    out = dump(values, tmp_path, container=True, inline=0)
    data = content(out)
    assert out.n == 5 and out.offsets is not None and out.digests is not None
    assert out.digest == hashlib.sha256(data).digest()
    for k in range(5):
        start, length = serialize.bounds(out.offsets, k)
        part = data[start : start + length]
        assert hashlib.sha256(part).digest() == out.digests[32 * k : 32 * k + 32]
        assert k == 4 or serialize.load("pickle", part) == values[k]
    loaded = serialize.load_container("pickle", data, 5, out.offsets)
    assert loaded[:4] == values[:4] and loaded[4]() == 5


def test_an_empty_container(tmp_path: Path) -> None:
    out = dump([], tmp_path, container=True)
    assert (out.n, out.size, out.offsets) == (0, 0, bytes(8))
    assert serialize.load_container("pickle", b"", 0, bytes(8)) == []


@pytest.mark.parametrize("value", [None, 5, "text", {"a": 1}, {1, 2}, iter([1])])
def test_a_container_must_be_a_list(tmp_path: Path, value: Any) -> None:
    assert "must be a list" in refused(value, tmp_path, "TypeMismatch", container=True)


def test_json_is_exact_or_refused(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü\u0000"], "b": {"c": -(2**63)}, "d": 2**64 - 1, "e": 0.1}
    assert serialize.load("json", content(dump(value, tmp_path, "json"))) == value
    for bad, word in [
        (math.nan, "nan"),
        ({"a": [math.inf]}, ".a[0] is inf"),
        (2**64, "beyond 64 bits"),
        ({1: 2}, "not a string"),
        ({"a": object()}, ".a is a object"),
        ("\ud800", "surrogate"),
        (b"bytes", "bytes"),
    ]:
        assert word in refused(bad, tmp_path, serializer="json")


def test_json_refuses_what_is_nested_without_end(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    for bad in (deep, loop):
        assert "deep" in refused(bad, tmp_path, serializer="json")


def test_a_deep_pickle_is_refused_not_a_crash(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    refused(deep, tmp_path)


def test_numpy_round_trips_and_refuses_objects(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    for value in (numpy.arange(12).reshape(3, 4), numpy.zeros(100_000), numpy.array(5.0)):
        out = dump(value, tmp_path, "numpy")
        assert (serialize.load("numpy", content(out)) == value).all()
        if out.path:
            with open(out.path, "rb") as file:
                assert (serialize.load("numpy", file) == value).all()
    refused([1, 2], tmp_path, serializer="numpy")
    refused(numpy.array([object()]), tmp_path, serializer="numpy")


def test_parquet_keeps_the_kind_of_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[5, 6])
    assert serialize.load("parquet", content(dump(frame, tmp_path, "parquet"))).equals(frame)
    table = pyarrow.table({"a": [1, 2]})
    assert serialize.load("parquet", content(dump(table, tmp_path, "parquet"))).equals(table)
    refused([1], tmp_path, serializer="parquet")
    refused(pandas.DataFrame({"a": [1, "x"]}), tmp_path, serializer="parquet")


def test_an_unknown_serializer_is_named(tmp_path: Path) -> None:
    assert "'yaml'" in refused(1, tmp_path, "UnknownSerializer", serializer="yaml")


def test_results_are_small_plain_data() -> None:
    class Colour(str, enum.Enum):
        RED = "red"

    assert serialize.result_of({"a": (1, 2), "c": Colour.RED}, True) == [{"a": [1, 2], "c": "red"}]
    assert serialize.result_of(None, False) == [None], "a result that is null is a result"
    assert serialize.result_of(object(), False) is None
    assert serialize.result_of("x" * 20_000, False) is None
    with pytest.raises(StepFailure) as caught:
        serialize.result_of({"a": object()}, True)
    assert (caught.value.class_, caught.value.type_) == ("data", "NotJson")
    with pytest.raises(StepFailure) as caught:
        serialize.result_of("x" * (limits.RESULT_JSON - 1), True)
    assert caught.value.type_ == "ResultTooLarge" and "16385 bytes" in caught.value.message
    assert serialize.result_of("x" * (limits.RESULT_JSON - 2), True)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_result_is_nested_as_deep_as_all_readers_take() -> None:
    deepest = nested(limits.RESULT_DEPTH)
    assert serialize.result_of(deepest, True) == [deepest]
    assert serialize.result_of([deepest], False) is None
    with pytest.raises(StepFailure, match=f"nested more than {limits.RESULT_DEPTH} deep") as caught:
        serialize.result_of({"a": deepest}, True)
    assert caught.value.class_ == "data"


def test_keys_of_a_result_are_text_that_can_be_written() -> None:
    with pytest.raises(StepFailure, match="a key of .a holds a lone surrogate") as caught:
        serialize.result_of({"a": {"\ud800": 1}}, True)
    assert caught.value.class_ == "data"


def test_a_mapped_over_output_has_as_many_elements_as_one_record_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialize, "MAPPED_ELEMENTS", 1000)
    assert dump([0] * 1000, tmp_path, container=True).n == 1000
    message = refused([0] * 1001, tmp_path, "TooManyElements", container=True)
    assert "1001 elements; at most 1000 are allowed" in message


def test_numpy_scalars_are_results() -> None:
    numpy = pytest.importorskip("numpy")
    value = {"a": numpy.int64(3), "b": numpy.float64(0.5), "c": numpy.bool_(True)}
    assert serialize.result_of(value, True) == [{"a": 3, "b": 0.5, "c": True}]


def test_a_full_disk_is_not_the_steps_fault(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(StepFailure) as caught:
        serialize.dump(b"x" * 100_000, "pickle", False, 10, str(tmp_path / "full"))
    assert (caught.value.class_, caught.value.type_) == ("infra", "DiskFull")


def test_a_writer_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    writer = serialize.Writer(4, str(tmp_path / "out"))
    writer.write(b"12345")
    assert os.path.exists(tmp_path / "out")
    writer.discard()
    assert not os.path.exists(tmp_path / "out")
