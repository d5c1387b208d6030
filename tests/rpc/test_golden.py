"""Packets as they were seen between libvirt's clients and its storage daemon, byte by byte."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from storaged.errors import NoSuchPool
from storaged.rpc import keepalive, remote, storage, streams
from storaged.rpc.packet import Header, Kind, Packet, Piece, Splitter, Status, pack, reply
from storaged.rpc.program import REMOTE
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError, describe, revive

UUID = bytes(range(16))
_CALL = "20008086 00000001"
_NOBODY = "no storage pool with matching name 'x'"


def texts(*parts: str) -> str:
    """Return strings with their lengths and padding, as hexadecimal digits."""
    found = b""
    for part in parts:
        data = part.encode()
        found += len(data).to_bytes(4, "big") + data + bytes(-len(data) % 4)
    return found.hex()


class Vector(NamedTuple):
    """One packet: its bytes, its header without the program, and what its payload is."""

    name: str
    layout: str
    procedure: int
    kind: Kind
    serial: int
    status: Status
    record: Record


OPEN = remote.OpenArgs("storage:///system")
EVENT = storage.LifecycleEvent(0, storage.StoragePool("p1", UUID), 2, 0)
ERROR = describe(NoSuchPool(_NOBODY))
CALL, REPLY, MESSAGE = Kind.CALL, Kind.REPLY, Kind.MESSAGE
OK = Status.OK

VECTORS = (
    Vector(
        "auth list",
        f"0000001c {_CALL} 00000042 00000000 00000000 00000000",
        66, CALL, 0, OK, Void(),
    ),
    Vector(
        "auth list reply",
        f"00000024 {_CALL} 00000042 00000001 00000000 00000000 00000001 00000000",
        66, REPLY, 0, OK, remote.AuthListRet((0,)),
    ),
    Vector(
        "feature",
        f"00000020 {_CALL} 0000003c 00000000 00000001 00000000 0000000a",
        60, CALL, 1, OK, remote.FeatureArgs(10),
    ),
    Vector(
        "open",
        f"0000003c {_CALL} 00000001 00000000 00000002 00000000 00000001 00000011"
        "73746f726167653a2f2f2f73797374656d000000 00000000",
        1, CALL, 2, OK, OPEN,
    ),
    Vector(
        "pool info",
        f"00000038 {_CALL} 00000057 00000001 00000009 00000000"
        "00000002 000000000000000a 0000000000000004 0000000000000006",
        87, REPLY, 9, OK, storage.PoolInfoRet(2, 10, 4, 6),
    ),
    Vector(
        "lifecycle event",
        f"00000040 {_CALL} 00000172 00000002 00000001 00000000 00000000 00000002 70310000"
        f"{UUID.hex()} 00000002 00000000",
        370, MESSAGE, 1, OK, EVENT,
    ),
    Vector(
        "hole",
        f"00000028 {_CALL} 000000d1 00000006 0000000a 00000002 00000000001ff000 00000000",
        209, Kind.STREAM_HOLE, 10, Status.CONTINUE, streams.Hole(2093056),
    ),
    Vector(
        "stream finish",
        f"0000001c {_CALL} 000000d1 00000003 0000000a 00000000",
        209, Kind.STREAM, 10, OK, Void(),
    ),
    Vector(
        "stream abort",
        f"0000001c {_CALL} 000000d1 00000003 0000000a 00000001",
        209, Kind.STREAM, 10, Status.ERROR, Void(),
    ),
    Vector(
        "error",
        f"000000d8 {_CALL} 00000054 00000001 00000006 00000001 00000031 00000012 00000001"
        + texts(f"Storage pool not found: {_NOBODY}")
        + "00000002 00000000 00000001"
        + texts("Storage pool not found: %s")
        + "00000001"
        + texts(_NOBODY)
        + "00000000 ffffffff ffffffff 00000000",
        84, REPLY, 6, Status.ERROR, ERROR,
    ),
)  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vector(vector: Vector) -> None:
    data = bytes.fromhex(vector.layout)
    header = Header(REMOTE, 1, vector.procedure, vector.kind, vector.serial, vector.status)
    payload = vector.record.pack()
    assert data == pack(
        REMOTE, vector.procedure, vector.kind, vector.serial, vector.status, payload
    )
    assert Splitter().feed(data) == [Packet(header, payload)]
    assert type(vector.record).unpack(payload) == vector.record
    if vector.kind == Kind.REPLY:
        call = header._replace(kind=Kind.CALL, status=0)
        assert reply(call, payload, status=vector.status) == data


def test_open_by_a_client_with_another_flag() -> None:
    """libvirt's client in Go marks what is there with another number than 1."""
    packed = OPEN.pack()
    assert remote.OpenArgs.unpack(b"\1\0\0\0" + packed[4:]) == OPEN


CALLED = Header(REMOTE, 1, 209, Kind.CALL, 10, 0)
MARK = f"0000001c {_CALL} 000000d1 00000003 0000000a 00000002"


def vector(name: str) -> bytes:
    return next(bytes.fromhex(each.layout) for each in VECTORS if each.name == name)


def test_streams() -> None:
    assert streams.hole(CALLED, 2093056) == vector("hole")
    assert streams.finish(CALLED) == vector("stream finish")
    assert streams.abort(CALLED) == vector("stream abort")
    assert streams.end_mark(CALLED) == bytes.fromhex(MARK)
    header = CALLED._replace(kind=Kind.STREAM, status=Status.CONTINUE)
    (mark,) = Splitter().feed(bytes.fromhex(MARK))
    assert mark == Piece(header, memoryview(b""), last=True)


def test_keepalive() -> None:
    numbers: Any = "0000001c 6b656570 00000001 0000000{} 00000002 00000000 00000000"
    assert bytes.fromhex(numbers.format(1)) == keepalive.PING
    assert bytes.fromhex(numbers.format(2)) == keepalive.PONG


def test_error_is_revived() -> None:
    (packet,) = Splitter().feed(vector("error"))
    assert isinstance(packet, Packet)
    error = revive(RemoteError.unpack(packet.payload))
    assert isinstance(error, NoSuchPool)
    assert error.detail == _NOBODY
