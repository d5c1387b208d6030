"""With an event loop: what libvirt tells of pools, keepalive, and streams that do not block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clients.peer import Client, send

MIB = 1 << 20
LIFECYCLE, REFRESH = 0, 1


@contextmanager
def _loop(client: Client) -> Iterator[Any]:
    """Run libvirt's own event loop on a thread; yield a connection made under it."""
    if not getattr(client, "has_loop", False):
        client.libvirt.virEventRegisterDefaultImpl()
        client.has_loop = True  # type: ignore[attr-defined]
        threading.Thread(target=_turn, args=(client.libvirt,), daemon=True).start()
    connection = client.connect()
    try:
        yield connection
    finally:
        connection.close()


def _turn(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def lifecycle(client: Client) -> object:
    """Each change of a pool is told once, in order."""
    with _loop(client) as conn:
        heard: list[Any] = []

        def note(_conn: Any, pool: Any, event: int, detail: int, opaque: str) -> None:
            if pool.name().startswith("e-life"):
                heard.append([pool.name(), event, detail, opaque])

        number = conn.storagePoolEventRegisterAny(None, LIFECYCLE, note, "given")
        pool = conn.storagePoolDefineXML(client.pool_xml("e-life"))
        pool.build()
        pool.create()
        pool.refresh()
        pool.setAutostart(1)
        again = client.pool_xml("e-life").replace(
            "<target>", f"<uuid>{pool.UUIDString()}</uuid><target>"
        )
        conn.storagePoolDefineXML(again)
        pool.destroy()
        pool.delete()
        pool.undefine()
        flags = client.libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD
        conn.storagePoolCreateXML(client.pool_xml("e-life-2"), flags).destroy()
        client.error(conn.storagePoolCreateXML, client.pool_xml("e-life-none"))
        _until(lambda: len(heard) >= 9, f"too few events: {heard}")
        time.sleep(0.1)
        conn.storagePoolEventDeregisterAny(number)
        conn.storagePoolDefineXML(client.pool_xml("e-life")).undefine()
        time.sleep(0.1)
        return heard


def of_one_pool(client: Client) -> object:
    """A registration for one pool hears of no other; a general one beside it hears of all."""
    with _loop(client) as conn:
        heard: dict[str, list[Any]] = {"one": [], "all": []}

        def note(_conn: Any, pool: Any, event: int, _detail: int, opaque: str) -> None:
            if pool.name().startswith("e-one"):
                heard[opaque].append([pool.name(), event])

        one = conn.storagePoolDefineXML(client.pool_xml("e-one"))
        other = conn.storagePoolDefineXML(client.pool_xml("e-one-other"))
        numbers = [
            conn.storagePoolEventRegisterAny(one, LIFECYCLE, note, "one"),
            conn.storagePoolEventRegisterAny(None, LIFECYCLE, note, "all"),
        ]
        for pool in (one, other):
            pool.build()
            pool.create()
            pool.destroy()
            pool.undefine()
        _until(lambda: len(heard["all"]) == 8, f"too few events: {heard}")
        for number in numbers:
            conn.storagePoolEventDeregisterAny(number)
        heard["unknown"] = client.error(conn.storagePoolEventDeregisterAny, 4711)[:1]
        heard["no such event"] = client.error(
            conn.storagePoolEventRegisterAny, None, 2, note, "all"
        )[:2]
        return heard


def refresh(client: Client) -> object:
    """A refresh is told, also the one after an upload."""
    with _loop(client) as conn:
        heard: list[str] = []
        number = conn.storagePoolEventRegisterAny(
            None, REFRESH, lambda _conn, pool, _opaque: heard.append(pool.name()), None
        )
        pool = conn.storagePoolDefineXML(client.pool_xml("e-refresh"))
        pool.build()
        pool.create()
        pool.refresh()
        _until(lambda: heard.count("e-refresh") == 1, "no event of a refresh")
        volume = client.volume(pool, "v", MIB)
        for finish in (True, False):
            before = heard.count("e-refresh")
            stream = conn.newStream()
            volume.upload(stream, 0, 0)
            send(stream, b"data")
            if finish:
                stream.finish()
            else:
                stream.abort()
            _until(lambda n=before: heard.count("e-refresh") == n + 1, "no event of an upload")  # type: ignore[misc]
        conn.storagePoolEventDeregisterAny(number)
        return heard.count("e-refresh")


def many_listeners(client: Client) -> object:
    """Twenty connections hear of one change each once."""
    with _loop(client):
        connections = [client.connect() for _ in range(20)]
        heard: list[list[int]] = [[] for _ in connections]

        def note(_conn: Any, pool: Any, event: int, _detail: int, number: int) -> None:
            if pool.name() == "e-many":
                heard[number].append(event)

        for number, connection in enumerate(connections):
            connection.storagePoolEventRegisterAny(None, LIFECYCLE, note, number)
        pool = client.pool("e-many")
        pool.destroy()
        pool.undefine()
        _until(lambda: all(len(each) == 5 for each in heard), f"too few events: {heard}")
        time.sleep(0.1)
        assert all(each == heard[0] for each in heard)
        for connection in connections:
            connection.close()
        return heard[0]


def keepalive(client: Client) -> object:
    """Both sides ask whether the other lives, and nobody is cut off."""
    with _loop(client) as conn:
        assert conn.setKeepAlive(1, 2) == 0
        conn.registerCloseCallback(lambda *_arguments: None, None)
        time.sleep(4)
        assert conn.isAlive() == 1
        assert conn.listAllStoragePools() is not None
        conn.unregisterCloseCallback()
        return conn.getLibVersion()


def non_blocking(client: Client) -> object:
    """Upload and download by an event loop's call-backs."""
    with _loop(client) as conn:
        pool = conn.storagePoolDefineXML(client.pool_xml("e-stream"))
        pool.build()
        pool.create()
        volume = client.volume(pool, "v", 8 * MIB)
        data = bytes(range(256)) * (8 * MIB // 256)
        _send_by_events(client, conn, volume, data)
        assert Path(volume.path()).read_bytes() == data
        assert _receive_by_events(client, conn, volume) == data
        return volume.info()


def _send_by_events(client: Client, conn: Any, volume: Any, data: bytes) -> None:
    ended = threading.Event()
    left = [memoryview(data)]
    failed: list[Exception] = []
    stream = conn.newStream(client.libvirt.VIR_STREAM_NONBLOCK)

    def on_writable(stream: Any, _events: int, _opaque: object) -> None:
        try:
            while left[0]:
                sent = stream.send(bytes(left[0][:262_120]))
                if sent == -2:
                    return
                left[0] = left[0][sent:]
            stream.eventRemoveCallback()
            stream.finish()
        except Exception as err:
            failed.append(err)
        ended.set()

    volume.upload(stream, 0, 0)
    stream.eventAddCallback(client.libvirt.VIR_STREAM_EVENT_WRITABLE, on_writable, None)
    assert ended.wait(30), "the upload does not end"
    assert not failed, failed


def _receive_by_events(client: Client, conn: Any, volume: Any) -> bytes:
    ended = threading.Event()
    got = bytearray()
    failed: list[Exception] = []
    stream = conn.newStream(client.libvirt.VIR_STREAM_NONBLOCK)

    def on_readable(stream: Any, _events: int, _opaque: object) -> None:
        try:
            while (piece := stream.recv(262_120)) != b"":
                if piece == -2:
                    return
                got.extend(piece)
            stream.eventRemoveCallback()
            stream.finish()
        except Exception as err:
            failed.append(err)
        ended.set()

    volume.download(stream, 0, 0)
    events = client.libvirt.VIR_STREAM_EVENT_READABLE | client.libvirt.VIR_STREAM_EVENT_HANGUP
    stream.eventAddCallback(events, on_readable, None)
    assert ended.wait(30), "the download does not end"
    assert not failed, failed
    return bytes(got)
