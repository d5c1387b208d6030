"""Packets: what a connection carries, cut out of a stream of bytes.

Source: libvirt's framing: a length word that counts itself, a header of six words, a payload.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

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
#: All programs have this version.
VERSION: Final = 1


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


#: Plain numbers of the above, for what is done with every packet.
_REPLY: Final = 1
_STREAM: Final = 3
_WITH_FDS: Final = (4, 5)
_CONTINUE: Final = 2


class Header(NamedTuple):
    """Which packet it is. Numbers of a peer are not checked: *kind* and *status* may be any."""

    program: int
    version: int
    procedure: int
    kind: int
    serial: int
    status: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What a call, its reply and all packets of its stream have in common."""
        return self.program, self.procedure, self.serial


class Packet(NamedTuple):
    """A whole packet.

    :param fds: how many descriptors came with it. They are not in *payload*, nor is their number.
    """

    header: Header
    payload: bytes
    fds: int = 0


class Piece(NamedTuple):
    """A part of the data of one STREAM/CONTINUE packet, handed on as it comes.

    :param last: whether the packet ends with it; the only piece of an empty packet is empty.
    """

    header: Header
    data: memoryview
    last: bool


def check_size(payload: int) -> int:
    """Return the length word of a packet with so many bytes of payload.

    :raise RPCError: the payload is too large for a packet.
    """
    if payload > PAYLOAD_MAX:
        raise RPCError(f"a payload of {payload} bytes is above {PAYLOAD_MAX}")
    return PREFIX.size + payload


def pack(
    program: int, procedure: int, kind: int, serial: int, status: int = 0, payload: bytes = b""
) -> bytes:
    """Return a packet.

    :raise RPCError: the payload is too large for one.
    """
    length = check_size(len(payload))
    return PREFIX.pack(length, program, VERSION, procedure, kind, serial, status) + payload


def reply(header: Header, payload: bytes = b"", *, status: Status = Status.OK) -> bytes:
    """Return the reply to a call: the call's numbers with a payload of the caller's.

    :raise RPCError: the payload is too large for a packet.
    """
    length = check_size(len(payload))
    program, version, procedure, _, serial, _ = header
    return PREFIX.pack(length, program, version, procedure, _REPLY, serial, status) + payload


class Splitter:
    """Cuts a stream of bytes into packets.

    What came of an unfinished packet is kept in one piece that grows with it, so a peer costs about
    as much memory as it has sent, in however small parts that comes, and twice that for the moment
    in which the packet is completed. Data of streams are not collected at all.

    Behind a packet with descriptors comes one byte for each of them. These bytes are taken off, and
    the packet is handed on after the last. So whoever reads from the socket has got all descriptors
    of a packet by then, in the order of the packets, and takes `Packet.fds` of them out of those
    that came; if it reads without room for descriptors, the kernel has closed them.

    :param limit: the largest packet to take, without its length word.
    """

    def __init__(self, limit: int = PACKET_MAX) -> None:
        self.limit = limit
        self._head = b""
        self._header: Header | None = None
        self._body = bytearray()
        #: bytes that the packet under way still lacks behind its header
        self._missing = 0
        #: a packet that lacks nothing but the bytes of its descriptors, and how many of these
        self._packet: Packet | None = None
        self._owed = 0

    @property
    def unfinished(self) -> bool:
        """Whether the peer owes the rest of a packet."""
        return bool(self._head) or self._header is not None or self._packet is not None

    @property
    def missing(self) -> int:
        """How many bytes the packet under way still lacks behind its header."""
        return self._missing + self._owed

    @property
    def kept(self) -> int:
        """How many bytes of the packet under way are kept."""
        return len(self._packet.payload) if self._packet else len(self._head) + len(self._body)

    def feed(self, data: bytes | memoryview) -> list[Packet | Piece]:
        """Take what came and return what is complete now, in its order.

        :raise RPCError: a length that no packet may have, or too many descriptors; nothing after
            it can be understood.
        """
        found: list[Packet | Piece] = []
        at = 0
        while at < len(data):
            if self._packet is not None:
                at = self._take_descriptors(self._packet, data, at, found)
            elif self._header is not None:
                at = self._take_body(self._header, data, at, found)
            else:
                at = self._take_head(data, at, found)
        return found

    def _take_head(self, data: bytes | memoryview, at: int, found: list[Packet | Piece]) -> int:
        """Take length word and header from *at* on, as far as they are there."""
        head = self._head + data[at : at + PREFIX.size - len(self._head)]
        at += len(head) - len(self._head)
        if len(head) < LENGTH.size:
            self._head = head
            return at
        (length,) = LENGTH.unpack_from(head)
        if length < PREFIX.size or length - LENGTH.size > self.limit:
            raise RPCError(f"packet of {length} bytes")
        if len(head) < PREFIX.size:
            self._head = head
            return at
        self._head = b""
        self._missing = length - PREFIX.size
        header = Header._make(HEADER.unpack_from(head, LENGTH.size))
        if self._missing:
            self._header = header
        else:
            self._complete(header, b"", found)
        return at

    def _take_body(
        self, header: Header, data: bytes | memoryview, at: int, found: list[Packet | Piece]
    ) -> int:
        """Take payload from *at* on, as far as it is there."""
        end = min(at + self._missing, len(data))
        self._missing -= end - at
        if not self._missing:
            self._header = None
        if header.kind == _STREAM and header.status == _CONTINUE:
            found.append(Piece(header, memoryview(data)[at:end], not self._missing))
        elif self._missing:
            self._body += memoryview(data)[at:end]
        elif self._body:
            self._body += memoryview(data)[at:end]
            payload = bytes(self._body)
            self._body = bytearray()
            self._complete(header, payload, found)
        else:
            self._complete(header, bytes(data[at:end]), found)
        return end

    def _complete(self, header: Header, payload: bytes, found: list[Packet | Piece]) -> None:
        if header.kind == _STREAM and header.status == _CONTINUE:
            found.append(Piece(header, memoryview(payload), last=True))
            return
        if header.kind not in _WITH_FDS:
            found.append(Packet(header, payload))
            return
        fds, payload = split_fds(payload)
        packet = Packet(header, payload, fds)
        if fds:
            self._packet, self._owed = packet, fds
        else:
            found.append(packet)

    def _take_descriptors(
        self, packet: Packet, data: bytes | memoryview, at: int, found: list[Packet | Piece]
    ) -> int:
        """Take off what stands for descriptors from *at* on, as far as it is there."""
        end = min(at + self._owed, len(data))
        self._owed -= end - at
        if not self._owed:
            self._packet = None
            found.append(packet)
        return end


def split_fds(payload: bytes) -> tuple[int, bytes]:
    """Return how many descriptors follow a packet that has some, and the rest of its payload.

    :raise RPCError: more than a packet may have, or their number is missing.
    """
    if len(payload) < LENGTH.size:
        raise RPCError("packet without its number of descriptors")
    (fds,) = LENGTH.unpack_from(payload)
    if fds > FDS_MAX:
        raise RPCError(f"packet with {fds} descriptors")
    return fds, payload[LENGTH.size :]
