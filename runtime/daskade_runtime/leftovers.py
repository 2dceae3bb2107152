"""Temporary files in a folder store that their writers, which were killed, have left behind.

The name of a temporary file tells the run and the epoch of who writes it. Nothing is removed that somebody may
still be writing: only what belongs to the same run and to an epoch that is over, or is older than a day.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable

PREFIX = ".tmp-"
OLD = 24 * 3600.0
_OWNED = re.compile(re.escape(PREFIX) + r"(?P<run>[^@]+)@(?P<epoch>\d{1,19})-")

#: A run, and the epoch under which it was opened where it is open.
Owner = tuple[str, int]


def name(owner: Owner | None) -> str:
    """A name that no other writer takes."""
    mark = f"{owner[0]}@{owner[1]}-" if owner is not None else ""
    return f"{PREFIX}{mark}{os.getpid()}-{secrets.token_hex(8)}"


def clean(folder: str, owner: Owner) -> None:
    """Removes what is left in one folder: of the owner's run from before its epoch, and what is old. Never raises."""
    run, epoch = owner
    _remove(folder, lambda of, at: of == run and at < epoch)


def clean_below(folder: str, upto: Owner | None) -> None:
    """As ``clean`` in a folder of a run and all that are in it, where the epoch ``upto`` is over, too; None: all
    are, and nothing is written there any more. Folders that are empty then go. Never raises.
    """
    for path, _, _ in os.walk(folder, topdown=False):
        gone = _remove(path, lambda of, at: upto is not None and of == upto[0] and at <= upto[1], upto is None)
        if gone or upto is None:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _remove(folder: str, over: Callable[[str, int], bool], anyone: bool = False) -> bool:
    """Whether something was removed."""
    gone = False
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            with contextlib.suppress(OSError):
                owned = _OWNED.match(entry.name)
                known = owned is not None and over(owned["run"], int(owned["epoch"]))
                if anyone or known or time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD:
                    os.unlink(entry.path)
                    gone = True
    return gone
