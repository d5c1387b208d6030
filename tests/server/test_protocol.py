"""The protocol as clients of all kinds speak it, and as they break it."""

from __future__ import annotations

import socket

import pytest

from storaged.errors import Domain
from storaged.rpc import remote, storage
from storaged.rpc.packet import HEADER, Header, Kind, Status, pack
from storaged.rpc.program import ADMIN, KEEPALIVE, REMOTE
from storaged.rpc.record import Void
from storaged.rpc.remote import FeatureArgs
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import (
    Name,
)
from tests.server.conftest import Daemon
from tests.server.peer import Refusal, words


def test_golden_exchange(served: Daemon) -> None:
    """The prologue of virsh, byte for byte as libvirt's daemon answers it."""
    peer = served.connect()
    exchange = (
        (
            "0000001c 20008086 00000001 00000042 00000000 00000000 00000000",
            "00000024 20008086 00000001 00000042 00000001 00000000 00000000 00000001 00000000",
        ),
        (
            "00000020 20008086 00000001 0000003c 00000000 00000001 00000000 0000000a",
            "00000020 20008086 00000001 0000003c 00000001 00000001 00000000 00000001",
        ),
        (
            "0000003c 20008086 00000001 00000001 00000000 00000002 00000000 00000001 00000011"
            "73746f726167653a2f2f2f73797374656d000000 00000000",
            "0000001c 20008086 00000001 00000001 00000001 00000002 00000000",
        ),
        (
            "00000020 20008086 00000001 0000003c 00000000 00000003 00000000 0000000e",
            "00000020 20008086 00000001 0000003c 00000001 00000003 00000000 00000001",
        ),
        (
            "0000001c 6b656570 00000001 00000001 00000002 00000000 00000000",
            "0000001c 6b656570 00000001 00000002 00000002 00000000 00000000",
        ),
    )
    for sent, expected in exchange:
        peer.send(bytes.fromhex(sent))
        wanted = bytes.fromhex(expected)
        got = peer.socket.recv(len(wanted), socket.MSG_WAITALL)
        assert got == wanted


@pytest.mark.parametrize(
    "prologue",
    [(66, 60), (66,), (), (60,)],
    ids=["virsh", "python and go", "without any", "feature first"],
)
def test_prologues(served: Daemon, prologue: tuple[int, ...]) -> None:
    peer = served.connect()
    for number in prologue:
        args = FeatureArgs(10) if number == 60 else None
        peer.call(remote.PROCEDURES[number], args)
    peer.open()
    assert peer.pool().name == "p"
    assert peer.call(remote.CLOSE) == Void()
    assert peer.hung_up()


def test_open_as_go_does(served: Daemon) -> None:
    """Any flag but 0 means that the name is there, and only one bit of the flags counts."""
    peer = served.connect()
    text = b"storage:///system\0\0\0"
    payload = words(0x01000000, 17) + text + words(6)
    peer.send(pack(REMOTE, 1, Kind.CALL, 7, payload=payload))
    header, _ = peer.receive()
    assert (header.serial, header.status) == (7, Status.OK)


def test_refusals_of_the_protocol(served: Daemon) -> None:
    peer = served.connect()

    def answer(packet: bytes) -> tuple[int, int, str]:
        header = Header(*HEADER.unpack_from(packet, 4))
        peer.send(packet)
        found, payload = peer.receive()
        assert found == header._replace(kind=Kind.REPLY, status=Status.ERROR)
        error = Refusal(RemoteError.unpack(payload))
        return error.code, error.domain, error.message or ""

    assert answer(pack(REMOTE, 66, Kind.CALL, 1, Status.ERROR))[:2] == (39, 7)
    assert answer(pack(0xDEAD, 1, Kind.CALL, 2))[:2] == (39, 7)
    assert answer(pack(KEEPALIVE, 1, Kind.CALL, 3))[:2] == (39, 7)
    assert answer(pack(ADMIN, 1, Kind.CALL, 4))[:2] == (39, 7)
    for number in (0, -1, 370, 9999):
        code, domain, message = answer(pack(REMOTE, number, Kind.CALL, 5))
        assert (code, domain) == (39, 7)
        assert message.startswith("unknown procedure")
    other_version = words(28, REMOTE, 2, 66, 0, 6, 0)
    assert answer(other_version)[:2] == (39, 7)
    code, domain, message = answer(pack(REMOTE, 84, Kind.CALL, 8, payload=words(100)))
    assert (code, domain) == (39, 7)
    assert "decode message payload" in message
    code, domain, message = answer(pack(REMOTE, 16, Kind.CALL, 9))
    assert (code, domain) == (1, Domain.RPC)
    assert message == "internal error: hypervisor connection not open"
    peer.open()
    assert answer(pack(REMOTE, 16, Kind.CALL, 10))[:2] == (3, Domain.DOMAIN)
    assert peer.pool().name == "p"


def test_what_is_not_served_through_a_connection_that_only_reads(served: Daemon) -> None:
    peer = served.connect("ro").open()
    peer.send(pack(REMOTE, 10, Kind.CALL, 9))  # virDomainCreateXML
    error = RemoteError.unpack(peer.receive()[1])
    assert (error.code, error.domain) == (29, Domain.DOMAIN)
    assert error.str2 == "read only access prevents virDomainCreateXML"


def test_odd_packets_are_ignored(served: Daemon) -> None:
    peer = served.connect().open()
    for kind in (Kind.REPLY, Kind.MESSAGE, Kind.STREAM, Kind.STREAM_HOLE, 7, 0xFFFFFFFF):
        for status in (0, 1, 2, 77):
            peer.send(pack(REMOTE, 208, kind, 3, status, b"1234"))
    peer.send(words(28, KEEPALIVE, 2, 1, 2, 0, 0))
    peer.send(words(28, KEEPALIVE, 1, 5, 2, 0, 0))
    assert peer.pool().name == "p"


def test_before_open_and_extra_bytes(served: Daemon) -> None:
    peer = served.connect()
    with pytest.raises(Refusal) as caught:
        peer.pool()
    assert (caught.value.code, caught.value.domain) == (1, 7)
    peer.open()
    packet = pack(REMOTE, 84, Kind.CALL, 50, payload=Name("p").pack() + b"more bytes")
    peer.send(packet)
    assert peer.reply(50, storage.POOL_LOOKUP_BY_NAME).pool.name == "p"
