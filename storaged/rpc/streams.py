"""Streams of data on a connection, in both directions: what an upload or a download is made of.

A stream begins with a successful call and has the numbers of that call. Data and holes follow in
the order in which they stand in the volume. A download ends with an empty packet of data, the end
mark; then, as an upload at its end, it is finished by the client and that is answered. Either side
may end it early: the client aborts, the server fails.

The functions that make packets take the header of the call that opened the stream.

Source: libvirt's protocol and the behaviour of its clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

from storaged.errors import Domain
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import CHUNK, PAYLOAD_MAX, PREFIX, Header, Kind, Status, check_size
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.xdr import Hyper, UInt

#: The longest hole.
_HOLE_MAX: Final = (1 << 63) - 1


class Part(Enum):
    """What a packet of a stream is."""

    DATA = "data"
    HOLE = "hole"
    #: from a client: all is sent, or all was received; from a server: the answer to it
    FINISH = "finish"
    #: from a client: stop and forget; from a server: it failed, and the payload says why
    ABORT = "abort"
    #: none of these
    INVALID = "invalid"


class Hole(Record):
    """A part of a volume that reads as zeros and has no data, in bytes."""

    length: Hyper
    flags: UInt = 0


def part(header: Header) -> Part:
    """Say what a packet of a stream is; the status decides before the kind does."""
    if header.status == Status.CONTINUE:
        return Part.HOLE if header.kind == Kind.STREAM_HOLE else Part.DATA
    if header.status == Status.OK:
        return Part.FINISH
    return Part.ABORT if header.status == Status.ERROR else Part.INVALID


def head(call: Header, size: int) -> bytes:
    """Return what stands in front of *size* bytes of data, for who sends them without a copy.

    :raise RPCError: no packet is that large.
    """
    return _head(call, Kind.STREAM, Status.CONTINUE, size)


def data(call: Header, content: bytes | memoryview) -> bytes:
    """Return a packet of data.

    :raise RPCError: no packet is that large.
    """
    return b"".join((head(call, len(content)), content))


def chunks(content: bytes | memoryview, size: int = CHUNK) -> Iterator[memoryview]:
    """Cut data into what fits packets, without a copy.

    :param size: the most bytes of one packet; the default is what every client takes.
    """
    view = memoryview(content)
    for at in range(0, len(view), min(size, PAYLOAD_MAX)):
        yield view[at : at + min(size, PAYLOAD_MAX)]


def hole(call: Header, length: int) -> bytes:
    """Return a hole of *length* bytes, which must be more than 0.

    :raise RPCError: no hole is that long.
    """
    if not 0 < length <= _HOLE_MAX:
        raise RPCError(f"a hole of {length} bytes", domain=Domain.STREAMS)
    payload = Hole(length).pack()
    return _head(call, Kind.STREAM_HOLE, Status.CONTINUE, len(payload)) + payload


def end_mark(call: Header) -> bytes:
    """Return the end of the data of a download."""
    return head(call, 0)


def finish(call: Header) -> bytes:
    """Return the end of a stream; also the answer to it, and to an abort."""
    return _head(call, Kind.STREAM, Status.OK)


def abort(call: Header) -> bytes:
    """Return a client's wish to stop."""
    return _head(call, Kind.STREAM, Status.ERROR)


def failure(call: Header, error: RemoteError) -> bytes:
    """Return a server's word that the stream is dead, and why."""
    payload = error.pack()
    return _head(call, Kind.STREAM, Status.ERROR, len(payload)) + payload


def read_hole(payload: bytes) -> int:
    """Return the length of a hole that came, in bytes; always more than 0.

    :raise RPCError: it is empty or negative, has flags, or is cut short.
    """
    found = Hole.unpack(payload)
    if found.length <= 0:
        raise RPCError(f"a hole of {found.length} bytes", domain=Domain.STREAMS)
    if found.flags:
        raise RPCError(f"a hole with flags {found.flags:#x}", domain=Domain.STREAMS)
    return found.length


def _head(call: Header, kind: Kind, status: Status, size: int = 0) -> bytes:
    length = check_size(size)
    return PREFIX.pack(
        length, call.program, call.version, call.procedure, kind, call.serial, status
    )
