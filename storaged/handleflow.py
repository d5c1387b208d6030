"""Streams into and out of anything that is a `Handle`: what a backend's transfers are made of."""

from __future__ import annotations

import errno
from typing import Final

from storaged.errors import InvalidArgument, OperationInvalid, SystemFailure, system_errors
from storaged.flow import Hole, Sink, Source
from storaged.formats.handle import Bytes, Handle
from storaged.units import MAX_SIZE

#: What fails when a stream does, in libvirt's words.
READING: Final = "cannot read from stream"
WRITING: Final = "cannot write to stream"


class HandleSink(Sink):
    """Writes from *offset* on; what does not fit before *end* is refused.

    The handle belongs to it, and is closed with it.

    :param end: offset behind the last byte that is taken; None: as much as comes.
    :param durable: bring all to the disk before the end.
    """

    def __init__(self, handle: Handle, offset: int, end: int | None, *, durable: bool) -> None:
        self._handle = handle
        self._offset = offset
        self._end = end
        self._durable = durable
        self._open = True

    def write(self, data: Bytes) -> None:
        """Take the next bytes; they have reached the image when this returns."""
        length = memoryview(data).nbytes
        self._claim(length)
        with self._errors():
            self._handle.pwrite(data, self._offset)
        self._advance(length)

    def hole(self, length: int) -> None:
        """Make the next *length* bytes read as zeros; the image is never made shorter."""
        self._claim(length)
        with self._errors():
            self._handle.write_zeroes(self._offset, length)
        self._offset += length

    def finish(self) -> None:
        """End the transfer as complete, and bring it to the disk."""
        check_open(self._open)
        try:
            if self._durable:
                with self._errors():
                    self._handle.flush()
        finally:
            self.abort()

    def abort(self) -> None:
        """End the transfer; what was written stays."""
        self._open = False
        self._handle.close()

    def _errors(self) -> system_errors:
        """Return what translates the errors of a write."""
        return system_errors(WRITING)

    def _advance(self, length: int) -> None:
        """Take note of bytes that were written."""
        self._offset += length

    def _claim(self, length: int) -> None:
        """Raise if the next *length* bytes cannot be taken."""
        check_open(self._open)
        if length < 0:
            raise InvalidArgument(f"a hole of {length} bytes")
        if self._offset + length > MAX_SIZE:
            raise SystemFailure(WRITING, errno.EFBIG)
        if self._end is not None and self._offset + length > self._end:
            raise SystemFailure(WRITING, errno.ENOSPC)


class HandleSource(Source):
    """Reads from *offset* to *end*, or to where the image ends by then; its holes are its own.

    The handle belongs to it, and is closed with it.
    """

    def __init__(self, handle: Handle, offset: int, end: int, *, sparse: bool) -> None:
        self._handle = handle
        self._offset = offset
        self._end = end
        self._sparse = sparse
        #: how far the data reach that `map` told of
        self._data_end = offset
        self._open = True

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece: data of one extent, or a hole as long as it is."""
        check_open(self._open)
        with system_errors(READING):
            if self._sparse and self._offset >= self._data_end:
                hole = self._next_extent()
                if hole:
                    return Hole(hole)
            limit = self._data_end if self._sparse else self._end
            data = self._handle.pread(min(size, limit - self._offset), self._offset)
            self._offset += len(data)
            return data

    def close(self) -> None:
        """Let go of the image."""
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


def check_open(is_open: bool) -> None:
    """Refuse to go on after the end: a descriptor's number may be another file's by now.

    :raise OperationInvalid: it is not open any more.
    """
    if not is_open:
        raise OperationInvalid("the transfer has ended")
