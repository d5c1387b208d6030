"""Streams of bytes into and out of what is open by a descriptor: a file or a block device."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from storaged.backend import Hole, Source
from storaged.errors import SystemFailure, system_errors
from storaged.formats.file import FileHandle
from storaged.formats.handle import Bytes
from storaged.formats.move import data_runs
from storaged.handleflow import READING, WRITING, HandleSink, check_open

#: After so many bytes of an upload that is to be durable the disk gets to work, while more comes.
_WRITE_BACK = 8 << 20
#: If having it begin takes so long, in seconds, it is slower than the upload, whose bytes must not
#: wait: the rest is left to the kernel.
_PATIENCE = 0.05
#: A device is read in pieces of this many bytes where its zeros are to be found.
_WINDOW = 1 << 20
#: Zeros that are told as a hole: fewer would cost more messages than they save bytes.
_ZEROS = 1 << 16
#: A hole is told after this many bytes of zeros, so that whoever waits sees a sign of life.
_LONGEST_HOLE = 256 << 20


def _place(where: str, offset: int) -> str | None:
    """Return what an error says of the place in a device, where nobody else can tell it."""
    return f"It failed at byte {offset} of '{where}' or behind it." if where else None


class DescriptorSink(HandleSink):
    """Takes several pieces in one call, and has the disk begin early with what is to be durable.

    :param resources: closed at the end, whatever it is; the handle is among them.
    :param where: of a device: its path, for errors.
    """

    _handle: FileHandle

    def __init__(
        self,
        resources: ExitStack,
        handle: FileHandle,
        offset: int,
        end: int | None,
        *,
        durable: bool,
        where: str = "",
    ) -> None:
        super().__init__(handle, offset, end, durable=durable)
        self._resources = resources
        self._where = where
        #: what lies before it is on its way to the disk; None if that is left to the kernel
        self._begun = offset if durable else None

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
        with self._errors():
            self._handle.pwritev(parts, self._offset)
        self._advance(length)

    def finish(self) -> None:
        """End the transfer as complete, and bring it to the disk."""
        check_open(self._open)
        self._open = False
        fd = self._handle.fileno()
        with self._resources, system_errors(WRITING):
            if self._durable and fd is not None:
                os.fdatasync(fd)

    def abort(self) -> None:
        """End the transfer; what was written stays."""
        self._open = False
        self._resources.close()

    def _errors(self) -> system_errors:
        return system_errors(WRITING, advice=_place(self._where, self._offset))

    def _advance(self, length: int) -> None:
        """Take note of bytes that were written; `finish` is to find little left to wait for."""
        super()._advance(length)
        if self._begun is not None and self._offset - self._begun >= _WRITE_BACK:
            before = time.monotonic()
            done = self._handle.begin_writing_back(self._begun, self._offset - self._begun)
            quick = time.monotonic() - before < _PATIENCE
            self._begun = self._offset if done and quick else None


class DeviceSource(Source):
    """Reads a block device from *offset* to *end*, which must be there.

    A device does not tell where its holes are; of a sparse source, what reads as zeros is one.

    :param where: its path, for errors.
    """

    def __init__(
        self, handle: FileHandle, offset: int, end: int, *, sparse: bool, where: str
    ) -> None:
        self._handle = handle
        self._offset = offset
        self._end = end
        self._sparse = sparse
        self._where = where
        #: what was read and not given yet, in order
        self._ready: deque[bytes | Hole] = deque()
        self._open = True

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece: data, or a stretch that reads as zeros."""
        check_open(self._open)
        if not self._sparse:
            return self._data(size)
        if not self._ready:
            self._find()
        if not self._ready:
            return b""
        piece = self._ready.popleft()
        if isinstance(piece, bytes) and len(piece) > size:
            self._ready.appendleft(piece[size:])
            return piece[:size]
        return piece

    def close(self) -> None:
        """Let go of the device."""
        self._open = False
        self._ready.clear()
        self._handle.close()

    def _data(self, size: int) -> bytes:
        with system_errors(READING, advice=_place(self._where, self._offset)):
            data = self._handle.pread(min(size, self._end - self._offset), self._offset)
        self._offset += len(data)
        return data

    def _find(self) -> None:
        """Read on to the next data, and get ready the zeros before it and its own pieces."""
        zeros = 0
        while zeros < _LONGEST_HOLE and (data := self._data(_WINDOW)):
            reached = 0
            for start, stop in data_runs(data, _ZEROS):
                if zeros := zeros + start - reached:
                    self._ready.append(Hole(zeros))
                self._ready.append(data[start:stop] if stop - start < len(data) else data)
                zeros, reached = 0, stop
            zeros += len(data) - reached
            if self._ready:
                break
        if zeros:
            self._ready.append(Hole(zeros))
