"""A client without libvirt's library: packets by hand, in the way that go-libvirt sends them.

It never asks for keepalive, sends the "present" flag of a string as 0x01000000, sends stream
packets of 4 MiB, and ends a download where the data end. It shares no code with storaged.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

REMOTE = 0x20008086
KEEPALIVE = 0x6B656570
CALL, REPLY, MESSAGE, STREAM, HOLE = 0, 1, 2, 3, 6
OK, ERROR, CONTINUE = 0, 1, 2

_HEADER = struct.Struct(">7I")


@dataclass(frozen=True)
class Packet:
    """A packet as it came."""

    program: int
    procedure: int
    type: int
    serial: int
    status: int
    payload: bytes


def text(value: str | bytes) -> bytes:
    """Return a string as it is sent."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def optional(value: str) -> bytes:
    """Return a string that may be absent, with go-libvirt's odd way to say that it is not."""
    return struct.pack(">I", 0x01000000) + text(value)


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def hypers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def error(payload: bytes) -> tuple[int, int, str]:
    """Return code, domain and text of an error."""
    code, domain, present, length = struct.unpack_from(">4I", payload)
    assert present == 1, "go-libvirt takes the text for granted"
    return code, domain, payload[16 : 16 + length].decode("utf-8", "backslashreplace")


class Connection:
    """One socket and its serial numbers."""

    def __init__(self, path: Path, timeout: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)  # paths of tests are long
        try:
            self.socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(folder)
        self._serial = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(
        self,
        procedure: int,
        payload: bytes = b"",
        *,
        type: int = CALL,
        serial: int | None = None,
        status: int = OK,
        program: int = REMOTE,
        version: int = 1,
    ) -> int:
        """Send a packet and return its serial number."""
        if serial is None:
            self._serial = serial = self._serial + 1
        head = _HEADER.pack(28 + len(payload), program, version, procedure, type, serial, status)
        self.socket.sendall(head + payload)
        return serial

    def receive(self) -> Packet:
        """Return the next packet.

        :raise EOFError: the daemon closed the connection.
        """
        length, program, _version, procedure, type, serial, status = _HEADER.unpack(
            self._exactly(28)
        )
        payload = self._exactly(length - 28)
        return Packet(program, procedure, type, serial, status, payload)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def call(self, procedure: int, payload: bytes = b"", *, program: int = REMOTE) -> Packet:
        """Send a call and return its answer, whatever came before it."""
        serial = self.send(procedure, payload, program=program)
        return self.answer(serial)

    def answer(self, serial: int) -> Packet:
        """Return the reply to a call."""
        while True:
            packet = self.receive()
            if packet.type == REPLY and packet.serial == serial:
                return packet

    def good(self, procedure: int, payload: bytes = b"") -> bytes:
        """Send a call and return what it answers, which must not be an error."""
        answer = self.call(procedure, payload)
        assert answer.status == OK, error(answer.payload)
        return answer.payload

    def bad(self, procedure: int, payload: bytes = b"", *, program: int = REMOTE) -> list[object]:
        """Send a call and return code, domain and text of its error."""
        answer = self.call(procedure, payload, program=program)
        assert answer.status == ERROR
        return list(error(answer.payload))

    def open(self, uri: str = "storage:///system", flags: int = 0) -> Connection:
        """Do what go-libvirt does to open: ask for authentication, open; nothing else."""
        assert self.good(66) == words(1, 0)
        assert self.good(1, optional(uri) + words(flags)) == b""
        return self


def pool(name: str, uuid: bytes) -> bytes:
    return text(name) + uuid


def volume(pool_name: str, name: str, key: str = "") -> bytes:
    return text(pool_name) + text(name) + text(key)
