"""What there is to say of a volume that is a block device."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from storaged.backend import LooksAtVolumes
from storaged.backends._blockopen import OpensDevices, device_stamp, size_of
from storaged.backends._describe import file_facts
from storaged.errors import NoSuchVolume, system_errors
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo
from storaged.formats.probe import probe
from storaged.model import Encryption, Permissions, VolumeDef, VolumeRecord, VolumeType

_OTHER = "its path leads to another device by now: refresh the pool"


class LooksAtDevices(OpensDevices, LooksAtVolumes):
    """The kernel tells a device's size and owner; of its content only whether it is LUKS."""

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        return None if known is None else self.look_at_device(known)

    def look_again(self, volume: VolumeRecord) -> VolumeRecord:
        """Return the facts of a volume after work on it.

        :raise NoSuchVolume: it has gone.
        """
        record = self.look_at_device(volume)
        if record is None:
            raise NoSuchVolume(f"no storage vol with matching path '{self.device_path(volume)}'")
        return record

    def look_at_device(self, known: VolumeRecord) -> VolumeRecord | None:
        """Return a volume's record with size, owner and encryption as they are now.

        :returns: *known* itself if nothing changed; None if its device has gone.
        """
        try:
            status = Path(self.device_path(known)).stat()
        except OSError:
            return None
        size = size_of(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
        if size is None:
            return None
        if not self.is_same(known, status.st_rdev):
            return replace(known, problem=_OTHER)
        record = replace(
            known,
            capacity=size,
            allocation=self.allocation_of(known, size),
            physical=size,
            stamp=device_stamp(status.st_rdev, size),
            permissions=Permissions.of_file(status),
            image=self._container(known),
            problem=None if known.problem == _OTHER else known.problem,
        )
        return known if record == known else record

    def allocation_of(self, known: VolumeRecord, size: int) -> int:
        """Return what a volume of *size* bytes takes: all of it, unless a type knows better."""
        return size

    def describe(self, record: VolumeRecord) -> VolumeDef:
        path = self.device_path(record)
        with system_errors(f"cannot stat file '{path}'"):
            try:
                permissions, timestamps = file_facts(path)
            except FileNotFoundError as err:
                raise NoSuchVolume(f"no storage vol with matching path '{path}'") from err
        image = record.image
        extra: dict[str, Any] = dict(record.extra or {})
        wanted = {name: extra[name] for name in ("backing", "extents") if name in extra}
        return VolumeDef(
            name=record.name,
            capacity=record.capacity,
            allocation=record.allocation,
            physical=record.physical,
            format=record.format,
            type=VolumeType.BLOCK,
            key=record.key or path,
            path=path,
            permissions=permissions,
            timestamps=timestamps,
            encryption=Encryption(image.encryption) if image and image.encryption else None,
            **wanted,
        )

    def _container(self, volume: VolumeRecord) -> ImageInfo | None:
        """Return what the header of an encrypted volume says, None if there is none."""
        with suppress(OSError):
            fd = os.open(self.device_path(volume), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                image = probe(FileHandle(fd, owned=False))
            finally:
                os.close(fd)
            # Whatever else a guest wrote there: a block volume is raw, as for libvirt.
            if image.format == "raw" and image.encryption is not None:
                return image
        return None


def with_image(found: VolumeRecord, known: VolumeRecord | None) -> VolumeRecord:
    """Return what a scan found, with the encryption that a look at the same device told before.

    Where the scan does not tell the device's number, it is known by key and size.
    """
    if known is None or known.image is None:
        return found
    same = known.stamp == found.stamp
    if not found.stamp:
        same = found.key is not None and (known.key, known.capacity) == (found.key, found.capacity)
    return replace(found, image=known.image) if same else found
