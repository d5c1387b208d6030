"""What a link does on a thread of its own: events, signs of life, calls that nobody waits for."""

from __future__ import annotations

import threading
import time

import pytest

from storaged.client.link import CloseReason, RemoteFailure
from storaged.rpc import extension, remote, storage
from storaged.rpc.keepalive import PING, PONG
from storaged.rpc.record import Void
from tests.client.scripted import POOL, Peer, failure, linked, until


def test_events_between_replies_in_order() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        for number in range(50):
            peer.tell(storage.EVENT_LIFECYCLE, storage.LifecycleEvent(0, POOL, number, 0))
        peer.answer(call, storage.Count(1))
        peer.tell(storage.EVENT_REFRESH, storage.RefreshEvent(1, POOL))
        peer.end()

    told: list[object] = []
    with linked(script) as link:
        forget = link.on_event(lambda _, record: told.append(record))
        link.call(storage.NUM_OF_POOLS, Void())
        until(lambda: len(told) == 51)
        forget()
    assert told[:50] == [storage.LifecycleEvent(0, POOL, number, 0) for number in range(50)]
    assert told[50] == storage.RefreshEvent(1, POOL)


def test_event_callback_may_call() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        peer.tell(storage.EVENT_REFRESH, storage.RefreshEvent(1, POOL))
        call = peer.expect(storage.NUM_OF_POOLS)
        peer.tell(storage.EVENT_REFRESH, storage.RefreshEvent(2, POOL))
        peer.answer(call, storage.Count(5))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(6))
        peer.end()

    counts: list[tuple[int, int]] = []
    with linked(script) as link:

        def count(_procedure: object, record: object) -> None:
            assert isinstance(record, storage.RefreshEvent)
            counts.append((record.callback_id, link.call(storage.NUM_OF_POOLS, Void()).num))

        link.on_event(count)
        link.call(storage.NUM_OF_POOLS, Void())
        until(lambda: len(counts) == 2)
    assert counts == [(1, 5), (2, 6)]


def test_event_callback_may_wait_for_another_thread_that_calls() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        peer.tell(storage.EVENT_REFRESH, storage.RefreshEvent(1, POOL))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(2))
        peer.end()

    called, waited = threading.Event(), threading.Event()
    with linked(script) as link:

        def wait(*_: object) -> None:
            called.set()
            waited.wait(20)

        link.on_event(wait)
        link.call(storage.NUM_OF_POOLS, Void())
        assert called.wait(20)
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 2
        waited.set()


def test_failing_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(1))
        for number in range(2):
            peer.tell(storage.EVENT_REFRESH, storage.RefreshEvent(number, POOL))
        peer.end()

    told: list[object] = []
    with linked(script) as link:

        def fail(_procedure: object, record: object) -> None:
            told.append(record)
            raise ValueError("boom")

        link.on_event(fail)
        link.call(storage.NUM_OF_POOLS, Void())
        until(lambda: len(told) == 2)
    assert "boom" in caplog.text


def test_ping_is_answered() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        peer.socket.sendall(PING)
        assert peer._exactly(len(PONG)) == PONG
        peer.answer(call, storage.Count(1))
        peer.end()

    with linked(script) as link:
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 1


@pytest.mark.slow
def test_keepalive_gives_up() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(remote.SUPPORTS_FEATURE)
        assert remote.FeatureArgs.unpack(call.payload).feature == 10
        peer.answer(call, remote.FeatureRet(1))
        peer.expect_ping()
        peer.expect_ping()
        with pytest.raises(EOFError):
            peer.take()

    reasons: list[int] = []
    with linked(script) as link:
        link.on_close(reasons.append)
        link.keepalive(1, 2)
        waiting = time.monotonic()
        until(lambda: reasons)
        assert 2.5 < time.monotonic() - waiting < 10
        assert failure(link).message == "internal error: client socket is closed"
    assert reasons == [CloseReason.KEEPALIVE]


def test_keepalive_that_is_not_served() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(remote.SUPPORTS_FEATURE), remote.FeatureRet(0))
        peer.end()

    with linked(script) as link:
        with pytest.raises(RemoteFailure) as caught:
            link.keepalive(5, 5)
        assert caught.value.error.code == 3


def test_begin() -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        assert go.wait(20)
        peer.answer(call, storage.Count(4))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(5))
        peer.end()

    done: list[int] = []
    with linked(script) as link:
        pending = link.begin(storage.NUM_OF_POOLS, Void())
        assert not pending.wait(0.05)
        pending.on_done(lambda: done.append(1))
        assert done == []
        go.set()
        until(lambda: done)
        assert pending.wait(0)
        assert pending.result().num == 4
        pending.on_done(lambda: done.append(2))
        assert done == [1, 2]
        assert link.begin(storage.NUM_OF_POOLS, Void()).result(20).num == 5


def test_begin_and_look_again() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(4))
        peer.end()

    with linked(script) as link:
        pending = link.begin(storage.NUM_OF_POOLS, Void())
        until(lambda: pending.wait(0))
        assert pending.result(0).num == 4


def test_timeout_while_our_thread_reads() -> None:
    def script(peer: Peer) -> None:
        peer.expect(storage.NUM_OF_POOLS)
        peer.end()

    with linked(script) as link:
        link.on_event(lambda *_: None)
        assert failure(link, timeout=0.05).code == 68


def test_has_extension_is_asked_once() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(extension.HELLO), extension.HelloRet("1", 1))
        peer.end()

    with linked(script) as link:
        assert link.has_extension()
        assert link.has_extension()


def test_own_close_is_not_mourned() -> None:
    """The daemon hangs up right after its reply to the good-bye, which our thread sees first."""
    reasons: list[int] = []
    for _ in range(20):
        with linked(Peer.end) as link:
            link.on_close(reasons.append)
    assert reasons == []
