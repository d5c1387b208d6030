"""Logical units as volumes: what the pool types iscsi and scsi have in common.

A unit is found in sysfs, gets its device node from the kernel and its stable name from udev; each
of these comes a little later than the one before. So a scan waits for them, within a bound, and
tells of a unit whose name does not come, instead of waiting for it again at the next scan.

Source: libvirt's behaviour.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Final

from storaged import tool, udev
from storaged.backend import Host, Refresh
from storaged.backends._block import BlockVolumes, device_stamp, with_image
from storaged.backends._blockholder import busy, holders, lasting_writers
from storaged.backends._scsi import HEAD, Unit, label_of
from storaged.backends._scsiid import read_serial
from storaged.errors import Cancelled, InternalError, StorageError, Timeout
from storaged.job import Job
from storaged.model import Permissions, PoolDef, Space, VolumeRecord, VolumeType

#: How long a scan waits for the devices of units that it does not know yet, in seconds.
PATIENCE: Final = 10.0
#: Where udev keeps scsi_id, beside the places where programs are.
_SCSI_ID: Final = ("/lib/udev/scsi_id", "/usr/lib/udev/scsi_id")


class ScsiUnits(BlockVolumes):
    """The disks and CD-ROMs that `units` returns are the volumes."""

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        #: units, by directory in sysfs, whose device has been waited for in vain
        self._given_up: frozenset[str] = frozenset()

    @abstractmethod
    def units(self) -> tuple[Unit, ...]:
        """Return the units as sysfs shows them now."""

    @property
    def target(self) -> str:
        """The directory that the paths of the volumes lie in."""
        if self.definition.target is None:
            raise InternalError(f"pool '{self.definition.name}' has no target path")
        return self.definition.target

    def scan_units(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        """Return the units that are there as volumes, and what is wrong with the others."""
        names = udev.StableNames(self.target)
        units = self._settled(names, job)
        volumes: dict[str, VolumeRecord] = {}
        problems, keys = [], set[str]()
        for unit in units:
            job.checkpoint()
            path = names.find(unit.node) if unit.block is not None else None
            if path is None:
                problems.append(self._nameless(unit))
                continue
            try:
                record = _record(unit, path, known.get(unit.name), keys, job)
            except OSError as err:  # its node has just gone
                problems.append(f"{unit.name} ({unit.node}): {err.strerror}")
                continue
            keys.add(record.key or path)
            volumes[record.name] = record
        total = sum(record.capacity for record in volumes.values())
        return Refresh(volumes, Space(total, total, 0), problems=tuple(problems))

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        if known is not None:
            return super().look(name, known)
        unit = next((unit for unit in self.units() if unit.name == name), None)
        if unit is None or unit.block is None:
            return None
        path = udev.StableNames(self.target).find(unit.node)
        try:
            return None if path is None else _record(unit, path, None, ())
        except OSError:
            return None

    def require_unused(self) -> None:
        """See that nothing of this host is mounted from a unit, is built on one, or writes to one.

        :raise VolumeBusy: something is; the advice says what.
        """
        for unit in self.units():
            if unit.block is not None:
                try:
                    rdev = os.stat(unit.node).st_rdev  # noqa: PTH116
                except OSError:
                    continue
                users = tuple(f"open by {user}" for user in lasting_writers(rdev))
                if named := (*holders(rdev), *users):
                    raise busy(unit.name, named)

    def _settled(self, names: udev.StableNames, job: Job[Any]) -> tuple[Unit, ...]:
        """Return the units once all of them that will have got their devices and names."""
        units = self.units()
        if self._lacking(units, names):
            units = self._with_devices(job)
            names.refresh()
            if self._lacking(units, names) and udev.is_running():
                udev.settle(PATIENCE, job)
                names.refresh()
                units = self.units()
        lacking = self._lacking(units, names, afresh=True)
        self._given_up = frozenset(unit.device for unit in lacking)
        return units

    def _with_devices(self, job: Job[Any]) -> tuple[Unit, ...]:
        """Wait until the kernel has made a device of each unit: it does so beside the scan."""

        def complete() -> tuple[Unit, ...] | None:
            units = self.units()
            lacking = (u for u in units if u.block is None or not os.path.exists(u.node))  # noqa: PTH110
            return None if any(u.device not in self._given_up for u in lacking) else units

        try:
            return udev.wait_for(complete, PATIENCE, job, "the device of a LUN")
        except Timeout:
            return self.units()

    def _lacking(
        self, units: Iterable[Unit], names: udev.StableNames, *, afresh: bool = False
    ) -> list[Unit]:
        """Return the units that have no device, or no name, and may still get it."""
        return [
            unit
            for unit in units
            if (afresh or unit.device not in self._given_up)
            and (unit.block is None or names.find(unit.node) is None)
        ]

    def _nameless(self, unit: Unit) -> str:
        if unit.block is None:
            return f"{unit.name} is there, but the kernel has made no device of it"
        return f"{unit.name} ({unit.node}) has no name in '{self.target}'"


def _record(
    unit: Unit,
    path: str,
    known: VolumeRecord | None,
    keys: Iterable[str],
    job: Job[Any] | None = None,
) -> VolumeRecord:
    """Return the record of a unit.

    :param path: its stable one.
    :param keys: those that other units of the pool have.
    :raise OSError: its node has gone.
    """
    status = os.stat(unit.node)  # noqa: PTH116
    size = unit.size or 0
    label, problem = _read_label(unit)
    serial = _serial(unit, path, known, status.st_rdev, job)
    record = VolumeRecord(
        unit.name,
        size,
        size,
        size,
        type=VolumeType.BLOCK,
        stamp=device_stamp(status.st_rdev, size),
        permissions=Permissions.of_file(status),
        key=path if serial is None or serial in keys else serial,
        path=path,
        problem=problem,
        extra=None if label is None else {"label": label},
    )
    record = with_image(record, known)
    return known if known is not None and known == record else record


def _read_label(unit: Unit) -> tuple[str | None, str | None]:
    """Return what is on a unit, and why it cannot be read."""
    if not unit.answers:
        return None, f"it is {unit.state}"
    try:
        fd = os.open(unit.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.pread(fd, HEAD, 0)
            return label_of(head), None if head else "empty: its target has taken it away"
        finally:
            os.close(fd)
    except OSError as err:
        return None, f"unreadable: {err.strerror}"


def _serial(
    unit: Unit, path: str, known: VolumeRecord | None, rdev: int, job: Job[Any] | None
) -> str | None:
    """Return what a unit calls itself, None if it does not say."""
    serial = read_serial(unit.device)
    if serial is not None:
        return serial
    if (
        known is not None
        and known.path == path
        and known.stamp == device_stamp(rdev, unit.size or 0)
    ):
        return known.key
    argv = (scsi_id(), "--replace-whitespace", "--whitelisted", "--device", unit.node)
    try:
        return tool.run(argv, timeout=10, job=job).text.strip() or None
    except Cancelled:
        raise
    except StorageError:  # it is a convenience only: the path is a key as well
        return None


def scsi_id() -> str:
    """Return the path of udev's scsi_id; the bare name if it is not where udev puts it."""
    return next((path for path in _SCSI_ID if os.path.exists(path)), "scsi_id")  # noqa: PTH110
