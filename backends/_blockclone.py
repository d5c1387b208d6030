"""Filling a block device with the content of another volume; encrypted devices."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

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
from storaged.errors import ConfigUnsupported, OperationUnsupported, Unsupported, system_errors
from storaged.formats.handle import Handle
from storaged.formats.raw_writer import RawWriter
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord, VolumeType

#: Space for the header of an encrypted volume, as libvirt adds it to an LV: 2 MiB.
HEADER_ROOM = 2 << 20


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
    ) -> None:
        """Write the content of *source* to a new device; what lies behind it reads as zeros then.

        Nothing that the device held before is left. On an error the device is of no use.

        :param path: of the device, which nobody else may have in use.
        :param reflink: refused: devices share nothing.
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
            self._fill(device, volume, disk, job, options, reflink=reflink)
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
        job: Job[Any],
        options: CloneOptions,
        *,
        reflink: bool,
    ) -> None:
        from storaged.backends import _content
        from storaged.formats import convert

        target: Handle = device
        if volume.encryption is not None and options.secret is not None:
            # The rest of the device is the guest's too.
            target = _content.create_container(device, replace(volume, capacity=0), options.secret)
        if target.size() < disk.size():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        convert.convert(
            disk,
            RawWriter(target, target.size(), zeroed=False),
            size=target.size(),
            sharing=convert.Sharing.REQUIRED if reflink else convert.Sharing.AUTO,
            checkpoint=job.checkpoint,
        )


def _least(source: VolumeRecord, options: CloneOptions) -> int:
    """Return how long the disk of a clone is at least, in bytes.

    An encrypted volume that is not unlocked is copied with its header.
    """
    if source.format == "raw" and source.image is not None and options.source_secret is None:
        return max(source.capacity, source.physical)
    return source.capacity
