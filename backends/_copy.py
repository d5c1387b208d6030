"""Moving an image's bytes into a new file by the cheapest way that the two of them allow.

Sharing (a reflink) takes no time and no space; copy_file_range stays in the kernel and may share as
well; reading and writing works everywhere. Holes stay holes in all three.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from storaged.formats import syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Checkpoint, Handle

#: Bytes between two signs of life.
_KERNEL_PIECE = 16 << 20
_PIECE = 1 << 20
#: What is all zeros in units of this many bytes is left out: a block of most file systems.
_UNIT = 4096
_ZEROS = bytes(_UNIT)
#: How the kernel says that these two files do not go together.
_NO_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)  # fmt: skip


@dataclass(slots=True)
class _Progress:
    """Bytes of data moved, held below the total that the source's record promised."""

    total: int
    checkpoint: Checkpoint
    done: int = 0

    def add(self, length: int) -> None:
        self.done += length
        self.checkpoint(min(self.done, self.total), self.total)


def share(target: int, source: Handle, *, follow: bool) -> None:
    """Make an empty file share all data of *source*.

    :param follow: take over whether the source is copied on write: btrfs shares nothing between
        two files that differ in it.
    :raise OSError: that is not possible here; the file is still empty.
    """
    fd = source.fileno()
    if fd is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if follow:
        with suppress(OSError):
            syscalls.set_nocow(target, nocow=syscalls.is_nocow(fd))
    syscalls.ficlone(target, fd)


def copy(target: FileHandle, source: Handle, total: int, checkpoint: Checkpoint) -> None:
    """Copy *source* into a file that reads as zeros, and give it the same length.

    :param total: bytes of data there are about, for the progress.
    :raise OSError: reading or writing failed; EIO if the source became shorter meanwhile.
    """
    size = source.size()
    target.truncate(max(size, target.size()))
    progress = _Progress(total, checkpoint)
    checkpoint(0, total)
    in_kernel = source.fileno() is not None
    for extent in source.map(0, size):
        if not extent.data:
            checkpoint(min(progress.done, total), total)
            continue
        offset, end = extent.offset, extent.offset + extent.length
        if in_kernel:
            offset = _copy_in_kernel(target, source, offset, end, progress.add)
            in_kernel = offset == end
        _copy_by_hand(target, source, offset, end, progress.add)


def _copy_in_kernel(
    target: FileHandle, source: Handle, offset: int, end: int, moved: Callable[[int], None]
) -> int:
    """Return how far it came: *end*, or where the rest is to be copied by hand."""
    reader, writer = source.fileno(), target.fileno()
    if reader is None or writer is None:
        return offset
    while offset < end:
        try:
            length = os.copy_file_range(
                reader, writer, min(_KERNEL_PIECE, end - offset), offset, offset
            )
        except OSError as err:
            if err.errno in _NO_COPY:
                return offset
            raise
        if not length:
            return offset
        offset += length
        moved(length)
    return offset


def _copy_by_hand(
    target: FileHandle, source: Handle, offset: int, end: int, moved: Callable[[int], None]
) -> None:
    while offset < end:
        length = min(_PIECE, end - offset)
        data = source.pread(length, offset)
        if len(data) < length:
            raise OSError(errno.EIO, f"the source ends at {offset + len(data)} instead of {end}")
        for start, stop in data_runs(data):
            target.pwrite(memoryview(data)[start:stop], offset + start)
        offset += length
        moved(length)


def data_runs(data: bytes) -> list[tuple[int, int]]:
    """Return the stretches of *data* that are not zeros, in whole units, joined."""
    if not data.strip(b"\0"):
        return []
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), _UNIT):
        stop = min(start + _UNIT, len(data))
        if data.startswith(_ZEROS[: stop - start], start):
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return runs
