"""Filling a block device with the content of another volume; encrypted devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from storaged.backend import (
    PLAIN_CLONE,
    CloneBacking,
    CloneOptions,
    ClonesVolumes,
    Durability,
    ImageSource,
)
from storaged.backends import _plan
from storaged.backends._blockopen import DeviceHandle, OpensDevices, locked_block, open_block
from storaged.backends._clone import check_locked, check_same, sharing_errors
from storaged.backends._image import check_sound, format_errors
from storaged.errors import (
    ConfigUnsupported,
    NoSpace,
    OperationUnsupported,
    Unsupported,
    system_errors,
)
from storaged.formats.handle import Bytes, Handle
from storaged.formats.luks_create import longest_header
from storaged.formats.raw_writer import RawWriter
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord, VolumeType
from storaged.units import format_size

#: Space for the header of an encrypted volume. Libvirt adds 2 MiB to an LV, which is a little more:
#: in whole extents mostly the same, but a clone would not fit into as many as its source has.
HEADER_ROOM: Final = longest_header()
#: After so many extents of a source a cancel is looked for.
_MANY = 256


@dataclass(frozen=True, slots=True)
class Supply:
    """Where a new device that reads as zeros takes its space from, as it is written to.

    :param name: of the supply, in words.
    :param room: bytes that there are; others may take of them too.
    :param unit: bytes that are taken at a time.
    :param blank: whether the rest of a unit reads as zeros once a part of it was written.
    :param discards: whether units that are discarded read as zeros.
    """

    name: str
    room: int
    unit: int
    blank: bool = True
    discards: bool = False

    def require(self, volume: str, wanted: int) -> None:
        """Refuse to take more than there is.

        :raise NoSpace: naming both.
        """
        if wanted > self.room:
            raise NoSpace(
                f"Not enough space left in storage pool: volume '{volume}' takes at least"
                f" {format_size(wanted)}, and {self.name} has {format_size(self.room)}"
            )


class ClonesToBlock(OpensDevices, ClonesVolumes):
    """New volumes are block devices, which can be filled.

    The type makes a device of at least `room_for` bytes in its `create` and `clone`, calls
    `fill_device` (or `encrypt_device` for a new volume that is to be encrypted), and takes the
    device away again if that fails.
    """

    def check_request(self, volume: VolumeDef) -> VolumeDef:
        """Return the request for a new volume with raw as its format.

        :raise ConfigUnsupported: it asks for what only images have, or for an encryption that
            nobody makes.
        """
        if volume.format not in (None, "raw", "none", "unknown"):
            raise ConfigUnsupported(
                f"a volume of format '{volume.format}' cannot be made on a block device",
                advice="Leave the format out: a block volume is raw.",
            )
        if volume.compat or volume.features or volume.cluster_size:
            raise ConfigUnsupported(
                "compat, features and cluster size are only available with qcow2"
            )
        raw = replace(volume, format="raw")
        _plan.check_rest(replace(raw, backing=None))
        return raw

    def check_clone(
        self, volume: VolumeDef, source: VolumeRecord, options: CloneOptions = PLAIN_CLONE
    ) -> VolumeDef:
        """Return the request for a clone: raw, and with the source's capacity at least.

        :raise StorageError: it cannot be made on a block device, or from this source.
        """
        if source.type in (VolumeType.DIR, VolumeType.PLOOP):
            raise OperationUnsupported(f"directory volume '{source.name}' cannot be cloned")
        check_sound(source, "cloned")
        if options.backing is not CloneBacking.FLATTEN:
            raise ConfigUnsupported("a clone on a block device cannot keep a backing file")
        if options.compress is not None:
            raise ConfigUnsupported("compression is only available with qcow2")
        if volume.backing is not None:
            raise Unsupported("backing storage not supported for raw volumes")
        volume = self.check_request(volume)
        check_locked(volume, source, options)
        _plan.require_secret(volume, options.secret)
        return replace(volume, capacity=max(volume.capacity, _least(source, options)))

    def room_for(self, volume: VolumeDef) -> int:
        """Return how long the device of a new volume has to be, in bytes."""
        return volume.capacity + (HEADER_ROOM if volume.encryption is not None else 0)

    def fill_device(
        self,
        path: str,
        volume: VolumeDef,
        source: ImageSource,
        job: Job[Any],
        options: CloneOptions = PLAIN_CLONE,
        *,
        reflink: bool = False,
        supply: Supply | None = None,
    ) -> None:
        """Write the content of *source* to a new device; what lies behind it reads as zeros then.

        Nothing that the device held before is left. On an error the device is of no use.

        :param path: of the device, which nobody else may have in use.
        :param reflink: refused: devices share nothing.
        :param supply: None: the device has all of its space, and may hold old data.
        :raise NoSpace: more would have to be taken from *supply* than it has.
        :raise StorageError: the source cannot be read, or the device is too short or fails.
        """
        from storaged.backends import _content

        with (
            format_errors(source.record.name),
            system_errors(f"cannot copy '{source.record.name}' to '{path}'"),
            sharing_errors(source, required=reflink),
            _content.disk_of(source, job, options.source_secret) as disk,
            locked_block(open_block(path, volume.name, writable=True), volume.name) as device,
        ):
            check_same(source)
            self._fill(device, volume, disk, source, job, options, reflink, supply)
            if (options.durability or self.host.durability) is Durability.FULL:
                device.flush()

    def encrypt_device(
        self, path: str, volume: VolumeDef, secret: bytes, durability: Durability | None = None
    ) -> None:
        """Make a new device an empty encrypted container with one passphrase.

        :raise StorageError: the device is too short or fails, or LUKS does not allow it.
        """
        from storaged.backends import _content

        with (
            format_errors(volume.name),
            system_errors(f"cannot encrypt '{path}'"),
            locked_block(open_block(path, volume.name, writable=True), volume.name) as device,
        ):
            _content.create_container(device, volume, secret)
            if (durability or self.host.durability) is Durability.FULL:
                device.flush()

    def _fill(
        self,
        device: DeviceHandle,
        volume: VolumeDef,
        disk: Handle,
        source: ImageSource,
        job: Job[Any],
        options: CloneOptions,
        reflink: bool,
        supply: Supply | None,
    ) -> None:
        from storaged.backends import _content
        from storaged.formats import convert

        target: Handle = device
        blank = False
        if volume.encryption is not None and options.secret is not None:
            if supply is not None:
                supply.require(volume.name, device.size())
            # The rest of the device is the guest's too.
            target = _content.create_container(device, replace(volume, capacity=0), options.secret)
        elif supply is not None:
            blank = supply.blank
            if not (blank or supply.discards):
                supply.require(volume.name, device.size())
            elif source.record.type is not VolumeType.BLOCK:  # which does not tell its holes
                supply.require(volume.name, _taken(disk, supply.unit, job))
            target = _Rationed(device.descriptor, volume.name, supply)
        if target.size() < disk.size():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        convert.convert(
            disk,
            RawWriter(target, target.size(), zeroed=blank),
            size=target.size(),
            sharing=convert.Sharing.REQUIRED if reflink else convert.Sharing.AUTO,
            checkpoint=job.checkpoint,
        )


class _Rationed(DeviceHandle):
    """A device that is written to in order, and that takes no more than its supply has."""

    def __init__(self, fd: int, name: str, supply: Supply) -> None:
        super().__init__(fd, owned=False, discard_unit=supply.unit if supply.discards else 0)
        self._name = name
        self._supply = supply
        #: units that were taken, and the number behind the last of them
        self._count = self._end = 0

    def pwrite(self, data: Bytes, offset: int) -> None:
        self._take(offset, memoryview(data).nbytes)
        super().pwrite(data, offset)

    def pwritev(self, parts: Sequence[Bytes], offset: int) -> None:
        self._take(offset, sum(memoryview(part).nbytes for part in parts))
        super().pwritev(parts, offset)

    def _take(self, offset: int, length: int) -> None:
        unit = self._supply.unit
        end = -(-(offset + length) // unit)
        if end > self._end:
            self._count += end - max(offset // unit, self._end)
            self._end = end
            self._supply.require(self._name, self._count * unit)


def _taken(disk: Handle, unit: int, job: Job[Any]) -> int:
    """Return how many bytes the data of a disk take where whole units are taken."""
    count = reached = 0
    for number, extent in enumerate(disk.map(0, disk.size())):
        if number % _MANY == 0:
            job.checkpoint()
        end = -(-(extent.offset + extent.length) // unit)
        if extent.data and end > reached:
            count += end - max(extent.offset // unit, reached)
            reached = end
    return count * unit


def _least(source: VolumeRecord, options: CloneOptions) -> int:
    """Return how long the disk of a clone is at least, in bytes.

    An encrypted volume that is not unlocked is copied with its header.
    """
    if source.format == "raw" and source.image is not None and options.source_secret is None:
        return max(source.capacity, source.physical)
    return source.capacity
