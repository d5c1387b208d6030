"""A file or a block device as a `Handle`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from storaged.formats import syscalls
from storaged.formats.handle import Bytes, Extent

_ZERO_RANGE = syscalls.FALLOC_FL_ZERO_RANGE
_PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
#: Zeros are written in pieces of this many bytes.
_PIECE = 1 << 20
#: How a kernel or a file system says that it has no such call.
_NO_SUCH_CALL = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
#: How a block device says so: to what is not aligned to its blocks, and to all but the one who has
#: it for himself.
_NOT_ON_DEVICE = frozenset({errno.EINVAL, errno.EBUSY})
#: No device has larger blocks that could be addressed, in bytes.
_DEVICE_UNIT = 4096
#: How it says that it does not tell where a file lies.
_NO_EXTENTS = _NO_SUCH_CALL | {errno.ENOTTY, errno.EINVAL, errno.EBADR}
#: What ``st_blocks`` counts, in bytes.
_BLOCK = 512
_MAX_OFFSET = 2**63 - 1


class FileHandle:
    """An open file or block device.

    :param fd: an open descriptor; its file offset is of no account and may be moved.
    :param owned: whether `close` closes *fd*.
    :param discard_unit: of a device whose units of so many bytes read as zeros once they were
        discarded, as a thin volume's do; 0 where nobody promises that.
    """

    def __init__(self, fd: int, *, owned: bool = True, discard_unit: int = 0) -> None:
        self._fd = fd
        self._owned = owned
        self._discard_unit = discard_unit
        self._block = stat.S_ISBLK(os.fstat(fd).st_mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def size(self) -> int:
        """Return the length in bytes."""
        if self._block:
            return os.lseek(self._fd, 0, os.SEEK_END)
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the end comes first."""
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        done = len(data)
        while done < length:
            data = os.pread(self._fd, length - done, offset + done)
            if not data:
                break
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Write all of *data* at *offset*; a file grows where needed."""
        done = os.pwrite(self._fd, data, offset)
        if done == len(data):
            return
        with memoryview(data).cast("B") as view:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)

    def pwritev(self, parts: Sequence[Bytes], offset: int) -> None:
        """Write all of several pieces, at most 1024, one behind the other from *offset* on."""
        done = os.pwritev(self._fd, parts, offset)
        if done == sum(map(len, parts)):
            return
        for part in parts:
            with memoryview(part).cast("B") as view:
                if done < len(view):
                    self.pwrite(view[done:], offset + done)
                offset += len(view)
                done = max(done - len(view), 0)

    def begin_writing_back(self, offset: int, length: int) -> bool:
        """Have the disk get to work on a stretch that was written; False if that cannot be done.

        What fails on the disk is told by the call that makes the data durable.
        """
        try:
            syscalls.begin_writing_back(self._fd, offset, length)
        except OSError:
            return False
        return True

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a stretch read as zeros; a file grows where needed.

        Zeros are written only where neither the kernel nor the file system can do it.

        :param unmap: True punches a hole; False allocates the space.
        """
        if length <= 0:
            return
        end = offset + length
        size = self.size()
        inside = min(end, size) - offset
        if self._block:
            if inside > 0:
                self._zero_device(offset, inside, unmap=unmap)
            self.truncate(end)
        elif unmap:
            if inside > 0 and not self._fallocate(_PUNCH, offset, inside):
                self._write_zeros(offset, inside)
            if end > size:
                self.truncate(end)
        elif not self._allocate_zeros(offset, length, inside):
            self._write_zeros(offset, length)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield data and holes as the file system knows them; all is data where it does not."""
        end = min(offset + length, self.size())
        while offset < end:
            data = min(self._seek(offset, os.SEEK_DATA, end), end)
            if data > offset:
                yield Extent(offset, data - offset, data=False)
            if data < end:
                hole = min(self._seek(data, os.SEEK_HOLE, end), end)
                if hole > data:  # unless it was punched just now
                    yield Extent(data, hole - data, data=True)
                data = hole
            offset = data

    def space(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what has space on the disk, also where it reads as zeros.

        That is more than the data of `map`: what was preallocated, and what was zeroed without
        being overwritten. Where the file system does not tell, it is the data, or everything if the
        file has as many blocks as its length takes.
        """
        end = min(offset + length, self.size())
        try:
            for start, size in syscalls.file_extents(self._fd, offset, max(end - offset, 0)):
                first, last = max(start, offset), min(start + size, end)
                if first < last:
                    yield first, last - first
        except OSError as err:
            if err.errno not in _NO_EXTENTS:
                raise
            if os.fstat(self._fd).st_blocks * _BLOCK >= self.size() and offset < end:
                yield offset, end - offset
                return
            for extent in self.map(offset, length):
                if extent.data:
                    yield extent.offset, extent.length

    def truncate(self, size: int) -> None:
        """Set the length of a file. A block device keeps its length.

        :raise OSError: ENOSPC if a block device is shorter than *size*.
        """
        if size > _MAX_OFFSET:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if not self._block:
            os.ftruncate(self._fd, size)
        elif size > self.size():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Return when all that was written survives a loss of power."""
        os.fsync(self._fd)

    def fileno(self) -> int | None:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor if it is owned. Calling it again does nothing."""
        if self._owned:
            self._owned = False
            os.close(self._fd)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Return whether it was done; False where the file system cannot."""
        try:
            syscalls.fallocate(self._fd, mode, offset, length)
        except OSError as err:
            if err.errno in _NO_SUCH_CALL or (self._block and err.errno in _NOT_ON_DEVICE):
                return False
            raise
        return True

    def _allocate_zeros(self, offset: int, length: int, inside: int) -> bool:
        if inside <= 0:
            return self._fallocate(0, offset, length)
        if self._fallocate(_ZERO_RANGE, offset, length):
            return True
        # tmpfs cannot zero a range but can punch and allocate.
        return self._fallocate(_PUNCH, offset, inside) and self._fallocate(0, offset, length)

    def _zero_device(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a stretch of a block device read as zeros, by the device itself where it can.

        The kernel discards only where it knows that what was discarded reads as zeros. Where the
        device can neither do that nor write zeros by itself, the kernel writes them without copying
        any.
        """
        unit = (unmap and self._discard_unit) or _DEVICE_UNIT
        start = -(-offset // unit) * unit
        stop = (offset + length) // unit * unit
        if start >= stop:
            self._write_zeros(offset, length)
            return
        self._write_zeros(offset, start - offset)
        if not (unmap and self._discard_unit and self._discard(start, stop - start)):
            modes = (_PUNCH, _ZERO_RANGE) if unmap else (_ZERO_RANGE,)
            if not any(self._fallocate(mode, start, stop - start) for mode in modes):
                self._write_zeros(start, stop - start)
        self._write_zeros(stop, offset + length - stop)

    def _discard(self, offset: int, length: int) -> bool:
        """Return whether it was done; False where the device does not."""
        try:
            syscalls.discard(self._fd, offset, length)
        except OSError as err:
            if err.errno in _NO_SUCH_CALL | _NOT_ON_DEVICE:
                return False
            raise
        return True

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, _PIECE)))
        end = offset + length
        while offset < end:
            piece = zeros[: end - offset]
            self.pwrite(piece, offset)
            offset += len(piece)

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return end  # nothing but a hole from here on
            if err.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return offset if whence == os.SEEK_DATA else end
            raise
