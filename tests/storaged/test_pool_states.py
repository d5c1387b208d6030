"""The state table: every operation in every state of a pool, with code, domain, text and event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from storaged.errors import SystemFailure
from storaged.model import PoolDef, PoolState, Space
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import Control, promptly, refused
from tests.storaged.conftest import Engine


@dataclass
class Case:
    """A pool in some state, and its definition."""

    storage: Storage
    pool: Pool
    definition: PoolDef


State = Callable[[Engine, Storage, Control], Any]


@contextmanager
def inactive(engine: Engine, storage: Storage, _control: Control) -> Iterator[Case]:
    definition = engine.definition()
    yield Case(storage, storage.define_pool(definition), definition)


@contextmanager
def active(engine: Engine, storage: Storage, control: Control) -> Iterator[Case]:
    with inactive(engine, storage, control) as case:
        case.pool.start()
        yield case


@contextmanager
def starting(engine: Engine, storage: Storage, control: Control) -> Iterator[Case]:
    with inactive(engine, storage, control) as case:
        control.hold("start")
        job = case.pool.start(wait=False)
        control.wait_for("start")
        yield case
        control.release("start")
        job.result()


@contextmanager
def busy(engine: Engine, storage: Storage, control: Control) -> Iterator[Case]:
    with active(engine, storage, control) as case:
        control.hold("create", lively=True)
        job = case.pool.create("slow", 4096, wait=False)
        control.wait_for("create")
        yield case
        control.release("create")
        job.result()


@contextmanager
def transient(engine: Engine, storage: Storage, _control: Control) -> Iterator[Case]:
    definition = engine.definition()
    yield Case(storage, storage.create_pool(definition), definition)


STATES = {state.__name__: state for state in (inactive, active, starting, busy, transient)}

OPERATIONS: dict[str, Callable[[Case], object]] = {
    "define": lambda case: case.storage.define_pool(case.definition),
    "create": lambda case: case.storage.create_pool(case.definition),
    "start": lambda case: case.pool.start(),
    "build": lambda case: case.pool.build(),
    "stop": lambda case: case.pool.stop(),
    "delete": lambda case: case.pool.delete(),
    "undefine": lambda case: case.pool.undefine(),
    "refresh": lambda case: case.pool.refresh(),
    "autostart": lambda case: case.pool.set_autostart(True),
    "autostart off": lambda case: case.pool.set_autostart(False),
    "info": lambda case: (case.pool.info(), case.pool.xml(), case.pool.definition()),
    "list": lambda case: (case.pool.names(), case.pool.infos(), case.pool.volumes()),
    "look up": lambda case: case.pool.volume("v"),
    "new volume": lambda case: case.pool.create("v", 1024),
}

INVALID = "Requested operation is not valid: storage pool 'p' is "
NOT, ALREADY, STILL = (f"{INVALID}{how} active" for how in ("not", "already", "still"))
STARTING = f"{INVALID}starting up"
CREATED_TWICE = "Requested operation is not valid: pool is already active as 'p'"
JOBS = "internal error: pool 'p' has asynchronous jobs running."
NO_CONFIG = "internal error: pool has no config file"
NO_VOLUME = "Storage volume not found: no storage vol with matching name 'v'"

#: What each operation gives: the event that it tells, () for none, or the error's code and text.
TABLE: dict[tuple[str, str], tuple[str, ...] | tuple[int, str]] = {
    ("define", "inactive"): ("DEFINED",),
    ("define", "active"): ("DEFINED",),
    ("define", "starting"): ("DEFINED",),
    ("define", "busy"): ("DEFINED",),
    ("define", "transient"): ("DEFINED",),
    ("create", "inactive"): ("STARTED",),
    ("create", "active"): (55, CREATED_TWICE),
    ("create", "starting"): (55, STARTING),
    ("create", "busy"): (55, CREATED_TWICE),
    ("create", "transient"): (55, CREATED_TWICE),
    ("start", "inactive"): ("STARTED",),
    ("start", "active"): (55, ALREADY),
    ("start", "starting"): (55, STARTING),
    ("start", "busy"): (55, ALREADY),
    ("start", "transient"): (55, ALREADY),
    ("build", "inactive"): ("CREATED",),
    ("build", "active"): (55, ALREADY),
    ("build", "starting"): (55, STARTING),
    ("build", "busy"): (55, ALREADY),
    ("build", "transient"): (55, ALREADY),
    ("stop", "inactive"): (55, NOT),
    ("stop", "active"): ("STOPPED",),
    ("stop", "starting"): (55, STARTING),
    ("stop", "busy"): (1, JOBS),
    ("stop", "transient"): ("STOPPED",),
    ("delete", "inactive"): ("DELETED",),
    ("delete", "active"): (55, STILL),
    ("delete", "starting"): (55, STARTING),
    ("delete", "busy"): (55, STILL),
    ("delete", "transient"): (55, STILL),
    ("undefine", "inactive"): ("UNDEFINED",),
    ("undefine", "active"): (55, STILL),
    ("undefine", "starting"): (55, STARTING),
    ("undefine", "busy"): (55, STILL),
    ("undefine", "transient"): (55, STILL),
    ("refresh", "inactive"): (55, NOT),
    ("refresh", "active"): ("REFRESH",),
    ("refresh", "starting"): (55, NOT),
    ("refresh", "busy"): ("REFRESH",),  # libvirt refuses it; a scan here runs beside jobs
    ("refresh", "transient"): ("REFRESH",),
    ("autostart", "transient"): (1, NO_CONFIG),
    ("autostart off", "transient"): (1, NO_CONFIG),
    ("list", "inactive"): (55, NOT),
    ("list", "starting"): (55, NOT),
    ("look up", "inactive"): (55, NOT),
    ("look up", "starting"): (55, NOT),
    ("look up", "active"): (50, NO_VOLUME),
    ("look up", "busy"): (50, NO_VOLUME),
    ("look up", "transient"): (50, NO_VOLUME),
    ("new volume", "inactive"): (55, NOT),
    ("new volume", "starting"): (55, NOT),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_table(
    operation: str,
    state: str,
    engine: Engine,
    storage: Storage,
    control: Control,
    events: list[str],
) -> None:
    expected = TABLE.get((operation, state), ())
    with STATES[state](engine, storage, control) as case:
        if (operation, state) == ("new volume", "busy"):
            control.release("create")
        events.clear()
        with promptly(5):
            if expected and isinstance(expected[0], int):
                with refused(expected[0], str(expected[1])):
                    OPERATIONS[operation](case)
                assert events == []
            else:
                OPERATIONS[operation](case)
                assert events == list(expected)


def test_stop_names_the_jobs_in_its_advice(pool: Pool, storage: Storage, control: Control) -> None:
    source = pool.create("base", 4096)
    control.hold("clone", lively=True)
    job = source.clone_to("copy", wait=False)
    control.wait_for("clone")
    with refused(1, JOBS) as caught:
        pool.stop()
    assert f"job {job.id}: clone copy" in str(caught.value.advice)
    assert [(p.id, p.kind, p.pool, p.volume) for p in storage.jobs()] == [
        (job.id, "clone", "p", "copy")
    ]
    storage.job(job.id).cancel()
    with refused(78):
        job.result()
    pool.stop()


def test_exclusive_work_is_a_job_too(engine: Engine, storage: Storage, control: Control) -> None:
    pool = storage.define_pool(engine.definition())
    control.hold("build", lively=True)
    job = pool.build(wait=False)
    control.wait_for("build")
    assert [(p.kind, p.pool, p.volume) for p in storage.jobs()] == [("build", "p", None)]
    for operation in (pool.start, pool.build, pool.delete, pool.undefine):
        with refused(1, JOBS) as caught:
            operation()
        assert f"job {job.id}: build" in str(caught.value.advice)
    storage.job(job.id).cancel()
    with refused(78):
        job.result()
    pool.start()


def test_the_states_that_clients_see(engine: Engine, storage: Storage, control: Control) -> None:
    with starting(engine, storage, control) as case:
        assert case.pool.info().state is PoolState.INACTIVE
        pool = case.pool
    assert pool.info().state is PoolState.RUNNING
    control.hold("stop")
    job = pool.stop(wait=False)
    control.wait_for("stop")
    assert pool.info().state is PoolState.RUNNING
    with refused(55, NOT):
        pool.create("v", 1)
    with refused(1, JOBS):
        pool.stop()
    control.release("stop")
    job.result()
    assert pool.info().state is PoolState.INACTIVE


def test_sizes_are_those_of_the_storage_and_zero_after_a_stop(pool: Pool) -> None:
    space = pool.info().space
    assert space.capacity == space.allocation + space.available > 0
    assert f"<capacity unit='bytes'>{space.capacity}</capacity>" in pool.xml()
    pool.stop()
    assert pool.info().space == Space()
    assert "<capacity unit='bytes'>0</capacity>" in pool.xml()


def test_a_stop_that_fails_leaves_the_pool_active(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.fail("stop", SystemFailure("cannot unmount", 16))
    with refused(38):
        pool.stop()
    assert pool.active
    assert events == []
    control.mend("stop")
    pool.stop()
    assert not pool.active


def test_delete_wants_an_empty_directory_and_keeps_the_definition(pool: Pool) -> None:
    volume = pool.create("v", 4096)
    pool.stop()
    with refused(38) as caught:
        pool.delete()
    assert "entries are left: v" in str(caught.value.advice)
    pool.start()
    volume.delete()
    pool.stop()
    pool.delete()
    assert pool.persistent
    with refused(38):
        pool.start()
    pool.start(build=True)
    assert pool.active
