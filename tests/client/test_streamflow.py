"""Streams whose two sides are not equally fast, and those who do not wait."""

from __future__ import annotations

import threading
import time

import pytest

from storaged.client.link import RemoteFailure
from storaged.rpc import remote, storage
from storaged.rpc.packet import Kind, Status
from storaged.rpc.program import KEEPALIVE
from storaged.rpc.record import Void
from tests.client.scripted import Peer, linked, until
from tests.client.test_streamlink import (
    FULL,
    download,
    expect_finish,
    send_data,
    send_end,
    upload,
)


def test_upload_to_a_daemon_that_first_wants_to_be_read() -> None:
    """It sends more than the sockets hold before it takes our data."""
    read = bytearray()

    def script(peer: Peer) -> None:
        down = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(down)
        up = peer.expect(storage.VOL_UPLOAD)
        peer.answer(up)
        for _ in range(40):
            send_data(peer, down, bytes(100_000))
        send_end(peer, down)
        while (packet := peer.take()).header.status == Status.CONTINUE:
            read.extend(packet.payload)
        peer.stream(up, Kind.STREAM, Status.OK)
        peer.end()

    with linked(script) as link:
        source, sink = download(link), upload(link)
        sink.send(bytes(3_000_000))
        sink.finish()
        found = 0
        while piece := source.receive(1 << 20):
            assert isinstance(piece, bytes)
            found += len(piece)
        assert found == 4_000_000
    assert len(read) == 3_000_000


def test_data_that_nobody_reads_do_not_fill_the_memory() -> None:
    total = 32 << 20
    sent = [0]

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        piece = bytes(1 << 18)
        while sent[0] < total:
            send_data(peer, call, piece)
            sent[0] += len(piece)
        send_end(peer, call)
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        expect_finish(peer, call)
        peer.end()

    with linked(script) as link:
        link.on_event(lambda *_: None)  # now a thread reads
        stream = download(link)
        until(lambda: stream.full)
        time.sleep(0.2)
        assert sent[0] < 8 << 20
        # What somebody waits for comes behind the data, so these are taken.
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 1
        found = 0
        while piece := stream.receive(1 << 20):
            assert isinstance(piece, bytes)
            found += len(piece)
        assert found == total
        stream.finish()


@pytest.mark.slow
def test_slow_reader_shows_signs_of_life_and_is_not_given_up() -> None:
    """The daemon's own PINGs lie behind data that nobody reads."""

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        peer.answer(peer.expect(remote.SUPPORTS_FEATURE), remote.FeatureRet(1))
        for _ in range(64):
            send_data(peer, call, bytes(1 << 18))
        send_end(peer, call)
        for _ in range(3):
            peer.expect_ping()
        while (packet := peer.take()).header.program == KEEPALIVE:
            pass
        assert packet.header.status == Status.OK
        peer.stream(call, Kind.STREAM, Status.OK)
        peer.end()

    with linked(script) as link:
        stream = download(link)
        link.keepalive(1, 1)
        until(lambda: stream.full)
        time.sleep(3.5)
        assert link.alive
        found = 0
        while piece := stream.receive(1 << 20):
            assert isinstance(piece, bytes)
            found += len(piece)
        assert found == 64 << 18
        stream.finish()


def test_thread_reads_on_once_data_are_taken() -> None:
    total = 16 << 20

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        for _ in range(total >> 18):
            send_data(peer, call, bytes(1 << 18))
        send_end(peer, call)
        expect_finish(peer, call, Status.ERROR)
        peer.end()

    ready = threading.Event()
    with linked(script) as link:
        stream = download(link)
        stream.on_ready(ready.set)
        found = 0
        while True:
            piece = stream.try_receive(1 << 16)
            if piece == b"":
                break
            if piece is None:
                assert ready.wait(20)
                ready.clear()
            else:
                assert isinstance(piece, bytes)
                found += len(piece)
        assert found == total
        stream.abort()


def test_without_waiting() -> None:
    go, end = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        down = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(down)
        up = peer.expect(storage.VOL_UPLOAD)
        peer.answer(up)
        assert go.wait(20)
        send_data(peer, down, b"abc")
        assert end.wait(20)
        peer.stream(down, Kind.STREAM, Status.ERROR, FULL.pack())
        while peer.take().header.status == Status.CONTINUE:
            pass
        peer.stream(up, Kind.STREAM, Status.OK)
        peer.end()

    told = threading.Event()
    with linked(script) as link:
        source, sink = download(link), upload(link)
        assert source.try_receive(10) is None
        assert not source.readable
        source.on_ready(told.set)
        assert not told.is_set()
        go.set()
        assert told.wait(20)
        assert source.readable
        assert source.try_receive(10) == b"abc"
        source.on_ready(None)
        sent = 0
        while (taken := sink.try_send(bytes(1 << 20))) is not None:
            assert 0 < taken <= 65_536
            sent += taken
        assert 0 < sent < 8 << 20
        assert not sink.writable
        told.clear()
        end.set()
        source.on_ready(told.set)
        assert told.wait(20)
        until(lambda: source.readable)
        with pytest.raises(RemoteFailure):
            source.try_receive(10)
        until(lambda: sink.writable)
        assert sink.try_send(b"x") == 1
        sink.finish()
