"""Argument templates and the execution of one attempt in this process."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgpack
import pytest

from daskade_runtime import execute, template
from daskade_runtime.errors import MESSAGE_CAP, TRACEBACK_CAP, StepFailure, cap, describe
from daskade_runtime.serialize import dump
from support.dask.steps import args, ref


def held(value: Any, container: bool = False) -> Any:
    out = dump(value, "pickle", container, 1 << 30, "/nonexistent")
    return ("pickle", out.data, None, 0, out.size, out.n, out.offsets)


def call(target: str | None, arguments: bytes, values: Any = None, inputs: Any = None, **more: Any) -> Any:
    definition = execute.Definition({"name": "s", "call": target, "args": arguments, **more})
    data = None if values is None else msgpack.packb(values)
    answer = execute.run(definition, data, inputs or execute.Inputs({}, {}, {}), "/nonexistent")
    return pickle.loads(answer["b"])


def failure(*arguments: Any, **more: Any) -> StepFailure:
    with pytest.raises(StepFailure) as caught:
        call(*arguments, **more)
    return caught.value


def same(*positional: Any, **keywords: Any) -> Any:
    return positional, keywords


def grow(values: list[int]) -> list[int]:
    values.append(9)
    return values


async def later(x: int) -> int:
    return x + 1


HERE = __name__


def test_plain_data_keeps_its_types() -> None:
    data = [None, True, 1, 2**63, -5, 0.1, "ü", b"raw", [1, [2]], {"a": {"b": 1}, "7": []}]
    assert call(f"{HERE}:same", args(*data, k=data)) == (tuple(data), {"k": data})


def test_references_stand_anywhere() -> None:
    inputs = execute.Inputs(
        {(0, -1): held({"a": [10, 20]}), (3, 2): held("item two")}, {1: [held(1), None, held(3)]}, {}
    )
    arguments = args({"deep": [ref(0, 0, -1, ["a", 1]), ref(2, 0)]}, k=[ref(1, 1, 0), ref(1, 1, 1)])
    values = [ref(0, 3, 2, [])]
    assert call(f"{HERE}:same", arguments, values, inputs) == (
        ({"deep": [20, "item two"]},),
        {"k": [[1, None, 3], [1, 3]]},
    )


def test_flattening_needs_lists() -> None:
    inputs = execute.Inputs({}, {0: [held([1, 2]), None, held([]), held((3,))], 1: [held([1]), held(5)]}, {})
    assert call("builtins:list", args(ref(1, 0, 2)), None, inputs) == [1, 2, 3]
    refused = failure("builtins:list", args(ref(1, 1, 2)), None, inputs)
    assert (refused.class_, refused.type_) == ("data", "TypeMismatch")
    assert "item 1" in refused.message


def test_elements_of_containers_are_read_by_range() -> None:
    inputs = execute.Inputs({(0, -1): held(["a", "b"], container=True)}, {}, {(5, -1, 7): held("far")})
    arguments = args(ref(3, 0, -1, 1), ref(3, 5, -1, 7), ref(0, 0, -1, []))
    assert call(f"{HERE}:same", arguments, None, inputs)[0] == ("b", "far", ["a", "b"])
    assert failure(f"{HERE}:same", args(ref(3, 0, -1, 2)), None, inputs).type_ == "NoSuchKey"
    plain = execute.Inputs({(0, -1): held(["a", "b"])}, {}, {})
    assert call(f"{HERE}:same", args(ref(3, 0, -1, 1)), None, plain)[0] == ("b",)


def test_inputs_are_copies() -> None:
    inputs = execute.Inputs({(0, -1): held([1])}, {}, {})
    for _ in range(2):
        assert call(f"{HERE}:grow", args(ref(0, 0, -1, [])), None, inputs) == [1, 9]
    both = call(f"{HERE}:same", args(ref(0, 0, -1, []), ref(0, 0, -1, [])), None, inputs)[0]
    assert both[0] is not both[1]


@pytest.mark.parametrize("path", [["b"], ["a", 5], ["a", "x"], [0]])
def test_a_path_that_is_not_there_is_named(path: list[Any]) -> None:
    inputs = execute.Inputs({(0, -1): held({"a": [1]})}, {}, {})
    refused = failure("builtins:list", args(ref(0, 0, -1, path)), None, inputs)
    assert (refused.class_, refused.type_) == ("data", "NoSuchKey")
    assert f"[{path[-1]!r}]" in refused.message


def test_a_path_also_reaches_attributes_of_an_output() -> None:
    import argparse

    inputs = execute.Inputs({(0, -1): held(argparse.Namespace(score=3))}, {}, {})
    assert call(f"{HERE}:same", args(ref(0, 0, -1, ["score"])), None, inputs)[0] == (3,)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        b"\x92\x90",
        msgpack.packb([[msgpack.ExtType(2, b"")], {}]),
        args(ref(9, 0)),
        args(ref(0)),
        b"\x91" * 5000,
    ],
)
def test_templates_that_make_no_sense_are_refused(bad: bytes) -> None:
    refused = failure("builtins:list", bad)
    assert (refused.class_, refused.type_) == ("data", "BadTemplate")


def test_a_value_that_was_not_given_is_refused() -> None:
    assert failure("builtins:list", args(ref(2, 1)), ["only one"]).type_ == "BadTemplate"
    assert failure("builtins:list", args(ref(2, 0))).type_ == "BadTemplate"
    assert failure("builtins:list", args(ref(2, 0)), [ref(2, 0)]).type_ == "BadTemplate"


def test_references_lists_them_all() -> None:
    found = template.references(args([ref(3, 1, -1, 4)], k={"x": ref(2, 0)}))
    assert found == [(3, 1, -1, 4), (2, 0)]
    assert template.references(None) == []


def test_async_functions_and_dotted_names() -> None:
    assert call(f"{HERE}:later", args(1)) == 2
    assert call("os:path.basename", args("/a/b")) == "b"


def test_scripts_see_their_arguments_and_give_their_result() -> None:
    source = "import math\nclass P: pass\noutput = [args, math.floor(x), __name__]"
    assert call(None, args(1, x=2.5), script=source) == [[1], 2, "__main__"]
    assert call(None, args(), script="pass") is None


def test_a_script_that_fails_shows_its_own_lines() -> None:
    definition = execute.Definition({"name": "s", "script": "x = 1\nraise KeyError('k')\n", "args": args()})
    with pytest.raises(KeyError) as caught:
        execute.run(definition, None, execute.Inputs({}, {}, {}), "")
    text = describe(caught.value)["traceback"]
    assert "raise KeyError('k')" in text and "line 2" in text and "execute.py" not in text
    with pytest.raises(SyntaxError) as broken:
        call(None, args(), script="x = = 1")
    assert "x = = 1" in describe(broken.value)["traceback"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module:f", ["no module 'no_such_module'", "looked in"]),
        ("os.nothing:f", ["os.nothing"]),
        ("json:dmups", ["has no 'dmups'", "did you mean 'dumps'"]),
        ("json:__name__", ["is a str, not a function"]),
        ("json:", ["has no ''"]),
    ],
)
def test_what_cannot_be_imported_is_explained(target: str, words: list[str]) -> None:
    refused = failure(target, args())
    assert (refused.class_, refused.type_) == ("app", "ImportError")
    for word in words:
        assert word in refused.message


def test_a_module_that_imports_something_missing_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfway.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = failure("halfway:f", args())
    assert "imports 'not_there'" in refused.message
    assert "halfway.py" in refused.traceback


def test_lengths_are_reported_and_checked() -> None:
    definition = execute.Definition(
        {"name": "s", "call": "builtins:dict", "args": args(a=[1, 2], b=5), "lens": [["a"], ["b"]]}
    )
    with pytest.raises(StepFailure) as caught:
        execute.run(definition, None, execute.Inputs({}, {}, {}), "")
    assert caught.value.type_ == "TypeMismatch" and "['b']" in caught.value.message
    definition.lens = [["a"]]
    assert execute.run(definition, None, execute.Inputs({}, {}, {}), "")["lens"] == [2]


def test_an_input_that_cannot_be_read_is_the_steps_failure() -> None:
    broken = execute.Inputs({(0, -1): ("pickle", b"\x80\x05cno\nsuch\n.", None, 0, 11, None, None)}, {}, {})
    refused = failure("builtins:list", args(ref(0, 0, -1, [])), None, broken)
    assert (refused.class_, refused.type_) == ("app", "InputUnreadable")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("never")


class Harsh(Exception):
    def __str__(self) -> str:
        raise SystemExit


def test_failures_are_always_text_and_never_large() -> None:
    for exc in (Mute(), Harsh()):
        assert "could not be made" in describe(exc)["message"]
    huge = describe(ValueError("x" * 100_000_000))
    assert len(huge["message"].encode()) <= MESSAGE_CAP and "100000000 characters" in huge["message"]
    assert len(huge["traceback"].encode()) <= TRACEBACK_CAP
    assert len(cap("ü" * 10_000, 4096).encode()) <= 4096
    assert cap("\ud800", 100) == "?"


def test_causes_are_told_in_order() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc
    except ValueError as exc:
        text = describe(exc)["traceback"]
    assert text.index("KeyError: 'first'") < text.index("direct cause") < text.index("ValueError: second")


def test_a_circle_of_causes_ends() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert describe(a)["traceback"].count("ValueError") == 2
