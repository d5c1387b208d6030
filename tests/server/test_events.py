"""Events on their way to clients: their order, and what happens if nobody reads them."""

from __future__ import annotations

import threading
import time

import pytest

from storaged.model import PoolDef
from storaged.rpc import extension, storage
from storaged.rpc.packet import Kind, Status, pack
from storaged.rpc.storage import CallbackId, EventRegisterArgs, LifecycleEvent, RefreshEvent
from storaged.server.events import EventQueue
from storaged.server.limits import Bounds
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon, nothing_left
from tests.server.peer import Peer

POOL = storage.StoragePool("p", bytes(16))


def register(peer: Peer, kind: int) -> int:
    found = peer.call(storage.EVENT_REGISTER, EventRegisterArgs(kind, None))
    assert isinstance(found, CallbackId)
    return found.callback_id


def test_order_and_once(daemon: Daemon) -> None:
    """Every change is told once and in its order, also under many clients."""
    daemon.serve()
    peers = [daemon.connect().open() for _ in range(5)]
    ids = [register(peer, 0) for peer in peers]
    names = [f"pool-{number}" for number in range(40)]

    def change(mine: list[str]) -> None:
        for name in mine:
            ref = daemon.driver.pool_define(PoolDef("double", name, target=str(daemon.root / name)))
            daemon.driver.pool_undefine(ref)

    threads = [threading.Thread(target=change, args=(names[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    told = []
    for peer, identifier in zip(peers, ids, strict=True):
        found = []
        for _ in range(2 * len(names)):
            header, payload = peer.receive()
            assert (header.procedure, header.kind, header.serial) == (370, Kind.MESSAGE, 1)
            assert header.status == Status.OK
            event = LifecycleEvent.unpack(payload)
            assert event.callback_id == identifier
            found.append((event.pool.name, event.event))
        assert peer.silent(0.02)
        told.append(found)
    assert all(found == told[0] for found in told)
    for name in names:
        assert [kind for pool, kind in told[0] if pool == name] == [0, 1]


def test_golden_event(served: Daemon) -> None:
    peer = served.connect().open()
    uuid = peer.pool().uuid
    peer.call(storage.EVENT_REGISTER, EventRegisterArgs(1, peer.pool()))
    served.refresh()
    header, payload = peer.receive()
    event = RefreshEvent.unpack(payload)
    assert (header.procedure, event.pool.uuid, event.pool.name) == (373, uuid, "p")


def test_client_that_does_not_read_its_events(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.pool()
    daemon.serve(Bounds(unsent=64 << 10, events=100, event_bytes=1 << 20))
    with nothing_left(daemon):
        lazy, reading = daemon.connect().open(), daemon.connect().open()
        register(lazy, 1)
        register(reading, 1)
        clients = {each.id for each in daemon.server.clients()}
        ref = daemon.driver.pool_lookup_by_name("p")
        events = daemon.driver.events
        stop = threading.Event()
        received = []

        def read() -> None:
            reading.socket.settimeout(0.2)
            while not stop.is_set():
                try:
                    received.append(reading.receive())
                except TimeoutError:
                    continue

        reader = threading.Thread(target=read)
        reader.start()
        posted = 0
        while len(daemon.server.clients()) == 2:
            for _ in range(50):
                events.post(ref, None)
            events.deliver()
            posted += 50
            time.sleep(0.0005)
            assert posted < 1_000_000
        eventually(lambda: len(received) == posted)
        stop.set()
        reader.join(20)
        left = {each.id for each in daemon.server.clients()}
        assert left < clients
        assert "it does not read its events" in caplog.text
        reading.close()
        lazy.close()


def test_burst_for_a_client_that_reads(daemon: Daemon) -> None:
    """More events at once than may wait are no harm to who reads them."""
    daemon.pool()
    daemon.serve(Bounds(events=10))
    peer = daemon.connect().open()
    register(peer, 1)
    ref = daemon.driver.pool_lookup_by_name("p")
    for _ in range(2000):
        daemon.driver.events.post(ref, None)
    daemon.driver.events.deliver()
    for _ in range(2000):
        assert peer.receive()[0].procedure == 373


def test_end_of_a_job_comes_after_its_beginning(served: Daemon) -> None:
    peer = served.connect().open()
    pool = peer.pool()
    for number in range(30):
        xml = f"<volume><name>v{number}</name><capacity>1</capacity></volume>"
        inner = extension.CallArgs(93, storage.PoolXMLArgs(pool, xml).pack())
        serial = peer.begin(extension.JOB_BEGIN, inner)
        header, payload = peer.receive()
        assert (header.kind, header.serial) == (Kind.REPLY, serial)
        job = extension.JobRet.unpack(payload).job
        header, payload = peer.receive()
        assert header.procedure == extension.EVENT_JOB_ENDED.number
        assert extension.JobEnded.unpack(payload).job.id == job.id


def test_queue_is_safe_and_ordered() -> None:
    woken = []
    queue = EventQueue(lambda: woken.append(1), most=3, size=1000)
    event = RefreshEvent(0, POOL)
    for number in range(3):
        queue.notify(storage.EVENT_REFRESH, RefreshEvent(number, POOL))
    assert woken == [1]
    assert not queue.overflowing
    for number in range(3):
        expected = pack(
            storage.EVENT_REFRESH.program,
            373,
            Kind.MESSAGE,
            1,
            payload=RefreshEvent(number, POOL).pack(),
        )
        assert queue.take() == expected
    assert queue.take() is None
    for _ in range(4):
        queue.notify(storage.EVENT_REFRESH, event)
    assert queue.overflowing
    queue.close()
    queue.notify(storage.EVENT_REFRESH, event)
    assert queue.take() is None


def test_event_that_cannot_be_packed(caplog: pytest.LogCaptureFixture) -> None:
    queue = EventQueue(lambda: None, most=3, size=1000)
    huge = RefreshEvent(0, storage.StoragePool("x" * (5 << 20), bytes(16)))
    with promptly():
        queue.notify(storage.EVENT_REFRESH, huge)
    assert queue.take() is None
    assert "cannot be sent" in caplog.text
