"""Pool type fs: a file system on a device, or in an image file, is mounted on the target.

The device may also be named by ``UUID=``, ``LABEL=``, ``PARTUUID=`` or ``PARTLABEL=``.

libvirt's behaviour, but that nothing is mounted over what is not the pool's, and that nothing that
is in use is ever formatted.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from storaged import mounts
from storaged.backend import Descriptor
from storaged.backends._local import FILE_FORMATS
from storaged.backends._mkfs import make_file_system
from storaged.backends._mount import MountedTarget, no_device
from storaged.backends._sourcedevice import find_device, is_mount_of
from storaged.errors import ConfigUnsupported, InternalError, OperationFailed, SystemFailure
from storaged.job import Job
from storaged.mounts import Mount
from storaged.traits import PoolType, traits_of

#: File systems that nobody expects to be writable.
_READ_ONLY = frozenset({"iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs"})
_DEVICES = Path("/sys/dev/block")
_BTRFS = Path("/sys/fs/btrfs")
#: ``BTRFS_IOC_FS_INFO``: in the answer, two numbers come before the UUID.
_FS_INFO = 0x8400941F
_FS_INFO_SIZE = 1024


class Fs(MountedTarget):
    """A file system of this host; `build` makes the mount point, and the file system if asked."""

    descriptor: ClassVar[Descriptor] = Descriptor(
        "fs", traits_of(PoolType.FS).source_formats, FILE_FORMATS
    )
    #: a log that is long may take its time to be replayed
    mount_timeout: ClassVar[float] = 300.0
    watch_every: ClassVar[float] = 4.0

    def check_source(self) -> None:
        devices = self.definition.source.devices
        if len(devices) != 1:
            raise ConfigUnsupported("expected exactly 1 device for the storage pool")
        if not devices[0].path:
            raise ConfigUnsupported("missing source device")

    def mount_source(self) -> str:
        return self.definition.source.devices[0].path

    def is_source(self, mount: Mount) -> bool:
        if mount.source == self.mount_source() and mount.root == "/":
            return True
        device = find_device(self.mount_source())
        return device is not None and is_mount_of(mount, device)

    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        super().build(job)
        if overwrite is None:
            return
        self.check_source()
        source = self.mount_source()
        device = find_device(source, job)
        if device is None:
            raise OperationFailed(f"no device has {source}", advice="lsblk -f lists what there is.")
        kind = self.definition.source.format or "auto"
        make_file_system(device, kind, job, overwrite=overwrite, source=source)

    def watch_source(self, directory: int) -> None:
        """Tell of a disk that was pulled: its file system answers from memory for long."""
        try:
            with os.scandir(directory) as listing:
                next(listing, None)
        except OSError as err:
            raise SystemFailure(f"cannot read directory '{self.target}'", err.errno or 0) from err
        try:
            mount = mounts.mount_of(directory)
        except InternalError:  # detached: the next opening tells
            return
        devices = _devices(mount, directory)
        if devices and not any(device.exists() for device in devices):
            raise no_device(mount.source)

    def mount_notes(self, mount: Mount) -> tuple[str, ...]:
        asked = {"ro"} & {word for o in self.definition.mount_options for word in o.split(",")}
        if mount.read_only and not asked and mount.type not in _READ_ONLY:
            return (
                f"the {mount.type} of {mount.source} is read-only, perhaps after errors: dmesg",
            )
        return ()


def _devices(mount: Mount, directory: int) -> tuple[Path, ...]:
    """Return where the kernel has the devices of a mount, whatever they are called by now."""
    if not mount.device.startswith("0:"):
        return (_DEVICES / mount.device,)
    with suppress(OSError):  # btrfs may have several, and a number of its own
        answer = fcntl.ioctl(directory, _FS_INFO, bytes(_FS_INFO_SIZE))
        return tuple((_BTRFS / str(UUID(bytes=answer[16:32])) / "devices").iterdir())
    return ()
