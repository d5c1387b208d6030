"""Which device a file system's pool names: by path, UUID or label; and whether a mount is of it.

Sources: mount(8) on "UUID=" and its like; udev's encoding of names in ``/dev/disk``.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from storaged import tool
from storaged.backends._inuse import loops_of
from storaged.errors import StorageError
from storaged.job import Job
from storaged.mounts import Mount

#: Where udev keeps the links for each tag that mount(8) knows.
_LINKS = {
    "UUID": "/dev/disk/by-uuid",
    "LABEL": "/dev/disk/by-label",
    "PARTUUID": "/dev/disk/by-partuuid",
    "PARTLABEL": "/dev/disk/by-partlabel",
}
#: What udev keeps in a name beside letters and digits.
_KEPT = frozenset("#+-.:=@_")
_BTRFS = Path("/sys/fs/btrfs")
_BLKID_TIMEOUT = 15.0


def find_device(source: str, job: Job[Any] | None = None) -> str | None:
    """Return the path of the device, or the image file, that ``source/device@path`` names.

    :returns: None if no device has the UUID or label; a path is returned as it is.
    """
    tag, _, value = source.partition("=")
    links = _LINKS.get(tag)
    if links is None:
        return source
    link = f"{links}/{encoded(value)}"
    if os.path.exists(link):  # noqa: PTH110
        return link
    with suppress(StorageError):  # without udev, or before it has seen the device
        argv = ["blkid", "-c", "/dev/null", "-o", "device", "-l", "-t", f"{tag}={value}"]
        found = tool.run(argv, timeout=_BLKID_TIMEOUT, job=job, accept=(0, 2)).text.strip()
        return found or None
    return None


def encoded(value: str) -> str:
    """Return a label as udev writes it into the name of a link."""
    return "".join(
        c if not c.isascii() or c.isalnum() or c in _KEPT else f"\\x{ord(c):02x}" for c in value
    )


def is_mount_of(mount: Mount, device: str) -> bool:
    """Tell whether a mount is of a device or an image file, under whatever name.

    A bind mount of a part of the file system is not, but a subvolume of btrfs is.
    """
    if mount.root != "/" and mount.type != "btrfs":
        return False
    if mount.source == device:
        return True
    try:
        status = Path(device).stat()
    except OSError:
        return False
    if stat.S_ISREG(status.st_mode):
        return mount.source in loops_of(device)
    if not stat.S_ISBLK(status.st_mode):
        return False
    if mount.device == f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}":
        return True
    with suppress(OSError):  # btrfs has made-up device numbers, and a word may stand there
        other = Path(mount.source).stat() if mount.source.startswith("/dev/") else None
        if other is not None and stat.S_ISBLK(other.st_mode):
            return other.st_rdev == status.st_rdev or _is_one_btrfs(device, mount.source)
    return False


def _is_one_btrfs(device: str, other: str) -> bool:
    """Tell whether two devices are parts of one mounted btrfs."""
    names = {os.path.basename(os.path.realpath(path)) for path in (device, other)}  # noqa: PTH119
    with suppress(OSError):
        return any(
            names <= {part.name for part in devices.iterdir()}
            for devices in _BTRFS.glob("*/devices")
        )
    return False
