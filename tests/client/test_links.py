"""One behaviour of all links: to libvirt's own daemon, to ours, to an engine in this process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from storaged.client.link import Link, RemoteFailure
from storaged.client.opening import open_link
from storaged.flow import Hole
from storaged.rpc import remote, storage
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import StorageVol, VolStreamArgs
from tests.client.conftest import PoolCalls
from tests.client.scripted import until

MIB = 1 << 20


def error_of(caught: pytest.ExceptionInfo[RemoteFailure]) -> tuple[int, int, str | None]:
    error = caught.value.error
    assert isinstance(error, RemoteError)
    assert str(caught.value) == error.message
    return error.code, error.domain, error.message


def test_facts(link: Link, uri: str) -> None:
    assert (link.uri, link.readonly, link.alive, link.secure) == (uri, False, True, True)
    assert link.call(remote.GET_TYPE, Void()).type == "storage"
    assert link.call(remote.GET_LIB_VERSION, Void()).version >= 9_000_000


def test_errors(link: Link) -> None:
    with pytest.raises(RemoteFailure) as caught:
        link.call(storage.POOL_LOOKUP_BY_NAME, storage.Name("nope"))
    text = "Storage pool not found: no storage pool with matching name 'nope'"
    assert error_of(caught) == (49, 18, text)
    with pytest.raises(RemoteFailure) as caught:
        link.call(remote.OPEN, remote.OpenArgs("storage:///system"))
    assert error_of(caught)[:2] == (1, 7)


def test_readonly(uri: str) -> None:
    if "embed" in uri:  # who only reads makes no directories
        open_link(uri).close()
    with open_link(uri, readonly=True) as link:
        assert link.readonly
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 0
        with pytest.raises(RemoteFailure) as caught:
            link.call(storage.POOL_DEFINE_XML, storage.XMLArgs("<pool/>"))
        code, domain, message = error_of(caught)
        assert (code, domain) == (29, 18)
        assert message == "operation forbidden: read only access prevents virStoragePoolDefineXML"


def test_closed(uri: str) -> None:
    link = open_link(uri)
    link.close()
    link.close()
    assert not link.alive
    for call in (link.call, link.begin):
        with pytest.raises(RemoteFailure) as caught:
            call(storage.NUM_OF_POOLS, Void())
        assert error_of(caught) == (1, 7, "internal error: client socket is closed")
    with pytest.raises(RemoteFailure):
        link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(StorageVol("p", "v", ""), 0, 0, 0))


def test_events(link: Link, tmp_path: Path) -> None:
    told: list[Record] = []
    link.on_event(lambda _, record: told.append(record))
    forget = link.on_event(lambda *_: told.append(Void()))
    forget()
    ids = [
        link.call(storage.EVENT_REGISTER, storage.EventRegisterArgs(event, None)).callback_id
        for event in (0, 1)
    ]
    xml = f"<pool type='dir'><name>e</name><target><path>{tmp_path}</path></target></pool>"
    made = link.call(storage.POOL_CREATE_XML, storage.XMLArgs(xml)).pool
    link.call(storage.POOL_REFRESH, storage.PoolFlagsArgs(made))
    link.call(storage.POOL_DESTROY, storage.PoolArgs(made))
    expected = [
        storage.LifecycleEvent(ids[0], made, 2, 0),
        storage.RefreshEvent(ids[1], made),
        storage.LifecycleEvent(ids[0], made, 3, 0),
    ]
    until(lambda: len(told) == 3)
    assert told == expected
    for each in ids:
        link.call(storage.EVENT_DEREGISTER, storage.CallbackId(each))


def test_data_there_and_back(pool: PoolCalls) -> None:
    volume = pool.create("v")
    data = os.urandom(3 * MIB + 17)
    sink = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 5, 0, 0))
    assert sink.send(data) == len(data)
    sink.finish()
    assert (pool.directory / "v").read_bytes()[5 : 5 + len(data)] == data
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 5, len(data), 0))
    found = bytearray()
    while piece := source.receive(MIB):
        assert isinstance(piece, bytes)
        assert len(piece) <= MIB
        found += piece
    source.finish()
    assert found == data
    with pytest.raises(RemoteFailure) as caught:
        source.receive(1)
    assert error_of(caught)[0] == 55


def test_holes(pool: PoolCalls) -> None:
    volume = pool.create("v", 4)
    sink = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 1))
    sink.send(b"a" * 65536)
    sink.send_hole(MIB)
    sink.send(b"b" * 65536)
    sink.send_hole(3 * MIB - 131_072)
    sink.finish()
    file = pool.directory / "v"
    assert file.stat().st_size == 4 * MIB
    assert file.stat().st_blocks * 512 < MIB
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 0, 0, 1))
    found: list[tuple[bytes, int]] = []
    while piece := source.receive(MIB, stop_at_hole=True):
        if isinstance(piece, Hole):
            found.append((b"", piece.length))
        elif found and found[-1][0] == piece[:1]:
            found[-1] = (piece[:1], found[-1][1] + len(piece))
        else:
            found.append((piece[:1], len(piece)))
    source.finish()
    assert found == [(b"a", 65536), (b"", MIB), (b"b", 65536), (b"", 3 * MIB - 131_072)]
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 0, 0, 1))
    whole = bytearray()
    while piece := source.receive(100_000):
        assert isinstance(piece, bytes)
        whole += piece
    source.finish()
    assert whole == file.read_bytes()


def test_two_streams_at_once(pool: PoolCalls) -> None:
    one, two = pool.create("one"), pool.create("two")
    (pool.directory / "one").write_bytes(data := os.urandom(8 * MIB))
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(one, 0, 0, 0))
    sink = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(two, 0, 0, 0))
    while piece := source.receive(300_000):
        assert isinstance(piece, bytes)
        sink.send(piece)
        pool.link.call(storage.NUM_OF_POOLS, Void())
    source.finish()
    sink.finish()
    assert (pool.directory / "two").read_bytes() == data


def test_aborted_download(pool: PoolCalls) -> None:
    volume = pool.create("v", 64)
    (pool.directory / "v").write_bytes(os.urandom(64 * MIB))
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 0, 0, 0))
    assert source.receive(1)
    source.abort()
    source.abort()
    with pytest.raises(RemoteFailure):
        source.receive(1)
    assert pool.link.call(storage.NUM_OF_POOLS, Void()).num == 1


def test_too_much_data(pool: PoolCalls) -> None:
    volume = pool.create("v")
    sink = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 4096, 0))

    def send_too_much() -> None:
        for _ in range(1000):
            sink.send(bytes(65536))
            time.sleep(0.001)

    with pytest.raises(RemoteFailure) as caught:
        send_too_much()
    error = caught.value.error
    assert (error.code, error.int1) == (38, 28)
    sink.abort()


def test_without_waiting(pool: PoolCalls) -> None:
    volume = pool.create("v")
    ready = threading.Event()
    sink = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 0))
    data = os.urandom(2 * MIB)
    left = memoryview(data)
    while left:
        taken = sink.try_send(left)
        if taken is None:
            until(lambda: sink.writable)
        else:
            left = left[taken:]
    sink.finish()
    source = pool.link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 0, len(data), 0))
    source.on_ready(ready.set)
    found = bytearray()
    while (piece := source.try_receive(MIB)) != b"":
        if piece is None:
            assert ready.wait(20)
            ready.clear()
        else:
            assert isinstance(piece, bytes)
            found += piece
    assert source.readable
    source.finish()
    assert found == data


def test_begin(pool: PoolCalls) -> None:
    done = threading.Event()
    pending = pool.link.begin(storage.POOL_REFRESH, storage.PoolFlagsArgs(pool.pool))
    pending.on_done(done.set)
    assert pending.wait(20)
    assert pending.result() == Void()
    assert done.wait(20)
    pending = pool.link.begin(storage.POOL_REFRESH, storage.PoolFlagsArgs(pool.pool, 1))
    with pytest.raises(RemoteFailure) as caught:
        pending.result(20)
    assert error_of(caught)[0] == 8
    named = pool.link.begin(storage.POOL_LOOKUP_BY_NAME, storage.Name("p"))
    assert named.result(20).pool == pool.pool


def test_many_threads(pool: PoolCalls) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        volume = pool.create(f"v{number}", number + 1)
        for _ in range(20):
            info = pool.link.call(storage.VOL_GET_INFO, storage.VolArgs(volume))
            if info.capacity != (number + 1) * MIB:
                wrong.append(info)
        done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == list(range(10))
    assert wrong == []


def test_keepalive(link: Link) -> None:
    link.keepalive(1, 2)
    time.sleep(1.5)
    assert link.alive
    assert link.call(storage.NUM_OF_POOLS, Void()).num == 0
    link.keepalive(0, 0)


def test_keepalive_after_an_age(link: Link) -> None:
    """More milliseconds than poll(2) counts, and more seconds than a lock waits."""
    link.keepalive(0x7FFF_FFFF, 0xFFFF_FFFF)
    assert link.call(storage.NUM_OF_POOLS, Void()).num == 0
    time.sleep(0.1)
    assert link.alive


def test_extension(link: Link, uri: str) -> None:
    assert link.has_extension() is ("libvirtd" not in uri)
