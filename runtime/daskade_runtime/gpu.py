"""Which of a worker's devices an attempt may see."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence

_PATIENCE = 30.0


class Devices:
    """Hands out device ids; a request below one shares a device with others of its kind."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._free = dict.fromkeys(ids, 1.0)
        self._changed = threading.Condition()

    def take(self, amount: float) -> dict[str, float] | None:
        """Devices for ``amount``, or None when they do not come free in time (Dask counted them, so they
        should).
        """
        end = time.monotonic() + _PATIENCE
        with self._changed:
            while True:
                got = self._pick(amount)
                if got is not None:
                    for device, share in got.items():
                        self._free[device] -= share
                    return got
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def give(self, taken: Mapping[str, float]) -> None:
        with self._changed:
            for device, share in taken.items():
                self._free[device] = min(self._free[device] + share, 1.0)
            self._changed.notify_all()

    def _pick(self, amount: float) -> dict[str, float] | None:
        if amount < 1:
            fits = [d for d, free in self._free.items() if free + 1e-9 >= amount]
            return {min(fits, key=lambda d: self._free[d]): amount} if fits else None
        count = int(-(-amount // 1))
        whole = [d for d, free in self._free.items() if free > 1 - 1e-9]
        return dict.fromkeys(whole[:count], 1.0) if len(whole) >= count else None


def device_ids(resource: float, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The worker's own devices: what its environment names (indices, UUIDs, MIG ids), else 0..n-1."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and named not in ("", "all"):
        return _listed(named)
    # Kubernetes' device plugin names here what the container got. Images set it too, to words such as "all";
    # only ids say more than the count does: of several MIG devices, CUDA sees one unless it is told.
    given = _listed(environ.get("NVIDIA_VISIBLE_DEVICES", ""))
    if len(given) >= int(resource) > 0 and all(device.startswith(("GPU-", "MIG-")) for device in given):
        return given
    return [str(k) for k in range(int(resource))]


def shares_device(one: str | None, other: str | None) -> bool:
    """Whether two values of ``CUDA_VISIBLE_DEVICES`` have a device in common."""
    return not set(_listed(one or "")).isdisjoint(_listed(other or ""))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip() and part.strip() != "-1"]
