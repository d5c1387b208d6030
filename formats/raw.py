"""Raw images: the bytes of the disk and nothing else."""

from __future__ import annotations

import errno
import os
import stat

from storaged.formats.handle import Checkpoint, Handle

#: Space is taken in pieces of this many bytes: ext4's longest extent.
_PIECE = 128 << 20
#: Where it turns out that zeros have to be written, a cancel must not wait for a large piece.
_FIRST_PIECE = 4 << 20


def create(
    handle: Handle, capacity: int, *, allocation: int = 0, checkpoint: Checkpoint | None = None
) -> None:
    """Make an empty file a raw image.

    As in libvirt, *allocation* may exceed *capacity* and then is the length of the file.

    :param capacity: bytes; any number, nothing is rounded.
    :param allocation: bytes to take from the file system now; 0 makes the image sparse.
    :param checkpoint: called with the bytes allocated so far and *allocation*.
    :raise OSError: ENOSPC where the space is not there; part of it may then be taken.
    """
    # Allocation first: past the end of a file it is a plain fallocate everywhere.
    allocate(handle, 0, allocation, checkpoint)
    if capacity > allocation or not allocation:
        handle.truncate(capacity)


def allocate(handle: Handle, start: int, end: int, checkpoint: Checkpoint | None = None) -> None:
    """Take the space from *start* to *end*, which then reads as zeros.

    What cannot fit is not begun: nobody else is to find the disk full meanwhile.

    :param checkpoint: called with the bytes done so far and *end* - *start*.
    :raise OSError: ENOSPC where the space is not there; part of it may then be taken.
    """
    _require_space(handle, end - start)
    offset, piece = start, _FIRST_PIECE
    while offset < end:
        length = min(piece, end - offset)
        handle.write_zeroes(offset, length, unmap=False)
        offset += length
        piece = min(piece * 2, _PIECE)
        if checkpoint is not None:
            checkpoint(offset - start, end - start)


def _require_space(handle: Handle, length: int) -> None:
    """Raise if a file system says that it has not so many bytes left.

    :raise OSError: ENOSPC.
    """
    fd = handle.fileno()
    if fd is None or length <= 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    facts = os.fstatvfs(fd)
    if facts.f_blocks and length > facts.f_bfree * facts.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_holes(handle: Handle, end: int, checkpoint: Checkpoint) -> None:
    """Take the space for all of an image up to *end*; its data stay, and it may become longer.

    :param checkpoint: called with the bytes looked at so far and *end*.
    :raise OSError: ENOSPC where the space is not there; part of it may then be taken.
    """
    size = handle.size()
    for part in handle.map(0, min(size, end)):
        checkpoint(part.offset, end)
        if not part.data:
            allocate(handle, part.offset, part.offset + part.length)
    allocate(handle, size, end)
    checkpoint(end, end)
