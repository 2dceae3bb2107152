"""Failures of a step as data: class, type, message and traceback, all bounded.

A failure that the runtime itself finds (an output that cannot be serialised, a map over something that is no
list) is raised as :class:`StepFailure`; everything else that user code raises goes through :func:`describe`.
"""

from __future__ import annotations

import os
import traceback
from types import TracebackType
from typing import Any

MESSAGE_CAP = 4096
TRACEBACK_CAP = 16384
CHAIN_CAP = 5
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Where this process has the run's code; the folder is the worker's own and says nothing to people.
_code_folder = ""


class StepFailure(Exception):
    """A failure with a known class (``app``, ``oom``, ``timeout``, ``data``, ``infra``, ``stopped``) and type
    name.
    """

    def __init__(self, class_: str, type_: str, message: str, traceback_: str = "") -> None:
        super().__init__(message)
        self.class_ = class_
        self.type_ = type_
        self.message = cap(message, MESSAGE_CAP)
        self.traceback = traceback_

    def record(self) -> dict[str, Any]:
        """The failure as the map that goes over the wire."""
        return {
            "class": self.class_,
            "type": self.type_,
            "message": self.message,
            "traceback": self.traceback,
        }


def code_is_in(folder: str) -> None:
    """From now on files below ``folder`` are named as they are in the run's code."""
    global _code_folder
    _code_folder = folder.rstrip(os.sep) + os.sep


def short_paths(text: str) -> str:
    """``text`` with files of the run's code named as they are there."""
    return text.replace(_code_folder, "") if _code_folder else text


def cap(text: str, limit: int) -> str:
    """``text``, at most ``limit`` bytes of UTF-8: head and tail stay, a note says what went."""
    # A text has at most four bytes per character: cutting first keeps a 100 MB message cheap.
    total = len(text)
    if total > limit:
        text = text[: limit // 2] + text[-(limit // 2) :]
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit and total <= limit:
        return raw.decode("utf-8")
    note = f" … [{total} characters, shortened] … ".encode()
    half = max((limit - len(note)) // 2, 0)
    return (raw[:half] + note + raw[len(raw) - half :]).decode("utf-8", "ignore")


def text_of(exc: BaseException) -> str:
    """``str(exc)``, also when that raises; bounded."""
    try:
        return cap(str(exc), MESSAGE_CAP)
    except BaseException as inner:  # noqa: BLE001 - user code: __str__ may raise anything
        return f"<its text could not be made: {type(inner).__name__}>"


def type_name(exc: BaseException) -> str:
    """Name of the exception's type, with the module unless it is a builtin or the script's own."""
    kind = type(exc)
    module = getattr(kind, "__module__", "")
    name = getattr(kind, "__qualname__", None) or kind.__name__
    full = name if module in ("builtins", "__main__", "") else f"{module}.{name}"
    return cap(str(full), 256)


def user_frames(tb: TracebackType | None) -> TracebackType | None:
    """The traceback behind the last frame that is the runtime's own; None when nothing is."""
    start = tb
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith(_OWN):
            start = tb.tb_next
        tb = tb.tb_next
    return start


def format_exception(exc: BaseException) -> str:
    """The traceback text with its causes, oldest first, starting at user code."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = exc
    link = ""
    while current is not None and id(current) not in seen and len(seen) < CHAIN_CAP:
        seen.add(id(current))
        parts.append(_format_one(current) + link)
        if current.__cause__ is not None:
            current, link = current.__cause__, "\nThe above exception was the direct cause of:\n\n"
        elif current.__context__ is not None and not current.__suppress_context__:
            current, link = (
                current.__context__,
                "\nDuring handling of the above exception, another one occurred:\n\n",
            )
        else:
            current = None
    return cap(short_paths("".join(reversed(parts))), TRACEBACK_CAP)


def _format_one(exc: BaseException) -> str:
    frames = user_frames(exc.__traceback__)
    text = ""
    if frames is not None:
        try:
            text = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(frames))
        except Exception:  # noqa: BLE001 - a broken linecache or loader must not hide the failure
            text = "Traceback could not be made\n"
    if isinstance(exc, SyntaxError):
        try:
            return text + "".join(traceback.format_exception_only(type(exc), exc))
        except Exception:  # noqa: BLE001
            pass
    message = text_of(exc)
    text += type_name(exc) + (f": {message}" if message else "") + "\n"
    inner = getattr(exc, "exceptions", None)
    if isinstance(inner, (list, tuple)):
        text += "".join(
            f"  | {type_name(e)}: {text_of(e)}\n" for e in inner[:20] if isinstance(e, BaseException)
        )
    return text


def describe(exc: BaseException) -> dict[str, Any]:
    """Any exception as the map that goes over the wire; never raises, never large."""
    if isinstance(exc, StepFailure):
        return exc.record()
    message = f"the step called sys.exit({cap(repr(exc.code), 200)})" if isinstance(exc, SystemExit) else text_of(exc)
    try:
        trace = format_exception(exc)
    except Exception:  # noqa: BLE001
        trace = ""
    return {"class": "app", "type": type_name(exc), "message": message, "traceback": trace}
