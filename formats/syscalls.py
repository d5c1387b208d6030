"""Linux calls that the standard library does not offer: fallocate, reflinks, statx, inode flags.

Every function raises `OSError` with the kernel's error number. ctypes is loaded at the first call
that needs it, so that a program that only lists volumes does not pay for it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ctypes

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_SYNC_FILE_RANGE_WRITE = 0x2

RENAME_NOREPLACE = 0x1

#: ``BLKDISCARD``, and what it is given: offset and length
_BLKDISCARD = 0x1277
_RANGE = struct.Struct("=QQ")

#: ``FS_IOC_GETFLAGS``, ``FS_IOC_SETFLAGS`` (64-bit) and the flag that turns copy on write off
_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
FS_NOCOW_FL = 0x00800000

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
#: ``struct file_clone_range``: source, its offset, length, offset in the target
_CLONE_RANGE = struct.Struct("=qQQQ")

#: ``FS_IOC_FIEMAP``: what it is given, each extent that follows, and their most at a time
_FIEMAP = 0xC020660B
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_FIEMAP_COUNT = 256
_FIEMAP_FLAG_SYNC = 0x1
_FIEMAP_EXTENT_LAST = 0x1

_MAX_OFFSET = 2**63 - 1

#: ``FS_IOC_GETFSUUID`` and ``XFS_IOC_FSGEOMETRY_V1``: the number, the size of the answer, and
#: where in it the UUID stands
_GETFSUUID = (0x80111500, 17, 1)
_XFS_GEOMETRY = (0x80705864, 112, 64)

_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_SIZE = 256

#: Magic number of a file system, from statfs(2).
BTRFS_MAGIC = 0x9123683E
#: Those whose files are made up by the kernel as they are read, or are its switches.
_KERNELS = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0xCAFE4A11,  # bpf
        0x6165676C,  # pstore
        0xDE5E81E4,  # efivarfs
        0x0027E0EB,  # cgroup
        0x63677270,  # cgroup2
        0xF97CFF8C,  # selinuxfs
        0x43415D53,  # smackfs
        0x6E736673,  # nsfs
        0x42494E4D,  # binfmt_misc
        0x65735543,  # fusectl
    }
)


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch or zero a stretch of a file; never emulated by writing.

    :raise OSError: EOPNOTSUPP where the file system cannot do it.
    """
    import ctypes

    if offset + length > _MAX_OFFSET:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    call = _libc().fallocate
    while True:
        # Some file systems stop at any signal, and have undone what they did of it.
        with suppress(InterruptedError):
            _checked(call(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
            return


def begin_writing_back(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a stretch of its cache to the disk, without waiting for that.

    The call may wait nevertheless, where more is under way than the disk takes. It makes nothing
    durable: `os.fdatasync` does, and tells of what failed meanwhile.

    :raise OSError: the file system has no such call.
    """
    import ctypes

    start, size = ctypes.c_int64(offset), ctypes.c_int64(length)
    _checked(_libc().sync_file_range(fd, start, size, _SYNC_FILE_RANGE_WRITE))


def discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that a stretch of it is not needed; nobody knows what it reads as then.

    :raise OSError: EOPNOTSUPP where the device has no such command, EINVAL where the stretch is not
        aligned to its blocks.
    """
    fcntl.ioctl(fd, _BLKDISCARD, _RANGE.pack(offset, length))


def ficlone(target: int, source: int) -> None:
    """Make the file *target* share all data of *source*.

    :raise OSError: EOPNOTSUPP, EXDEV or EINVAL where that is not possible.
    """
    fcntl.ioctl(target, _FICLONE, source)


def ficlonerange(
    target: int, target_offset: int, source: int, source_offset: int, length: int
) -> None:
    """Make a stretch of the file *target* share a stretch of *source*.

    Offsets are multiples of the file system's block; *length* (not 0) is one as well, unless the
    stretch ends where the source ends and not before the end of the target.

    :raise OSError: EOPNOTSUPP, EXDEV or EINVAL where that is not possible.
    """
    request = _CLONE_RANGE.pack(source, source_offset, length, target_offset)
    fcntl.ioctl(target, _FICLONERANGE, request)


def file_extents(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the extents of a file that touch a stretch, in order.

    Those that are allocated but not written are among them.

    :raise OSError: EOPNOTSUPP or ENOTTY where the file system does not tell.
    """
    end = offset + length
    buffer = bytearray(_FIEMAP_HEAD.size + _FIEMAP_COUNT * _FIEMAP_EXTENT.size)
    while offset < end:
        _FIEMAP_HEAD.pack_into(
            buffer, 0, offset, end - offset, _FIEMAP_FLAG_SYNC, 0, _FIEMAP_COUNT, 0
        )
        fcntl.ioctl(fd, _FIEMAP, buffer)
        found = _FIEMAP_HEAD.unpack_from(buffer)[3]
        if not found:
            return
        for number in range(found):
            place = _FIEMAP_HEAD.size + number * _FIEMAP_EXTENT.size
            start, _, size, flags = _FIEMAP_EXTENT.unpack_from(buffer, place)
            yield start, size
        if flags & _FIEMAP_EXTENT_LAST or start + size <= offset:
            return
        offset = start + size


def rename_noreplace(directory: int, old: str, new: str) -> None:
    """Rename within a directory (a descriptor).

    :raise FileExistsError: if *new* is there; nothing is replaced.
    """
    call = _libc().renameat2
    _checked(call(directory, os.fsencode(old), directory, os.fsencode(new), RENAME_NOREPLACE))


def link_unnamed(fd: int, directory: int, name: str) -> None:
    """Give a file opened with O_TMPFILE its name in *directory* (a descriptor).

    :raise FileExistsError: if *name* is there; nothing is replaced.
    """
    # src_dir_fd is what makes Python use linkat(2) with AT_SYMLINK_FOLLOW.
    os.link(
        f"/proc/self/fd/{fd}", name, src_dir_fd=directory, dst_dir_fd=directory,
        follow_symlinks=True,
    )  # fmt: skip


def birth_time(fd: int) -> int | None:
    """Return when the open file was made, in nanoseconds since the epoch; None if not kept."""
    import ctypes

    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _checked(_libc().statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer))
    (mask,) = struct.unpack_from("=I", buffer, 0)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return int(seconds * 1_000_000_000 + nanoseconds)


class FileSystem(NamedTuple):
    """Which file system something lies on: statfs' type and id."""

    type: int
    id: int


def file_system(fd: int) -> FileSystem:
    """Return the type and the id of the file system an open file lies on."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    _checked(_libc().fstatfs(fd, buffer))
    (kind,) = struct.unpack_from("=q", buffer, 0)
    (identity,) = struct.unpack_from("=Q", buffer, 56)
    return FileSystem(kind, identity)


def is_kernels(fd: int) -> bool:
    """Tell whether an open file lies on a file system that is a view of the kernel's own data."""
    return file_system(fd).type & 0xFFFFFFFF in _KERNELS


def file_system_uuid(fd: int) -> str:
    """Return the UUID of the file system an open file lies on, in hexadecimal; "" if not told.

    Kernels from 6.9 on tell it of every file system, earlier ones of XFS.
    """
    for request, size, offset in (_GETFSUUID, _XFS_GEOMETRY):
        try:
            answer = fcntl.ioctl(fd, request, bytes(size))
        except OSError:
            continue
        uuid = answer[offset : offset + 16]
        if any(uuid):
            return uuid.hex()
    return ""


def set_nocow(fd: int, *, nocow: bool) -> None:
    """Turn copy on write off (or on again) for an empty file or a directory.

    :raise OSError: where the file system has no such flag.
    """
    if file_system(fd).type != BTRFS_MAGIC:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    flags = struct.unpack_from("=I", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))[0]
    wanted = flags | FS_NOCOW_FL if nocow else flags & ~FS_NOCOW_FL
    if wanted != flags:
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("=Q", wanted))


def is_nocow(fd: int) -> bool:
    """Tell whether copy on write is off for an open file; False where there is no such flag."""
    try:
        flags = struct.unpack_from("=I", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))[0]
    except OSError:
        return False
    return bool(flags & FS_NOCOW_FL)
