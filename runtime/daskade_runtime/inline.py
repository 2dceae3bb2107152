"""Steps with ``isolation: thread``: run in the worker's own thread, for code that is part of the image.

What is lost against a process: no memory bound, no code from the run's archive, no output of C code or child
processes, and a timeout or stop only takes effect at the next Python instruction.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import io
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from daskade_runtime import execute
from daskade_runtime.errors import StepFailure, describe
from daskade_runtime.logs import AttemptLog

if TYPE_CHECKING:
    from daskade_runtime.definitions import Run
    from daskade_runtime.worker import Attempt

_current: contextvars.ContextVar[AttemptLog | None] = contextvars.ContextVar("daskade_step", default=None)
_installed = threading.Lock()
_done: list[bool] = []


class StepInterrupted(BaseException):
    """Raised in a step's thread to stop it."""


def run_inline(
    run: Run,
    index: int,
    values: bytes | None,
    inputs: dict[str, Any],
    path: str,
    attempt: Attempt,
    lines: AttemptLog,
) -> dict[str, Any]:
    """Runs the attempt in this thread; the answer is as from a step process."""
    _install()
    step = run.step(index)
    timeout = step.get("timeout")
    thread = threading.get_ident()
    over = threading.Event()
    why: list[str] = []

    def interrupt(reason: str) -> None:
        if not over.is_set():
            why.append(reason)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread), ctypes.py_object(StepInterrupted)
            )

    timer = threading.Timer(timeout, interrupt, ["timeout"]) if timeout else None
    token = _current.set(lines)
    try:
        attempt.interrupt = functools.partial(interrupt, "stopped")
        if timer is not None:
            timer.daemon = True
            timer.start()
        given = execute.Inputs.from_message(inputs)
        return execute.run(run.definition(index), values, given, path)
    except StepFailure:
        raise
    except StepInterrupted:
        if why and why[0] == "timeout":
            raise StepFailure(
                "timeout", "Timeout", f"the step ran longer than its timeout of {timeout:g} s"
            ) from None
        raise StepFailure("stopped", "Stopped", "the step was stopped") from None
    except BaseException as exc:  # noqa: BLE001 - sys.exit and KeyboardInterrupt are the step's failures too
        record = describe(exc)
        raise StepFailure(record["class"], record["type"], record["message"], record["traceback"]) from None
    finally:
        over.set()
        attempt.interrupt = None
        if timer is not None:
            timer.cancel()
        _current.reset(token)


class _Router(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr: what a step writes goes to that step's log."""

    def __init__(self, original: Any, stream: str) -> None:
        self._original = original
        self._stream = stream

    def write(self, text: str) -> int:
        lines = _current.get()
        if lines is None:
            return int(self._original.write(text))
        lines.feed(self._stream, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        if _current.get() is None:
            self._original.flush()

    def fileno(self) -> int:
        return int(self._original.fileno())

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = _current.get()
        if lines is not None:
            try:
                lines.record(record.created, f"{record.levelname} {record.name}", self.format(record))
            except Exception:  # noqa: BLE001
                self.handleError(record)


def _install() -> None:
    """Once per process, on the first step of this kind: routes output by context, also of threads that a step
    starts.
    """
    with _installed:
        if _done:
            return
        _done.append(True)
        sys.stdout = _Router(sys.stdout, "stdout")
        sys.stderr = _Router(sys.stderr, "stderr")
        handler = _Handler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger().addHandler(handler)
        original = threading.Thread.start

        # A thread starts without its parent's context, and Python offers no hook to change that.
        def start(thread: threading.Thread) -> None:
            if _current.get() is not None:
                thread.run = functools.partial(contextvars.copy_context().run, thread.run)  # type: ignore[method-assign]
            original(thread)

        threading.Thread.start = start  # type: ignore[assignment, method-assign]
