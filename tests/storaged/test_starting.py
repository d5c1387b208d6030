"""Starts that hang: what is told of them, how they are let go of, what returns too late."""

from __future__ import annotations

from functools import partial

import pytest

from storaged.errors import OperationInvalid, SystemFailure
from storaged.model import PoolState
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.worker import Limits
from tests.doubles import PATIENCE, Control, eventually, promptly, refused
from tests.storaged.conftest import Engine, driver_of, idle
from tests.storaged.test_watch import served


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is stuck given up soon."""
    monkeypatch.setattr("storaged.stopping.PATIENCE", 0.2)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def storage(engine: Engine, control: Control) -> Storage:
    return engine.open(
        backends={"double": served("double", control)}, limits=Limits(answers_within=0.2)
    )


@pytest.fixture
def pool(engine: Engine, storage: Storage) -> Pool:
    """A pool that is defined and not started."""
    return storage.define_pool(engine.definition())


def kept(pool: Pool) -> bool:
    """Tell whether the state directory says that the pool is active."""
    paths = driver_of(pool)._services.store.paths
    return paths.live_file("p").exists() or paths.anchor_file(pool.uuid).exists()


@pytest.mark.parametrize("where", ["start", "refresh"])
def test_a_start_that_hangs_is_told_and_let_go_of(
    pool: Pool, control: Control, events: list[str], where: str
) -> None:
    control.hold(where)
    job = pool.start(wait=False)
    control.wait_for(where)
    gate = control._gates.pop(where)
    eventually(lambda: pool.problems != ())
    assert "there was no answer for " in pool.problems[0]
    assert "storagectl pool stop p --force" in pool.problems[0]
    assert pool.info().state is PoolState.INACTIVE
    with refused(55) as caught:
        pool.stop()
    assert "storagectl pool stop p --force" in str(caught.value.advice)
    with promptly(4):
        pool.stop(force=True)
    assert control.calls["stop_by_force"] == 1
    assert job.ended
    with pytest.raises(OperationInvalid):
        job.result()
    assert not pool.active
    assert not kept(pool)
    assert "may still go on" in pool.problems[0]

    pool.start()
    pool.create("v", 4096)
    gate.opened.set()  # what returns now has no say
    eventually(partial(idle, pool))
    assert pool.names() == ["v"]
    assert pool.problems == ()
    assert control.calls["stop"] == 0
    assert events == ["STARTED"]


def test_what_is_brought_up_after_it_was_let_go_of_is_undone(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.hold("start")
    pool.start(wait=False)
    control.wait_for("start")
    pool.stop(force=True)
    assert control.calls["stop"] == 0
    assert pool.problems != ()
    control.release("start")
    eventually(lambda: pool.problems == ())
    assert control.calls["stop"] == 1
    with refused(55):
        pool.refresh()
    assert not kept(pool)
    assert control.calls["refresh"] == 0
    assert "STARTED" not in events
    assert "STOPPED" not in events


def test_a_start_that_hears_of_it_ends_cleanly(pool: Pool, control: Control) -> None:
    control.hold("refresh", lively=True)
    job = pool.start(wait=False)
    control.wait_for("refresh")
    pool.stop(force=True)
    with refused(78):
        job.result()
    assert not pool.active
    assert pool.problems == ()
    assert control.calls["stop"] == 0
    assert control.calls["stop_by_force"] == 1


def test_storage_that_the_start_has_not_come_to_is_left_alone(pool: Pool, control: Control) -> None:
    control.hold("build")
    pool.start(build=True, wait=False)
    control.wait_for("build")
    pool.stop(force=True)
    assert not pool.active
    assert control.calls["stop_by_force"] == control.calls["stop"] == 0
    control.release("build")
    pool.start()
    assert control.calls["start"] == 1


def test_a_pool_whose_storage_cannot_be_let_go_of_is_inactive(pool: Pool, control: Control) -> None:
    control.hold("refresh", lively=True)
    pool.start(wait=False)
    control.wait_for("refresh")
    control.fail("stop_by_force", SystemFailure("cannot", 16))
    pool.stop(force=True)
    assert not pool.active
    assert "could not be stopped cleanly: cannot" in pool.problems[0]


def test_a_transient_one_is_gone(engine: Engine, storage: Storage, control: Control) -> None:
    control.hold("start")
    _, job = driver_of(storage).pool_create(engine.definition("t"))
    control.wait_for("start")
    storage.pool("t").stop(force=True)
    assert storage.pools() == []
    with pytest.raises(OperationInvalid):
        job.result(PATIENCE)
    control.release("start")
    assert storage.pools() == []
