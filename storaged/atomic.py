"""Whole files: read with a bound, replaced in one step, gone for good.

Whoever reads a path sees the old content or the new, never a mixture and never nothing. With
``durable`` the change has also reached the disk when a call returns; without it only the kernel
knows of it, which is enough for what does not outlive a boot.

Every `OSError` becomes a `SystemFailure` that names the path.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from storaged.errors import SystemFailure, system_errors
from storaged.paths import printable

#: Begin and end of the names of files under construction. The end keeps libvirt from loading them.
_BEGIN, _END = ".storaged-", ".tmp"


def write_file(
    path: Path, data: bytes, *, mode: int = 0o600, durable: bool, begin: Path | None = None
) -> None:
    """Make *path* a file of exactly *data*, replacing what was there.

    :param begin: the directory, of the same file system, to write it in first, where others take
        every file beside *path* for theirs.
    :raise SystemFailure: the old file is whole and the new one's beginning is removed. Only where
        the directory itself cannot be made durable, the new file is there already.
    """
    name = f"{_BEGIN}{os.getpid()}-{os.urandom(6).hex()}{_END}"
    temporary = (begin or path.parent) / name
    with system_errors(f"cannot write data to file '{printable(path)}'"):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(fd, data, mode, durable=durable)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    if durable:
        sync_directory(path.parent)


def _fill(fd: int, data: bytes, mode: int, *, durable: bool) -> None:
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)


def read_file(path: Path, limit: int) -> bytes | None:
    """Return what a regular file holds, or None if there is nothing at *path*.

    It neither waits for a FIFO nor touches a device, and follows no symbolic link.

    :param limit: the most bytes it may have.
    :raise SystemFailure: it is no regular file, is larger than *limit*, or cannot be read.
    """
    shown = printable(path)
    with system_errors(f"cannot read file '{shown}'"):
        try:
            # A look before the open: opening a device node can do things to the device.
            _require_regular(path.lstat(), shown)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            _require_regular(os.fstat(fd), shown)
            data = file.read(limit + 1)
    if len(data) > limit:
        raise SystemFailure(f"cannot read file '{shown}' beyond {limit} bytes", errno.EFBIG)
    return data


def _require_regular(found: os.stat_result, shown: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise SystemFailure(f"'{shown}' is a symbolic link where a regular file must be")
    if not stat.S_ISREG(found.st_mode):
        raise SystemFailure(f"'{shown}' is not a regular file")


def remove_file(path: Path, *, durable: bool) -> bool:
    """Remove a file or a link; tell whether there was one.

    :raise SystemFailure: it is still there; or it is gone, and its directory cannot be made
        durable.
    """
    with system_errors(f"cannot unlink file '{printable(path)}'"):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
    if durable:
        sync_directory(path.parent)
    return True


def make_directory(path: Path, *, mode: int = 0o700, durable: bool = False) -> None:
    """Make a directory and what is missing above it, all with *mode* (less the umask).

    :raise SystemFailure: something else has the name, or it cannot be made; parents that were made
        stay.
    """
    with system_errors(f"cannot create directory '{printable(path)}'"):
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for directory in reversed(missing):
            try:
                directory.mkdir(mode)
            except FileExistsError:
                if not directory.is_dir():
                    raise
            if durable:
                sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Return when the entries of a directory survive a loss of power.

    :raise SystemFailure: they may not.
    """
    with system_errors(f"cannot sync directory '{printable(path)}'"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as err:
            # Some network and FUSE file systems have no such call for directories.
            if err.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        finally:
            os.close(fd)


def sweep(directory: Path) -> None:
    """Remove the beginnings of files that a killed engine left in *directory*.

    Only whoever holds the driver's lock may call it. What cannot be removed stays: it harms nobody.
    """
    try:
        names = os.listdir(directory)  # noqa: PTH208 -- names are all it needs
    except OSError:
        return
    for name in names:
        if name.startswith(_BEGIN) and name.endswith(_END):
            with suppress(OSError):
                (directory / name).unlink()
