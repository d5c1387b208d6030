"""A daemon that does what the test says, byte by byte, over a pair of sockets."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from storaged.client.link import RemoteFailure
from storaged.client.socketlink import SocketLink
from storaged.client.transport import Transport
from storaged.rpc import remote, storage
from storaged.rpc.packet import (
    HEADER,
    LENGTH,
    Header,
    Kind,
    Packet,
    Status,
    pack,
    reply,
)
from storaged.rpc.program import KEEPALIVE, REMOTE, AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError

POOL = storage.StoragePool("p", bytes(range(16)))


class Peer:
    """The daemon's end. Its methods are called by the script, on a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def take(self) -> Packet:
        """Return the next packet.

        :raise EOFError: there is none.
        """
        (length,) = LENGTH.unpack(self._exactly(4))
        body = self._exactly(length - 4)
        return Packet(Header(*HEADER.unpack_from(body)), body[HEADER.size :])

    def expect(self, procedure: AnyProcedure) -> Packet:
        """Return the next packet, which is a call of *procedure*."""
        packet = self.take()
        assert packet.header.kind == Kind.CALL
        assert (packet.header.program, packet.header.procedure) == (
            procedure.program,
            procedure.number,
        )
        return packet

    def expect_ping(self) -> None:
        packet = self.take()
        assert (packet.header.program, packet.header.procedure) == (KEEPALIVE, 1)

    def answer(self, call: Packet, record: Record = Void()) -> None:  # noqa: B008 -- a value
        self.socket.sendall(reply(call.header, record.pack()))

    def refuse(self, call: Packet, error: RemoteError) -> None:
        self.socket.sendall(reply(call.header, error.pack(), status=Status.ERROR))

    def tell(self, procedure: AnyProcedure, record: Record) -> None:
        """Send an event."""
        self.socket.sendall(event(procedure, record))

    def stream(self, call: Packet, kind: Kind, status: Status, payload: bytes = b"") -> None:
        header = call.header
        self.socket.sendall(pack(REMOTE, header.procedure, kind, header.serial, status, payload))

    def begin(self) -> None:
        """Do what a connection begins with."""
        self.answer(self.expect(remote.AUTH_LIST), remote.AuthListRet((0,)))
        self.answer(self.expect(remote.OPEN))
        for _ in range(2):
            self.answer(self.expect(remote.SUPPORTS_FEATURE), remote.FeatureRet(1))

    def end(self) -> None:
        """Take the client's good-bye."""
        self.answer(self.expect(remote.CLOSE))

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def event(procedure: AnyProcedure, record: Record) -> bytes:
    """Return an event as storage daemons send it: with serial 1."""
    return pack(procedure.program, procedure.number, Kind.MESSAGE, 1, 0, record.pack())


Script = Callable[[Peer], None]


@contextmanager
def played(script: Script, *, begin: bool = True) -> Iterator[socket.socket]:
    """Play a script; give the client's end, and see at the end that all of it was played."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            peer = Peer(ours)
            if begin:
                peer.begin()
            script(peer)
        except BaseException as err:
            failed.append(err)
        finally:
            ours.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        theirs.close()
        thread.join(20)
        assert not thread.is_alive()
        if failed:
            raise failed[0]


@contextmanager
def linked(script: Script) -> Iterator[SocketLink]:
    """Open a link to a daemon that plays a script once the connection is open."""
    with played(script) as sock:
        link = SocketLink(Transport(sock), "storage:///system")
        try:
            yield link
        finally:
            link.close()


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def failure(link: SocketLink, **given: float) -> RemoteError:
    with pytest.raises(RemoteFailure) as caught:
        link.call(storage.NUM_OF_POOLS, Void(), **given)
    return caught.value.error
