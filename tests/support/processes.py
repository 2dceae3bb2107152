"""What the kernel says about processes and ports: who belongs to a test, who is whose parent, who is alive, what is free."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

from support.waiting import until

MARK = "DASKADE_SURVIVAL_MARK"


def marked(mark: str) -> list[int]:
    """Live processes that carry the mark in their environment, whoever their parent is by now."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and alive(int(entry)):
                found.append(int(entry))
    return found


def describe(pid: int) -> str:
    """Number and command line of a process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = "(gone)"
    return f"{pid} {words[:160]}"


def alive(pid: int) -> bool:
    """True while the process exists and is not only waiting to be reaped."""
    fields = stat(pid)
    return fields is not None and fields[0] not in "ZX"


def stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or none if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def ancestors(pid: int) -> list[int]:
    """Parent, grandparent and so on."""
    found: list[int] = []
    while (fields := stat(pid)) is not None and (pid := int(fields[1])) > 1:
        found.append(pid)
    return found


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; false if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    """Kills a process, a child or not, and waits until it is gone."""
    send(pid, signal.SIGKILL)
    until(f"process {pid} is gone", lambda: not alive(pid))


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
