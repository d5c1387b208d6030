"""Streams: how packets become data, holes and ends, and back."""

from __future__ import annotations

import pytest

from storaged.errors import SystemFailure
from storaged.rpc import streams
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import CHUNK, PAYLOAD_MAX, Header, Kind, Packet, Piece, Splitter, Status
from storaged.rpc.program import REMOTE
from storaged.rpc.remoteerror import RemoteError, describe
from storaged.rpc.streams import Hole, Part

CALL = Header(REMOTE, 1, 208, Kind.CALL, 7, 0)


def only(data: bytes) -> Packet | Piece:
    (found,) = Splitter().feed(data)
    assert found.header.key == CALL.key
    return found


def test_data() -> None:
    found = only(streams.data(CALL, memoryview(b"some data")))
    assert isinstance(found, Piece)
    assert streams.part(found.header) is Part.DATA
    assert bytes(found.data) == b"some data"
    assert streams.data(CALL, b"ab") == streams.head(CALL, 2) + b"ab"


def test_end_mark_is_empty_data() -> None:
    found = only(streams.end_mark(CALL))
    assert isinstance(found, Piece)
    assert (streams.part(found.header), bytes(found.data), found.last) == (Part.DATA, b"", True)


def test_chunks() -> None:
    content = bytes(range(256)) * 2000
    cut = list(streams.chunks(content))
    assert [len(each) for each in cut] == [CHUNK, len(content) - CHUNK]
    assert b"".join(cut) == content
    assert list(streams.chunks(b"")) == []
    assert [bytes(each) for each in streams.chunks(memoryview(b"abc"), 2)] == [b"ab", b"c"]


def test_largest_data() -> None:
    assert len(streams.head(CALL, PAYLOAD_MAX)) == 28
    with pytest.raises(RPCError):
        streams.head(CALL, PAYLOAD_MAX + 1)


@pytest.mark.parametrize("length", [1, 4096, 2**63 - 1])
def test_hole(length: int) -> None:
    found = only(streams.hole(CALL, length))
    assert isinstance(found, Packet)
    assert streams.part(found.header) is Part.HOLE
    assert streams.read_hole(found.payload) == length


@pytest.mark.parametrize("length", [0, -1, 2**63])
def test_no_such_hole(length: int) -> None:
    with pytest.raises(RPCError):
        streams.hole(CALL, length)


@pytest.mark.parametrize(
    "payload",
    [Hole(0).pack(), Hole(-1).pack(), Hole(-(2**63)).pack(), Hole(1, 1).pack(), b"", bytes(8)],
)
def test_wrong_hole(payload: bytes) -> None:
    with pytest.raises(RPCError):
        streams.read_hole(payload)


def test_wrong_hole_is_the_fault_of_the_stream() -> None:
    with pytest.raises(RPCError) as caught:
        streams.read_hole(Hole(-5).pack())
    assert (caught.value.code, caught.value.domain) == (39, 38)


def test_ends() -> None:
    assert streams.part(only(streams.finish(CALL)).header) is Part.FINISH
    assert streams.part(only(streams.abort(CALL)).header) is Part.ABORT
    error = describe(SystemFailure("cannot write", 28))
    found = only(streams.failure(CALL, error))
    assert isinstance(found, Packet)
    assert streams.part(found.header) is Part.ABORT
    assert RemoteError.unpack(found.payload) == error


@pytest.mark.parametrize(
    ("kind", "status", "part"),
    [
        (Kind.STREAM, 3, Part.INVALID),
        (Kind.STREAM, 2**32 - 1, Part.INVALID),
        (Kind.STREAM_HOLE, Status.OK, Part.FINISH),
        (Kind.STREAM_HOLE, Status.ERROR, Part.ABORT),
        (Kind.STREAM_HOLE, Status.CONTINUE, Part.HOLE),
        (Kind.STREAM_HOLE, 9, Part.INVALID),
    ],
)
def test_status_decides(kind: int, status: int, part: Part) -> None:
    assert streams.part(CALL._replace(kind=kind, status=status)) is part
