"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# For what a busy machine does at some time. Only a test that fails waits as long.
PATIENCE = 180.0


def until(what: str, probe: Callable[[], Any], patience: float = PATIENCE, every: float = 0.5) -> Any:
    """Waits until ``probe`` returns something true, and returns it.

    The pause between two probes is a tenth of the time waited so far, at most ``every``: a short wait ends at once, and a long
    one costs little.
    """
    began = time.monotonic()
    while True:
        found = probe()
        if found:
            return found
        waited = time.monotonic() - began
        if waited > patience:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        time.sleep(min(max(waited / 10, 0.01), every))
