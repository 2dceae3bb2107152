"""One step attempt, inside whatever runs it: arguments from the template, the call, the output as bytes.

Used by the step process and by steps that run in the worker's own thread. No I/O with storage or the network
here: inputs are given as bytes or as files, outputs leave as bytes or as a file.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import importlib
import inspect
import linecache
import os
import sys
from typing import Any

from daskade_runtime import serialize, template
from daskade_runtime.errors import StepFailure, format_exception, short_paths, text_of

# Input descriptors: (serializer, bytes | None, path | None, offset, length, container length | None, offsets
# | None).
Descriptor = tuple[Any, ...]


class Inputs:
    """The inputs of one attempt: outputs by (step, item), whole steps by step, container elements by (step,
    item, index).
    """

    def __init__(
        self,
        outputs: dict[tuple[int, int], Descriptor],
        whole: dict[int, list[Descriptor | None]],
        elements: dict[tuple[int, int, int], Descriptor],
        files: list[tuple[Descriptor, str]] | None = None,
        taken: tuple[Descriptor, str] | None = None,
    ) -> None:
        self.outputs = outputs
        self.whole = whole
        self.elements = elements
        #: Objects that the step reads, with their paths.
        self.files = files or []
        #: What is its output in place of what a call would give.
        self.taken = taken

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Inputs:
        """The inputs as the worker sends them: lists under ``h``, ``all``, ``e`` and ``files``; ``taken``."""
        taken = message.get("taken")
        return cls(
            {(step, item): tuple(d) for step, item, d in message["h"]},
            {step: [d and tuple(d) for d in items] for step, items in message["all"]},
            {(step, item, k): tuple(d) for step, item, k, d in message["e"]},
            [(tuple(d), path) for d, path in message.get("files") or ()],
            taken and (tuple(taken[0]), taken[1]),
        )

    def resolve(self, ref: tuple[Any, ...], values: list[Any] | None) -> Any:
        kind = ref[0]
        if kind == template.VALUE:
            if values is None or not 0 <= ref[1] < len(values):
                raise StepFailure(
                    "data",
                    "BadTemplate",
                    f"the step's arguments name the value {ref[1]}, which was not given",
                )
            return values[ref[1]]
        if kind == template.OUTPUT:
            step, item, path = ref[1], ref[2], ref[3] if len(ref) > 3 else ()
            value = read(self._find(self.outputs, (step, item)))
            return template.walk(value, path, "the upstream output") if path else value
        if kind == template.OBJECT:
            if not 0 <= ref[1] < len(self.files):
                raise StepFailure("infra", "MissingInput", f"the input {ref[1]} was not sent")
            return read_object(*self.files[ref[1]])
        if kind == template.ELEMENT:
            step, item, index = ref[1], ref[2], ref[3]
            if (step, item, index) in self.elements:
                return read(self.elements[step, item, index])
            descriptor = self._find(self.outputs, (step, item))
            if descriptor[5] is None:
                return template.walk(read(descriptor), (index,), "the upstream output")
            return read(element(descriptor, index))
        return self._all(ref[1], ref[2] if len(ref) > 2 else template.HOLES)

    def _all(self, step: int, mode: int) -> list[Any]:
        if step not in self.whole:
            raise StepFailure("infra", "MissingInput", f"the inputs of step {step} were not sent")
        items = [None if descriptor is None else (read(descriptor),) for descriptor in self.whole[step]]
        if mode == template.HOLES:
            return [None if item is None else item[0] for item in items]
        present = [item[0] for item in items if item is not None]
        if mode == template.DROPPED:
            return present
        flat: list[Any] = []
        for index, value in enumerate(present):
            if not isinstance(value, (list, tuple)):
                kind = type(value).__name__
                raise StepFailure(
                    "data", "TypeMismatch", f"flattening needs lists, but item {index} is of type {kind}"
                )
            flat.extend(value)
        return flat

    @staticmethod
    def _find(known: dict[tuple[int, int], Descriptor], task: tuple[int, int]) -> Descriptor:
        try:
            return known[task]
        except KeyError:
            raise StepFailure("infra", "MissingInput", f"the input {task} was not sent") from None


def element(descriptor: Descriptor, index: int) -> Descriptor:
    """The descriptor of one element of a container, by its range."""
    serializer, data, path, offset, _, n, offsets = descriptor
    if not 0 <= index < n:
        raise StepFailure(
            "data", "NoSuchKey", f"the upstream list has {n} elements, there is no element {index}"
        )
    start, length = serialize.bounds(offsets, index)
    return (serializer, data, path, offset + start, length, None, None)


def read(descriptor: Descriptor) -> Any:
    """The value behind a descriptor, as a fresh copy."""
    serializer, data, path, offset, length, n, offsets = descriptor
    try:
        if n is not None:
            if data is None:
                with open(path, "rb") as file:
                    file.seek(offset)
                    data = file.read(length)
                offset = 0
            return serialize.load_container(
                serializer, memoryview(data)[offset : offset + length], n, offsets
            )
        if data is None:
            with open(path, "rb") as file:
                file.seek(offset)
                return serialize.load(serializer, file)
        if length == len(data):
            return serialize.load(serializer, data)
        return serialize.load(serializer, memoryview(data)[offset : offset + length])
    except (StepFailure, MemoryError):
        raise
    except BaseException as exc:
        message = f"an input ({serializer}) cannot be read: {type(exc).__name__}: {text_of(exc)}"
        raise StepFailure("app", "InputUnreadable", message, format_exception(exc)) from exc


def read_object(descriptor: Descriptor, path: str) -> Any:
    """The value of an object that the step names; others wrote it, so it may be anything."""
    try:
        return read(descriptor)
    except StepFailure as exc:
        form = descriptor[0]
        cause = exc.message.partition("cannot be read: ")[2] or exc.message
        message = f"{path} cannot be read as {form}: {cause}; correct it, or the serializer of the step"
        raise StepFailure("data", "InputUnreadable", message, exc.traceback) from exc


class Definition:
    """One step of a run as the executing side keeps it: resolved on first use, then reused for every item."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.name: str = fields["name"]
        self.call: str | None = fields.get("call")
        self.script: str | None = fields.get("script")
        self.args: bytes = fields["args"]
        self.serializer: str = fields.get("serializer") or "pickle"
        self.container: bool = bool(fields.get("container"))
        self.lens: list[Any] = list(fields.get("lens") or ())
        self.result: int = fields.get("result") or 0
        self.inline_max: int = fields.get("inline_max", 65536)
        #: The output is also kept as one object.
        self.kept: bool = bool(fields.get("kept"))
        self._target: Any = None

    def target(self) -> Any:
        """The callable, or the compiled script."""
        if self._target is None:
            self._target = (
                self._compile() if self.script is not None else import_target(self.call or "", self.name)
            )
        return self._target

    def _compile(self) -> Any:
        source = self.script or ""
        filename = f"<script of step {self.name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        return compile(source, filename, "exec")


def _place(folder: str) -> str:
    return repr(folder) if short_paths(folder + os.sep) else "the run's code"


def import_target(call: str, step: str) -> Any:
    """The object that ``module:name`` means, or a failure that says what was looked for and where."""
    module_name, _, path = call.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        head = ", ".join(_place(p) for p in sys.path[:6])
        if module_name == missing or module_name.startswith(missing + "."):
            message = f"step {step} calls {call}, but there is no module {missing!r}; looked in {head}"
            raise StepFailure("app", "ImportError", message) from exc
        message = (
            f"step {step} calls {call}, which imports {missing!r}: there is no such module; looked in {head}"
        )
        raise StepFailure("app", "ImportError", message, format_exception(exc)) from exc
    except ImportError as exc:
        message = f"step {step} calls {call}: {text_of(exc)}"
        raise StepFailure("app", "ImportError", message, format_exception(exc)) from exc
    target: Any = module
    for name in path.split("."):
        if not hasattr(target, name):
            known = difflib.get_close_matches(name, [n for n in dir(target) if not n.startswith("_")], 1)
            hint = f"; did you mean {known[0]!r}?" if known else ""
            where = short_paths(getattr(module, "__file__", None) or "built in")
            message = f"step {step} calls {call}, but {module_name} ({where}) has no {name!r}{hint}"
            raise StepFailure("app", "ImportError", message)
        target = getattr(target, name)
    if not callable(target):
        raise StepFailure(
            "app",
            "ImportError",
            f"step {step} calls {call}, which is a {type(target).__name__}, not a function",
        )
    return target


def run(definition: Definition, values: bytes | None, inputs: Inputs, path: str) -> dict[str, Any]:
    """Runs the attempt. The answer is the output's map; raises whatever the step raises.

    ``path`` is where an output goes that is too large to travel inline.
    """
    value = _call(definition, values, inputs) if inputs.taken is None else read_object(*inputs.taken)
    lens = [_length(definition, value, where) for where in definition.lens] if definition.lens else None
    json = serialize.result_of(value, definition.result == 2) if definition.result else None
    out = serialize.dump(value, definition.serializer, definition.container, definition.inline_max, path)
    answer: dict[str, Any] = {
        "s": out.serializer,
        "z": out.size,
        "d": out.digest,
        "b": out.data,
        "path": out.path,
    }
    if out.n is not None:
        answer.update(n=out.n, x=out.offsets, m=out.digests)
    if lens is not None:
        answer["lens"] = lens
    if json is not None:
        answer["json"] = json
    if definition.kept and definition.container and inputs.taken is None:
        # Elements one after the other are no file that anything else reads.
        one = serialize.dump(value, definition.serializer, False, definition.inline_max, f"{path}-whole")
        answer["whole"] = {"z": one.size, "d": one.digest, "b": one.data, "path": one.path}
    return answer


def _call(definition: Definition, values: bytes | None, inputs: Inputs) -> Any:
    given = None
    if values is not None:
        given = template.decode(values, functools.partial(_resolve, inputs, None))
    target = definition.target()
    arguments = template.decode(definition.args, functools.partial(_resolve, inputs, given))
    positional, keywords = arguments if len(arguments) == 2 else (arguments, {})
    if definition.script is not None:
        return _run_script(target, positional, keywords)
    value = target(*positional, **keywords)
    return asyncio.run(_await(value)) if inspect.isawaitable(value) else value


def _resolve(inputs: Inputs, values: list[Any] | None, ref: tuple[Any, ...]) -> Any:
    return inputs.resolve(ref, values)


def _run_script(code: Any, positional: Any, keywords: Any) -> Any:
    scope: dict[str, Any] = {"__name__": "__main__", "args": list(positional)}
    scope.update(keywords)
    exec(code, scope)
    value = scope.get("output")
    return asyncio.run(_await(value)) if inspect.iscoroutine(value) else value


async def _await(value: Any) -> Any:
    return await value


def _length(definition: Definition, value: Any, where: Any) -> int:
    found = template.walk(value, where, "the output") if where else value
    if not isinstance(found, (list, tuple)):
        place = "the output" + "".join(f"[{k!r}]" for k in where)
        kind = type(found).__name__
        message = f"{place} of step {definition.name} is mapped over and must be a list, not of type {kind}"
        raise StepFailure("data", "TypeMismatch", message)
    return len(found)
