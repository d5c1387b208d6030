"""Storage that goes away under active pools and comes back: what is told, refused, kept, mended."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from storaged.backend import Backend, Descriptor, StopsByForce, Watched
from storaged.errors import OperationFailed, OperationInvalid, SystemFailure
from storaged.job import Job
from storaged.model import PoolState
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.worker import Limits
from tests.doubles import PATIENCE, Control, Double, eventually, promptly, refused
from tests.storaged.conftest import Engine, driver_of, idle

#: No answer within this is an outage; the looks of `Served` follow each other much faster.
QUICK = Limits(stuck_after=0.3, answers_within=0.4)


class Served(Double, Watched, StopsByForce):
    """A pool whose server can die."""

    watch_every = 0.05

    def watch(self) -> None:
        self.control.enter("watch")

    def stop_by_force(self, job: Job[Any]) -> None:
        self.control.enter("stop_by_force", job)


def served(kind: str, control: Control) -> type[Backend]:
    return type("Served", (Served,), {"descriptor": Descriptor(kind), "control": control})


@pytest.fixture
def control() -> Control:
    """Kills the server of the pools of type double."""
    return Control()


@pytest.fixture
def storage(engine: Engine, control: Control) -> Iterator[Storage]:
    """A watching engine; pools of type double have a server, those of type other another one."""
    types = {"double": served("double", control), "other": served("other", Control())}
    yield engine.open(backends=types, limits=QUICK, watch=True)
    control.release_all()


def state(pool: Pool) -> PoolState:
    return pool.info().state


def inaccessible(pool: Pool) -> bool:
    return state(pool) is PoolState.INACCESSIBLE


def running(pool: Pool) -> bool:
    return state(pool) is PoolState.RUNNING


def die(control: Control) -> None:
    """Let nobody through, as a dead server does."""
    control.hold("")


def watchers() -> int:
    return sum(thread.name == "storaged-watch" for thread in threading.enumerate())


def test_a_dead_server(
    pool: Pool, storage: Storage, control: Control, events: list[str], engine: Engine
) -> None:
    pool.create("v", 4096)
    space = pool.info().space
    events.clear()
    before = time.time()
    die(control)
    eventually(partial(inaccessible, pool), timeout=10)
    with promptly(0.5):
        info = pool.info()
        assert info.outage is not None
        assert before - 1 <= info.outage.since <= time.time()
        assert info.problems[0] == str(info.outage)
        assert info.problems[0].startswith("does not answer since ")
        assert info.problems[0].endswith("(no answer for 0.4 s)")
        assert info.active
        assert info.space == space
        assert [found.name for found in storage.pools(active=True)] == ["p"]
        assert storage.pools(active=False) == []
        assert pool.names() == ["v"]
        assert pool.volume("v").info().capacity == 4096
        for attempt in (pool.refresh, partial(pool.create, "w", 1), pool.volume("v").delete):
            with refused(9) as caught:
                attempt()
            assert "pool 'p' does not answer since" in str(caught.value)
            assert "storagectl pool stop p --force" in str(caught.value.advice)
    assert events == []
    control.release("")
    eventually(partial(running, pool))
    eventually(lambda: events == ["REFRESH"])
    assert pool.problems == ()
    pool.create("w", 4096)
    assert pool.names() == ["v", "w"]
    assert idle(pool)


def test_a_server_that_says_no(pool: Pool, control: Control, events: list[str]) -> None:
    control.fail("watch", SystemFailure("not logged in", 5))
    eventually(partial(inaccessible, pool), timeout=10)
    outage = pool.info().outage
    assert outage is not None
    assert "not logged in" in outage.why
    control.fail("watch", SystemFailure("no route", 113))
    eventually(lambda: "no route" in pool.problems[0])
    again = pool.info().outage
    assert again is not None
    assert again.since == outage.since
    control.mend("watch")
    eventually(partial(running, pool))
    eventually(lambda: events == ["REFRESH"])


def test_what_is_stuck_is_told_to_its_caller_and_ends_when_the_server_is_back(
    pool: Pool, control: Control
) -> None:
    control.hold("create")
    job = pool.create("slow", 4096, wait=False)
    control.wait_for("create")
    control.hold("watch")
    with pytest.raises(OperationFailed, match="does not answer since"):
        job.result(10)
    assert not idle(pool)  # the work itself cannot be stopped
    control.release_all()
    eventually(partial(running, pool))
    eventually(partial(idle, pool))
    assert pool.names() == ["slow"]


def test_four_lost_workers_are_given_up_when_the_storage_answers(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.hold("watch")  # else they would be given up at once
    for number in range(4):
        pool.create(f"v{number}", 4096)
    control.hold("wipe")
    jobs = [pool.volume(f"v{number}").wipe(wait=False) for number in range(4)]
    control.wait_for("wipe", 4)
    workers = driver_of(pool)._table.by_ref(pool.ref).pool.workers
    eventually(workers.inaccessible)
    assert inaccessible(pool)
    control.release("watch")
    eventually(partial(running, pool))
    assert workers.stuck() == ()
    pool.create("fresh", 4096)  # although those four have not returned
    control.release("wipe")
    eventually(partial(idle, pool))
    assert all(job.ended for job in jobs)
    assert "REFRESH" in events


def test_a_scan_that_hangs_for_ever_is_not_in_the_way_of_the_next(
    pool: Pool, control: Control, events: list[str], engine: Engine
) -> None:
    control.hold("refresh")
    hung = pool.refresh(wait=False)
    control.wait_for("refresh", 2)
    die(control)
    gate = control._gates["refresh"]
    eventually(partial(inaccessible, pool), timeout=10)
    control._gates.pop("refresh")  # only that one scan hangs on
    (engine.directory / "p" / "new").write_bytes(b"x")
    control.release("")
    eventually(lambda: "new" in pool.names())
    eventually(lambda: "REFRESH" in events)
    pool.create("later", 4096)
    gate.opened.set()
    assert hung.wait(PATIENCE)
    assert pool.names() == ["later", "new"]


def test_a_failed_refresh_leaves_a_watched_pool_active(
    pool: Pool, control: Control, events: list[str]
) -> None:
    pool.create("v", 4096)
    control.fail("refresh", SystemFailure("cannot read", 5))
    with refused(38):
        pool.refresh()
    assert running(pool)
    assert pool.names() == ["v"]
    assert "the last refresh failed: " in pool.problems[0]
    assert events == []
    control.mend("refresh")
    pool.refresh()
    assert pool.problems == ()


def test_the_scan_after_an_outage_is_tried_until_it_succeeds(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.fail("watch", SystemFailure("gone", 5))
    eventually(partial(inaccessible, pool), timeout=10)
    control.fail("refresh", SystemFailure("not yet", 5))
    control.mend("watch")
    control.wait_for("refresh", 4)
    assert "REFRESH" not in events
    control.mend("refresh")
    eventually(lambda: events == ["REFRESH"])


def test_a_scan_that_was_made_before_the_outage_does_not_end_it(
    pool: Pool, control: Control
) -> None:
    control.hold("refreshed")
    late = pool.refresh(wait=False)
    control.wait_for("refreshed", 2)
    control.hold("watch")
    eventually(partial(inaccessible, pool), timeout=10)
    control.release("refreshed")
    late.wait(PATIENCE)
    for _ in range(20):
        assert inaccessible(pool)
        time.sleep(0.01)
    control.release("watch")
    eventually(partial(running, pool))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_limit_of_this_host_is_no_outage(pool: Pool, control: Control, number: int) -> None:
    control.fail("watch", SystemFailure("cannot open directory", number))
    control.wait_for("watch", control.calls["watch"] + 4)
    assert running(pool)
    control.fail("watch", SystemFailure("cannot open directory", errno.EIO))
    eventually(partial(inaccessible, pool))
    control.fail("watch", SystemFailure("cannot open directory", number))
    control.wait_for("watch", control.calls["watch"] + 4)
    assert inaccessible(pool)


def test_a_backend_at_fault_leaves_no_other_pool_unwatched(
    engine: Engine, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    odd = type("Odd", (served("odd", Control()),), {"watch_every": None})
    engine.open(
        backends={"odd": odd, "double": served("double", control)}, limits=QUICK, watch=True
    )
    engine.pool("odd", "odd")
    pool = engine.pool()
    eventually(lambda: "the watch over pool 'odd' failed" in caplog.text)
    control.fail("watch", SystemFailure("gone", 5))
    eventually(partial(inaccessible, pool), timeout=10)


def test_other_pools_go_on_under_load(engine: Engine, storage: Storage, control: Control) -> None:
    dead, healthy = engine.pool("dead"), engine.pool("healthy", "other")
    dead.create("v", 4096)
    healthy.create("w", 4096)
    answers: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            before = time.monotonic()
            storage.pool_infos(), storage.pools(active=True), dead.info(), dead.names(), dead.xml()
            healthy.volume("w").info()
            answers.append(time.monotonic() - before)

    def work(number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            healthy.create(f"{number}-{count}", 4096).delete()

    with ThreadPoolExecutor(4) as threads:
        running_threads = [threads.submit(ask) for _ in range(2)]
        running_threads += [threads.submit(work, number) for number in range(2)]
        time.sleep(0.2)
        die(control)
        jobs = []
        for number in range(30):
            try:
                jobs.append(dead.create(f"x{number}", 4096, wait=False))
            except OperationFailed:
                break
        eventually(partial(inaccessible, dead), timeout=10)
        time.sleep(0.5)
        over.set()
        for one in running_threads:
            one.result(PATIENCE)
    assert len(answers) > 10
    assert sorted(answers)[len(answers) * 9 // 10] < 0.5
    assert max(answers) < 2
    assert running(healthy)
    assert all(job.wait(PATIENCE) for job in jobs)


def test_a_pool_loses_one_thread_at_most(pool: Pool, control: Control) -> None:
    before = threading.active_count()
    control.hold("watch")
    eventually(partial(inaccessible, pool), timeout=10)
    time.sleep(0.6)
    assert control._gates
    assert threading.active_count() <= before + 1


def test_without_a_watch_nobody_looks(engine: Engine, control: Control) -> None:
    before = watchers()
    engine.open(backends={"double": served("double", control)}, limits=QUICK)
    engine.pool()
    time.sleep(0.2)
    assert control.calls["watch"] == 0
    assert watchers() <= before


def test_the_watch_ends_with_the_engine_and_with_the_pool(
    pool: Pool, storage: Storage, control: Control
) -> None:
    control.wait_for("watch", 3)
    pool.stop()
    time.sleep(0.1)
    calls = control.calls["watch"]
    time.sleep(0.2)
    assert control.calls["watch"] == calls
    before = watchers()
    storage.close()
    eventually(lambda: watchers() < before)


def test_a_backend_that_is_at_fault_is_an_outage(pool: Pool, control: Control) -> None:
    control._faults["watch"] = ZeroDivisionError("ouch")  # type: ignore[assignment]
    eventually(partial(inaccessible, pool), timeout=10)
    assert "ouch" in pool.problems[0]


# Stopped by force


def test_stop_by_force_under_a_dead_server(
    pool: Pool, control: Control, events: list[str], storage: Storage
) -> None:
    pool.create("v", 4096)
    control.hold("create")
    stuck = [pool.create(f"s{number}", 4096, wait=False) for number in range(4)]
    control.wait_for("create", 5)
    control.hold("watch")
    eventually(partial(inaccessible, pool), timeout=10)
    with refused(1) as caught:
        pool.stop()
    assert "storagectl pool stop p --force" in str(caught.value.advice)
    events.clear()
    with promptly(4):
        pool.stop(force=True)
    assert control.calls["stop_by_force"] == 1
    assert events == ["STOPPED"]
    assert not pool.active
    assert "what may be lost: create s0, create s1" in pool.problems[0]
    assert all(job.ended for job in stuck)
    assert storage.jobs() == []
    control.release("watch")
    control._gates.pop("create")
    pool.start()
    assert "v" in pool.names()
    pool.create("s0x", 4096)
    assert pool.problems == ()


def test_what_returns_after_a_forced_stop_changes_nothing(pool: Pool, control: Control) -> None:
    volume = pool.create("v", 4096)
    control.hold("deleted")
    job = volume.delete(wait=False)
    control.wait_for("deleted")
    gate = control._gates.pop("deleted")
    pool.stop(force=True)
    with pytest.raises(OperationInvalid, match="is not active"):
        job.result(PATIENCE)
    pool.start()
    pool.create("v", 8192)
    gate.opened.set()
    time.sleep(0.1)
    assert pool.names() == ["v"]
    assert pool.volume("v").info().capacity == 8192
    assert idle(pool)


def test_a_delete_that_returns_after_a_forced_stop_deletes_nothing(
    pool: Pool, control: Control, engine: Engine
) -> None:
    volume = pool.create("v", 4096)
    control.hold("delete")
    job = volume.delete(wait=False)
    control.wait_for("delete")
    gate = control._gates.pop("delete")
    pool.stop(force=True)
    pool.start()
    file = engine.directory / "p" / "v"
    file.write_bytes(b"uploaded since")
    gate.opened.set()
    with pytest.raises(OperationInvalid):
        job.result(PATIENCE)
    time.sleep(0.1)
    assert file.read_bytes() == b"uploaded since"


def test_what_had_not_begun_is_not_done_after_a_forced_stop(
    engine: Engine, control: Control
) -> None:
    limits = replace(QUICK, threads=1, stuck_after=60)
    engine.open(backends={"double": served("double", control)}, limits=limits)
    pool = engine.pool()
    kept, other = pool.create("kept", 4096), pool.create("other", 4096)
    control.hold("wipe")
    stuck = other.wipe(wait=False)
    control.wait_for("wipe")
    waiting = kept.delete(wait=False)
    pool.stop(force=True)
    for job in (stuck, waiting):
        with pytest.raises(OperationInvalid, match="is not active"):
            job.result(PATIENCE)
    control.release_all()
    pool.start()
    assert pool.names() == ["kept", "other"]


def test_lively_jobs_end_cleanly_before_a_forced_stop(
    pool: Pool, control: Control, engine: Engine
) -> None:
    control.hold("create", lively=True)
    job = pool.create("slow", 4096, wait=False)
    control.wait_for("create")
    pool.stop(force=True)
    with refused(78):
        job.result()
    assert pool.problems == ()
    assert not (engine.directory / "p" / "slow").exists()


def test_a_forced_stop_takes_over_a_stop_that_hangs(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.hold("stop")
    hung = pool.stop(wait=False)
    control.wait_for("stop")
    with promptly(4):
        pool.stop(force=True)
    assert not pool.active
    pool.start()
    control.release("stop")
    with pytest.raises(OperationInvalid):
        hung.result(PATIENCE)
    assert pool.active
    assert events == ["STOPPED", "STARTED"]


def test_a_forced_stop_that_fails_leaves_the_pool_active(pool: Pool, control: Control) -> None:
    control.fail("stop_by_force", SystemFailure("cannot", 16))
    with refused(38):
        pool.stop(force=True)
    assert pool.active
    control.mend("stop_by_force")
    pool.create("v", 4096)
    pool.stop(force=True)
    with refused(55):
        pool.stop(force=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_a_stop_leaves_in_use_is_told(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    backend = driver_of(pool)._table.by_ref(pool.ref).pool.backend
    how = "stop_by_force" if force else "stop"
    monkeypatch.setattr(type(backend), how, lambda _self, _job: "still active: root")
    pool.stop(force=force)
    assert not pool.active
    assert pool.problems == ("still active: root",)
    pool.start()
    assert not pool.problems


def test_a_type_without_force_is_stopped_as_usual(engine: Engine) -> None:
    engine.open()
    pool = engine.pool()
    engine.control.hold("create", lively=True)
    job = pool.create("v", 4096, wait=False)
    engine.control.wait_for("create")
    pool.stop(force=True)
    assert not pool.active
    with refused(78):
        job.result()


def test_a_source_is_free_again_after_its_clone_was_left_behind(
    engine: Engine, storage: Storage, control: Control
) -> None:
    source, dead = engine.pool("source", "other"), engine.pool("dead")
    volume = source.create("base", 4096)
    control.hold("clone")
    dead.clone(volume, "copy", wait=False)
    control.wait_for("clone")
    dead.stop(force=True)
    eventually(partial(idle, source))
    volume.delete()
