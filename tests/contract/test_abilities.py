"""What a backend promises its engine: one that begins anew, that watches, that hears events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from storaged.backend import (
    Anchored,
    Backend,
    Builds,
    CreatesVolumes,
    DeviceEvent,
    Host,
    LooksAtVolumes,
    Plugged,
    Remembers,
    Watched,
)
from storaged.errors import StorageError, TargetChanged
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord
from storaged.poolxml import parse_pool
from storaged.udev import Monitor
from tests.contract.subjects import MIB, Ground, Subject, parameters
from tests.kernel.programs import patience, run

on_storage = pytest.mark.parametrize("subject", parameters())

#: Seconds in which storage that is well answers a look.
_PROMPTLY = 1.0
#: Nobody's device.
_FOREIGN = DeviceEvent("change", "/dev/storaged-none", "/sys/devices/virtual/block/storaged-none")


def new_job() -> Job[None]:
    return Job("test", "ground")


def backend_of(subject: Subject, ground: Ground) -> Backend:
    """Return a backend of the ground, as an engine that has just begun has it."""
    return subject.backend(parse_pool(ground.xml), Host(id="contract"))


@on_storage
def test_by_another_instance(subject: Subject, ground: Ground) -> None:
    """What one instance has started another one goes on with, and stops."""
    first, second = backend_of(subject, ground), backend_of(subject, ground)
    if isinstance(first, Builds):
        first.build(new_job(), overwrite=ground.overwrite)
    was_there = first.check()
    first.start(new_job())
    try:
        first.start(new_job())  # twice is no error
        hold_as_before(first, second)
        if isinstance(first, CreatesVolumes):
            first.create(first.plan(VolumeDef("volume", 8 * MIB)), new_job())
        assert second.check() == subject.shows
        found = second.refresh({}, new_job()).volumes
        assert first.refresh({}, new_job()).volumes == found
        check_looks(second, found)
        check_watch(second)
        check_events(second, found)
        check_loss(second)
    finally:
        second.stop(new_job())
        second.stop(new_job())
    assert second.check() == was_there


def hold_as_before(first: Backend, second: Backend) -> None:
    """Hand over what the first one knows, by way of a file."""
    if isinstance(first, Remembers):
        known = first.anchor()
        first.hold(known)
        assert isinstance(second, Remembers)
        second.hold(json.loads(json.dumps(dict(known))))
        assert second.anchor() == known


def check_looks(backend: Backend, found: Mapping[str, VolumeRecord]) -> None:
    """Check that a look at one volume tells what the scan told, and that it is settled then."""
    if not isinstance(backend, LooksAtVolumes):
        return
    assert backend.look("storaged-none", None) is None
    for name, record in found.items():
        seen = backend.look(name, record)
        assert seen is not None
        assert (seen.name, seen.key, seen.path) == (name, record.key, record.path)
        assert (seen.capacity, seen.format) == (record.capacity, record.format)
        assert backend.look(name, seen) is seen
        told = backend.describe(seen)
        assert (told.name, told.capacity, told.type) == (name, record.capacity, record.type)
        assert told.key == (record.key or told.path)  # of a file it is the path


def check_watch(backend: Backend) -> None:
    """Check that storage that is there says so at once."""
    if isinstance(backend, Watched):
        began = time.monotonic()
        backend.watch()
        assert time.monotonic() - began < patience(_PROMPTLY)


def check_events(backend: Backend, found: Mapping[str, VolumeRecord]) -> None:
    """Check that an event of a volume's own device concerns the pool, and a stranger's does not."""
    if not isinstance(backend, Plugged):
        return
    assert not backend.concerns(_FOREIGN)
    for record in found.values():
        device = os.path.realpath(record.path or "")
        assert backend.concerns(event_of(device)), record.name


def event_of(device: str) -> DeviceEvent:
    """Have udev tell of a device, and return what it tells."""
    with Monitor() as monitor:
        run("udevadm", "trigger", "--action=change", device)
        deadline = time.monotonic() + patience(10)
        while time.monotonic() < deadline:
            event = monitor.next(1)
            if event is not None and event.name == device:
                return event
    raise AssertionError(f"udev tells nothing of {device}")


def check_loss(backend: Backend) -> None:
    """Check that what lies below a mount is not taken for the pool, once somebody unmounts it."""
    target = backend.definition.target
    if not isinstance(backend, Anchored) or target is None or not Path(target).is_mount():
        return
    run("umount", target)
    if isinstance(backend, Watched):
        with pytest.raises(StorageError):
            backend.watch()
    if isinstance(backend, CreatesVolumes):
        with pytest.raises(TargetChanged):
            backend.plan(VolumeDef("below", 8 * MIB))
    backend.start(new_job())
    assert Path(target).is_mount()
