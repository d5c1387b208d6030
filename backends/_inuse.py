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

from storaged import imagelock
from storaged.backends._blockholder import Use, UseKind, uses
from storaged.errors import OperationInvalid, system_errors

_BLOCK = Path("/sys/block")
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
    return tuple(dict.fromkeys(map(_in_words, uses(status.st_rdev))))


def _in_words(use: Use) -> str:
    if use.kind is UseKind.MOUNTED:
        return f"mounted on '{use.name}'"
    if use.kind is UseKind.SWAP:
        return "used as swap"
    return f"held by {use.name}" if use.mapped else f"held by /dev/{use.name}"


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


def _in_use(device: str, by: tuple[str, ...]) -> OperationInvalid:
    why = f": {', '.join(by)}" if by else " by the kernel or another program"
    return OperationInvalid(
        f"Device '{device}' is in use{why}",
        advice=f"Nothing was changed. See: lsblk {device}",
    )
