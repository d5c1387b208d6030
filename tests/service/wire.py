"""Calls of records over a socket to a real daemon: what it answers, field by field."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storaged.rpc import packet, remote
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError


class Wire:
    """One connection; events that come meanwhile are kept."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._splitter = packet.Splitter()
        self._serial = 0
        self.events: list[tuple[int, bytes]] = []

    def close(self) -> None:
        self._socket.close()

    def call(self, procedure: AnyProcedure, *args: object) -> Record | RemoteError:
        """Return the reply or the error to a call."""
        payload = procedure.args(*args).pack()
        return self.raw(procedure, payload)

    def raw(self, procedure: AnyProcedure, payload: bytes) -> Record | RemoteError:
        """As `call`, with packed arguments."""
        self._serial += 1
        sent = packet.pack(
            procedure.program, procedure.number, packet.Kind.CALL, self._serial, 0, payload
        )
        self._socket.sendall(sent)
        while True:
            answer: Record | None = None
            for found in self._receive():
                header = found.header
                if header.kind == packet.Kind.MESSAGE:
                    self.events.append((header.procedure, found.payload))
                elif header.serial == self._serial and header.status == packet.Status.ERROR:
                    answer = RemoteError.unpack(found.payload)
                elif header.serial == self._serial:
                    answer = procedure.ret.unpack(found.payload)
            if answer is not None:
                return answer

    def _receive(self) -> list[packet.Packet]:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the daemon hung up")
        return [part for part in self._splitter.feed(data) if isinstance(part, packet.Packet)]


@contextmanager
def connected(path: Path, name: str = "storage:///system", flags: int = 0) -> Iterator[Wire]:
    """Give an open connection."""
    wire = Wire(path)
    try:
        answer = wire.call(remote.OPEN, name, flags)
        assert answer == Void(), answer
        yield wire
    finally:
        wire.close()
