"""The parent of a step's process, which ends all that the step has started once that process has ended.

A program that a step starts can leave the step's session and process group, and lose its parent: a daemon does
all of that. The kernel hands such orphans to the nearest ancestor that has asked for them. That is the keeper:
nothing below it can get away from it, and nothing else is ever below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from typing import Any

from daskade_runtime.memory import descendants

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# How often what is left is told to end, and the seconds in between. What the kernel cannot end at once (it waits
# for a device, say) ends when it can.
_SWEEPS, _PAUSE = 250, 0.002


def keep(libc: Any, parent: int, fds: list[int]) -> None:
    """Returns in a new process, which is to be the step's; ``fds`` are its alone. The one that calls becomes its
    keeper: it ends as the step's process did, or with its own parent.
    """
    keeper = os.getpid()
    told: list[bool] = []

    def end(*_: Any) -> None:
        told.append(True)
        _kill_below(keeper)

    signal.signal(signal.SIGTERM, end)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
    # The kernel sends it when the thread ends that made this process.
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != parent:
        os._exit(1)  # it had died before
    step = os.fork()
    if step == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != keeper:
            os._exit(1)
        return
    for fd in fds:
        os.close(fd)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    if told:
        _kill_below(keeper)
    _exit_like(_watch(step))


def _watch(step: int) -> int:
    """Reaps orphans until the step's process has ended, and ends what it leaves; its exit code as in
    ``Popen.returncode``.
    """
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) is not None and ended.si_pid != step:
        os.waitpid(ended.si_pid, 0)
    with contextlib.suppress(OSError):
        os.killpg(step, signal.SIGKILL)  # not reaped yet: the group is still this one
    code = os.waitstatus_to_exitcode(os.waitpid(step, 0)[1])
    for _ in range(_SWEEPS):
        _kill_below(os.getpid())
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(_PAUSE)
    return code


def _kill_below(pid: int) -> None:
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _exit_like(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)
