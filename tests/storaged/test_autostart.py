"""What is started with the host: tried again until it succeeds or somebody decides otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import UUID

import pytest

from storaged.autostart import pause
from storaged.errors import SystemFailure
from storaged.poolhandle import Pool
from storaged.poolstate import Retry
from storaged.storage import Storage
from storaged.worker import Limits
from tests.doubles import Control, eventually, promptly, refused
from tests.storaged.conftest import Engine, driver_of

QUICK = Limits(retry_after=0.05, retry_at_least=0.2)
SLOW = Limits(retry_after=30)


def threads() -> int:
    return sum(thread.name == "storaged-autostart" for thread in threading.enumerate())


@pytest.fixture
def boot(engine: Engine, control: Control) -> Callable[..., Storage]:
    """Opens an engine as after a boot, with pools whose start fails at first."""

    def opened(*names: str, limits: Limits = QUICK) -> Storage:
        before = engine.open()
        for name in names:
            before.define_pool(engine.definition(name)).set_autostart(True)
        before.close()
        control.fail("start", SystemFailure("no server", 113))
        return engine.open(autostart=True, limits=limits)

    return opened


def retry_of(pool: Pool) -> Retry | None:
    return driver_of(pool)._table.by_ref(pool.ref).pool.retry


def waits(pool: Pool) -> bool:
    """Tell whether a failed autostart waits for its next try."""
    retry = retry_of(pool)
    return retry is not None and retry.due is not None


def unstarted(storage: Storage) -> dict[UUID, str]:
    return driver_of(storage)._services.store.unstarted()


def test_it_is_tried_again_until_it_succeeds(
    boot: Callable[..., Storage], control: Control
) -> None:
    storage = boot("p")
    pool = storage.pool("p")
    told: list[str] = []
    storage.subscribe(lambda event: told.append(str(event.lifecycle and event.lifecycle.name)))
    assert pool.problems[0].startswith("autostart failed: ")
    control.wait_for("start", 4)
    eventually(lambda: "no server" in pool.problems[0])
    control.mend("start")
    eventually(lambda: pool.active)
    assert pool.problems == ()
    eventually(lambda: retry_of(pool) is None)
    eventually(lambda: threads() == 0)
    assert told == ["STARTED"]


def test_it_says_when_the_next_try_is(boot: Callable[..., Storage]) -> None:
    pool = boot("p", limits=SLOW).pool("p")
    eventually(lambda: waits(pool))
    with promptly():
        (problem,) = pool.problems
    assert "no server" in problem
    assert problem.endswith(("; next try in 30 s", "; next try in 29 s"))
    with refused(55) as caught:
        pool.refresh()
    assert "next try in " in str(caught.value.advice)


def test_the_delays_double_up_to_a_bound() -> None:
    assert [pause(Limits(), failed) for failed in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause(Limits(), 100_000) == 60


def test_the_delays_grow(boot: Callable[..., Storage]) -> None:
    pool = boot("p", limits=Limits(retry_after=0.02, retry_at_least=30)).pool("p")

    def waits() -> bool:
        retry = retry_of(pool)
        return bool(retry and retry.attempts >= 5 and retry.due)

    eventually(waits)
    retry = retry_of(pool)
    assert retry is not None
    assert retry.due is not None
    assert retry.due - time.monotonic() <= 0.02 * 2 ** (retry.attempts - 1)


@pytest.mark.parametrize("decision", ["start", "stop", "off", "undefine"])
def test_somebody_decides_otherwise(
    boot: Callable[..., Storage], control: Control, decision: str
) -> None:
    storage = boot("p", limits=Limits(retry_after=1.0))
    pool = storage.pool("p")
    eventually(lambda: waits(pool))
    assert len(unstarted(storage)) == 1
    if decision == "start":
        with refused(38):
            pool.start()
    elif decision == "stop":
        with refused(55):
            pool.stop()
    elif decision == "off":
        pool.set_autostart(False)
    else:
        pool.undefine()
    if decision != "undefine":
        assert not any("autostart" in problem for problem in pool.problems)
    calls = control.calls["start"]
    eventually(lambda: threads() == 0)
    assert control.calls["start"] == calls
    assert unstarted(storage) == {}


def test_somebody_lets_go_of_one_that_hangs(
    boot: Callable[..., Storage], control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.driver.OPEN_PATIENCE", 0.1)
    control.hold("start")
    storage = boot("p")
    pool = storage.pool("p")
    assert list(unstarted(storage).values()) == ["it was interrupted"]
    pool.stop(force=True)
    control.release("start")
    time.sleep(0.2)
    assert not pool.active
    assert control.calls["start"] == 1
    assert unstarted(storage) == {}


def test_it_is_tried_again_by_the_next_engine(
    boot: Callable[..., Storage], control: Control, engine: Engine
) -> None:
    first = boot("p", limits=SLOW)
    eventually(lambda: ["no server" in why for why in unstarted(first).values()] == [True])
    first.close()
    reader = engine.open(readonly=True)
    assert reader.pool("p").problems == (
        "autostart failed: no server: No route to host; the daemon tries again as soon as it runs",
    )
    storage = engine.open(autostart=True, limits=QUICK)
    pool = storage.pool("p")
    control.wait_for("start", 4)
    control.mend("start")
    eventually(lambda: pool.active)
    eventually(lambda: unstarted(storage) == {})
    assert pool.problems == ()
    pool.stop()
    storage.close()
    calls = control.calls["start"]
    assert engine.open(autostart=True).pool("p").problems == ()
    assert control.calls["start"] == calls


def test_one_that_hung_when_the_engine_ended_is_tried_by_the_next(
    boot: Callable[..., Storage], control: Control, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.driver.OPEN_PATIENCE", 0.1)
    monkeypatch.setattr("storaged.driver.CLOSE_PATIENCE", 0.1)
    control.hold("start")
    boot("p").close()
    assert "it was interrupted" in engine.open(readonly=True).pool("p").problems[0]
    control.release("start")
    control.mend("start")
    assert engine.open(autostart=True).pool("p").active


def test_what_somebody_else_has_started_is_forgotten(
    boot: Callable[..., Storage], control: Control, engine: Engine
) -> None:
    boot("p", limits=SLOW).close()
    control.mend("start")
    other = engine.open()
    other.pool("p").start()
    assert unstarted(other) == {}


def test_a_fault_that_nobody_foresaw_is_tried_again_too(
    boot: Callable[..., Storage], control: Control
) -> None:
    storage = boot("p", "q")
    control._faults["start"] = ZeroDivisionError("ouch")  # type: ignore[assignment]
    eventually(lambda: all("ouch" in info.problems[0] for info in storage.pool_infos()))
    control.mend("start")
    eventually(lambda: all(info.active for info in storage.pool_infos()))


def test_many_that_fail(boot: Callable[..., Storage], control: Control) -> None:
    names = [f"p{number}" for number in range(30)]
    with promptly(10):
        storage = boot(*names)
    control.wait_for("start", 90)
    eventually(lambda: threads() == 1)
    before = time.process_time()
    time.sleep(0.3)
    with promptly():
        assert all("autostart failed" in info.problems[0] for info in storage.pool_infos())
    control.mend("start")
    eventually(lambda: all(info.active for info in storage.pool_infos()))
    assert time.process_time() - before < 5


def test_a_wait_costs_nothing(boot: Callable[..., Storage], control: Control) -> None:
    boot("p", limits=SLOW)
    eventually(lambda: threads() == 1)
    time.sleep(0.5)  # what was mounted meanwhile is over
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2


def test_the_close_of_the_engine_ends_it(boot: Callable[..., Storage], control: Control) -> None:
    storage = boot("p")
    control.wait_for("start", 2)
    with promptly(5):
        storage.close()
    eventually(lambda: threads() == 0)
    calls = control.calls["start"]
    time.sleep(0.3)
    assert control.calls["start"] == calls


def test_a_type_that_nobody_brings_is_tried_again_too(engine: Engine) -> None:
    before = engine.open()
    before.define_pool(engine.definition("p")).set_autostart(True)
    before.close()
    pool = engine.open(autostart=True, limits=SLOW, backends={}).pool("p")
    assert any("next try in" in problem for problem in pool.problems)
