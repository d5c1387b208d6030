"""Events of devices reach the pools that they concern, and nobody else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storaged import hotplug
from storaged.backend import Backend, DeviceEvent, Plugged
from storaged.errors import OperationFailed
from storaged.events import Event
from tests.doubles import Double, eventually
from tests.kernel.programs import patience
from tests.storaged.conftest import Engine

NAME = "storaged-hotplug"


class Ears:
    """A monitor that hears what a test tells."""

    lost_some = False
    opened = 0
    faults = 0

    def __init__(self) -> None:
        self.told: queue.Queue[DeviceEvent] = queue.Queue()
        self.is_listening = True

    def __call__(self) -> Ears:
        self.opened += 1
        return self

    def __enter__(self) -> Ears:
        return self

    def __exit__(self, *_: object) -> None: ...

    def next(self, seconds: float) -> DeviceEvent | None:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("what nobody foresaw")
        try:
            return self.told.get(timeout=min(seconds, 0.05))
        except queue.Empty:
            return None

    def lost(self) -> bool:
        lost, self.lost_some = self.lost_some, False
        return lost

    def tell(self, name: str, action: str = "add") -> None:
        self.told.put(DeviceEvent(action, name, f"/sys/{name}"))


class PluggedDouble(Double, Plugged):
    """Takes interest in the devices whose name begins with the pool's."""

    heard: ClassVar[list[str]]

    def concerns(self, event: DeviceEvent) -> bool:
        self.heard.append(event.name)
        if event.name == "bad":
            raise ValueError("a plug-in's fault")
        return event.name.startswith(self.definition.name)


@pytest.fixture
def plugged(engine: Engine) -> type[Backend]:
    """The pool type "double", with devices."""
    made = type(
        "PluggedDouble", (PluggedDouble,),
        {"descriptor": engine.backend.descriptor, "control": engine.control, "heard": []},
    )  # fmt: skip
    engine.backend = made
    return made


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    made = Ears()
    monkeypatch.setattr(hotplug, "Monitor", made)
    monkeypatch.setattr(hotplug, "_QUIET", 0.02)
    monkeypatch.setattr(hotplug, "_INTERVAL", 0.1)
    return made


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == NAME]


def calm(engine: Engine) -> None:
    """Return when the thread listens, and all that is asked for has been scanned."""
    eventually(lambda: len(threads()) == 1)
    scans = -1
    while scans != engine.control.calls["refresh"]:
        scans = engine.control.calls["refresh"]
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def _no_threads_left(engine: Engine) -> Iterator[None]:
    yield
    engine.close()
    eventually(lambda: not threads())


def test_an_event_is_a_scan_and_new_volumes_are_told(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    storage = engine.open(watch=True)
    pool = engine.pool("sdb")
    assert pool.volumes() == []
    calm(engine)
    told: list[Event] = []
    storage.subscribe(told.append)
    (engine.directory / "sdb" / "new").write_bytes(b"data")
    ears.tell("sdb1")
    eventually(lambda: [volume.name for volume in pool.volumes()] == ["new"])
    eventually(lambda: [event.lifecycle for event in told] == [None])
    scans = engine.control.calls["refresh"]
    ears.tell("sdb1")
    engine.control.wait_for("refresh", scans + 1)
    time.sleep(0.1)
    assert len(told) == 1  # nothing was found that was not known


def test_only_the_pools_that_it_concerns(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    engine.open(watch=True)
    first, second = engine.pool("sdb"), engine.pool("sdc")
    assert first.volumes() == second.volumes() == []
    calm(engine)
    for name in ("b", "c"):
        (engine.directory / f"sd{name}" / "new").write_bytes(b"")
    ears.tell("sdb")
    eventually(lambda: len(first.volumes()) == 1)
    assert second.volumes() == []
    ears.tell("sda")
    eventually(lambda: "sda" in plugged.heard)  # type: ignore[attr-defined]
    assert second.volumes() == []


def test_a_crowd_of_events_is_one_scan(
    engine: Engine, plugged: type[Backend], ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotplug, "_INTERVAL", 60)
    engine.open(watch=True)
    engine.pool("sdb").volumes()
    calm(engine)
    scans = engine.control.calls["refresh"]
    for number in range(200):
        ears.tell(f"sdb{number}")
    engine.control.wait_for("refresh", scans + 1)
    ears.tell("sdb")
    eventually(lambda: plugged.heard[-1] == "sdb")  # type: ignore[attr-defined]
    time.sleep(0.2)
    assert engine.control.calls["refresh"] == scans + 1  # the next one has time


def test_what_had_to_wait_is_scanned_in_the_end(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    engine.open(watch=True)
    pool = engine.pool("sdb")
    pool.volumes()
    calm(engine)
    for name in ("one", "two", "three"):
        (engine.directory / "sdb" / name).write_bytes(b"")
        ears.tell("sdb")
        time.sleep(0.03)
    eventually(lambda: len(pool.volumes()) == 3)


def test_lost_events_concern_everybody(engine: Engine, plugged: type[Backend], ears: Ears) -> None:
    engine.open(watch=True)
    pools = [engine.pool("sdb"), engine.pool("sdc")]
    for pool in pools:
        pool.volumes()
    calm(engine)
    for pool in pools:
        (engine.directory / pool.name / "new").write_bytes(b"")
    ears.lost_some = True
    for pool in pools:
        eventually(lambda pool=pool: len(pool.volumes()) == 1)  # type: ignore[misc]


def test_a_fault_of_one_pool_keeps_nothing_from_the_next(
    engine: Engine, plugged: type[Backend], ears: Ears, caplog: pytest.LogCaptureFixture
) -> None:
    engine.open(watch=True)
    pool = engine.pool("sdb")
    pool.volumes()
    calm(engine)
    ears.tell("bad")
    eventually(lambda: "failed on a device's event" in caplog.text)
    (engine.directory / "sdb" / "new").write_bytes(b"")
    ears.tell("sdb")
    eventually(lambda: len(pool.volumes()) == 1)


def test_what_nobody_foresaw_is_no_end(engine: Engine, plugged: type[Backend], ears: Ears) -> None:
    engine.open(watch=True)
    pool = engine.pool("sdb")
    assert pool.volumes() == []
    calm(engine)
    ears.faults = 2
    eventually(lambda: not ears.faults)
    (engine.directory / "sdb" / "new").write_bytes(b"")
    ears.tell("sdb")
    eventually(lambda: len(pool.volumes()) == 1)


def test_a_scan_that_fails_or_cannot_be_begun_is_no_end(
    engine: Engine, plugged: type[Backend], ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.open(watch=True)
    pool = engine.pool("sdb")
    pool.volumes()
    calm(engine)
    genuine, refused = hotplug.rescan, threading.Event()

    def rescan(*args: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise OperationFailed("it does not answer")
        return genuine(*args)

    monkeypatch.setattr(hotplug, "rescan", rescan)
    ears.tell("sdb")
    eventually(refused.is_set)
    (engine.directory / "sdb" / "new").write_bytes(b"")
    time.sleep(0.15)
    ears.tell("sdb")
    eventually(lambda: len(pool.volumes()) == 1)


def test_a_refresh_is_told_once(engine: Engine, plugged: type[Backend], ears: Ears) -> None:
    storage = engine.open(watch=True)
    pool = engine.pool("sdb")
    pool.volumes()
    calm(engine)
    told: list[Event] = []
    storage.subscribe(told.append)
    control = engine.control
    control.hold("refresh", lively=True)
    first = pool.refresh(wait=False)
    waiting = pool.refresh(wait=False)
    (engine.directory / "sdb" / "new").write_bytes(b"")
    ears.tell("sdb")  # joins the one that waits
    eventually(lambda: "sdb" in plugged.heard)  # type: ignore[attr-defined]
    time.sleep(0.1)
    control.release("refresh")
    first.result()
    waiting.result()
    eventually(lambda: len(told) == 2)
    time.sleep(0.05)
    assert len(told) == 2


def test_there_is_no_thread_while_there_is_nobody_to_tell(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    engine.open(watch=True)
    assert not threads()
    engine.pool("plain", "dir")
    assert not threads()
    pool = engine.pool("sdb")
    eventually(lambda: len(threads()) == 1)
    second = engine.pool("sdc")
    assert len(threads()) == 1
    pool.stop()
    second.stop()
    eventually(lambda: not threads())
    pool.start()
    eventually(lambda: len(threads()) == 1)


def test_an_active_pool_is_listened_for_from_the_opening_on(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    engine.open(watch=True)
    engine.pool("sdb")
    engine.opened[-1].close()
    eventually(lambda: not threads())
    engine.open()
    assert not threads()  # who does not ask is not told
    engine.opened[-1].close()
    engine.open(watch=True)
    eventually(lambda: len(threads()) == 1)


def test_without_ears_there_is_no_thread(
    engine: Engine, plugged: type[Backend], ears: Ears
) -> None:
    ears.is_listening = False
    engine.open(watch=True)
    engine.pool("sdb")
    eventually(lambda: ears.opened > 0 and not threads())


@pytest.mark.kernel("loop")
def test_a_real_device(
    engine: Engine,
    plugged: type[Backend],
    loop_device: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel tells of a new device; where udev runs, udev does."""
    engine.open(watch=True)
    device = loop_device(8)
    pool = engine.pool(Path(device).name)
    monkeypatch.setattr(plugged, "concerns", lambda _self, event: event.name == device)
    assert pool.volumes() == []
    calm(engine)
    (engine.directory / Path(device).name / "new").write_bytes(b"")
    deadline = time.monotonic() + patience(10)
    while not pool.volumes() and time.monotonic() < deadline:  # it may have to load pyudev first
        Path(f"/sys/block/{Path(device).name}/uevent").write_text("change")
        time.sleep(0.5)
    assert len(pool.volumes()) == 1


def test_what_came_before_it_listened_is_seen(
    engine: Engine, plugged: type[Backend], ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()
    genuine = ears.__class__.__enter__

    def enter(self: Ears) -> Ears:
        loading.wait(10)
        return genuine(self)

    monkeypatch.setattr(Ears, "__enter__", enter)
    engine.open(watch=True)
    pool = engine.pool("sdb")
    assert pool.volumes() == []
    (engine.directory / "sdb" / "new").write_bytes(b"")
    loading.set()
    eventually(lambda: len(pool.volumes()) == 1)
