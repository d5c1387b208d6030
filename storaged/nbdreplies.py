"""What an NBD server answers, read from the connection piece by piece and checked.

Source: the NBD protocol specification, "Transmission".
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Final, NamedTuple, Self

_SIMPLE_MAGIC: Final = 0x67446698
_STRUCTURED_MAGIC: Final = 0x668E33EF
#: Both replies begin with a magic and 12 bytes; a structured one has 4 more, its length.
_SIMPLE: Final = struct.Struct(">IIQ")
_STRUCTURED: Final = struct.Struct(">IHHQI")
_DONE: Final = 1
_ERROR: Final = struct.Struct(">IH")
_HOLE: Final = struct.Struct(">QI")
#: The longest reply without data: a map of 131,072 extents.
MAX_REPLY: Final = (1 << 20) + 8
#: How many requests of one call are under way at a time.
_WINDOW: Final = 8
#: How much is read at a time of what may be large, in bytes.
_AT_ONCE: Final = 1 << 20

#: The protocol's error numbers, which are Linux's.
_KNOWN_ERRORS: Final = frozenset(
    {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC}
    | {errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN}
)


class Reply(IntEnum):
    """What a part of a reply brings."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    #: this one and all above
    ERROR = 1 << 15


class Chunk(NamedTuple):
    """The head of a reply, or of a part of one.

    :param length: how many bytes follow.
    :param done: whether it is the last part.
    :param error: of a simple reply, which has one part only: its error number, 0 for a success.
    """

    kind: int
    cookie: int
    length: int
    done: bool
    error: int | None = None

    @property
    def empty(self) -> bool:
        """Whether it says that all went well, and nothing else."""
        return self.kind == Reply.NONE and not self.length and self.done


def protocol_error(what: str) -> OSError:
    """Return the error for a server that does not keep to the protocol."""
    return OSError(errno.EPROTO, f"{os.strerror(errno.EPROTO)}: {what}")


def receive(sock: socket.socket, length: int) -> bytes:
    """Return exactly *length* bytes from the peer.

    :raise OSError: ECONNRESET if it hangs up before.
    """
    data = sock.recv(length, socket.MSG_WAITALL) if length else b""
    while len(data) < length:
        more = sock.recv(length - len(data), socket.MSG_WAITALL)
        if not more:
            raise hung_up()
        data += more
    return data


def hung_up() -> OSError:
    """Return the error for a server that is gone."""
    return ConnectionResetError(errno.ECONNRESET, "the NBD server hung up")


def receive_into(sock: socket.socket, place: memoryview) -> None:
    """Fill *place* from the peer.

    :raise OSError: ECONNRESET if it hangs up before.
    """
    done = 0
    while done < len(place):
        got = sock.recv_into(place[done : done + _AT_ONCE], 0, socket.MSG_WAITALL)
        if not got:
            raise hung_up()
        done += got


def receive_head(sock: socket.socket) -> Chunk:
    """Read the head of the next reply, whichever request it answers.

    :raise OSError: EPROTO if it is none.
    """
    head = receive(sock, _SIMPLE.size)
    magic, error, cookie = _SIMPLE.unpack(head)
    if magic == _SIMPLE_MAGIC:
        kind = Reply.ERROR if error else Reply.NONE
        return Chunk(kind, cookie, 0, done=True, error=error)
    if magic != _STRUCTURED_MAGIC:
        raise protocol_error("something that is no reply")
    head += receive(sock, _STRUCTURED.size - _SIMPLE.size)
    _, flags, kind, cookie, length = _STRUCTURED.unpack(head)
    return Chunk(kind, cookie, length, bool(flags & _DONE))


def receive_error(sock: socket.socket, chunk: Chunk) -> OSError:
    """Return the error that the server tells, after having read it.

    :raise OSError: EPROTO if *chunk* is none.
    """
    number, text = chunk.error or 0, ""
    if chunk.error is None:
        if chunk.kind < Reply.ERROR or not _ERROR.size <= chunk.length <= MAX_REPLY:
            raise protocol_error(f"a reply of kind {chunk.kind} and {chunk.length} bytes")
        data = receive(sock, chunk.length)
        number, length = _ERROR.unpack_from(data)
        text = data[_ERROR.size :][:length].decode(errors="replace")
    number = number if number in _KNOWN_ERRORS else errno.EINVAL
    said = "".join(character for character in text[:200] if character.isprintable())
    return OSError(number, f"{os.strerror(number)}: {said}" if said else os.strerror(number))


class Wanted:
    """A request whose reply is awaited.

    :param begin: offset on the disk ...
    :param length: ... and number of bytes that are read; 0 for all other requests.
    """

    __slots__ = ("_begin", "_length", "_missing", "data")

    def __init__(self, begin: int = 0, length: int = 0) -> None:
        self._begin, self._length, self._missing = begin, length, length
        #: what was read, complete when the reply is
        self.data: bytes | bytearray = b""

    def take(self, sock: socket.socket, chunk: Chunk) -> None:
        """Read a part of the reply, no error.

        :raise OSError: EPROTO if it does not belong to the request.
        """
        got = 0
        if chunk.error == 0:
            got = self._length
            self._read(sock, self._begin, got)
        elif chunk.kind == Reply.OFFSET_DATA and chunk.length > 8:
            got = chunk.length - 8
            self._read(sock, int.from_bytes(receive(sock, 8)), got)
        elif chunk.kind == Reply.OFFSET_HOLE and chunk.length == _HOLE.size:
            at, got = _HOLE.unpack(receive(sock, _HOLE.size))
            self._place(at, got)
        elif not chunk.empty:
            raise protocol_error(f"a reply of kind {chunk.kind} and {chunk.length} bytes")
        self._missing -= got
        if self._missing < 0 or (chunk.done and self._missing) or not (got or chunk.done):
            raise protocol_error("a reply of another length than was asked for")

    def _read(self, sock: socket.socket, offset: int, length: int) -> None:
        if length == self._missing == self._length and offset == self._begin:
            self.data = receive(sock, length)  # all in one piece: copied once only
        else:
            receive_into(sock, self._place(offset, length))

    def _place(self, offset: int, length: int) -> memoryview:
        """Return where a part goes; it is full of zeros unless the server sends it twice."""
        at = offset - self._begin
        if at < 0 or length < 1 or at + length > self._length:
            raise protocol_error("data of another place than was asked for")
        if not isinstance(self.data, bytearray):
            self.data = bytearray(self._length)
        return memoryview(self.data)[at : at + length]


class Window:
    """The requests of one call that are under way; a context that ends when all are answered.

    After an error of the server's the other replies are still awaited, and the connection can be
    used on. After any other error it is given up.

    :raise OSError: at the end: the first error that the server told.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: dict[int, Wanted] = {}
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._waiting and error is None:
                self._take()
        except BaseException as err:
            error = err
            raise
        finally:
            if error is not None:
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
        if self._failure is not None and error is None:
            raise self._failure

    def has_room(self) -> bool:
        """Wait until one more request may be sent; False: an error has come, send no more."""
        while len(self._waiting) >= _WINDOW:
            self._take()
        return self._failure is None

    def add(self, cookie: int, wanted: Wanted) -> None:
        """Await the reply to a request that is being sent."""
        self._waiting[cookie] = wanted

    def _take(self) -> None:
        """Read one reply, or a part of one."""
        chunk = receive_head(self._sock)
        wanted = self._waiting.get(chunk.cookie)
        if wanted is None:
            raise protocol_error("a reply to no request")
        if chunk.kind >= Reply.ERROR:
            error = receive_error(self._sock, chunk)
            self._failure = self._failure or error
        elif self._failure is None or not chunk.empty:
            wanted.take(self._sock, chunk)
        if chunk.done:
            del self._waiting[chunk.cookie]
