"""Downloads over a socket: what arrives, who waits for whom, what is left."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import Domain, SystemFailure
from storaged.rpc import storage
from storaged.rpc import streams as wire
from storaged.rpc.packet import CHUNK, Kind, Status
from storaged.rpc.storage import StorageVol, VolStreamArgs
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon
from tests.server.peer import (
    Peer,
    data,
    header_of,
    letters,
)

UPLOAD, DOWNLOAD = storage.VOL_UPLOAD, storage.VOL_DOWNLOAD
MIB = 1 << 20


def test_download(peer: Peer) -> None:
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    pieces = peer.download(header)
    assert all(isinstance(piece, bytes) and len(piece) <= CHUNK for piece in pieces)
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == letters(MIB)
    peer.finish(header)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(8, 16, letters(24)[8:]), (MIB - 8, 100, letters(MIB)[-8:]), (MIB, 0, b""), (9 * MIB, 1, b"")],
)
def test_part_of_a_download(peer: Peer, offset: int, length: int, expected: bytes) -> None:
    header = peer.stream(DOWNLOAD, peer.volume("v"), offset, length)
    assert peer.download(header) == ([expected] if expected else [])
    peer.finish(header)


def test_sparse_download(daemon: Daemon, peer: Peer, target: Path) -> None:
    with (target / "v").open("wb") as file:
        file.truncate(MIB)
        file.seek(MIB)
        file.write(b"middle" * 1000)
        file.truncate(4 * MIB)
    header = peer.stream(DOWNLOAD, peer.volume("v"), sparse=True)
    pieces = peer.download(header)
    assert isinstance(pieces[0], int)
    assert isinstance(pieces[-1], int)
    joined = b"".join(bytes(each) for each in pieces)
    assert joined == (target / "v").read_bytes()
    peer.finish(header)


def test_download_is_over_at_its_end(daemon: Daemon, peer: Peer, target: Path) -> None:
    """Some clients never finish a download: nothing of it is held."""
    volume = peer.volume("v")
    for _ in range(50):
        header = peer.stream(DOWNLOAD, volume, length=8)
        assert peer.download(header) == [letters(8)]
    eventually(lambda: not open_below(target))
    peer.send(wire.finish(header))
    assert peer.stream_packet(header) == (Kind.STREAM, Status.OK, b"")
    peer.send(wire.finish(header))  # of what is finished
    assert peer.volume("v")


def open_below(directory: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return [name for name in found if name.startswith(f"{directory}/")]


@pytest.mark.parametrize("end", [wire.finish, wire.abort])
def test_download_that_the_client_ends(daemon: Daemon, peer: Peer, target: Path, end: Any) -> None:
    (target / "v").write_bytes(bytes(16 * MIB))
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    peer.stream_packet(header)
    peer.send(end(header))
    status: int = Status.CONTINUE
    while status == Status.CONTINUE:
        _, status, payload = peer.stream_packet(header)
    assert (status, payload) == (Status.OK, b"")
    eventually(lambda: not open_below(target))
    assert peer.volume("v")


def test_data_for_a_download(daemon: Daemon, peer: Peer, target: Path) -> None:
    (target / "v").write_bytes(bytes(16 * MIB))
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    peer.send(data(header, b"what?"))
    status: int = Status.CONTINUE
    while status == Status.CONTINUE:
        _, status, _ = peer.stream_packet(header)
    assert status == Status.ERROR
    eventually(lambda: not open_below(target))


def test_download_to_a_client_that_stops_reading(daemon: Daemon, peer: Peer, target: Path) -> None:
    """What it has not read stays in the file, but for what fits the buffers."""
    content = os.urandom(64 * MIB)
    (target / "v").write_bytes(content)
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    other = daemon.connect().open()
    client = next(each for each in daemon.server._clients.values() if len(each.streams))
    eventually(lambda: client.full)
    time.sleep(0.2)
    assert client._transport is not None
    assert client._transport.get_write_buffer_size() < 4 * MIB
    assert not daemon.server.movers.busy
    with promptly():
        assert other.volume("v")
    pieces = peer.download(header)
    assert b"".join(each for each in pieces if isinstance(each, bytes)) == content
    peer.finish(header)


def test_dropped_in_the_middle_of_a_download(daemon: Daemon, peer: Peer, target: Path) -> None:
    (target / "v").write_bytes(bytes(16 * MIB))
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    peer.stream_packet(header)
    peer.close()
    eventually(daemon.rests)
    eventually(lambda: not open_below(target))


def test_both_directions_at_once(daemon: Daemon, peer: Peer, target: Path) -> None:
    content = os.urandom(8 * MIB)
    (target / "w").write_bytes(content)
    daemon.refresh()
    up = peer.stream(UPLOAD, peer.volume("v"))
    peer.stream(DOWNLOAD, peer.volume("w"))
    feeder = threading.Thread(target=lambda: peer.send(data(up, content) + wire.finish(up)))
    feeder.start()
    received, finished, ended = [], False, False
    while not (finished and ended):
        header, payload = peer.receive()
        if header.key == up.key:
            assert header.status == Status.OK
            finished = True
        elif payload:
            received.append(payload)
        else:
            ended = True
    feeder.join(20)
    assert b"".join(received) == content
    assert (target / "v").read_bytes() == content


def test_downloads_take_turns(daemon: Daemon, peer: Peer, target: Path) -> None:
    """A small download that begins beside a large one ends long before it."""
    (target / "v").write_bytes(bytes(64 * MIB))
    (target / "w").write_bytes(bytes(4 * MIB))
    daemon.refresh()
    large = peer.stream(DOWNLOAD, peer.volume("v"))
    volume = StorageVol("p", "w", "")
    serial = peer.begin(DOWNLOAD, VolStreamArgs(volume, 0, 0))
    small = header_of(DOWNLOAD, serial)
    sizes = {large.key: 0, small.key: 0}
    for _ in itertools.count():
        header, payload = peer.receive()
        if header.kind == Kind.REPLY:
            continue
        sizes[header.key] += len(payload)
        if header.key == small.key and not payload:
            break
    assert sizes[small.key] == 4 * MIB
    assert sizes[large.key] < 48 * MIB


def test_source_that_fails(
    daemon: Daemon, peer: Peer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = daemon.driver.volume_download

    def failing(*given: Any, **more: Any) -> Any:
        source = download(*given, **more)

        class Failing:
            def read(self, size: int) -> bytes:
                raise SystemFailure("cannot read from stream", 5)

            def close(self) -> None:
                source.close()

        return Failing()

    monkeypatch.setattr(daemon.driver, "volume_download", failing)
    header = peer.stream(DOWNLOAD, peer.volume("v"))
    failed = peer.failure(header)
    assert (failed.code, failed.domain, failed.error.int1) == (38, Domain.STREAMS, 5)
    eventually(lambda: not open_below(target))
