"""Packets out of a stream of bytes, however it is cut, and what no packet may be."""

from __future__ import annotations

import struct
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc.errors import RPCError
from storaged.rpc.packet import (
    FDS_MAX,
    PACKET_MAX,
    PAYLOAD_MAX,
    PREFIX,
    Header,
    Kind,
    Packet,
    Piece,
    Splitter,
    Status,
    check_size,
    pack,
    reply,
    split_fds,
)
from storaged.rpc.program import REMOTE

U32 = st.integers(0, 2**32 - 1)
HEADERS = st.builds(
    Header,
    U32,
    st.just(1),
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([*map(int, Kind), 7, 2**32 - 1]),
    U32,
    st.sampled_from([*map(int, Status), 3]),
)


def packed(header: Header, payload: bytes) -> bytes:
    return PREFIX.pack(PREFIX.size + len(payload), *header) + payload


def is_data(header: Header) -> bool:
    return header.kind == Kind.STREAM and header.status == Status.CONTINUE


def with_fds(header: Header) -> bool:
    return header.kind in (Kind.CALL_WITH_FDS, Kind.REPLY_WITH_FDS)


def whole(found: list[Packet | Piece]) -> list[tuple[Header, bytes, int]]:
    """Return packets as header, payload and number of descriptors; pieces are put together."""
    packets = []
    pieces = b""
    for each in found:
        if isinstance(each, Packet):
            packets.append((each.header, each.payload, each.fds))
        else:
            pieces += each.data
            if each.last:
                packets.append((each.header, pieces, 0))
                pieces = b""
    assert not pieces
    return packets


@given(
    st.lists(st.tuples(HEADERS, st.binary(max_size=50), st.integers(0, FDS_MAX)), max_size=6),
    st.lists(st.integers(0, 600)),
)
@settings(deadline=None)
def test_any_cut(sent: list[tuple[Header, bytes, int]], cuts: list[int]) -> None:
    stream = b""
    expected = []
    for header, payload, fds in sent:
        if with_fds(header):
            stream += packed(header, struct.pack(">I", fds) + payload) + bytes(fds)
            expected.append((header, payload, fds))
        else:
            stream += packed(header, payload)
            expected.append((header, payload, 0))
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = Splitter()
    found: list[Packet | Piece] = []
    for start, end in pairwise(bounds):
        found += splitter.feed(stream[start:end])
        assert splitter.kept <= end
    assert whole(found) == expected
    assert not splitter.unfinished
    assert (splitter.kept, splitter.missing) == (0, 0)


def test_byte_by_byte() -> None:
    stream = pack(REMOTE, 87, Kind.CALL, 5, 0, b"payload!") + pack(REMOTE, 2, Kind.CALL, 6)
    splitter = Splitter()
    found = []
    for at in range(len(stream)):
        found += splitter.feed(stream[at : at + 1])
        assert splitter.unfinished == (at not in (35, 63))
    assert whole(found) == [
        (Header(REMOTE, 1, 87, 0, 5, 0), b"payload!", 0),
        (Header(REMOTE, 1, 2, 0, 6, 0), b"", 0),
    ]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 27, PACKET_MAX + 5, 2**31, 2**32 - 1])
def test_impossible_length(length: int) -> None:
    """It is told as soon as the length is there, without waiting for the rest."""
    splitter = Splitter()
    assert splitter.feed(struct.pack(">I", length)[:3]) == []
    with pytest.raises(RPCError):
        splitter.feed(struct.pack(">I", length)[3:])


def test_largest_length_waits_for_its_bytes() -> None:
    splitter = Splitter()
    assert splitter.feed(PREFIX.pack(PACKET_MAX + 4, REMOTE, 1, 1, 0, 0, 0)) == []
    assert splitter.missing == PAYLOAD_MAX
    assert splitter.unfinished


def test_own_limit() -> None:
    splitter = Splitter(100)
    assert len(splitter.feed(pack(REMOTE, 1, 0, 0, 0, bytes(76)))) == 1
    with pytest.raises(RPCError):
        splitter.feed(pack(REMOTE, 1, 0, 0, 0, bytes(77)))


def test_a_promise_takes_no_memory() -> None:
    head = PREFIX.pack(PACKET_MAX + 4, REMOTE, 1, 1, 0, 0, 0)
    tracemalloc.start()
    splitters = [Splitter() for _ in range(100)]
    for splitter in splitters:
        splitter.feed(head + b"x")
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_small_parts_cost_what_they_hold() -> None:
    """A peer that sends byte by byte takes no more memory than any other, and no more time."""
    size = 60_000
    data = pack(REMOTE, 1, Kind.CALL, 0, 0, bytes(size))
    splitter = Splitter()
    tracemalloc.start()
    for at in range(len(data) - 1):
        assert not splitter.feed(data[at : at + 1])
    assert splitter.kept == size - 1
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 1.3 * size
    assert peak < 1.6 * size
    assert len(splitter.feed(data[-1:])) == 1
    assert splitter.kept == 0


def test_time_grows_with_what_comes() -> None:
    """Thirty times the parts take about thirty times the time, not nine hundred times."""

    def seconds(size: int) -> float:
        splitter = Splitter()
        splitter.feed(PREFIX.pack(PREFIX.size + size, REMOTE, 1, 1, 0, 0, 0))
        start = time.process_time()
        for _ in range(size // 64):
            splitter.feed(bytes(64))
        return time.process_time() - start

    small = min(seconds(1 << 20) for _ in range(3))
    assert seconds(30 << 20) < 200 * small


def test_data_of_streams_come_as_they_arrive() -> None:
    data = pack(REMOTE, 208, Kind.STREAM, 4, Status.CONTINUE, b"abcdef")
    splitter = Splitter()
    assert splitter.feed(data[:28]) == []
    (first,) = splitter.feed(data[28:30])
    assert isinstance(first, Piece)
    assert (bytes(first.data), first.last) == (b"ab", False)
    assert splitter.kept == 0
    (last,) = splitter.feed(data[30:])
    assert isinstance(last, Piece)
    assert (bytes(last.data), last.last) == (b"cdef", True)


def test_packet_waits_for_its_descriptors() -> None:
    call = pack(REMOTE, 1, Kind.CALL_WITH_FDS, 0, 0, b"\0\0\0\2args")
    following = pack(REMOTE, 2, Kind.CALL, 1)
    splitter = Splitter()
    assert splitter.feed(call) == []
    assert (splitter.unfinished, splitter.missing, splitter.kept) == (True, 2, 4)
    assert splitter.feed(b"\0") == []
    first, second = splitter.feed(b"\0" + following)
    assert (first.header.procedure, first) == (1, Packet(first.header, b"args", 2))
    assert second.header.procedure == 2


def test_packet_that_may_have_descriptors_and_has_none() -> None:
    (found,) = Splitter().feed(pack(REMOTE, 1, Kind.REPLY_WITH_FDS, 0, 0, b"\0\0\0\0ret."))
    assert found == Packet(found.header, b"ret.", 0)


def test_descriptors_out_of_bounds() -> None:
    assert split_fds(b"\0\0\0\x20rest") == (32, b"rest")
    for payload in (b"\0\0\0\x21", b"\xff\xff\xff\xff", b"\0\0\0", b""):
        with pytest.raises(RPCError):
            Splitter().feed(pack(REMOTE, 1, Kind.CALL_WITH_FDS, 0, 0, payload))


def test_no_packet_is_too_large() -> None:
    call = Header(REMOTE, 1, 1, 0, 0, 0)
    payload = bytes(PAYLOAD_MAX)
    assert check_size(PAYLOAD_MAX) == PACKET_MAX + 4
    assert len(reply(call, payload)) == PACKET_MAX + 4
    with pytest.raises(RPCError):
        reply(call, payload + b"x")
    with pytest.raises(RPCError):
        pack(REMOTE, 1, 0, 0, 0, payload + b"x")


def test_reply_echoes_what_was_sent() -> None:
    """Also the version: the answer to an unknown program or version bears its numbers."""
    call = Header(2**32 - 1, 7, -5, Kind.CALL, 2**32 - 1, 0)
    (answer,) = Splitter().feed(reply(call, status=Status.ERROR))
    assert answer.header == call._replace(kind=Kind.REPLY, status=Status.ERROR)
    assert answer.header.key == call.key
