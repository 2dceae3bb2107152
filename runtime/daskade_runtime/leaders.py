"""Which leader of an operator was heard last, about each run and about each DaskCluster.

An operator leads by a Lease, and its epoch counts how often that Lease has changed hands. So of two leaders of
one Lease the epochs say which is the older one. Epochs of two Leases say nothing about each other.

A leader of another Lease takes the place of the one heard last. The former one is over then, and so are those
before it: of its Lease only a later epoch is heard again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskade_runtime.run import Refused

# Runs, and DaskClusters, that are remembered. An open run always is.
KEPT = 10_000
# Leases that are remembered of each.
LEASES = 8
# Characters of a uid.
UID = 253
# For operators of older releases, which name neither Lease nor DaskCluster.
UNNAMED = ""


class Heard:
    """Leaders that were heard about one run or DaskCluster."""

    __slots__ = ("epochs",)

    def __init__(self) -> None:
        # Highest epoch by Lease. The Lease at the end was heard last.
        self.epochs: dict[str, int] = {}

    def refusal(self, lease: str | None, epoch: int) -> str | None:
        """Why the leader is stale, if it is. Without a Lease it counts as one of the Lease heard last."""
        last = next(reversed(self.epochs), None)
        if last is None:
            return None
        if lease is None or lease == last:
            known = self.epochs[last]
            return f"a newer leader, with epoch {known}, has taken over; this one has epoch {epoch}" if epoch < known else None
        known = self.epochs.get(lease, -1)
        if epoch > known:
            return None
        return f"a leader of another Lease has taken over since epoch {known}; this one has epoch {epoch}"

    def note(self, lease: str | None, epoch: int) -> None:
        """The leader, which is not stale, is the one heard last."""
        last = next(reversed(self.epochs), None)
        if lease is None:
            if last is not None and self.epochs[last] == epoch:
                return
            lease = UNNAMED
        self.epochs.pop(lease, None)
        self.epochs[lease] = epoch
        while len(self.epochs) > LEASES:
            del self.epochs[next(iter(self.epochs))]


class Leaders:
    """All that were heard; one per scheduler process. ``is_open`` says whether a run is open here."""

    def __init__(self, is_open: Callable[[str], bool]) -> None:
        self._is_open = is_open
        # Those heard of last are at the end.
        self._runs: dict[str, Heard] = {}
        self._clusters: dict[str, Heard] = {}

    def of_run(self, run: Any, lead: Any, lease: Any) -> None:
        """Refuses a stale leader of a run. Without an epoch it is no operator that asks."""
        if lead is not None:
            self._hear(self._runs, _uid("run", run), lead, lease)

    def of_cluster(self, cluster: Any, lead: Any, lease: Any) -> None:
        """Refuses a stale leader of a DaskCluster."""
        self._hear(self._clusters, self._named(cluster), lead, lease)

    def over(self, cluster: Any, lead: int, lease: Any) -> None:
        """Refuses a leader of a DaskCluster in whose place another one was heard meanwhile."""
        heard = self._clusters.get(self._named(cluster))
        why = heard.refusal(lease or None, lead) if heard is not None else None
        if why is not None:
            raise Refused("StaleLeader", why)

    def _named(self, cluster: Any) -> str:
        if not cluster:
            # The scheduler is of one DaskCluster, mostly.
            return next(reversed(self._clusters), UNNAMED)
        uid = _uid("cluster", cluster)
        if UNNAMED in self._clusters and uid not in self._clusters:
            self._clusters[uid] = self._clusters.pop(UNNAMED)
        return uid

    def _hear(self, known: dict[str, Heard], uid: str, lead: Any, lease: Any) -> None:
        if type(lead) is not int or lead < 0:
            raise Refused("BadRequest", "lead is a whole number")
        lease = _uid("lease", lease) if lease else None
        heard = known.get(uid) or Heard()
        why = heard.refusal(lease, lead)
        if why is not None:
            raise Refused("StaleLeader", why)
        heard.note(lease, lead)
        known.pop(uid, None)
        known[uid] = heard
        if len(known) > KEPT:
            oldest = next((one for one in known if not self._is_open(one)), None)
            if oldest is not None:
                del known[oldest]


def _uid(what: str, uid: Any) -> str:
    if type(uid) is not str or len(uid) > UID:
        raise Refused("BadRequest", f"{what} is a text of at most {UID} characters")
    return uid
