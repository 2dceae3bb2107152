"""Which operator a scheduler hears: the latest leader of a Lease, and no other one's epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import leaders
from daskade_runtime.leaders import Heard, Leaders
from daskade_runtime.run import Refused
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.steps import args, step
from support.dask.wire import RpcError

STEPS = [step("one", "operator:add", args(1, 2))]


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def heard(*told: tuple[str | None, int]) -> list[bool]:
    """Whether each of these leaders is heard about one run."""
    known, answers = Heard(), []
    for lease, epoch in told:
        answers.append(known.refusal(lease, epoch) is None)
        if answers[-1]:
            known.note(lease, epoch)
    return answers


def test_of_one_lease_an_older_leader_is_stale() -> None:
    assert heard(("a", 7), ("a", 7), ("a", 6), ("a", 8), ("a", 7)) == [True, True, False, True, False]


def test_a_leader_of_another_lease_takes_over_whatever_its_epoch_and_the_former_one_stays_stale() -> None:
    assert heard(("a", 50), ("b", 3), ("a", 50), ("a", 49), ("b", 3), ("b", 2)) == [
        *[True, True, False, False],
        *[True, False],
    ]
    # Moved back: the first Lease has changed hands since.
    assert heard(("a", 50), ("b", 3), ("a", 51), ("b", 3), ("b", 4)) == [True, True, True, False, True]


def test_operators_of_older_releases_name_no_lease_and_are_compared_with_the_one_heard_last() -> None:
    assert heard((None, 7), (None, 6), (None, 8)) == [True, False, True]
    # An upgrade, and back; the epochs are of one Lease.
    assert heard((None, 7), ("a", 8), (None, 7), (None, 9), ("a", 8), ("a", 10), (None, 9)) == [
        *[True, True, False, True],
        *[False, True, False],
    ]
    # Upgraded and moved at once: a former leader is no reason to refuse the new one.
    assert heard((None, 50), ("a", 3), ("a", 3)) == [True, True, True]


def test_runs_and_clusters_are_told_apart() -> None:
    known = Leaders(lambda _: False)
    known.of_run("r1", 50, "a")
    known.of_run("r2", 3, None)
    known.of_cluster("c1", 50, "a")
    known.of_cluster("c2", 3, "a")
    known.over("c2", 3, "a")
    for stale, uid in ((known.of_run, "r1"), (known.of_cluster, "c1")):
        with pytest.raises(Refused, match="newer leader, with epoch 50, has taken over; this one has epoch 49") as refused:
            stale(uid, 49, "a")
        assert refused.value.reason == "StaleLeader"
    # Who waits for news of a cluster hears that another one has it now.
    known.of_cluster("c2", 1, "b")
    with pytest.raises(Refused, match="a leader of another Lease has taken over since epoch 3"):
        known.over("c2", 3, "a")
    # Who names no cluster means that of the scheduler.
    with pytest.raises(Refused, match="newer leader, with epoch 1, has taken over; this one has epoch 0"):
        known.of_cluster(None, 0, None)


def test_an_upgraded_operator_is_later_than_the_one_that_named_no_cluster() -> None:
    known = Leaders(lambda _: False)
    known.of_cluster(None, 7, None)
    known.of_cluster("c", 8, "a")
    with pytest.raises(Refused, match="newer leader, with epoch 8, has taken over; this one has epoch 7"):
        known.of_cluster(None, 7, None)


def test_what_is_remembered_is_bounded_and_open_runs_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "KEPT", 10)
    known = Leaders(lambda run: run == "open")
    known.of_run("open", 7, "a")
    for n in range(100):
        known.of_run(f"r{n}", 1, "a")
        known.of_cluster(f"c{n}", 1, "a")
    assert (len(known._runs), len(known._clusters)) == (10, 10)
    with pytest.raises(Refused, match="has taken over"):
        known.of_run("open", 6, "a")
    for n in range(100):
        known.of_run("open", 1, f"lease{n}")
    assert len(known._runs["open"].epochs) == leaders.LEASES
    wrong: list[tuple[Any, Any, Any]] = [("r", 7.0, None), ("r", -1, None), ("r", 7, 1), ("r", 7, "l" * 1000), (1, 7, None)]
    for run, lead, lease in wrong:
        with pytest.raises(Refused) as refused:
            known.of_run(run, lead, lease)
        assert refused.value.reason == "BadRequest"


def test_two_operators_share_a_scheduler(dask: Cluster, storage: str) -> None:
    """Their Leases have nothing to do with each other, nor have their epochs.

    Issue 13, point 8.
    """
    first = Run(dask.address, storage, STEPS).open(lead=29_000_000, lease="first")
    second = Run(dask.address, storage, STEPS).open(lead=3, lease="second")
    for run in (first, second):
        events = run.follow()
        run.submit((0, -1))
        events.wait_for("committed")
    watch: dict[str, Any] = {"since": 0, "wait": 0}
    first.conn.rpc("daskade-cluster", lead=29_000_000, lease="first", cluster="c1", **watch)
    second.conn.rpc("daskade-cluster", lead=3, lease="second", cluster="c2", **watch)
    second.conn.rpc("daskade-retire", lead=3, lease="second", cluster="c2", names=[])
    assert Run(dask.address, storage, STEPS, uid=second.uid).open(create=False, lead=4, lease="second").epoch == 2
    second.conn.rpc("daskade-forget", run=second.uid, epoch=2, lead=4, lease="second")
    first.close()


def test_an_operator_that_moved_to_another_namespace_takes_its_runs_over(dask: Cluster, storage: str) -> None:
    """Its new Lease begins to count anew; the leader of the former one does not get the run back."""
    run = Run(dask.address, storage, STEPS).open(lead=29_000_000, lease="former")
    again = Run(dask.address, storage, STEPS, uid=run.uid)
    assert again.open(create=False, lead=3, lease="new").epoch == 2
    for op, more in (("open", {**run.request, "epoch": None, "create": False}), ("forget", {"run": run.uid})):
        with pytest.raises(RpcError, match="a leader of another Lease has taken over") as refused:
            run.conn.rpc(f"daskade-{op}", **more, lead=29_000_000, lease="former")
        assert refused.value.reason == "StaleLeader"
    # Moved back, it leads anew.
    assert again.open(create=False, lead=29_000_001, lease="former").epoch == 3
    again.close()
