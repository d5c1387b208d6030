"""How an NBD connection begins: agree with the server on what is served and how.

Source: the NBD protocol specification, "Fixed newstyle negotiation".
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from storaged.nbdreplies import protocol_error, receive

_GREETING: Final = struct.Struct(">8s8sH")
_GREETING_MAGICS: Final = (b"NBDMAGIC", b"IHAVEOPT")
_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
#: Fixed newstyle, and no 124 zeros: as the server offers it and as the client answers.
_HANDSHAKE_FLAGS: Final = 0b11
#: The longest answer to an option that makes sense; a text of an error is far shorter.
_MAX_ANSWER: Final = 8192
#: The most answers to one option.
_MAX_ANSWERS: Final = 64

#: The only metadata asked for: what reads as zeros.
BASE_ALLOCATION: Final = b"base:allocation"
#: How much one request may carry where the server does not say, in bytes.
_DEFAULT_PAYLOAD: Final = 1 << 25
_MAX_SIZE: Final = 2**63 - 1


class _Option(IntEnum):
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class _Answer(IntEnum):
    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    #: and all above: an error
    ERROR = 1 << 31


class _Info(IntEnum):
    EXPORT = 0
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """What the server says of an export."""

    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6


@dataclass(frozen=True, slots=True)
class Agreement:
    """What client and server have agreed on.

    :param size: length of the disk in bytes.
    :param payload: the most bytes that one read or write may carry.
    :param context: number of the allocation map; None: the server has none.
    """

    size: int
    flags: ExportFlag
    payload: int = _DEFAULT_PAYLOAD
    context: int | None = None


def agree(sock: socket.socket, export: str) -> Agreement:
    """Negotiate, up to the point where requests can be sent.

    :raise OSError: the server refuses, hangs up, or does not keep to the protocol.
    """
    *magics, flags = _GREETING.unpack(receive(sock, _GREETING.size))
    if tuple(magics) != _GREETING_MAGICS or flags & _HANDSHAKE_FLAGS != _HANDSHAKE_FLAGS:
        raise protocol_error("no fixed newstyle NBD server")
    sock.sendall(struct.pack(">I", _HANDSHAKE_FLAGS))
    name = _counted(export.encode())
    context = None
    if _ask(sock, _Option.STRUCTURED_REPLY, b"", needed=False) is not None:
        query = name + struct.pack(">I", 1) + _counted(BASE_ALLOCATION)
        context = _context(_ask(sock, _Option.SET_META_CONTEXT, query, needed=False) or [])
    wish = name + struct.pack(">HH", 1, _Info.BLOCK_SIZE)
    told = _ask(sock, _Option.GO, wish) or []
    return _agreement([data for kind, data in told if kind == _Answer.INFO], context)


def _ask(
    sock: socket.socket, option: _Option, data: bytes, *, needed: bool = True
) -> list[tuple[int, bytes]] | None:
    """Send an option; return what the server answers before its ACK.

    :param needed: False returns None where the server refuses.
    """
    sock.sendall(_OPTION.pack(_GREETING_MAGICS[1], option, len(data)) + data)
    answers: list[tuple[int, bytes]] = []
    while len(answers) < _MAX_ANSWERS:
        magic, asked, kind, length = _OPTION_REPLY.unpack(receive(sock, _OPTION_REPLY.size))
        if magic != _OPTION_REPLY_MAGIC or asked != option or length > _MAX_ANSWER:
            raise protocol_error(f"bad answer to option {option.name}")
        answer = receive(sock, length) if length else b""
        if kind == _Answer.ACK:
            return answers
        if kind >= _Answer.ERROR:
            if needed:
                text = answer.decode(errors="replace") or f"error {kind - _Answer.ERROR}"
                raise OSError(errno.ENOENT, f"the NBD server refuses {option.name}: {text!r}")
            return None
        answers.append((kind, answer))
    raise protocol_error(f"endless answers to option {option.name}")


def _context(answers: list[tuple[int, bytes]]) -> int | None:
    for kind, data in answers:
        if kind == _Answer.META_CONTEXT and data[4:] == BASE_ALLOCATION:
            return int.from_bytes(data[:4])
    return None


def _agreement(infos: list[bytes], context: int | None) -> Agreement:
    size, flags, payload = None, ExportFlag(0), _DEFAULT_PAYLOAD
    for info in infos:
        kind = int.from_bytes(info[:2])
        if kind == _Info.EXPORT and len(info) == 12:
            size, bits = struct.unpack(">QH", info[2:])
            flags = ExportFlag(bits)
        elif kind == _Info.BLOCK_SIZE and len(info) == 14:
            payload = min(payload, struct.unpack(">III", info[2:])[2])
    if size is None or size > _MAX_SIZE:
        raise protocol_error(f"an export of {size} bytes")
    if payload < 512:
        raise protocol_error(f"a largest request of {payload} bytes")
    return Agreement(size, flags, payload, context)


def _counted(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
