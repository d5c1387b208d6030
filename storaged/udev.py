"""What udev knows of the devices of this host: is it done, what are the stable names, what changed.

This is the only place where pyudev is used, and it is loaded by the first call that needs it. Where
no udev runs (a container, a rescue system) nothing fails: there are no stable names then, waiting
falls back to asking again, and the kernel's own events are heard.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from storaged import tool
from storaged.errors import CommandFailed, MissingProgram, Timeout, system_errors
from storaged.mechanism import DeviceEvent

if TYPE_CHECKING:
    import pyudev  # type: ignore[import-untyped]

    from storaged.job import Job

T = TypeVar("T")

#: Where udev's daemon listens, and what is there while it has work.
_CONTROL: Final = Path("/run/udev/control")
_QUEUE: Final = Path("/run/udev/queue")
#: How long udevadm may take beyond the time it was given, in seconds.
_MARGIN: Final = 2.0
#: How often the queue is looked at where there is no udevadm, in seconds.
_TICK: Final = 0.02
#: `wait_for` asks again at least this often, in seconds: not every change is an event.
_ASK_EVERY: Final = 0.25
#: Bytes of events that may wait to be heard; a rescan of many LUNs comes all at once.
_BUFFER: Final = 8 << 20
#: So many events are left out at a time.
_MANY: Final = 4096
#: Targets in which a device has no other name than its own.
_PLAIN: Final = ("/dev", "/dev/")
_DEVICES: Final = "/dev"


def is_running() -> bool:
    """Tell whether udev's daemon runs on this host."""
    return _CONTROL.exists()


def settle(seconds: float = 10.0, job: Job[Any] | None = None) -> bool:
    """Wait until udev has worked off what the kernel has told so far.

    The queue of udev's daemon alone does not tell that: an event may still lie unread in its
    socket. ``udevadm settle`` asks the daemon, in the language of its version.

    :param seconds: how long to wait at most.
    :returns: False if it has not by then, or if no udev runs.
    :raise Cancelled: *job* was cancelled.
    """
    if not is_running():
        return False
    try:
        argv = ["udevadm", "settle", f"--timeout={max(round(seconds), 1)}"]
        tool.run(argv, timeout=seconds + _MARGIN, job=job)
    except MissingProgram:
        return _queue_is_empty_within(seconds, job)
    except CommandFailed:
        return False
    return True


def _queue_is_empty_within(seconds: float, job: Job[Any] | None) -> bool:
    deadline = time.monotonic() + seconds
    time.sleep(_TICK)  # for what lies unread in the daemon's socket
    while _QUEUE.exists():
        if time.monotonic() >= deadline:
            return False
        if job is not None:
            job.checkpoint()
        time.sleep(_TICK)
    return True


def wait_for(
    wanted: Callable[[], T | None], seconds: float, job: Job[Any] | None = None, what: str = ""
) -> T:
    """Ask *wanted* after each event of a block device until it has an answer, and return that.

    It is asked at once, at least every quarter of a second, and a last time at the end.

    :param what: is waited for, for the message, such as ``the device of LUN 3``.
    :raise Timeout: it had none within *seconds*.
    :raise Cancelled: *job* was cancelled.
    """
    found = wanted()
    if found is not None:
        return found
    deadline = time.monotonic() + seconds
    with Monitor() as monitor:
        while (found := wanted()) is None:
            if job is not None:
                job.checkpoint()
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"{what or 'a device'} has not appeared within {seconds:g} s")
            if monitor.next(min(left, _ASK_EVERY)) is not None:
                monitor.drain()
    return found


class StableNames:
    """The names in one directory, such as ``/dev/disk/by-path``, that lead to devices.

    One listing answers for any number of devices; it is taken at the first question. Of several
    names of a device the first in alphabetical order counts, where libvirt takes the first that the
    directory lists, which may be another after each boot.

    :param target: the pool's target path. In ``/dev``, and outside of it, a device has no other
        name than its own, as in libvirt.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._plain = target in _PLAIN or not target.startswith(_DEVICES)
        self._names: Mapping[tuple[int, int], str] | None = None

    def refresh(self) -> None:
        """Have the next question take a new listing."""
        self._names = None

    def of(self, device: str) -> str:
        """Return the stable path of a device; *device* itself if it has none here.

        :raise SystemFailure: the directory cannot be listed. One that is not there is no error:
            udev makes it with its first link.
        """
        return self.find(device) or device

    def find(self, device: str) -> str | None:
        """Return the stable path of a device, None if there is none (yet).

        Where a device has no other name than its own, that is it.

        :raise SystemFailure: as in `of`.
        """
        if self._plain:
            return device
        if self._names is None:
            with system_errors(f"cannot read dir '{self._target}'"):
                self._names = _listed(self._target)
        try:
            name = self._names.get(_identity(Path(device).stat()))
        except OSError:
            return None
        return None if name is None else f"{self._target}/{name}"


def stable_path(target: str, device: str) -> str:
    """Return the path below *target* that leads to a device; *device* itself if there is none.

    For more than one device ask `StableNames`.

    :raise SystemFailure: the directory is there and cannot be listed.
    """
    return StableNames(target).of(device)


def _listed(target: str) -> dict[tuple[int, int], str]:
    """Return the entries of a directory by what they lead to.

    :raise OSError: it cannot be listed.
    """
    found: dict[tuple[int, int], str] = {}
    try:
        names = sorted(os.listdir(target), reverse=True)  # noqa: PTH208 -- names, not paths
    except FileNotFoundError:
        return found
    for name in names:
        if not name.startswith("."):  # udev's links under construction
            with suppress(OSError):  # it leads nowhere by now
                found[_identity(Path(target, name).stat())] = name
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Return what is equal for two names of one device; negative for anything else."""
    if stat.S_ISBLK(status.st_mode):
        return status.st_rdev, 0
    return -status.st_dev, status.st_ino


def links(device: str) -> tuple[str, ...]:
    """Return the stable names that udev made for a block device, in order; none if it knows none.

    :param device: any name of its node.
    """
    try:
        status = Path(device).stat()
    except OSError:
        return ()
    if not stat.S_ISBLK(status.st_mode):
        return ()
    try:
        import pyudev
    except ImportError:  # no libudev on this host
        return ()
    try:
        known = pyudev.Devices.from_device_number(pyudev.Context(), "block", status.st_rdev)
    except (pyudev.DeviceNotFoundError, OSError):
        return ()
    return tuple(sorted(known.device_links))


class Monitor:
    """Hears what happens to devices from the moment on at which it is entered.

    :param subsystem: of the devices.
    :param source: ``udev`` tells after its rules have run, ``kernel`` before; None is the first
        where udev runs.
    """

    def __init__(self, subsystem: str = "block", *, source: str | None = None) -> None:
        self._subsystem = subsystem
        self._source = source
        self._monitor: pyudev.Monitor | None = None
        self._lost = False

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_listening(self) -> bool:
        """Whether events can be heard; where they cannot, `next` only lets its time pass."""
        return self._monitor is not None

    def lost(self) -> bool:
        """Tell whether events were lost since this was asked last: more came than were heard."""
        lost, self._lost = self._lost, False
        return lost

    def next(self, seconds: float) -> DeviceEvent | None:
        """Wait for the next event; None if there is none within *seconds*."""
        if self._monitor is None:
            time.sleep(max(seconds, 0))
            return None
        try:
            device = self._monitor.poll(max(seconds, 0))
        except OSError as err:
            # Whatever it is, what was to be heard may have been missed.
            self._lost = True
            if err.errno != errno.ENOBUFS:
                self._monitor = None
            return None
        if device is None:
            return None
        try:
            return _event(device)
        except ValueError:  # a property that is not UTF-8; the kernel takes any name of a disk
            self._lost = True
            return None

    def drain(self) -> None:
        """Leave out the events that wait; of a stream without end, what is there by now."""
        for _ in range(_MANY):
            if self.next(0) is None and not self._lost:
                break
            self._lost = False

    def close(self) -> None:
        """Hear nothing any more. Calling it again does nothing."""
        self._monitor = None

    def _open(self) -> None:
        try:
            import pyudev

            source = self._source or ("udev" if is_running() else "kernel")
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
            monitor.filter_by(self._subsystem)
            with suppress(OSError):  # an ordinary user may not
                monitor.set_receive_buffer_size(_BUFFER)
            monitor.start()
        except (ImportError, OSError):  # no libudev on this host, or no netlink in this container
            return
        self._monitor = monitor


def _event(device: pyudev.Device) -> DeviceEvent:
    properties = dict(device.properties)
    return DeviceEvent(
        action=device.action or "change",
        name=device.device_node or "",
        path=device.sys_path,
        links=tuple(sorted(properties.get("DEVLINKS", "").split())),
        properties=MappingProxyType(properties),
    )
