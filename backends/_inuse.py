"""Who uses a device or an image: nothing is made on what is mounted, held, attached or open.

Sources: open(2) on O_EXCL and block devices; loop(4); the kernel's documentation of ``/sys/block``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storaged import imagelock
from storaged.backends._blockholder import MOMENT, TRIES, Use, UseKind, lasting_writers, uses
from storaged.errors import OperationInvalid, system_errors

_BLOCK = Path("/sys/block")
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
#: ``LOOP_GET_STATUS64``; device and inode of the backing file are first in ``struct loop_info64``.
_LOOP_STATUS = 0x4C05
_LOOP_INFO = struct.Struct("=QQ216x")
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def require_unused(device: str) -> None:
    """Refuse a block device or an image file that the kernel or a program has for itself.

    :raise OperationInvalid: it is in use; the detail says by what, where that can be told.
    :raise SystemFailure: it cannot be looked at.
    """
    with system_errors(f"cannot open device '{device}'"):
        status = Path(device).stat()
        if stat.S_ISBLK(status.st_mode):
            used = _users_of_device(device, status.st_rdev)
        elif stat.S_ISREG(status.st_mode):
            used = _users_of_image(device, status)
        else:
            raise OperationInvalid(f"'{device}' is neither a block device nor a regular file")
        if not used and not _is_unlocked(device):
            used = ("locked by QEMU, perhaps on another host",)
    if used:
        raise _in_use(device, used)


@contextmanager
def claimed(device: str) -> Iterator[int]:
    """Have a device or an image for ourselves, as udev and systemd lock devices; give it open.

    The lock lasts as long as somebody has the descriptor, also a program that inherited it.

    :raise OperationInvalid: it is in use, see `require_unused`.
    :raise SystemFailure: it cannot be opened for writing.
    """
    with system_errors(f"cannot open device '{device}'"):
        # for writing: udev looks at a device anew when it is closed, and NFS locks no other files
        fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with system_errors(f"cannot lock device '{device}'"):
            if not _lock(fd):
                raise _in_use(device, ("locked by a program that works on it",))
        require_unused(device)
        yield fd
    finally:
        os.close(fd)


def users(rdev: int) -> tuple[str, ...]:
    """Return what has a block device, its partitions included, for itself, in words."""
    return tuple(dict.fromkeys(map(_in_words, uses(rdev))))


def loops_of(image: str) -> tuple[str, ...]:
    """Return the loop devices whose backing file an image is, such as ``/dev/loop0``.

    A device that we may ask tells the file itself, whatever name it was attached by.
    """
    with suppress(OSError):
        status, path = Path(image).stat(), os.path.realpath(image)
        return tuple(
            f"/dev/{name}" for name, file in loop_files() if _is_of(name, file, status, path)
        )
    return ()


def loop_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the backing file of each loop device that has one."""
    for place in _BLOCK.glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it may be let go of while we look
            yield place.parent.parent.name, os.fsdecode(place.read_bytes().removesuffix(b"\n"))


def _is_of(loop: str, file: str, status: os.stat_result, path: str) -> bool:
    """Tell whether a loop device with the backing *file* is of the one with a status and a path."""
    try:
        fd = os.open(f"/dev/{loop}", _READING)
    except OSError:
        return file == path
    try:
        info = fcntl.ioctl(fd, _LOOP_STATUS, bytes(_LOOP_INFO.size))
    except OSError:
        return False  # nothing is attached to it any more
    finally:
        os.close(fd)
    return _LOOP_INFO.unpack(info) == (status.st_dev, status.st_ino)


def _users_of_device(device: str, rdev: int) -> tuple[str, ...]:
    for _ in range(TRIES):  # udev has a new device for itself for a moment
        try:
            os.close(os.open(device, _READING | os.O_EXCL))
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            if used := users(rdev):
                return used
            time.sleep(MOMENT)
        else:
            return tuple(f"open by {user}" for user in lasting_writers(rdev))
    return ("held by the kernel or by another program",)


def _users_of_image(image: str, status: os.stat_result) -> tuple[str, ...]:
    if attached := loops_of(image):
        return tuple(f"attached to {name}" for name in attached)
    own = os.getpid()
    opened = imagelock.holders(status.st_dev, status.st_ino)
    return tuple(f"open by {user}" for user in opened if user.pid != own and user.writing)


def _is_unlocked(device: str) -> bool:
    """Tell whether no QEMU, perhaps of another host, has its locks on it."""
    fd = os.open(device, _READING)
    try:
        return imagelock.is_free(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Lock an open device; False if somebody has it locked for longer than udev would."""
    for _ in range(TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(MOMENT)
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
            return True
        else:
            return True
    return False


def _in_words(use: Use) -> str:
    if use.kind is UseKind.MOUNTED:
        return f"mounted on '{use.name}'"
    if use.kind is UseKind.SWAP:
        return "used as swap"
    return f"held by {use.name}" if use.mapped else f"held by /dev/{use.name}"


def _in_use(device: str, by: tuple[str, ...]) -> OperationInvalid:
    return OperationInvalid(
        f"Device '{device}' is in use: {', '.join(by)}",
        advice=f"Nothing was changed. See: lsblk; fuser -v {shlex.quote(device)}",
    )
