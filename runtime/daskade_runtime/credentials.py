"""Keys of the storage that stand in a folder of files, one per variable: a mounted Secret.

Kubernetes replaces the files when the Secret changes, all at once, by pointing the link ``..data`` elsewhere.
"""

from __future__ import annotations

import os

# Names the folder.
FOLDER = "DASKADE_CREDENTIALS"
_NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_NAMES = (*_NEEDED, "AWS_SESSION_TOKEN")


def mounted() -> dict[str, str] | None:
    """The keys as they are now, by variable; None where there is no folder with both that are needed."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    data = os.path.join(folder, "..data")
    # One version of the Secret: the link may be replaced between two files.
    folder = os.path.realpath(data) if os.path.islink(data) else folder
    found = {}
    for name in _NAMES:
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                # Pasted secrets end in newlines often enough.
                value = file.read().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if value:
            found[name] = value
    return found if all(name in found for name in _NEEDED) else None


# Variables that somebody has set to something else are theirs.
_FOLLOWED = [name for name, value in (mounted() or {}).items() if os.environ.get(name) == value]


def environ() -> dict[str, str]:
    """What the process's variables would be if it started now, as far as the Secret set them."""
    found = (mounted() or {}) if _FOLLOWED else {}
    return {name: value for name, value in found.items() if name in _FOLLOWED}
