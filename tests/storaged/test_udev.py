"""What is known of devices: natively by the kernel's events, in the guest by udev's."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storaged import tool, udev
from storaged.errors import Cancelled, CommandFailed, MissingProgram, SystemFailure, Timeout
from storaged.job import Job
from tests.kernel.programs import patience

LoopDevice = Callable[..., str]


def change(device: str) -> None:
    """Have the kernel tell of a device."""
    Path(f"/sys/block/{Path(device).name}/uevent").write_text("change")


# Settling


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if udev ran; where its queue is."""
    (tmp_path / "control").touch()
    monkeypatch.setattr(udev, "_CONTROL", tmp_path / "control")
    monkeypatch.setattr(udev, "_QUEUE", tmp_path / "queue")
    return tmp_path / "queue"


def test_where_no_udev_runs_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udev, "_CONTROL", tmp_path / "none")
    assert not udev.is_running()
    before = time.monotonic()
    assert udev.settle(10) is False
    assert time.monotonic() - before < 1


def test_udevadm_is_asked_with_a_bound(daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], float]] = []

    def run(argv: list[str], *, timeout: float, job: object = None) -> None:
        asked.append((argv, timeout))

    monkeypatch.setattr(tool, "run", run)
    assert udev.settle(3)
    assert asked == [(["udevadm", "settle", "--timeout=3"], 5)]


def test_what_does_not_settle_is_no_error(daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> None:
        raise CommandFailed(tuple(argv), 1, "timed out")

    monkeypatch.setattr(tool, "run", run)
    assert udev.settle(1) is False


@pytest.fixture
def without_udevadm(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise MissingProgram("udevadm is not installed")

    monkeypatch.setattr(tool, "run", run)


@pytest.mark.usefixtures("without_udevadm")
def test_without_udevadm_the_queue_tells(daemon: Path) -> None:
    assert udev.settle(1) is True
    daemon.touch()
    assert udev.settle(0.1) is False
    timer = threading.Timer(0.2, daemon.unlink)
    timer.start()
    assert udev.settle(10) is True
    timer.join()


@pytest.mark.usefixtures("without_udevadm")
def test_a_cancel_ends_settling(daemon: Path) -> None:
    daemon.touch()
    job: Job[None] = Job("start")
    job.cancel()
    with pytest.raises(Cancelled):
        udev.settle(10, job)


@pytest.mark.kernel("loop", "udev")
def test_settling_for_real(loop_device: LoopDevice) -> None:
    device = loop_device(8)
    subprocess.run(["mkfs.ext4", "-q", "-U", "6a2e1d2c-54c0-4b6c-9d0c-3c5b0a6d4d01", device])
    change(device)
    assert udev.settle(patience(10))
    link = "/dev/disk/by-uuid/6a2e1d2c-54c0-4b6c-9d0c-3c5b0a6d4d01"
    assert link in udev.links(device)
    assert udev.stable_path("/dev/disk/by-uuid", device) == link


# Waiting


def test_an_answer_at_once_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udev, "Monitor", None)
    assert udev.wait_for(lambda: "it", 0) == "it"
    assert udev.wait_for(lambda: 0, 0) == 0  # None alone is no answer


def test_what_does_not_come_is_named() -> None:
    before = time.monotonic()
    with pytest.raises(Timeout, match=r"the device of LUN 3 has not appeared within 0\.3 s"):
        udev.wait_for(lambda: None, 0.3, what="the device of LUN 3")
    assert 0.3 <= time.monotonic() - before < 5


def test_it_is_asked_again_without_any_event() -> None:
    answers = iter([None, None, None, "it"])
    assert udev.wait_for(lambda: next(answers), 20) == "it"


def test_a_cancel_ends_waiting() -> None:
    job: Job[None] = Job("start")
    threading.Timer(0.1, job.cancel).start()
    with pytest.raises(Cancelled):
        udev.wait_for(lambda: None, 60, job)


@pytest.mark.kernel("loop")
def test_it_is_asked_after_an_event(
    loop_device: LoopDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udev, "_ASK_EVERY", 60.0)
    device = loop_device(8)
    due = threading.Event()

    def happen() -> None:
        due.set()
        change(device)

    timer = threading.Timer(0.3, happen)
    timer.start()
    before = time.monotonic()
    assert udev.wait_for(lambda: due.is_set() or None, 60)
    assert time.monotonic() - before < patience(5)
    timer.join()


# Stable names


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Path]:
    """A directory below /dev for links."""
    made = Path(f"/dev/shm/storaged-test-{os.getpid()}-{tmp_path.name}")
    made.mkdir()
    yield made
    for link in made.iterdir():
        link.unlink()
    made.rmdir()


@pytest.mark.kernel("loop")
def test_the_link_that_leads_to_a_device(loop_device: LoopDevice, names: Path) -> None:
    first, second = loop_device(8), loop_device(8)
    (names / "b-one").symlink_to(first)
    (names / "a-one").symlink_to(first)
    (names / "two").symlink_to(second)
    (names / ".#two").symlink_to(second)
    (names / "gone").symlink_to("/dev/no-such-device")
    (names / "none").symlink_to("/dev/null")
    stable = udev.StableNames(str(names))
    assert stable.of(first) == f"{names}/a-one"  # whatever the order of the directory
    assert stable.of(second) == f"{names}/two"
    assert stable.of(f"{names}/b-one") == f"{names}/a-one"
    assert stable.of("/dev/zero") == "/dev/zero"
    assert stable.find("/dev/zero") is None
    assert stable.find("/dev/no-such-device") is None
    assert udev.stable_path(str(names), second) == f"{names}/two"


@pytest.mark.kernel("loop")
def test_one_listing_serves_until_it_is_renewed(loop_device: LoopDevice, names: Path) -> None:
    device = loop_device(8)
    stable = udev.StableNames(str(names))
    assert stable.of(device) == device
    (names / "late").symlink_to(device)
    assert stable.of(device) == device
    stable.refresh()
    assert stable.of(device) == f"{names}/late"


@pytest.mark.parametrize("target", ["/dev", "/dev/", "/var/lib/x", "relative"])
def test_where_a_device_has_no_other_name(target: str) -> None:
    assert udev.stable_path(target, "/dev/sda") == "/dev/sda"
    assert udev.StableNames(target).find("/dev/sda") == "/dev/sda"


def test_a_directory_that_is_not_there_yet() -> None:
    assert udev.stable_path("/dev/disk/by-nothing", "/dev/null") == "/dev/null"


def test_a_directory_that_cannot_be_read(names: Path) -> None:
    (names / "file").touch()
    with pytest.raises(SystemFailure, match="cannot read dir") as caught:
        udev.stable_path(f"{names}/file", "/dev/null")
    assert caught.value.errno == errno.ENOTDIR


@pytest.mark.kernel("loop")
def test_a_listing_of_many_is_quick(loop_device: LoopDevice, names: Path) -> None:
    device = loop_device(8)
    for number in range(2000):
        (names / f"link-{number:04}").symlink_to(device)
    stable = udev.StableNames(str(names))
    before = time.monotonic()
    for _ in range(1000):
        assert stable.of(device) == f"{names}/link-0000"
    assert time.monotonic() - before < patience(2)


def test_links_of_what_udev_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("/dev/no-such-device", "/dev/null", str(tmp_path / "file")):
        assert udev.links(name) == ()


@pytest.mark.kernel("scsi_debug", "udev")
def test_links_of_a_disk(scsi_hosts: Callable[..., list[str]]) -> None:
    device = scsi_hosts(dev_size_mb=16)[0]
    assert udev.settle(patience(10))
    found = udev.links(device)
    assert any(link.startswith("/dev/disk/by-id/scsi-") for link in found)
    assert all(Path(link).resolve() == Path(device) for link in found)
    assert udev.stable_path("/dev/disk/by-id", device) in found


# Listening


@pytest.mark.kernel("loop")
def test_the_kernels_events_are_heard(loop_device: LoopDevice) -> None:
    device = loop_device(8)
    with udev.Monitor(source="kernel") as monitor:
        assert monitor.is_listening
        change(device)
        event = heard(monitor, device)
        assert event.action == "change"
        assert event.path == f"/sys/devices/virtual/block/{Path(device).name}"
        assert event.properties["SUBSYSTEM"] == "block"
        assert not monitor.lost()
    assert monitor.next(0) is None


@pytest.mark.kernel("loop", "udev")
def test_udevs_events_come_with_links(loop_device: LoopDevice) -> None:
    device = loop_device(8)
    with udev.Monitor() as monitor:
        change(device)
        event = heard(monitor, device)
        assert any(link.startswith("/dev/disk/by-diskseq/") for link in event.links)
        for link in event.links:
            assert Path(link).resolve() == Path(device)


@pytest.mark.kernel("scsi_debug", "udev")
def test_a_disk_that_comes_and_goes(scsi_hosts: Callable[..., list[str]]) -> None:
    with udev.Monitor() as monitor:
        device = scsi_hosts(dev_size_mb=16)[0]
        assert heard(monitor, device).action == "add"
        Path(f"/sys/block/{Path(device).name}/device/delete").write_text("1")
        assert heard(monitor, device, "remove").action == "remove"


def heard(monitor: udev.Monitor, device: str, action: str | None = None) -> Any:
    """The next event of a device."""
    deadline = time.monotonic() + patience(10)
    while time.monotonic() < deadline:
        event = monitor.next(0.5)
        if event is not None and event.name == device and action in (None, event.action):
            return event
    raise AssertionError(f"nothing was heard of {device}")


class Broken:
    """A monitor of pyudev's that fails."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def poll(self, _seconds: float) -> object | None:
        if self.numbers:
            number = self.numbers.pop(0)
            raise OSError(number, os.strerror(number))
        return None

    def filter_by(self, _subsystem: str) -> None: ...

    def set_receive_buffer_size(self, _size: int) -> None:
        raise OSError(errno.EPERM, "no")

    def start(self) -> None: ...


def monitoring(monkeypatch: pytest.MonkeyPatch, found: Callable[..., object]) -> udev.Monitor:
    pyudev = importlib.import_module("pyudev")
    monkeypatch.setattr(pyudev, "Monitor", SimpleNamespace(from_netlink=found))
    return udev.Monitor()


def test_lost_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monitoring(monkeypatch, lambda *_, **__: Broken(errno.ENOBUFS)) as monitor:
        assert monitor.next(0) is None
        assert monitor.lost()
        assert not monitor.lost()
        assert monitor.is_listening
        assert monitor.next(0) is None


class Endless(Broken):
    """A monitor of pyudev's that always has one more event."""

    def poll(self, _seconds: float) -> object:
        return SimpleNamespace(action="add", device_node="/dev/x", sys_path="/sys/x", properties={})


class Foreign(Broken):
    """One whose events have a property that is not UTF-8."""

    def poll(self, _seconds: float) -> object:
        class Device:
            @property
            def properties(self) -> dict[str, str]:
                return {"ID_MODEL": b"\xff".decode()}

        return Device()


def test_a_stream_of_events_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with monitoring(monkeypatch, lambda *_, **__: Endless()) as monitor:
        monitor.drain()
        assert monitor.is_listening


def test_an_event_that_is_not_understood_is_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monitoring(monkeypatch, lambda *_, **__: Foreign()) as monitor:
        assert monitor.next(0) is None
        assert monitor.lost()
        assert monitor.is_listening


def test_a_monitor_that_breaks_is_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    with monitoring(monkeypatch, lambda *_, **__: Broken(errno.EBADF)) as monitor:
        monitor.drain()
        assert not monitor.is_listening


def test_without_libudev_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    with udev.Monitor() as monitor:
        assert not monitor.is_listening
    assert udev.links("/dev/loop0") == ()


def test_where_nothing_can_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(errno.EPERM, "no netlink in this container")

    with monitoring(monkeypatch, refuse) as monitor:
        assert not monitor.is_listening
        before = time.monotonic()
        assert monitor.next(0.05) is None
        assert time.monotonic() - before >= 0.05
    monkeypatch.setattr(udev, "_ASK_EVERY", 0.02)
    answers = iter([None, None, "it"])
    assert udev.wait_for(lambda: next(answers), 20) == "it"
