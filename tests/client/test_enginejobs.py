"""Jobs on the other side of a connection: followed, cancelled, lost."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged import Job, Pool, Storage, Volume
from storaged.backend import Durability
from storaged.client.engine import RemoteEngine
from storaged.client.engineplain import PlainJob
from storaged.client.locallink import LocalLink
from storaged.driver import open_driver
from storaged.job import JobState, Progress
from storaged.paths import Paths
from storaged.registry import Registry
from storaged.service import Service
from tests.doubles import PATIENCE, Control, eventually, make_double


@dataclass
class Side:
    """An engine whose storage does what the test says, and connections to it."""

    service: Service
    control: Control
    directory: Path
    opened: list[Storage]

    def connect(self, *, readonly: bool = False) -> Storage:
        link = LocalLink(self.service, "storage:///system", readonly=readonly)
        self.opened.append(Storage(RemoteEngine(link), link.uri))
        return self.opened[-1]

    def pool(self, storage: Storage) -> Pool:
        self.directory.mkdir(exist_ok=True)
        pool = storage.define_pool(storaged.PoolDef("double", "p", target=str(self.directory)))
        pool.start()
        return pool


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    kind, control = make_double()
    driver = open_driver(
        Paths.below(tmp_path / "root"),
        durability=Durability.NONE,
        registry=Registry({"double": kind}),
    )
    service = Service(driver)
    made = Side(service, control, tmp_path / "images", [])
    yield made
    control.release_all()
    for storage in made.opened:
        storage.close()
    service.close()
    driver.close()


@pytest.fixture
def storage(side: Side) -> Storage:
    return side.connect()


@pytest.fixture
def pool(side: Side, storage: Storage) -> Pool:
    return side.pool(storage)


def held(side: Side, pool: Pool) -> Job[Volume]:
    """Return a create that goes on until it is released."""
    side.control.hold("create", lively=True)
    job = pool.create("v", "1 MiB", wait=False)
    side.control.wait_for("create")
    return job


def test_a_job_is_what_a_job_is_here(side: Side, pool: Pool):
    job = held(side, pool)
    seen: list[Progress] = []
    job.subscribe(seen.append)
    assert not job.wait(0.01)
    with pytest.raises(storaged.Timeout):
        job.result(0.01)
    eventually(lambda: job.progress().done > 0)
    shown = job.progress()
    assert (shown.kind, shown.pool, shown.volume, shown.state) == ("create", "p", "v", "running")
    assert shown.total == 600 << 20
    ended = threading.Event()
    job.on_end(ended.set)
    side.control.release("create")
    assert job.result(PATIENCE).name == "v"
    assert ended.wait(PATIENCE)
    eventually(lambda: bool(seen) and seen[-1].state is JobState.DONE)
    assert [each.state for each in job] == [JobState.DONE]


def test_short_work_costs_one_call(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    call, begin = LocalLink.call, LocalLink.begin

    def counted_call(self: LocalLink, procedure: Any, args: Any, **how: Any) -> Any:
        asked.append(procedure.name)
        return call(self, procedure, args, **how)

    def counted_begin(self: LocalLink, procedure: Any, args: Any) -> Any:
        asked.append(procedure.name)
        return begin(self, procedure, args)

    monkeypatch.setattr(LocalLink, "call", counted_call)
    monkeypatch.setattr(LocalLink, "begin", counted_begin)
    pool.create("v", 0)
    assert asked == ["storagedJobBegin"]


def test_a_cancel(side: Side, pool: Pool):
    job = held(side, pool)
    job.cancel()
    with pytest.raises(storaged.Cancelled, match="create was cancelled"):
        job.result(PATIENCE)
    assert job.state is JobState.CANCELLED
    job.cancel()
    assert pool.names() == []
    assert list(side.directory.iterdir()) == []


def test_an_error_keeps_class_and_advice(side: Side, pool: Pool):
    side.control.fail("create", storaged.NoSpace("no room", advice="Make some."))
    with pytest.raises(storaged.NoSpace, match="operation failed: no room") as caught:
        pool.create("v", "1 MiB")
    assert caught.value.advice == "Make some."


def test_the_jobs_of_others(side: Side, pool: Pool):
    mine = held(side, pool)
    other = side.connect()
    [listed] = other.jobs()
    assert (listed.id, listed.kind, listed.volume) == (mine.id, "create", "v")
    watched = other.job(mine.id)
    assert not watched.wait(0.01)
    eventually(lambda: watched.progress().done > 0)
    assert other.job(mine.id) is watched
    side.control.release("create")
    assert watched.wait(PATIENCE)
    assert watched.result() is None
    assert mine.result(PATIENCE).name == "v"
    assert other.jobs() == []
    with pytest.raises(storaged.InvalidArgument, match="no job with id"):
        other.job(mine.id)


def test_others_may_cancel(side: Side, pool: Pool):
    mine = held(side, pool)
    watched = side.connect().job(mine.id)
    watched.cancel()
    with pytest.raises(storaged.Cancelled):
        watched.result(PATIENCE)
    with pytest.raises(storaged.Cancelled):
        mine.result(PATIENCE)


def test_a_reader_may_not_cancel(side: Side, pool: Pool):
    mine = held(side, pool)
    watched = side.connect(readonly=True).job(mine.id)
    with pytest.raises(storaged.StorageError, match="read only access prevents"):
        watched.cancel()
    side.control.release("create")
    mine.result(PATIENCE)


def test_a_job_of_others_that_failed(side: Side, pool: Pool):
    mine = held(side, pool)
    watched = side.connect().job(mine.id)
    assert not watched.wait(0.05)
    side.control.fail("create", storaged.NoSpace("no room"))
    side.control.release("create")
    with pytest.raises(storaged.OperationFailed, match="create of v failed"):
        watched.result(PATIENCE)


def test_one_that_ended_before_it_was_followed(side: Side, pool: Pool):
    mine = held(side, pool)
    watched = side.connect().job(mine.id)
    side.control.release("create")
    mine.result(PATIENCE)
    assert watched.wait(PATIENCE)


def test_closing_cancels_what_was_begun(side: Side, storage: Storage, pool: Pool):
    job = held(side, pool)
    storage.close()
    eventually(lambda: side.service.driver.jobs() == [])
    assert list(side.directory.iterdir()) == []
    with pytest.raises(storaged.InternalError, match="client socket is closed"):
        job.result(PATIENCE)


def test_jobs_that_nobody_follows_are_forgotten(side: Side, pool: Pool):
    mine = held(side, pool)
    other = side.connect()
    assert isinstance(other.engine, RemoteEngine)
    for _ in range(3):
        assert len(other.jobs()) == 1
    gc.collect()
    board = other.engine._peer._board  # type: ignore[attr-defined]
    assert (len(board._jobs), len(board._seen)) == (0, 0)
    side.control.release("create")
    mine.result(PATIENCE)


def test_a_job_of_others_on_a_connection_that_has_ended(side: Side, pool: Pool):
    mine = held(side, pool)
    other = side.connect()
    watched = other.job(mine.id)
    other.close()
    with pytest.raises(storaged.InternalError):
        watched.result(PATIENCE)
    side.control.release("create")
    mine.result(PATIENCE)


def test_many_ends_that_come_at_once(pool: Pool):
    """An end may be told before the reply that says which job it is."""
    for number in range(50):
        assert pool.create(f"v{number}", 0).name == f"v{number}"
    assert len(pool.names()) == 50


def test_a_call_that_cannot_be_cancelled():
    job: PlainJob[int] = PlainJob("clone", "p", "v")
    with pytest.raises(storaged.Unsupported, match="a clone cannot be cancelled there"):
        job.cancel()
    job.finish(1)
    job.cancel()
    assert job.complete() == 1


def test_a_scan_is_a_job_too(side: Side, pool: Pool):
    side.control.hold("refresh", lively=True)
    job = pool.refresh(wait=False)
    side.control.wait_for("refresh", calls=2)
    assert not job.wait(0.01)
    assert job.progress().kind == "refresh"
    job.cancel()
    with pytest.raises(storaged.Cancelled):
        job.result(PATIENCE)
