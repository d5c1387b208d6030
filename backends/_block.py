"""Volumes that are block devices of this host: what LVM, iSCSI, SCSI, disk and multipath share.

A pool type inherits `BlockVolumes`, and `ClonesToBlock` if it makes volumes. Its `refresh` makes
records with ``path`` (the device), ``type=VolumeType.BLOCK`` and, where the device's number is
known, ``stamp=device_stamp(rdev, size)``: whatever opens the volume later refuses another device,
or one of another size. `with_image` keeps in a scan what a look found out about the same device.

What it may override: `is_same` (by what a device is known again), `look` (to find what is not
known), `allocation_of` (a thin volume takes less than its size), `device_path`.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from storaged import imagelock
from storaged.backend import Durability, Sink, Source, Transfers
from storaged.backends._blockclone import ClonesToBlock as ClonesToBlock
from storaged.backends._blockholder import require_unwritten
from storaged.backends._blocklook import with_image as with_image
from storaged.backends._blockopen import DeviceHandle
from storaged.backends._blockopen import device_stamp as device_stamp
from storaged.backends._blockopen import open_block as open_block
from storaged.backends._blockopen import size_of as size_of
from storaged.backends._blockwipe import WipesDevices
from storaged.backends._image import format_errors
from storaged.backends._streams import DescriptorSink, DeviceSource
from storaged.errors import NoSuchVolume, OperationUnsupported, SystemFailure, system_errors
from storaged.formats.handle import Handle
from storaged.model import VolumeRecord


class BlockVolumes(WipesDevices, Transfers):
    """The volumes are block devices: their bytes go in and out as they are.

    A volume is as long as its device; nothing is written behind that. What is written to while it
    is mounted, or a part of another device, is refused.
    """

    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        return DeviceHandle(self.open_device(volume, writable=writable))

    def open_disk(self, volume: VolumeRecord, *, format: str | None = None) -> Handle:
        """Open a volume as a guest sees it: raw, unless the caller says otherwise.

        What a guest wrote into its disk is never taken for an image by itself; and one that names
        other files is refused. QEMU's writers are kept out until it is closed.

        :raise VolumeBusy: somebody may write to it: what is read would be torn.
        """
        kind = format or volume.format or "raw"
        fd = self.open_device(volume)
        with ExitStack() as opened:
            opened.callback(os.close, fd)
            locks = opened.enter_context(ExitStack())
            locks.enter_context(imagelock.hold(fd, volume.name, writing=False))
            require_unwritten(os.fstat(fd).st_rdev, volume.name)
            if kind in ("raw", "iso", "none", "unknown"):
                opened.pop_all()
                return DeviceHandle(fd, locks=locks)
            path = self.device_path(volume)
            with (
                format_errors(volume.name),
                system_errors(f"Failed to open storage volume with path '{path}'"),
            ):
                disk = _decoded(DeviceHandle(fd, locks=locks), kind, volume.name)
            opened.pop_all()
            return disk

    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        path = self.device_path(volume)
        durable = self.host.durability is Durability.FULL
        with ExitStack() as stack:
            fd = self._open_stream(volume, path, writable=True)
            stack.callback(os.close, fd)
            # as in libvirt, several uploads to one volume may be open
            stack.enter_context(imagelock.hold(fd, volume.name, alone=False))
            device = DeviceHandle(fd, owned=False, discard_unit=self.discard_unit(volume))
            end = min(device.size(), offset + length) if length else device.size()
            return DescriptorSink(stack.pop_all(), device, offset, end, durable=durable, where=path)

    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        path = self.device_path(volume)
        device = DeviceHandle(self._open_stream(volume, path, writable=False))
        end = max(device.size(), offset)
        if length:
            end = min(end, offset + length)
        return DeviceSource(device, offset, end, sparse=sparse, where=path)

    def _open_stream(self, volume: VolumeRecord, path: str, *, writable: bool) -> int:
        """Open the device of a volume, or tell of it in libvirt's words for a stream."""
        try:
            return self.open_device(volume, writable=writable, shared=True)
        except NoSuchVolume as err:
            raise SystemFailure(f"Unable to open stream for '{path}'", errno.ENOENT) from err


def _decoded(device: DeviceHandle, kind: str, name: str) -> Handle:
    """Return the disk of an image on a device.

    :raise OperationUnsupported: it is not read, or has parts elsewhere.
    :raise FormatError: it is damaged.
    """
    if kind == "qcow2":
        from storaged.formats.probe import probe
        from storaged.formats.qcow2_read import Qcow2Disk

        image = probe(device)
        if image.backing is None and image.data_file is None:
            return Qcow2Disk(device)
        what = "names other files"
    else:
        what = f"would be read as {kind}"
    raise OperationUnsupported(f"volume '{name}' {what}: on a block device that is not opened")
