"""Packets: what a connection carries, cut out of a stream of bytes.

Source: libvirt's framing: a length word that counts itself, a header of six words, a payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from storaged.rpc.errors import RPCError

LENGTH: Final = struct.Struct(">I")
#: program, version, procedure, type, serial, status
HEADER: Final = struct.Struct(">IIiIII")
#: length word and header in one
PREFIX: Final = struct.Struct(">IIIiIII")

#: The largest packet without its length word, in bytes.
PACKET_MAX: Final = 33_554_432
#: The largest payload, in bytes.
PAYLOAD_MAX: Final = PACKET_MAX - HEADER.size
#: The most stream data that every client takes in one packet, in bytes.
CHUNK: Final = 262_120
#: The most descriptors that a packet may carry.
FDS_MAX: Final = 32


class Kind(IntEnum):
    """The type of a packet."""

    CALL = 0
    REPLY = 1
    #: an event
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    """The status of a packet."""

    OK = 0
    ERROR = 1
    #: of a stream: data follow
    CONTINUE = 2


@dataclass(frozen=True, slots=True)
class Header:
    """Which packet it is. Numbers of a peer are not checked: *kind* and *status* may be any."""

    program: int
    version: int
    procedure: int
    kind: int
    serial: int
    status: int


@dataclass(frozen=True, slots=True)
class Packet:
    """A whole packet."""

    header: Header
    payload: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the data of one STREAM/CONTINUE packet, handed on as it comes.

    :param last: whether the packet ends with it; the only piece of an empty packet is empty.
    """

    header: Header
    data: memoryview
    last: bool


def pack(
    program: int, procedure: int, kind: int, serial: int, status: int = 0, payload: bytes = b""
) -> bytes:
    """Return a packet.

    :raise RPCError: the payload is too large for one.
    """
    length = PREFIX.size + len(payload)
    if length - LENGTH.size > PACKET_MAX:
        raise RPCError(f"a message of {length} bytes is above {PACKET_MAX}")
    return PREFIX.pack(length, program, 1, procedure, kind, serial, status) + payload


def reply(header: Header, payload: bytes = b"", *, status: Status = Status.OK) -> bytes:
    """Return the reply to a call: the call's numbers with a payload of the caller's."""
    length = PREFIX.size + len(payload)
    if length - LENGTH.size > PACKET_MAX:
        raise RPCError(f"a message of {length} bytes is above {PACKET_MAX}")
    return (
        PREFIX.pack(
            length,
            header.program,
            header.version,
            header.procedure,
            Kind.REPLY,
            header.serial,
            status,
        )
        + payload
    )


class Splitter:
    """Cuts a stream of bytes into packets.

    What came of an unfinished packet is kept as the pieces it came in, so the memory it takes is
    what the peer has sent. Data of streams are not collected at all.

    :param limit: the largest packet to take, without its length word.
    """

    def __init__(self, limit: int = PACKET_MAX) -> None:
        self.limit = limit
        self._head = b""
        self._header: Header | None = None
        self._parts: list[bytes] = []
        #: bytes that the packet under way still lacks behind its header
        self._missing = 0
        #: bytes that are kept of the packet under way
        self.kept = 0

    @property
    def unfinished(self) -> bool:
        """Whether the peer owes the rest of a packet."""
        return bool(self._head) or self._header is not None

    @property
    def missing(self) -> int:
        """How many bytes the packet under way still lacks behind its header."""
        return self._missing

    def feed(self, data: bytes) -> list[Packet | Piece]:
        """Take what came and return what is complete now, in its order.

        :raise RPCError: a length that no packet may have; nothing after it can be understood.
        """
        found: list[Packet | Piece] = []
        at = 0
        while True:
            if self._header is None:
                at = self._take_head(data, at)
                if self._header is None:
                    return found
            header = self._header
            end = min(at + self._missing, len(data))
            self._missing -= end - at
            if header.kind == Kind.STREAM and header.status == Status.CONTINUE:
                if end > at or not self._missing:
                    found.append(Piece(header, memoryview(data)[at:end], not self._missing))
            elif self._missing:
                self._parts.append(data[at:end])
                self.kept += end - at
            else:
                found.append(Packet(header, self._joined(data[at:end])))
            if self._missing:
                return found
            self._header = None
            at = end
            if at == len(data):
                return found

    def _take_head(self, data: bytes, at: int) -> int:
        """Take length word and header from *at* on, as far as they are there."""
        head = self._head + data[at : at + PREFIX.size - len(self._head)]
        at += len(head) - len(self._head)
        if len(head) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(head)
            if length < PREFIX.size or length - LENGTH.size > self.limit:
                raise RPCError(f"packet of {length} bytes")
            if len(head) == PREFIX.size:
                self._header = Header(*HEADER.unpack_from(head, LENGTH.size))
                self._missing = length - PREFIX.size
                head = b""
        self._head = head
        return at

    def _joined(self, last: bytes) -> bytes:
        if not self._parts:
            return last
        payload = b"".join((*self._parts, last))
        self._parts.clear()
        self.kept = 0
        return payload
