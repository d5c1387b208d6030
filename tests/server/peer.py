"""A client that speaks bytes: it can break every rule."""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storaged.rpc import remote, storage
from storaged.rpc import streams as wire
from storaged.rpc.packet import Header, Kind, Packet, Piece, Splitter, Status, pack
from storaged.rpc.program import REMOTE, AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remote import OpenArgs
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import Name, PoolNameArgs, StoragePool, StorageVol, VolStreamArgs
from tests.doubles import PATIENCE

#: A whole packet: stream data are put together again.
Whole = tuple[Header, bytes]


class Refusal(Exception):
    """The server answered a call with an error."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(f"{error.code}/{error.domain} {error.message}")
        self.code = error.code
        self.domain = error.domain
        self.message = error.message
        self.error = error


class Peer:
    """One connection. Serials count from 0, as those of libvirt's clients."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.serial = -1
        self._splitter = Splitter()
        self._came: deque[Whole] = deque()
        self._data: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # Bytes and packets

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Whole:
        """Return the next packet, whatever it is."""
        while not self._came:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            for item in self._splitter.feed(data):
                if isinstance(item, Piece):
                    self._data.append(bytes(item.data))
                    if item.last:
                        self._came.append((item.header, b"".join(self._data)))
                        self._data.clear()
                else:
                    self._came.append((item.header, item.payload))
        return self._came.popleft()

    def hung_up(self, patience: float = PATIENCE) -> bool:
        """Tell whether the server closes the connection; what it sends first is dropped."""
        self.socket.settimeout(patience)
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def silent(self, patience: float = 0.1) -> bool:
        """Tell whether nothing comes."""
        self.socket.settimeout(patience)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    # Calls

    def begin(self, procedure: AnyProcedure, args: Record | None = None) -> int:
        """Send a call and return its serial."""
        self.serial += 1
        self.send(call(procedure, args, self.serial))
        return self.serial

    def reply(self, serial: int, procedure: AnyProcedure) -> Any:
        """Return the reply to a call; what comes before it is put aside, in its order."""
        aside: list[Whole] = []
        try:
            while True:
                header, payload = self.receive()
                if header.kind == Kind.REPLY and header.serial == serial:
                    break
                aside.append((header, payload))
        finally:
            self._came.extendleft(reversed(aside))
        assert (header.program, header.procedure) == (procedure.program, procedure.number)
        if header.status == Status.ERROR:
            raise Refusal(RemoteError.unpack(payload))
        return procedure.ret.unpack(payload)

    def call(self, procedure: AnyProcedure, args: Record | None = None) -> Any:
        """Make a call and return its reply."""
        return self.reply(self.begin(procedure, args), procedure)

    def open(self, flags: int = 0) -> Self:
        self.call(remote.OPEN, OpenArgs("storage:///system", flags))
        return self

    def pool(self, name: str = "p") -> StoragePool:
        found = self.call(storage.POOL_LOOKUP_BY_NAME, Name(name)).pool
        assert isinstance(found, StoragePool)
        return found

    def volume(self, name: str, pool: str = "p") -> StorageVol:
        found = self.call(storage.VOL_LOOKUP_BY_NAME, PoolNameArgs(self.pool(pool), name)).vol
        assert isinstance(found, StorageVol)
        return found

    # Streams

    def stream(
        self,
        procedure: AnyProcedure,
        volume: StorageVol,
        offset: int = 0,
        length: int = 0,
        *,
        sparse: bool = False,
    ) -> Header:
        """Open a stream and return the header of the call."""
        args = VolStreamArgs(volume, offset, length, int(sparse))
        self.call(procedure, args)
        return header_of(procedure, self.serial)

    def stream_packet(self, header: Header) -> tuple[int, int, bytes]:
        """Return kind, status and payload of the next packet of a stream."""
        found, payload = self.receive()
        assert found.key == header.key, (found, header)
        return found.kind, found.status, payload

    def failure(self, header: Header) -> Refusal:
        """Return the error with which a stream ends."""
        kind, status, payload = self.stream_packet(header)
        assert (kind, status) == (Kind.STREAM, Status.ERROR)
        return Refusal(RemoteError.unpack(payload))

    def finish(self, header: Header) -> None:
        """Finish a stream; the server must agree."""
        self.send(wire.finish(header))
        assert self.stream_packet(header) == (Kind.STREAM, Status.OK, b"")

    def abort(self, header: Header) -> None:
        """Abort a stream; the server must agree."""
        self.send(wire.abort(header))
        assert self.stream_packet(header) == (Kind.STREAM, Status.OK, b"")

    def download(self, header: Header) -> list[bytes | int]:
        """Return the data and the holes of a download, up to its end mark."""
        found: list[bytes | int] = []
        while True:
            kind, status, payload = self.stream_packet(header)
            assert status == Status.CONTINUE, Refusal(RemoteError.unpack(payload))
            if kind == Kind.STREAM_HOLE:
                found.append(wire.read_hole(payload))
            elif payload:
                found.append(payload)
            else:
                return found


def call(procedure: AnyProcedure, args: Record | None = None, serial: int = 0) -> bytes:
    """Return a call."""
    payload = (args or Void()).pack()
    return pack(procedure.program, procedure.number, Kind.CALL, serial, payload=payload)


def header_of(procedure: AnyProcedure, serial: int) -> Header:
    """Return the header of a call."""
    return Header(procedure.program, 1, procedure.number, Kind.CALL, serial, Status.OK)


def hole(header: Header, length: int, flags: int = 0) -> bytes:
    """Return a hole, also one that may not be."""
    payload = struct.pack(">qI", length, flags)
    return pack(REMOTE, header.procedure, Kind.STREAM_HOLE, header.serial, Status.CONTINUE, payload)


def words(*numbers: int) -> bytes:
    """Return numbers as they stand in a packet."""
    return struct.pack(f">{len(numbers)}I", *numbers)


def elapsed(since: float) -> float:
    """Return the seconds since a moment of `time.monotonic`."""
    return time.monotonic() - since


def packets(data: bytes) -> list[Packet | Piece]:
    """Return all packets in *data*."""
    return Splitter().feed(data)


def letters(size: int) -> bytes:
    """Return data in which every stretch is different."""
    return b"".join(b"%08d" % number for number in range(size // 8 + 1))[:size]


def data(header: Header, content: bytes) -> bytes:
    return b"".join(wire.data(header, bytes(chunk)) for chunk in wire.chunks(content))


def holds(path: Path, content: bytes, at: int = 0) -> bool:
    return path.read_bytes()[at : at + len(content)] == content
