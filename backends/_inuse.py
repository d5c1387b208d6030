"""Who uses a device or an image: nothing is made on what is mounted, held or attached.

Sources: open(2) on O_EXCL and block devices; the kernel's documentation of ``/sys/block``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storaged import imagelock, mounts
from storaged.errors import OperationInvalid, system_errors

_BLOCK = Path("/sys/block")
_DEVICES = Path("/sys/dev/block")
_SWAPS = Path("/proc/swaps")
_EXCLUSIVE = os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC


def require_unused(device: str) -> None:
    """Refuse a device that the kernel holds, or an image file that is attached to a loop device.

    :raise OperationInvalid: it is in use; the detail says by what, where that can be told.
    :raise SystemFailure: it cannot be looked at.
    """
    with system_errors(f"cannot open device '{device}'"):
        status = Path(device).stat()
        if stat.S_ISBLK(status.st_mode):
            try:
                os.close(os.open(device, _EXCLUSIVE))
            except OSError as err:
                if err.errno != errno.EBUSY:
                    raise
                raise _in_use(device, users(status)) from err
            return
    if stat.S_ISREG(status.st_mode):
        attached = tuple(f"attached to {name}" for name in loops_of(device))
        if attached:
            raise _in_use(device, attached)
        opened = imagelock.holders(status.st_dev, status.st_ino)
        own = os.getpid()
        writing = tuple(f"open by {user}" for user in opened if user.pid != own and user.writing)
        if writing:
            raise _in_use(device, writing)
        return
    raise OperationInvalid(f"'{device}' is neither a block device nor a regular file")


def users(status: os.stat_result) -> tuple[str, ...]:
    """Return what uses the block device of a stat, its partitions included, in words."""
    numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    found: list[str] = []
    with suppress(OSError):
        place = (_DEVICES / numbers).resolve(strict=True)
        parts = [place, *(part.parent for part in place.glob("*/partition"))]
        for part in parts:
            found += _mounted(part) + _swapped(part) + _held(part)
    return tuple(dict.fromkeys(found))


def loops_of(image: str) -> tuple[str, ...]:
    """Return the loop devices whose backing file an image is, such as ``/dev/loop0``."""
    with suppress(OSError):
        wanted = os.path.realpath(image)
        return tuple(f"/dev/{name}" for name, file in loop_files() if file == wanted)
    return ()


def loop_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the backing file of each loop device that has one."""
    for place in _BLOCK.glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it may be let go of while we look
            yield place.parent.parent.name, place.read_text().rstrip("\n")


def _mounted(part: Path) -> list[str]:
    numbers = (part / "dev").read_text().strip()
    node = f"/dev/{part.name}"
    return [
        f"mounted on '{mount.point}'"
        for mount in mounts.mounts()
        if mount.device == numbers or mount.source == node
    ]


def _swapped(part: Path) -> list[str]:
    with suppress(OSError):
        lines = _SWAPS.read_text().splitlines()[1:]
        if f"/dev/{part.name}" in (line.split(" ")[0].split("\t")[0] for line in lines):
            return ["used as swap"]
    return []


def _held(part: Path) -> list[str]:
    with suppress(OSError):
        return [f"held by {_name_of(holder)}" for holder in sorted((part / "holders").iterdir())]
    return []


def _name_of(holder: Path) -> str:
    """Return a device's name; of one of device-mapper the name that people know."""
    with suppress(OSError):
        return (holder / "dm" / "name").read_text().strip()
    return f"/dev/{holder.name}"


def _in_use(device: str, by: tuple[str, ...]) -> OperationInvalid:
    why = f": {', '.join(by)}" if by else " by the kernel or another program"
    return OperationInvalid(
        f"Device '{device}' is in use{why}",
        advice=f"Nothing was changed. See: lsblk {device}",
    )
