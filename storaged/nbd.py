"""A disk that another process serves over a connected socket, as a `Handle`: a small NBD client.

It blocks, and belongs to one thread. Large reads and writes are cut into pieces of which several
are under way at a time. The server may be a program that reads a hostile image: everything it says
is checked before it is used, and nothing is allocated by what it says.

Source: the NBD protocol specification.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum, IntFlag
from types import TracebackType
from typing import Final, Self

from storaged.formats.handle import Bytes, Extent
from storaged.nbdgreeting import ExportFlag, agree
from storaged.nbdreplies import (
    MAX_REPLY,
    Chunk,
    Reply,
    Wanted,
    Window,
    protocol_error,
    receive,
    receive_error,
    receive_head,
)

_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_STATUS: Final = struct.Struct(">II")

#: What is read or written by one request, in bytes: small enough that the server works on one
#: while the next is on its way.
_PIECE: Final = 1 << 18
#: What is zeroed or asked for by one request, in bytes: its length has 32 bits.
_SPAN: Final = 1 << 30

#: Of the allocation map: reads as zeros.
_STATE_ZERO: Final = 1 << 1


class _Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class _CommandFlag(IntFlag):
    NO_HOLE = 1 << 1


class NbdHandle:
    """An exported disk. Its size is fixed.

    :param sock: connected to the server; it is closed with the handle, and also if the
        negotiation fails.
    :raise OSError: the server does not serve *export*, or does not keep to the protocol.
    """

    def __init__(self, sock: socket.socket, export: str = "") -> None:
        self._sock = sock
        self._open = True
        self._cookie = 0
        try:
            self._agreed = agree(sock, export)
        except BaseException:
            sock.close()
            raise
        self._piece = min(_PIECE, self._agreed.payload)

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
        return self._agreed.size

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the disk ends."""
        length = max(min(length, self.size() - offset), 0)
        wanted: list[Wanted] = []
        with Window(self._sock) as window:
            for begin, span in _pieces(offset, length, self._piece):
                if not window.has_room():
                    break
                wanted.append(Wanted(begin, span))
                window.add(self._send(_Command.READ, begin, span), wanted[-1])
        parts = [part.data for part in wanted]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Write all of *data* at *offset*.

        :raise OSError: ENOSPC beyond the end: the disk does not grow.
        """
        with memoryview(data).cast("B") as view:
            self._check_writable(offset, len(view))
            self._write(view, offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a stretch read as zeros.

        :param unmap: True lets the server give the space back; False has it keep or take it.
        :raise OSError: ENOSPC beyond the end: the disk does not grow.
        """
        self._check_writable(offset, length)
        if ExportFlag.SEND_WRITE_ZEROES in self._agreed.flags:
            flags = 0 if unmap else _CommandFlag.NO_HOLE
            for begin, span in _pieces(offset, length, _SPAN):
                self._call(_Command.WRITE_ZEROES, begin, span, flags)
            return
        zeros = memoryview(bytes(min(self._piece, max(length, 0))))
        for begin, span in _pieces(offset, length, self._piece):
            self.pwrite(zeros[:span], begin)

    def trim(self, offset: int, length: int) -> None:
        """Say that a stretch is of no more use; what it reads as afterwards is not defined."""
        self._check_writable(offset, length)
        if ExportFlag.SEND_TRIM in self._agreed.flags:
            for begin, span in _pieces(offset, length, _SPAN):
                self._call(_Command.TRIM, begin, span)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield data and zeros as the server tells them; all is data where it does not."""
        length = max(min(length, self.size() - offset), 0)
        if self._agreed.context is None:
            if length:
                yield Extent(offset, length, data=True)
            return
        end = offset + length
        while offset < end:
            for span, state in self._status(offset, min(end - offset, _SPAN)):
                span = min(span, end - offset)
                if span:
                    yield Extent(offset, span, not state & _STATE_ZERO)
                    offset += span

    def truncate(self, size: int) -> None:
        """Do nothing if the disk has this size.

        :raise OSError: EOPNOTSUPP: the size of an exported disk is fixed.
        """
        if size != self.size():
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def flush(self) -> None:
        """Return when all that was written survives a loss of power."""
        if ExportFlag.SEND_FLUSH in self._agreed.flags:
            self._call(_Command.FLUSH, 0, 0)

    def fileno(self) -> int | None:
        """Return None: no file has exactly these bytes."""
        return None

    def close(self) -> None:
        """Take leave of the server. Calling it again does nothing."""
        if self._open:
            self._open = False
            with suppress(OSError):
                self._send(_Command.DISCONNECT, 0, 0)
            self._sock.close()

    def interrupt(self) -> None:
        """Make calls that wait for the server fail with `OSError`, now and later; from a thread."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _write(self, view: memoryview, offset: int) -> None:
        with Window(self._sock) as window:
            for begin, span in _pieces(offset, len(view), self._piece):
                if not window.has_room():
                    break
                window.add(self._send(_Command.WRITE, begin, span), Wanted())
                self._sock.sendall(view[begin - offset : begin - offset + span])

    def _check_writable(self, offset: int, length: int) -> None:
        if ExportFlag.READ_ONLY in self._agreed.flags:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if offset < 0 or offset + length > self.size():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _send(self, command: _Command, offset: int, length: int, flags: int = 0) -> int:
        self._cookie += 1
        head = _REQUEST.pack(_REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._sock.sendall(head)
        return self._cookie

    def _call(self, command: _Command, offset: int, length: int, flags: int = 0) -> None:
        with Window(self._sock) as window:
            window.add(self._send(command, offset, length, flags), Wanted())

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Ask how a stretch is kept: (length, state) pairs from its beginning on, at least one."""
        cookie = self._send(_Command.BLOCK_STATUS, offset, length)
        failure: OSError | None = None
        found: list[tuple[int, int]] = []
        try:
            while True:
                chunk = receive_head(self._sock)
                if chunk.cookie != cookie:
                    raise protocol_error("a reply to no request")
                if chunk.kind >= Reply.ERROR:
                    failure = receive_error(self._sock, chunk)
                elif not chunk.empty:
                    found = self._read_map(chunk, found)
                if chunk.done:
                    break
            if not found and failure is None:
                raise protocol_error("a reply without a map")
        except BaseException:
            self.interrupt()
            raise
        if failure is not None:
            raise failure
        return found

    def _read_map(self, chunk: Chunk, known: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if known or chunk.kind != Reply.BLOCK_STATUS or not 12 <= chunk.length <= MAX_REPLY:
            raise protocol_error(f"a reply of kind {chunk.kind} and {chunk.length} bytes")
        data = receive(self._sock, chunk.length)
        if int.from_bytes(data[:4]) != self._agreed.context or (len(data) - 4) % _STATUS.size:
            raise protocol_error("a map that was not asked for")
        found = list(_STATUS.iter_unpack(data[4:]))
        if not all(span for span, _ in found):
            raise protocol_error("a map with empty extents")
        return found


def _pieces(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the pieces of a stretch, each of *most* bytes at most."""
    end = offset + length
    while offset < end:
        span = min(end - offset, most)
        yield offset, span
        offset += span
