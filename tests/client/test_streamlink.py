"""Streams over a socket, against a daemon that is played."""

from __future__ import annotations

import threading

import pytest

from storaged.client.link import RemoteFailure
from storaged.client.socketlink import SocketLink
from storaged.client.streamlink import SocketStream
from storaged.flow import Hole
from storaged.rpc import storage
from storaged.rpc.packet import Kind, Packet, Status
from storaged.rpc.record import Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.streams import Hole as HoleRecord
from storaged.rpc.streams import read_hole
from tests.client.scripted import Peer, linked, press_ctrl_c

VOL = storage.StorageVol("p", "v", "/p/v")
ARGS = storage.VolStreamArgs(VOL, 0, 0, 1)
FULL = RemoteError(38, 38, "cannot write to stream: No space left on device", int1=28)


def send_data(peer: Peer, call: Packet, data: bytes) -> None:
    peer.stream(call, Kind.STREAM, Status.CONTINUE, data)


def send_hole(peer: Peer, call: Packet, length: int) -> None:
    peer.stream(call, Kind.STREAM_HOLE, Status.CONTINUE, HoleRecord(length).pack())


def send_end(peer: Peer, call: Packet) -> None:
    send_data(peer, call, b"")


def expect_finish(peer: Peer, call: Packet, status: Status = Status.OK) -> None:
    packet = peer.take()
    assert packet.header == call.header._replace(kind=Kind.STREAM, status=status)
    peer.stream(call, Kind.STREAM, Status.OK)


def download(link: SocketLink) -> SocketStream:
    return link.open_stream(storage.VOL_DOWNLOAD, ARGS)


def upload(link: SocketLink) -> SocketStream:
    return link.open_stream(storage.VOL_UPLOAD, ARGS)


def test_refused() -> None:
    def script(peer: Peer) -> None:
        peer.refuse(peer.expect(storage.VOL_DOWNLOAD), FULL)
        peer.end()

    with linked(script) as link:
        with pytest.raises(RemoteFailure) as caught:
            download(link)
        assert caught.value.error == FULL
        assert not link._streams


def test_download_in_all_sizes() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        for piece in (b"abc", b"defgh", b"i" * 300_000):
            send_data(peer, call, piece)
        send_hole(peer, call, 10)
        send_data(peer, call, b"end")
        send_hole(peer, call, 1 << 40)
        send_end(peer, call)
        expect_finish(peer, call)
        peer.end()

    with linked(script) as link:
        stream = download(link)
        found = bytearray()
        while len(found) < 300_008:
            piece = stream.receive(7 if len(found) < 40 else 1 << 20)
            assert isinstance(piece, bytes)
            assert piece
            found += piece
        assert found == b"abcdefgh" + b"i" * 300_000
        assert stream.receive(4) == bytes(4)
        assert stream.receive(100, stop_at_hole=True) == Hole(6)
        assert stream.receive(100, stop_at_hole=True) == b"end"
        assert stream.receive(1 << 20) == bytes(1 << 20)
        assert stream.receive(1, stop_at_hole=True) == Hole((1 << 40) - (1 << 20))
        assert stream.receive(100) == b""
        assert stream.receive(100) == b""
        stream.finish()
        with pytest.raises(RemoteFailure, match="stream is not open"):
            stream.receive(1)
        with pytest.raises(RemoteFailure, match="stream is not open"):
            stream.finish()
        stream.abort()


def test_download_fails_after_its_data() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        send_data(peer, call, b"abc")
        peer.stream(call, Kind.STREAM, Status.ERROR, FULL.pack())
        peer.end()

    with linked(script) as link:
        stream = download(link)
        assert stream.receive(10) == b"abc"
        for _ in range(2):
            with pytest.raises(RemoteFailure) as caught:
                stream.receive(10)
            assert caught.value.error == FULL
        with pytest.raises(RemoteFailure):
            stream.finish()
        stream.abort()


@pytest.mark.parametrize("length", [0, -5])
def test_hole_that_is_none(length: int) -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        send_hole(peer, call, length)
        peer.end()

    with linked(script) as link:
        stream = download(link)
        with pytest.raises(RemoteFailure, match="hole"):
            stream.receive(10)


def test_download_ends_with_the_connection() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(storage.VOL_DOWNLOAD))

    with linked(script) as link:
        stream = download(link)
        with pytest.raises(RemoteFailure, match="End of file"):
            stream.receive(10)
        with pytest.raises(RemoteFailure, match="End of file"):
            stream.finish()
        stream.abort()


def test_abort_drops_what_comes() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        send_data(peer, call, bytes(1000))
        packet = peer.take()
        assert packet.header.status == Status.ERROR
        send_data(peer, call, bytes(1000))
        peer.stream(call, Kind.STREAM, Status.OK)
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        peer.end()

    with linked(script) as link:
        stream = download(link)
        stream.abort()
        stream.abort()
        assert not link._streams
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 1


def test_upload() -> None:
    taken = bytearray()
    holes: list[int] = []

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_UPLOAD)
        peer.answer(call)
        while True:
            packet = peer.take()
            if packet.header.status == Status.OK:
                break
            assert packet.header[:3] == call.header[:3]
            assert packet.header.serial == call.header.serial
            if packet.header.kind == Kind.STREAM_HOLE:
                holes.append(read_hole(packet.payload))
            else:
                assert 0 < len(packet.payload) <= 262_120
                taken.extend(packet.payload)
        peer.stream(call, Kind.STREAM, Status.OK)
        peer.end()

    data = bytes(range(256)) * 5000
    with linked(script) as link:
        stream = upload(link)
        assert stream.writable
        assert stream.send(data) == len(data)
        assert stream.send(b"") == 0
        stream.send_hole(0)
        stream.send_hole(12345)
        assert stream.send(memoryview(bytearray(b"xyz"))) == 3
        with pytest.raises(RemoteFailure, match="hole"):
            stream.send_hole(-1)
        stream.finish()
        with pytest.raises(RemoteFailure, match="stream is not open"):
            stream.send(b"x")
    assert taken == data + b"xyz"
    assert holes == [12345]


def test_upload_hears_early_that_it_failed() -> None:
    failed = threading.Event()

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_UPLOAD)
        peer.answer(call)
        peer.take()
        peer.stream(call, Kind.STREAM, Status.ERROR, FULL.pack())
        failed.set()
        peer.end()

    with linked(script) as link:
        stream = upload(link)
        stream.send(b"x")
        assert failed.wait(20)
        with pytest.raises(RemoteFailure) as caught:
            stream.send(b"y")
        assert caught.value.error == FULL
        assert not link._streams


def test_packets_of_other_streams_are_ignored() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        for header in (
            call.header._replace(serial=99),
            call.header._replace(procedure=208),
        ):
            peer.stream(Packet(header, b""), Kind.STREAM, Status.CONTINUE, b"wrong")
        peer.stream(call, Kind.STREAM, 7, b"")  # type: ignore[arg-type]
        send_data(peer, call, b"right")
        send_end(peer, call)
        expect_finish(peer, call)
        peer.end()

    with linked(script) as link:
        stream = download(link)
        assert stream.receive(100) == b"right"
        assert stream.receive(100) == b""
        stream.finish()


def test_stream_that_nobody_holds_is_aborted() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_DOWNLOAD)
        peer.answer(call)
        send_data(peer, call, bytes(1000))
        expect_finish(peer, call, Status.ERROR)
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        peer.end()

    with linked(script) as link:
        stream = download(link)
        assert stream.receive(10) == bytes(10)
        del stream
        assert not link._streams
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 1


def test_interrupted_upload_stays_in_step() -> None:
    """Ctrl-C in the middle of a packet: its rest goes out in front of the next one."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        call = peer.expect(storage.VOL_UPLOAD)
        peer.answer(call)
        assert go.wait(20)
        taken = 0
        while (packet := peer.take()).header.status == Status.CONTINUE:
            taken += len(packet.payload)
        assert taken % 262_120 == 0
        assert packet.header.status == Status.ERROR
        peer.stream(call, Kind.STREAM, Status.OK)
        peer.end()

    with linked(script) as link:
        stream = upload(link)
        timer = threading.Timer(0.3, press_ctrl_c)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            stream.send(bytes(262_120 * 100))
        timer.join()
        go.set()
        stream.abort()
