"""Events: to whom, in which order, and when no more."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from storaged.errors import SystemFailure
from storaged.events import Lifecycle
from storaged.rpc import remote
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Void
from storaged.rpc.storage import CallbackId, LifecycleEvent, RefreshEvent, StoragePool
from storaged.service import Service, registrations
from storaged.wirenames import pool_ref
from tests.doubles import Control, eventually
from tests.service.conftest import NOWHERE, Peer


def test_numbers_are_of_the_process(service: Service) -> None:
    one, other = Peer.of(service), Peer.of(service)
    assert one.call(rpc.EVENT_REGISTER, 0, None) == CallbackId(0)
    assert other.call(rpc.EVENT_REGISTER, 0, None) == CallbackId(1)
    assert one.call(rpc.EVENT_REGISTER, 1, None) == CallbackId(2)
    assert one.call(rpc.EVENT_DEREGISTER, 2) == Void()
    assert one.call(rpc.EVENT_REGISTER, 1, None) == CallbackId(3)


def test_refused_registrations(peer: Peer) -> None:
    peer.call(rpc.EVENT_REGISTER, 0, None)
    peer.call(rpc.EVENT_REGISTER, 0, NOWHERE)
    for pool in (None, NOWHERE, StoragePool("another name", NOWHERE.uuid)):
        error = peer.error(rpc.EVENT_REGISTER, 0, pool)
        assert (error.code, error.domain) == (8, 0)
        assert error.message == "invalid argument: event callback already tracked"
    for number in (2, -1, 2**31 - 1):
        error = peer.error(rpc.EVENT_REGISTER, number, None)
        assert (error.code, error.domain) == (1, 7)
        assert error.str2 == f"unsupported storage pool event ID {number}"


def test_refused_deregistrations(service: Service, peer: Peer) -> None:
    other = Peer.of(service)
    number = other.call(rpc.EVENT_REGISTER, 0, None).callback_id
    for unknown in (number, 77, -1):
        error = peer.error(rpc.EVENT_DEREGISTER, unknown)
        assert (error.code, error.domain) == (1, 7)
        assert error.str2 == f"storage pool event callback {unknown} not registered"
    other.call(rpc.EVENT_DEREGISTER, number)
    assert other.error(rpc.EVENT_DEREGISTER, number).code == 1


def test_too_many_registrations(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost memory, and time with each event: nobody gets them without a bound."""
    monkeypatch.setattr(registrations, "MOST", 3)
    numbers = [
        peer.call(rpc.EVENT_REGISTER, 0, StoragePool("", bytes([n]) * 16)).callback_id
        for n in range(3)
    ]
    error = peer.error(rpc.EVENT_REGISTER, 1, None)
    assert (error.code, error.str2) == (1, "Too many event callbacks '4' for limit '3'")
    peer.call(rpc.EVENT_DEREGISTER, numbers[0])
    peer.call(rpc.EVENT_REGISTER, 1, None)


def test_readers_hear_events(service: Service, target: Path) -> None:
    reader, writer = Peer.of(service, readonly=True), Peer.of(service)
    number = reader.call(rpc.EVENT_REGISTER, 0, None).callback_id
    pool = writer.define("p", target)
    assert reader.told == [(rpc.EVENT_LIFECYCLE, LifecycleEvent(number, pool, 0, 0))]
    assert writer.told == []
    reader.call(rpc.EVENT_DEREGISTER, number)


def test_a_life(peer: Peer, target: Path) -> None:
    lifecycle = peer.call(rpc.EVENT_REGISTER, 0, None).callback_id
    refresh = peer.call(rpc.EVENT_REGISTER, 1, None).callback_id
    pool = peer.define("p", target)
    peer.call(rpc.POOL_BUILD, pool, 0)
    peer.call(rpc.POOL_CREATE, pool, 0)
    peer.call(rpc.POOL_REFRESH, pool, 0)
    vol = peer.made(pool, "v")  # volumes have no events
    peer.call(rpc.VOL_DELETE, vol, 0)
    peer.call(rpc.POOL_DESTROY, pool)
    peer.call(rpc.POOL_DELETE, pool, 0)
    peer.call(rpc.POOL_UNDEFINE, pool)
    expected: list[Any] = [LifecycleEvent(lifecycle, pool, kind, 0) for kind in (0, 4, 2, 3, 5, 1)]
    expected.insert(3, RefreshEvent(refresh, pool))
    eventually(lambda: len(peer.told) >= len(expected))
    assert peer.events() == expected


def test_a_registration_for_one_pool(peer: Peer, tmp_path: Path, target: Path) -> None:
    one = peer.define("p", target)
    mine = peer.call(rpc.EVENT_REGISTER, 0, StoragePool("", one.uuid)).callback_id
    every = peer.call(rpc.EVENT_REGISTER, 0, None).callback_id
    other = peer.define("q", tmp_path / "q")
    peer.call(rpc.POOL_UNDEFINE, other)
    peer.call(rpc.POOL_UNDEFINE, one)
    assert [(e.callback_id, e.pool, e.event) for e in peer.events()] == [
        (every, other, Lifecycle.DEFINED),
        (every, other, Lifecycle.UNDEFINED),
        (mine, one, Lifecycle.UNDEFINED),
        (every, one, Lifecycle.UNDEFINED),
    ]


def test_who_registers_for_many_pools_does_not_hold_up_events(
    peer: Peer, service: Service, target: Path
) -> None:
    hoarders = [Peer.of(service, readonly=True) for _ in range(5)]
    for hoarder in hoarders:
        for number in range(registrations.MOST):
            hoarder.session.registrations.register(number & 1, UUID(int=number >> 1))
    pool = peer.define("p", target)
    began = time.process_time()
    for _ in range(100):
        service.driver.events.post(pool_ref(pool), Lifecycle.DEFINED)
    service.driver.events.deliver()
    assert time.process_time() - began < 0.1
    assert all(hoarder.told == [] for hoarder in hoarders)


def test_nothing_after_a_deregistration_or_an_end(service: Service, target: Path) -> None:
    one, other = Peer.of(service), Peer.of(service)
    number = one.call(rpc.EVENT_REGISTER, 0, None).callback_id
    other.call(rpc.EVENT_REGISTER, 0, None)
    one.call(rpc.EVENT_DEREGISTER, number)
    other.session.close()
    Peer.of(service).define("p", target)
    assert one.told == other.told == []
    assert not service.driver.events._subscribers


def test_who_is_told_may_deregister(service: Service, target: Path) -> None:
    """Who is told on the thread of the event, as within one process, may call back at once."""
    peer = Peer.of(service)

    def told(_procedure: AnyProcedure, record: Any) -> None:
        session.call(rpc.EVENT_DEREGISTER, CallbackId(record.callback_id))

    session = service.session(told)
    session.call(remote.OPEN, remote.OPEN.args("storage:///system", 0))
    session.call(rpc.EVENT_REGISTER, rpc.EVENT_REGISTER.args(0, None))
    peer.define("p", target)
    assert len(session.registrations) == 0


def test_order_and_once_only_under_load(service: Service, tmp_path: Path) -> None:
    listener = Peer.of(service)
    number = listener.call(rpc.EVENT_REGISTER, 0, None).callback_id
    pools = 6

    def live(name: str) -> None:
        worker = Peer.of(service)
        for _ in range(4):
            pool = worker.started(name, tmp_path / name)
            worker.call(rpc.POOL_DESTROY, pool)
            worker.call(rpc.POOL_UNDEFINE, pool)

    threads = [threading.Thread(target=live, args=(f"p{i}",)) for i in range(pools)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(listener.told) >= pools * 16)
    by_pool: dict[str, list[int]] = {}
    for event in listener.events():
        assert event.callback_id == number
        by_pool.setdefault(event.pool.name, []).append(event.event)
    assert by_pool == {f"p{i}": [0, 2, 3, 1] * 4 for i in range(pools)}


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_an_upload_ends_with_a_refresh(peer: Peer, pool: StoragePool, end: str) -> None:
    vol = peer.made(pool, "v")
    number = peer.call(rpc.EVENT_REGISTER, 1, None).callback_id
    sink = peer.call(rpc.VOL_UPLOAD, vol, 0, 0, 0).sink
    sink.write(b"x" * 8192)
    assert peer.told == []
    getattr(sink, end)()
    assert peer.events() == [RefreshEvent(number, pool)]
    assert peer.call(rpc.VOL_GET_INFO, vol).capacity == 8192


def test_events_of_a_failed_refresh(peer: Peer, target: Path, control: Control) -> None:
    pool = peer.started("p", target, "double")
    peer.call(rpc.EVENT_REGISTER, 0, None)
    peer.call(rpc.EVENT_REGISTER, 1, None)
    control.fail("refresh", SystemFailure("cannot read", 5))
    assert peer.error(rpc.POOL_REFRESH, pool, 0).code == 38
    eventually(lambda: len(peer.told) > 0)
    assert [event.event for event in peer.events()] == [Lifecycle.STOPPED]
