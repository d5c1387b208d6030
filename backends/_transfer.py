"""Moving the bytes of file volumes in and out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from storaged import imagelock
from storaged.backend import Durability, Hole, Sink, Source, Transfers
from storaged.backends._chain import ReadsChains
from storaged.backends._record import unmark
from storaged.errors import (
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    SystemFailure,
    system_errors,
)
from storaged.formats.file import FileHandle
from storaged.formats.handle import Bytes, Handle
from storaged.model import VolumeRecord, VolumeType
from storaged.units import MAX_SIZE

_READING = "cannot read from stream"
_WRITING = "cannot write to stream"

#: After so many bytes of an upload that is to be durable the disk gets to work, while more comes.
_WRITE_BACK = 8 << 20
#: If having it begin takes so long, in seconds, it is slower than the upload, whose bytes must not
#: wait: the rest is left to the kernel.
_PATIENCE = 0.05


class TransfersFiles(ReadsChains, Transfers):
    """The bytes of the file go in and out as they are, whatever the format."""

    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        with self.opened_target() as directory:
            return FileHandle(self.open_fd(directory, volume, writable=writable))

    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        durable = self.host.durability is Durability.FULL
        with self.opened_target() as directory, ExitStack() as stack:
            fd = self._open_stream(directory, volume, writable=True)
            stack.callback(os.close, fd)
            # as in libvirt, several uploads to one volume may be open
            stack.enter_context(imagelock.hold(fd, volume.name, alone=False))
            unmark(fd)
            return _FileSink(stack.pop_all(), fd, offset, length, durable=durable)

    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        with self.opened_target() as directory:
            handle = FileHandle(self._open_stream(directory, volume, writable=False))
        end = max(handle.size(), offset)
        if length:
            end = min(end, offset + length)
        return _FileSource(handle, offset, end, sparse=sparse)

    def _open_stream(self, directory: int, volume: VolumeRecord, *, writable: bool) -> int:
        """Open the file of a volume, or tell of it in libvirt's words for a stream."""
        path = self.path_of(volume.name)
        doing = f"Unable to open stream for '{path}'"
        if volume.type in (VolumeType.DIR, VolumeType.PLOOP):
            raise SystemFailure(doing if writable else f"Unable to read {path}", errno.EISDIR)
        try:
            return self.open_fd(directory, volume, writable=writable)
        except NoSuchVolume as err:
            raise SystemFailure(doing, errno.ENOENT) from err


def _check_open(is_open: bool) -> None:
    """Refuse to go on after the end: the descriptor's number may be another file's by now."""
    if not is_open:
        raise OperationInvalid("the transfer has ended")


class _FileSink(Sink):
    """Writes from *offset* on; a *length* above 0 is the most that is taken."""

    def __init__(
        self, resources: ExitStack, fd: int, offset: int, length: int, *, durable: bool
    ) -> None:
        self._resources = resources
        self._handle = FileHandle(fd, owned=False)
        self._offset = offset
        self._end = offset + length if length else None
        self._durable = durable
        #: what lies before it is on its way to the disk; None if that is left to the kernel
        self._begun = offset if durable else None
        self._open = True

    def write(self, data: Bytes) -> None:
        """Take the next bytes; they have reached the file when this returns."""
        length = memoryview(data).nbytes
        self._claim(length)
        with system_errors(_WRITING):
            self._handle.pwrite(data, self._offset)
        self._advance(length)

    def write_many(self, parts: Sequence[Bytes]) -> None:
        """Take several pieces, at most 1024, in one system call.

        Where not all may be taken, those are written that may be.
        """
        length = sum(memoryview(part).nbytes for part in parts)
        try:
            self._claim(length)
        except SystemFailure:
            for part in parts:
                self.write(part)
            return
        with system_errors(_WRITING):
            self._handle.pwritev(parts, self._offset)
        self._advance(length)

    def hole(self, length: int) -> None:
        """Make the next *length* bytes read as zeros; the file is never made shorter."""
        self._claim(length)
        with system_errors(_WRITING):
            self._handle.write_zeroes(self._offset, length)
        self._offset += length

    def finish(self) -> None:
        """End the transfer as complete, and bring it to the disk."""
        _check_open(self._open)
        self._open = False
        fd = self._handle.fileno()
        with self._resources, system_errors(_WRITING):
            if self._durable and fd is not None:
                os.fdatasync(fd)

    def abort(self) -> None:
        """End the transfer; what was written stays."""
        self._open = False
        self._resources.close()

    def _advance(self, length: int) -> None:
        """Take note of bytes that were written; `finish` is to find little left to wait for."""
        self._offset += length
        if self._begun is not None and self._offset - self._begun >= _WRITE_BACK:
            before = time.monotonic()
            done = self._handle.begin_writing_back(self._begun, self._offset - self._begun)
            quick = time.monotonic() - before < _PATIENCE
            self._begun = self._offset if done and quick else None

    def _claim(self, length: int) -> None:
        _check_open(self._open)
        if length < 0:
            raise InvalidArgument(f"a hole of {length} bytes")
        if self._offset + length > MAX_SIZE:
            raise SystemFailure(_WRITING, errno.EFBIG)
        if self._end is not None and self._offset + length > self._end:
            raise SystemFailure(_WRITING, errno.ENOSPC)


class _FileSource(Source):
    """Reads from *offset* to *end*, or to where the file ends by then."""

    def __init__(self, handle: FileHandle, offset: int, end: int, *, sparse: bool) -> None:
        self._handle = handle
        self._offset = offset
        self._end = end
        self._sparse = sparse
        #: how far the data reach that `map` told of
        self._data_end = offset
        self._open = True

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece: data of one extent, or a hole as long as it is."""
        _check_open(self._open)
        with system_errors(_READING):
            if self._sparse and self._offset >= self._data_end:
                hole = self._next_extent()
                if hole:
                    return Hole(hole)
            limit = self._data_end if self._sparse else self._end
            data = self._handle.pread(min(size, limit - self._offset), self._offset)
            self._offset += len(data)
            return data

    def close(self) -> None:
        """Let go of the file."""
        self._open = False
        self._handle.close()

    def _next_extent(self) -> int:
        """Find how far the data reach from here, or skip a hole and return its length."""
        extent = next(self._handle.map(self._offset, self._end - self._offset), None)
        if extent is None:
            return 0
        end = extent.offset + extent.length
        if extent.data:
            self._data_end = end
            return 0
        self._offset = self._data_end = end
        return extent.length
