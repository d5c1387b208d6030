"""Uploads over a socket: what arrives, what breaks the rules, what is left."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import Domain
from storaged.rpc import remote, storage
from storaged.rpc import streams as wire
from storaged.rpc.packet import CHUNK, Kind, Status, pack
from storaged.rpc.program import REMOTE
from storaged.rpc.remote import FeatureArgs
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import PoolArgs, StorageVol, VolStreamArgs
from storaged.server.limits import Bounds, ServerLimits
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon, nothing_left
from tests.server.peer import (
    Peer,
    Refusal,
    call,
    data,
    header_of,
    holds,
    hole,
    letters,
)

UPLOAD, DOWNLOAD = storage.VOL_UPLOAD, storage.VOL_DOWNLOAD
MIB = 1 << 20


@pytest.mark.parametrize("size", [1, CHUNK, 4_194_276])
def test_upload(peer: Peer, target: Path, size: int) -> None:
    content = os.urandom(MIB)
    header = peer.stream(UPLOAD, peer.volume("v"))
    sent = content[: min(size * 1000, MIB)]
    packet = b"".join(wire.data(header, sent[at : at + size]) for at in range(0, len(sent), size))
    peer.send(packet)
    peer.send(wire.data(header, b""))
    peer.finish(header)
    assert (target / "v").read_bytes() == sent + letters(MIB)[len(sent) :]


def test_upload_of_one_huge_packet(peer: Peer, target: Path) -> None:
    content = os.urandom(33_554_408)
    header = peer.stream(UPLOAD, peer.volume("v"))
    peer.send(wire.data(header, content))
    peer.finish(header)
    assert (target / "v").read_bytes() == content


def test_bytes_arrive_soon_and_stay(peer: Peer, target: Path) -> None:
    """Some clients never finish an upload, and use the volume at once."""
    header = peer.stream(UPLOAD, peer.volume("v"), offset=8)
    for number in range(10):
        content = b"now%05d" % number
        peer.send(wire.data(header, content))
        before = time.monotonic()
        written = partial(holds, target / "v", content, 8 + number * 8)
        eventually(written)
        assert time.monotonic() - before < 1
    peer.close()
    assert holds(target / "v", b"00000000" + b"".join(b"now%05d" % each for each in range(10)))


def test_hang_up_loses_nothing_that_came(daemon: Daemon, peer: Peer, target: Path) -> None:
    content = os.urandom(8 * MIB)
    header = peer.stream(UPLOAD, peer.volume("v"))
    peer.send(data(header, content))
    peer.close()
    eventually(lambda: holds(target / "v", content))
    eventually(daemon.rests)


def test_packets_before_the_reply_are_kept(daemon: Daemon, peer: Peer, target: Path) -> None:
    daemon.control.hold("upload")
    serial = peer.begin(UPLOAD, VolStreamArgs(peer.volume("v"), 0, 0))
    header = header_of(UPLOAD, peer.serial)
    peer.send(data(header, b"early") + data(header, b" bird") + wire.finish(header))
    daemon.control.wait_for("upload")
    daemon.control.release("upload")
    peer.reply(serial, UPLOAD)
    assert peer.stream_packet(header) == (Kind.STREAM, Status.OK, b"")
    assert holds(target / "v", b"early bird")


def test_abort(peer: Peer, target: Path) -> None:
    header = peer.stream(UPLOAD, peer.volume("v"))
    peer.send(data(header, b"written"))
    peer.abort(header)
    assert holds(target / "v", b"written")


def test_holes(peer: Peer, target: Path) -> None:
    header = peer.stream(UPLOAD, peer.volume("v"), sparse=True)
    peer.send(hole(header, 65536) + data(header, b"data") + hole(header, 2 * MIB))
    peer.finish(header)
    content = (target / "v").read_bytes()
    assert content == bytes(65536) + b"data" + bytes(2 * MIB)


def test_all_in_its_order(peer: Peer, target: Path) -> None:
    """Pieces of all sizes, more of them than are written at once, and holes between them."""
    header = peer.stream(UPLOAD, peer.volume("v"), sparse=True)
    chance = random.Random(1)
    packets, content = [], bytearray()
    for number in range(2000):
        size = chance.choice((1, 7, 4096, 5000, CHUNK if number % 20 == 0 else 100))
        if number % 100 == 99:
            packets.append(hole(header, size))
            content += bytes(size)
        else:
            piece = chance.randbytes(size)
            packets.append(wire.data(header, piece))
            content += piece
    peer.send(b"".join(packets))
    peer.finish(header)
    assert holds(target / "v", bytes(content))


def test_length_is_the_most(peer: Peer, target: Path) -> None:
    header = peer.stream(UPLOAD, peer.volume("v"), length=8)
    peer.send(data(header, b"12345678") + data(header, b"9"))
    failed = peer.failure(header)
    assert (failed.code, failed.domain, failed.error.int1) == (38, Domain.STREAMS, 28)
    peer.send(data(header, b"more") + wire.finish(header))
    assert peer.volume("v")  # a dead stream's packets are ignored
    assert holds(target / "v", b"12345678" + letters(16)[8:])
    header = peer.stream(UPLOAD, peer.volume("v"), length=MIB)
    peer.send(data(header, b"fewer"))
    peer.finish(header)


@pytest.mark.parametrize(
    ("sparse", "length", "flags"),
    [(False, 4096, 0), (True, 0, 0), (True, -4096, 0), (True, -(1 << 63), 0), (True, 1, 1)],
)
def test_bad_holes(peer: Peer, target: Path, sparse: bool, length: int, flags: int) -> None:
    header = peer.stream(UPLOAD, peer.volume("v"), sparse=sparse)
    peer.send(data(header, b"before") + hole(header, length, flags) + data(header, b"after"))
    assert peer.failure(header).code == 39
    eventually(lambda: holds(target / "v", b"before" + letters(16)[6:]))
    assert peer.volume("v")


def test_hole_before_the_reply(daemon: Daemon, peer: Peer) -> None:
    daemon.control.hold("upload")
    serial = peer.begin(UPLOAD, VolStreamArgs(peer.volume("v"), 0, 0))
    header = header_of(UPLOAD, peer.serial)
    peer.send(hole(header, -1))
    daemon.control.wait_for("upload")
    daemon.control.release("upload")
    peer.reply(serial, UPLOAD)
    assert (peer.failure(header).code, peer.serial) == (39, serial)


@pytest.mark.parametrize("status", [3, 77, 0xFFFFFFFF])
@pytest.mark.parametrize("procedure", [UPLOAD, DOWNLOAD])
def test_other_statuses(peer: Peer, procedure: Any, status: int) -> None:
    volume = peer.volume("v")
    header = peer.stream(procedure, volume, sparse=True, offset=MIB if procedure is DOWNLOAD else 0)
    peer.send(pack(REMOTE, header.procedure, Kind.STREAM, header.serial, status))
    kind: int = Status.CONTINUE
    while kind == Status.CONTINUE:
        _, kind, payload = peer.stream_packet(header) if procedure is UPLOAD else drained(peer)
        if procedure is DOWNLOAD and kind != Status.ERROR:
            return  # the download was at its end before; its later packets are ignored
    failed = Refusal(RemoteError.unpack(payload))
    assert (failed.code, failed.domain) == (39, Domain.STREAMS)


def drained(peer: Peer) -> tuple[int, int, bytes]:
    header, payload = peer.receive()
    return header.kind, header.status, payload


def test_data_after_the_finish(peer: Peer, target: Path) -> None:
    header = peer.stream(UPLOAD, peer.volume("v"))
    peer.send(data(header, b"data") + wire.finish(header) + data(header, b"late"))
    assert peer.stream_packet(header) == (Kind.STREAM, Status.OK, b"")
    assert peer.volume("v")
    assert holds(target / "v", b"data" + letters(16)[4:])


def test_serials_are_used_again(peer: Peer, target: Path) -> None:
    volume = peer.volume("v")
    for number in range(3):
        peer.serial = 49
        header = peer.stream(UPLOAD, volume)
        assert header.serial == 50
        peer.serial = 49
        with pytest.raises(Refusal) as caught:
            peer.stream(UPLOAD, volume)
        assert (caught.value.code, caught.value.domain) == (39, Domain.STREAMS)
        peer.send(data(header, b"%d" % number))
        peer.finish(header)
        assert holds(target / "v", b"%d" % number)


def test_storage_that_refuses(peer: Peer, target: Path) -> None:
    with pytest.raises(Refusal) as caught:
        peer.stream(UPLOAD, StorageVol("p", "gone", ""))
    assert caught.value.code == 50
    assert peer.silent(0.05)


def test_two_uploads_to_one_volume(peer: Peer, target: Path) -> None:
    volume = peer.volume("v")
    first, second = peer.stream(UPLOAD, volume), peer.stream(UPLOAD, volume, offset=8)
    peer.send(data(second, b"22222222") + data(first, b"11111111"))
    peer.finish(second)
    peer.finish(first)
    assert holds(target / "v", b"1111111122222222")


def test_a_hundred_unfinished_uploads(daemon: Daemon, peer: Peer, target: Path) -> None:
    """They hold neither threads nor jobs, and the pool works as ever."""
    volume = peer.volume("v")
    started = threading.active_count()
    headers = [peer.stream(UPLOAD, volume) for _ in range(100)]
    for header in headers:
        peer.send(data(header, b"begun"))
    eventually(lambda: not daemon.server.movers.busy)
    assert daemon.driver.jobs() == []
    with promptly():
        daemon.refresh()
        other = daemon.connect().open()
        assert other.call(storage.POOL_GET_INFO, PoolArgs(other.pool())).state == 2
    assert threading.active_count() - started < 110
    peer.close()
    other.close()
    eventually(daemon.rests)
    daemon.driver.pool_stop(daemon.driver.pool_lookup_by_name("p")).result(20)


def test_too_many_streams(daemon: Daemon, target: Path) -> None:
    daemon.serve(Bounds(streams=3))
    peer = daemon.connect().open()
    volume = peer.volume("v")
    for _ in range(3):
        header = peer.stream(UPLOAD, volume)
    with pytest.raises(Refusal) as caught:
        peer.stream(UPLOAD, volume)
    assert caught.value.domain == Domain.STREAMS
    peer.finish(header)
    peer.stream(UPLOAD, volume)


class BlockedSink:
    """Storage that does not answer until it is released."""

    def __init__(self, sink: Any, gate: threading.Event) -> None:
        self._sink, self._gate = sink, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def write(self, content: Any) -> None:
        self._gate.wait()
        self._sink.write(content)

    def write_many(self, parts: Any) -> None:
        self._gate.wait()
        self._sink.write_many(parts)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch, daemon: Daemon) -> Any:
    """Have uploads wait for their storage, until the event is set."""
    gate = threading.Event()
    upload = daemon.driver.volume_upload
    monkeypatch.setattr(
        daemon.driver, "volume_upload", lambda *given: BlockedSink(upload(*given), gate)
    )
    yield gate
    gate.set()


def test_upload_into_storage_that_blocks(
    daemon: Daemon, target: Path, blocked: threading.Event
) -> None:
    """Memory stays flat, the client stays connected, and others are served."""
    running = daemon.serve(limits=ServerLimits(keepalive_interval=0.25, keepalive_count=3))
    peer, other = daemon.connect().open(), daemon.connect().open()
    peer.call(remote.SUPPORTS_FEATURE, FeatureArgs(10))
    header = peer.stream(UPLOAD, peer.volume("v"))
    content = os.urandom(24 * MIB)
    feeder = threading.Thread(target=lambda: peer.send(data(header, content)))
    feeder.start()
    streams = next(iter(running.server._clients.values())).streams
    eventually(lambda: streams.crowd.waiting > Bounds().upload_waiting)
    time.sleep(1.6)  # long after a client that is read would have been given up
    assert streams.crowd.waiting < Bounds().upload_waiting + MIB
    assert feeder.is_alive()
    with promptly():
        assert other.volume("v")
    assert len(running.server.clients()) == 2
    blocked.set()
    feeder.join(20)
    eventually(lambda: holds(target / "v", content))


def test_client_that_goes_while_storage_blocks(
    daemon: Daemon, target: Path, blocked: threading.Event
) -> None:
    daemon.serve(Bounds(tick=0.02, message_time=0.1, message_rate=1 << 40))
    peer = daemon.connect().open()
    header = peer.stream(UPLOAD, peer.volume("v"))
    feeder = threading.Thread(target=feed_until_broken, args=(peer, data(header, bytes(8 * MIB))))
    feeder.start()
    time.sleep(0.3)
    assert daemon.server.clients()
    peer.socket.shutdown(2)
    feeder.join(20)
    peer.close()
    eventually(lambda: not daemon.server.clients())
    blocked.set()
    eventually(daemon.rests)


def feed_until_broken(peer: Peer, content: bytes) -> None:
    with suppress(OSError):
        peer.send(content)


def test_many_tiny_packets_cost_what_they_cost(
    daemon: Daemon, target: Path, blocked: threading.Event
) -> None:
    """What waits is counted with what keeping it costs."""
    running = daemon.serve()
    peer = daemon.connect().open()
    header = peer.stream(UPLOAD, peer.volume("v"))
    tiny = wire.data(header, b"x") * 100_000
    feeder = threading.Thread(target=feed_until_broken, args=(peer, tiny))
    feeder.start()
    streams = next(iter(running.server._clients.values())).streams
    eventually(lambda: streams.crowd.waiting > Bounds().upload_waiting)
    blocked.set()
    feeder.join(20)
    peer.finish(header)
    assert holds(target / "v", b"x" * 100_000)


def test_calls_beside_a_stream(daemon: Daemon, peer: Peer) -> None:
    """Packets of a stream may come between the packets of calls in any way."""
    header = peer.stream(UPLOAD, peer.volume("v"))
    pool = peer.pool()
    for number in range(100):
        packet = data(header, b"%08d" % number) + call(
            storage.POOL_GET_INFO, PoolArgs(pool), 1000 + number
        )
        for at in range(0, len(packet), 7):
            peer.send(packet[at : at + 7])
        assert peer.reply(1000 + number, storage.POOL_GET_INFO).state == 2
    peer.finish(header)


def test_nothing_is_left_of_streams(daemon: Daemon, target: Path) -> None:
    daemon.serve()
    with nothing_left(daemon):
        for _ in range(5):
            peer = daemon.connect().open()
            volume = peer.volume("v")
            for procedure in (UPLOAD, DOWNLOAD, UPLOAD):
                header = peer.stream(procedure, volume)
            peer.send(data(header, b"x"))
            peer.close()
