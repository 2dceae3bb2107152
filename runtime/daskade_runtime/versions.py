"""Which releases of ``distributed`` this runtime is run against.

Every release between the two ends is expected to work: the runtime uses only long-standing API. Releases
beyond the ends are refused by name before any step starts, since their failure mode is silent (a lost stream,
a closed worker).
"""

from __future__ import annotations

import re

#: Oldest and newest release of distributed that the tests run against, both inclusive.
OLDEST = (2023, 3, 2)
NEWEST = (2026, 8, 0)

#: Releases after the newest tested one within this year and month distance are accepted: patch releases of
#: it.
_NEWEST_MONTH = NEWEST[:2]


class UnsupportedDask(Exception):
    """The cluster runs a release of distributed outside the supported range."""


def text(version: tuple[int, int, int]) -> str:
    """``(2023, 3, 2)`` as people write it."""
    return ".".join(map(str, version))


def parse(version: str) -> tuple[int, int, int] | None:
    """``"2024.8.2+12.gabc"`` as ``(2024, 8, 2)``; None if it is no release number."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def check(version: str) -> None:
    """Raises ``UnsupportedDask`` with the supported range unless ``version`` lies in it."""
    release = parse(version)
    if release is None or release < OLDEST or release[:2] > _NEWEST_MONTH:
        raise UnsupportedDask(
            f"distributed {version} is not supported: daskade runs on {text(OLDEST)} to {text(NEWEST)}"
        )
