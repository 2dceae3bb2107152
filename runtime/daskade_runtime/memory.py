"""What a step's processes are and hold, as the kernel tells."""

from __future__ import annotations

import os


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, as far as the kernel tells."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < 10_000:
        current = todo.pop()
        try:
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children") as file:
                    todo.extend(new := [int(p) for p in file.read().split()])
                    found.extend(new)
        except (OSError, ValueError):
            continue
    return found


def tree_memory(pid: int, exact: bool = False) -> int:
    """Bytes that all below ``pid`` hold for themselves (anonymous and shared memory, no mapped files).

    The quick form counts pages that forked processes share once for each of them; ``exact`` does not, but
    walks all maps.
    """
    return sum(_memory(each, exact) for each in descendants(pid))


def _memory(pid: int, exact: bool) -> int:
    fields = ("Pss_Anon:", "Pss_Shmem:") if exact else ("RssAnon:", "RssShmem:")
    total = 0
    try:
        with open(f"/proc/{pid}/{'smaps_rollup' if exact else 'status'}") as file:
            for line in file:
                if line.startswith(fields):
                    total += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return _memory(pid, False) if exact else 0
    return total
