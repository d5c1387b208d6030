"""Storage that other hosts change too: what they make is seen, at once and with its event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storaged.backend import Backend, Descriptor, Refresh, Shared
from storaged.errors import SystemFailure
from storaged.job import Job
from storaged.model import PoolState
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.worker import Limits
from tests.doubles import Control, Double, eventually
from tests.storaged.conftest import Engine

QUICK = Limits(stuck_after=0.3, answers_within=0.4)


class Common(Double, Shared):
    """A pool over a directory in which others work, who can say so."""

    watch_every = 0.05
    #: what the engine has given to each run of each pool, the latest last
    told: ClassVar[list[Callable[[], None]]]
    scans: ClassVar[list[float]]
    at_once: ClassVar[list[int]]

    def listen(self, changed: Callable[[], None]) -> None:
        self.told.append(changed)
        self.control.enter("listen")

    def watch(self) -> None:
        self.control.enter("watch")

    def refresh(self, known: Any, job: Job[Any]) -> Refresh:
        self.scans.append(time.monotonic())
        self.at_once.append(self.at_once[-1] + 1)
        try:
            return super().refresh(known, job)
        finally:
            self.at_once.append(self.at_once[-1] - 1)


@pytest.fixture
def kind() -> type[Common]:
    made: dict[str, Any] = {"descriptor": Descriptor("double"), "control": Control()}
    return type("Common", (Common,), {**made, "told": [], "scans": [], "at_once": [0]})


@pytest.fixture
def control(kind: type[Common]) -> Control:
    return kind.control


@pytest.fixture
def storage(engine: Engine, kind: type[Common]) -> Iterator[Storage]:
    """A watching engine."""
    backends: dict[str, type[Backend]] = {"double": kind}
    yield engine.open(backends=backends, limits=QUICK, watch=True)
    kind.control.release_all()


@pytest.fixture
def pool(engine: Engine, storage: Storage, control: Control) -> Pool:
    """A started pool that is listened to."""
    made = engine.pool()
    control.wait_for("listen")
    return made


@pytest.fixture
def shared(engine: Engine) -> Path:
    """The directory of the pool, where others make files."""
    return engine.directory / "p"


def settled(kind: type[Common]) -> int:
    """Wait until no scan comes any more, and return how many there were."""
    while True:
        count = len(kind.scans)
        time.sleep(0.6)
        if count == len(kind.scans) and kind.at_once[-1] == 0:
            return count


def test_what_others_make_is_seen_at_once_with_its_event(
    pool: Pool, kind: type[Common], events: list[str], storage: Storage, shared: Path
) -> None:
    heard = threading.Event()
    storage.subscribe(lambda _event: heard.set())
    (shared / "theirs").write_bytes(b"x")
    before = time.monotonic()
    kind.told[-1]()
    assert time.monotonic() - before < 0.1  # it waits for nothing
    assert heard.wait(1)
    assert "theirs" in pool.names()
    assert events == ["REFRESH"]
    (shared / "theirs").unlink()
    kind.told[-1]()
    eventually(lambda: events == ["REFRESH"] * 2)
    assert pool.names() == []


def test_what_a_look_has_found_before_is_told_as_well(
    pool: Pool, kind: type[Common], events: list[str], shared: Path
) -> None:
    (shared / "theirs").write_bytes(b"x")
    assert pool.volume("theirs").info().capacity == 1
    assert events == []
    kind.told[-1]()
    eventually(lambda: events == ["REFRESH"])
    kind.told[-1]()
    settled(kind)
    assert events == ["REFRESH"]


def test_nothing_is_told_where_nothing_has_changed(
    pool: Pool, kind: type[Common], events: list[str]
) -> None:
    before = settled(kind)
    kind.told[-1]()
    assert settled(kind) == before + 1
    assert events == []


def test_many_changes_are_a_few_scans_one_at_a_time(
    pool: Pool, kind: type[Common], shared: Path
) -> None:
    before = settled(kind)
    until = time.monotonic() + 1
    count = 0
    while time.monotonic() < until:
        count += 1
        (shared / f"v{count}").write_bytes(b"x")
        kind.told[-1]()
        time.sleep(0.002)
    eventually(lambda: len(pool.names()) == count)  # the last one too
    scans = [moment for moment in kind.scans[before:] if moment < until]
    assert 2 <= len(scans) <= 6
    assert max(kind.at_once) == 1


def test_a_change_during_a_scan_leads_to_another(
    pool: Pool, kind: type[Common], control: Control, shared: Path
) -> None:
    settled(kind)
    seen = control.calls["refreshed"]
    control.hold("refreshed")  # it has read the directory, and goes on to its end later
    kind.told[-1]()
    control.wait_for("refreshed", seen + 1)
    (shared / "late").write_bytes(b"x")
    kind.told[-1]()
    control.release("refreshed")
    eventually(lambda: "late" in pool.names(), timeout=2)


def test_a_scan_that_fails_is_tried_again(
    pool: Pool, kind: type[Common], control: Control, events: list[str], shared: Path
) -> None:
    failed = control.calls["refresh"]
    control.fail("refresh", SystemFailure("cannot read", 5))
    (shared / "theirs").write_bytes(b"x")
    kind.told[-1]()
    control.wait_for("refresh", failed + 2)
    assert pool.active
    control.mend("refresh")
    eventually(lambda: events == ["REFRESH"])
    assert pool.names() == ["theirs"]


def test_what_changes_while_the_storage_is_away(
    pool: Pool, kind: type[Common], control: Control, events: list[str], shared: Path
) -> None:
    control.fail("watch", SystemFailure("no answer", 110))
    eventually(lambda: pool.info().state is PoolState.INACCESSIBLE)
    before = len(kind.scans)
    (shared / "theirs").write_bytes(b"x")
    kind.told[-1]()
    time.sleep(0.5)
    assert len(kind.scans) == before
    control.mend("watch")
    eventually(lambda: events == ["REFRESH"])
    assert pool.names() == ["theirs"]


def test_each_run_of_a_pool_is_listened_to_once(
    pool: Pool, kind: type[Common], control: Control, events: list[str], shared: Path
) -> None:
    time.sleep(0.3)
    assert control.calls["listen"] == 1
    pool.stop()
    scans = len(kind.scans)
    kind.told[-1]()  # it comes too late
    time.sleep(0.3)
    assert len(kind.scans) == scans
    assert not pool.active
    pool.start()
    control.wait_for("listen", 2)
    before = settled(kind)
    kind.told[0]()  # of the run before
    assert settled(kind) == before
    events.clear()
    (shared / "theirs").write_bytes(b"x")
    kind.told[-1]()
    eventually(lambda: events == ["REFRESH"])


def test_a_backend_may_tell_at_any_time(engine: Engine, kind: type[Common], shared: Path) -> None:
    class Eager(kind):  # type: ignore[misc, valid-type]
        """Tells in `listen`, and in each `watch`."""

        def listen(self, changed: Callable[[], None]) -> None:
            super().listen(changed)
            shared.joinpath("first").write_bytes(b"x")
            changed()

        def watch(self) -> None:
            super().watch()
            self.told[-1]()

    storage = engine.open(backends={"double": Eager}, limits=QUICK, watch=True)
    pool = engine.pool(storage=storage)
    eventually(lambda: "first" in pool.names())
    (shared / "second").write_bytes(b"x")
    eventually(lambda: "second" in pool.names(), timeout=2)


def test_a_backend_that_cannot_listen_is_watched(
    engine: Engine, storage: Storage, control: Control
) -> None:
    control.fail("listen", SystemFailure("a bug", 5))
    pool = engine.pool()
    control.wait_for("listen")
    control.fail("watch", SystemFailure("no answer", 110))
    eventually(lambda: pool.info().state is PoolState.INACCESSIBLE, timeout=10)


def test_nobody_listens_in_an_engine_that_does_not_watch(
    engine: Engine, kind: type[Common], control: Control
) -> None:
    storage = engine.open(backends={"double": kind})
    engine.pool(storage=storage)
    time.sleep(0.3)
    assert control.calls["listen"] == 0
