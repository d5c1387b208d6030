"""Uploads and downloads: whole, in part, sparse, blocking or not, left alone, many at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clients.peer import Client, receive, send

MIB = 1 << 20


def _bytes(size: int, seed: int = 1) -> bytes:
    return hashlib.shake_256(bytes([seed])).digest(size)


def _file(volume: Any) -> bytes:
    return Path(volume.path()).read_bytes()


def _until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def parts(client: Client) -> object:
    """Offsets and lengths."""
    pool = client.pool("s-parts")
    volume = client.volume(pool, "v", MIB)
    data = _bytes(300_000)
    client.upload(volume, data)
    assert _file(volume) == data + bytes(MIB - len(data))
    client.upload(volume, b"middle", 1000, 6)
    assert _file(volume)[990:1016] == data[990:1000] + b"middle" + data[1006:1016]
    client.upload(volume, b"", 5, 0)
    assert client.download(volume) == _file(volume)
    assert client.download(volume, 1000, 6) == b"middle"
    assert client.download(volume, MIB - 4, 100) == bytes(4)
    assert client.download(volume, 5 * MIB, 0) == b""
    client.upload(volume, b"past the end", MIB, 0)
    pool.refresh()
    return volume.info()


def too_much(client: Client) -> object:
    """More bytes than were announced are an error of the stream."""
    pool = client.pool("s-too-much")
    volume = client.volume(pool, "v", MIB)
    stream = client.connection.newStream()
    volume.upload(stream, 0, 1000)

    def push() -> None:
        send(stream, bytes(5000))
        stream.finish()

    error = client.error(push)
    assert client.connection.isAlive()
    assert pool.isActive()
    return error[:2]


def fewer_than_announced(client: Client) -> object:
    """Terraform announces the capacity and sends less."""
    pool = client.pool("s-fewer")
    volume = client.volume(pool, "v", 4 * MIB)
    client.upload(volume, b"less", 0, 4 * MIB)
    assert _file(volume)[:4] == b"less"
    return volume.info()


def left_alone(client: Client) -> object:
    """Vagrant sends its box and never finishes; it goes on with the volume at once."""
    pool = client.pool("s-left")
    box = client.volume(pool, "box.img", 4 * MIB, "raw")
    data = _bytes(3 * MIB)
    stream = client.connection.newStream()
    box.upload(stream, 0, len(data))
    for start in range(0, len(data), 256_000):
        send(stream, data[start : start + 256_000])
    backing = f"<backingStore><path>{box.path()}</path><format type='raw'/></backingStore>"
    overlay = pool.createXML(
        f"<volume><name>overlay</name><capacity>{8 * MIB}</capacity><allocation>0</allocation>"
        f"<target><format type='qcow2'/></target>{backing}</volume>"
    )
    assert sorted(pool.listVolumes()) == ["box.img", "overlay"]
    _until(lambda: _file(box)[: len(data)] == data, "the bytes do not arrive")
    del stream
    time.sleep(0.1)
    assert _file(box)[: len(data)] == data
    return [overlay.info(), overlay.path(), box.info()[:2]]


def aborted(client: Client) -> object:
    """What has arrived before an abort stays."""
    pool = client.pool("s-aborted")
    volume = client.volume(pool, "v", MIB)
    stream = client.connection.newStream()
    volume.upload(stream, 0, 0)
    send(stream, b"kept" * 1000)
    _until(lambda: _file(volume)[:4000] == b"kept" * 1000, "the bytes do not arrive")
    stream.abort()
    assert _file(volume)[:4000] == b"kept" * 1000
    download = client.connection.newStream()
    volume.download(download, 0, 0)
    assert download.recv(4) == b"kept"
    download.abort()
    assert client.download(volume)[:4000] == b"kept" * 1000
    return client.error(download.recv, 4)[0]


def cut_off(client: Client) -> object:
    """What has arrived before a client dies stays, and the volume can be used."""
    volume = client.volume(client.pool("s-cut"), "v", 2 * MIB)
    data = _bytes(MIB)
    arrived = _dying_upload(client, volume, data, wait=True)
    assert arrived
    client.upload(volume, b"next", 10)
    assert _file(volume)[10:14] == b"next"
    volume.delete()
    return client.connection.storagePoolLookupByName("s-cut").listVolumes()


def _dying_upload(client: Client, volume: Any, data: bytes, *, wait: bool) -> bool:
    """Upload from a process that ends without a word; return whether the bytes are there."""
    script = (
        "import libvirt, os, sys, time\n"
        "connection = libvirt.open(sys.argv[1])\n"
        "stream = connection.newStream()\n"
        "connection.storageVolLookupByPath(sys.argv[2]).upload(stream, 0, 0)\n"
        "left = data = sys.stdin.buffer.read()\n"
        "while left:\n"
        "    left = left[stream.send(left[:262120]):]\n"
        "while sys.argv[3] == 'wait' and open(sys.argv[2], 'rb').read(len(data)) != data:\n"
        "    time.sleep(0.01)\n"
        "os._exit(0)\n"
    )
    words = [client.uri, volume.path(), "wait" if wait else "at once"]
    command = [sys.executable, "-W", "ignore", "-c", script, *words]
    subprocess.run(command, input=data, check=True, timeout=30)
    return _file(volume)[: len(data)] == data


def both_ways_at_once(client: Client) -> object:
    """Two streams on one connection, one in each direction, and calls between them."""
    pool = client.pool("s-ways")
    source, target = client.volume(pool, "source", 8 * MIB), client.volume(pool, "target", 8 * MIB)
    data = _bytes(8 * MIB)
    client.upload(source, data)
    down, up = client.connection.newStream(), client.connection.newStream()
    source.download(down, 0, 0)
    target.upload(up, 0, 0)
    asked = 0
    while piece := down.recv(262_120):
        send(up, piece)
        asked += target.info()[1] == 8 * MIB
        assert pool.isActive()
    down.finish()
    up.finish()
    assert _file(target) == data
    assert asked
    return target.info()


def by_threads(client: Client) -> object:
    """Streams of several threads of one connection do not mix."""
    pool = client.pool("s-threads")
    volumes = [client.volume(pool, f"v{number}", 2 * MIB) for number in range(6)]
    wrong: list[str] = []

    def work(number: int) -> None:
        data = _bytes(2 * MIB, number)
        client.upload(volumes[number], data)
        if client.download(volumes[number]) != data:
            wrong.append(volumes[number].name())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    return sorted(pool.listVolumes())


def two_uploads_to_one_volume(client: Client) -> object:
    """Both may write at a time, as in libvirt."""
    pool = client.pool("s-two")
    volume = client.volume(pool, "v", MIB)
    streams = [client.connection.newStream() for _ in range(2)]
    for number, stream in enumerate(streams):
        volume.upload(stream, number * 1000, 0)
    for number, stream in enumerate(streams):
        send(stream, bytes([65 + number]) * 1000)
    for stream in streams:
        stream.finish()
    assert _file(volume)[:2000] == b"A" * 1000 + b"B" * 1000
    return pool.listVolumes()


def sparse(client: Client) -> object:
    """Holes are kept, both ways."""
    pool = client.pool("s-sparse")
    volume = client.volume(pool, "v", 8 * MIB)
    stream = client.connection.newStream()
    volume.upload(stream, 0, 0, client.libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
    send(stream, b"A" * 4096)
    stream.sendHole(4 * MIB - 4096)
    send(stream, b"B" * 4096)
    stream.sendHole(4 * MIB - 4096)
    stream.finish()
    assert _file(volume) == b"A" * 4096 + bytes(4 * MIB - 4096) + b"B" * 4096 + bytes(
        4 * MIB - 4096
    )
    assert Path(volume.path()).stat().st_blocks * 512 == 8192
    stream = client.connection.newStream()
    volume.download(stream, 0, 0, client.libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
    pieces: list[list[Any]] = []
    stream.sparseRecvAll(
        lambda _stream, data, _opaque: pieces.append(["data", len(data)]),
        lambda _stream, length, _opaque: pieces.append(["hole", length]),
        None,
    )
    stream.finish()
    return [pieces, volume.info()]


def sparse_step_by_step(client: Client) -> object:
    """A reader that stops at holes."""
    pool = client.pool("s-steps")
    volume = client.volume(pool, "v", 4 * MIB)
    client.upload(volume, b"data" * 1024, 2 * MIB)
    stream = client.connection.newStream()
    volume.download(stream, 0, 0, 1)
    told: list[Any] = []
    while True:
        got = stream.recvFlags(262_120, client.libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
        if got == -3:
            told.append(stream.recvHole())
        elif got == b"":
            break
        else:
            told.append(len(got))
    stream.finish()
    return told


def send_all(client: Client) -> object:
    """The helpers of the binding."""
    pool = client.pool("s-all")
    volume = client.volume(pool, "v", MIB)
    data = _bytes(MIB)
    left = [data]

    def give(_stream: Any, size: int, _opaque: object) -> bytes:
        piece, left[0] = left[0][:size], left[0][size:]
        return piece

    stream = client.connection.newStream()
    volume.upload(stream, 0, MIB)
    stream.sendAll(give, None)
    stream.finish()
    got = bytearray()
    stream = client.connection.newStream()
    volume.download(stream, 0, 0)
    stream.recvAll(lambda _stream, piece, _opaque: got.extend(piece), None)
    stream.finish()
    assert bytes(got) == data
    return volume.info()


def capacity_nothing(client: Client) -> object:
    """uvtool makes a qcow2 of capacity 0 and uploads a whole image into it."""
    pool = client.pool("s-nothing")
    image = client.volume(pool, "image", 16 * MIB, "qcow2")
    data = _file(image)
    volume = pool.createXML(
        "<volume><name>uvtool</name><allocation unit='bytes'>0</allocation>"
        "<capacity unit='bytes'>0</capacity><target><format type='qcow2'/></target></volume>"
    )
    client.upload(volume, data, 0, len(data))
    pool.refresh()
    assert _file(volume)[: len(data)] == data
    found = pool.storageVolLookupByName("uvtool")
    assert found.info()[1] == 16 * MIB
    return [found.info(), pool.storageVolLookupByName("image").info()]


def of_what_is_gone(client: Client) -> object:
    """Streams of volumes that are not there."""
    pool = client.pool("s-gone")
    volume = client.volume(pool, "v", MIB)
    Path(volume.path()).unlink()
    vanished = [
        client.error(call, client.connection.newStream(), 0, 0)[0]
        for call in (volume.upload, volume.download)
    ]
    pool.refresh()
    return [
        vanished,
        client.error(volume.upload, client.connection.newStream(), 0, 0),
        client.error(volume.download, client.connection.newStream(), 0, 0),
    ]


def many_unfinished(client: Client) -> object:
    """A hundred open uploads, and the pool still works."""
    pool = client.pool("s-many")
    connections = [client.connect() for _ in range(10)]
    streams = []
    for number in range(100):
        volume = client.volume(pool, f"v{number}", MIB)
        connection = connections[number % 10]
        stream = connection.newStream()
        connection.storageVolLookupByPath(volume.path()).upload(stream, 0, 0)
        send(stream, b"x" * 1000)
        streams.append(stream)
    other = client.volume(pool, "other", MIB, "qcow2")
    other.resize(2 * MIB)
    other.delete()
    pool.refresh()
    assert pool.numOfVolumes() == 100
    for stream in streams:
        stream.finish()
    for connection in connections:
        connection.close()
    return sorted(pool.listVolumes())[:3]


def empty_file(client: Client) -> object:
    """The end comes at once."""
    pool = client.pool("s-empty")
    volume = client.volume(pool, "v", 0)
    stream = client.connection.newStream()
    volume.download(stream, 0, 0)
    assert receive(stream) == b""
    stream.finish()
    return volume.info()


def promised_after_an_abort(client: Client) -> object:
    """Storaged keeps whatever was sent before an abort, however soon that comes."""
    pool = client.pool("s-promised")
    for number in range(20):
        volume = client.volume(pool, f"v{number}", 4 * MIB)
        data = _bytes(MIB + number * 4321, number)
        stream = client.connection.newStream()
        volume.upload(stream, 0, 0)
        send(stream, data)
        stream.abort()
        assert _file(volume)[: len(data)] == data, number
    return None


def promised_after_a_death(client: Client) -> object:
    """Storaged keeps what a client had sent when it died."""
    volume = client.volume(client.pool("s-died"), "v", 4 * MIB)
    data = _bytes(3 * MIB)
    _dying_upload(client, volume, data, wait=False)
    _until(lambda: _file(volume)[: len(data)] == data, "the bytes are lost", 2)
    return None


def promised_at_once(client: Client) -> object:
    """Bytes reach the file within 100 ms, without a finish."""
    volume = client.volume(client.pool("s-soon"), "v", 4 * MIB)
    took = []
    stream = client.connection.newStream()
    volume.upload(stream, 0, 0)
    for number in range(1, 20):
        data = bytes([number]) * (number * 1000)
        start = time.monotonic()
        send(stream, data)
        _until(lambda end=data[-100:]: end in _file(volume), "the bytes do not arrive", 2)  # type: ignore[misc]
        took.append(time.monotonic() - start)
    stream.finish()
    # a busy machine may stop everybody for a moment, but not again and again
    assert sorted(took)[-4] < 0.1, took
    return None
