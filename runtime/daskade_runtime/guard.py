"""A small process that outlives its worker by a moment, to end the process groups of steps that still run.

The kernel ends a step process with its worker, but not what the step started: without this, a program that a
step runs would go on beside the worker that takes the dead one's place.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

# Reads "+pgid" and "-pgid" lines; at the end of its input, which is the end of the worker, it kills the rest.
_PROGRAM = """
import os
groups, rest = set(), b""
while True:
    data = os.read(0, 4096)
    if not data:
        break
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, 9)
    except OSError:
        pass
"""


class Guard:
    """Told of each step process. Thread-safe; without effect once it is closed or has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        self._write(b"+%d\n" % group)

    def remove(self, group: int) -> None:
        self._write(b"-%d\n" % group)

    def close(self) -> None:
        """Lets it go: it kills what it still knows."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def _write(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line)
