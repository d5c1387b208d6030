"""A link against a daemon that is played: what real ones do rarely, or never should."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.client.link import CloseReason, RemoteFailure
from storaged.client.socketlink import SocketLink
from storaged.client.transport import Transport
from storaged.errors import Domain
from storaged.rpc import remote, storage
from storaged.rpc.packet import Kind, Status, pack, reply
from storaged.rpc.program import REMOTE
from storaged.rpc.record import Void
from storaged.rpc.remoteerror import RemoteError
from tests.client.scripted import Peer, failure, linked, played, press_ctrl_c, until


def test_prologue() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(remote.AUTH_LIST)
        assert call.header.serial == 0
        peer.answer(call, remote.AuthListRet((remote.AuthType.POLKIT,)))
        peer.answer(peer.expect(remote.AUTH_POLKIT), remote.AuthPolkitRet(1))
        call = peer.expect(remote.OPEN)
        assert remote.OpenArgs.unpack(call.payload) == remote.OpenArgs("storage:///system", 1)
        peer.answer(call)
        for feature in (14, 15):
            call = peer.expect(remote.SUPPORTS_FEATURE)
            assert remote.FeatureArgs.unpack(call.payload).feature == feature
            peer.answer(call, remote.FeatureRet(1))
        peer.end()

    with played(script, begin=False) as sock:
        link = SocketLink(Transport(sock), "storage:///system", uri="here", readonly=True)
        assert (link.uri, link.readonly, link.alive) == ("here", True, True)
        assert (link.secure, link.encrypted) == (True, False)
        link.close()
        link.close()
        assert not link.alive


def test_refused_authentication() -> None:
    denied = RemoteError(45, 7, "authentication failed: not you")

    def script(peer: Peer) -> None:
        peer.answer(peer.expect(remote.AUTH_LIST), remote.AuthListRet((remote.AuthType.POLKIT,)))
        peer.refuse(peer.expect(remote.AUTH_POLKIT), denied)
        with pytest.raises(EOFError):
            peer.take()

    with played(script, begin=False) as sock, pytest.raises(RemoteFailure) as caught:
        SocketLink(Transport(sock), "storage:///system")
    assert caught.value.error == denied


def test_sasl_is_not_spoken() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.expect(remote.AUTH_LIST), remote.AuthListRet((remote.AuthType.SASL,)))

    with (
        played(script, begin=False) as sock,
        pytest.raises(RemoteFailure, match="type 1") as caught,
    ):
        SocketLink(Transport(sock), "storage:///system")
    assert caught.value.error.code == 45


def test_replies_out_of_order() -> None:
    def script(peer: Peer) -> None:
        calls = [peer.expect(storage.POOL_LOOKUP_BY_NAME) for _ in range(8)]
        assert len({call.header.serial for call in calls}) == 8
        for call in reversed(calls):
            name = storage.Name.unpack(call.payload).name
            peer.answer(call, storage.PoolRet(storage.StoragePool(name, bytes(16))))
        peer.end()

    found: dict[str, str] = {}

    def call(name: str) -> None:
        found[name] = link.call(storage.POOL_LOOKUP_BY_NAME, storage.Name(name)).pool.name

    with linked(script) as link:
        names = [f"pool{number}" for number in range(8)]
        threads = [threading.Thread(target=call, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {name: name for name in names}


def test_unknown_packets_are_ignored() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        header, payload = call.header, storage.Count(7).pack()
        for other in (
            header._replace(serial=header.serial + 1),
            header._replace(program=1),
            header._replace(version=2),
        ):
            peer.socket.sendall(reply(other, payload))
        peer.socket.sendall(pack(REMOTE, 71, Kind.CALL, header.serial))
        peer.socket.sendall(pack(REMOTE, 71, 9, header.serial))
        peer.socket.sendall(pack(REMOTE, 208, Kind.STREAM, 77, Status.OK))
        peer.socket.sendall(pack(REMOTE, 5000, Kind.MESSAGE, 0))
        peer.socket.sendall(pack(REMOTE, 370, Kind.MESSAGE, 0, 0, b"short"))
        peer.socket.sendall(pack(REMOTE, 71, Kind.MESSAGE, 0))  # no event
        peer.answer(call, storage.Count(3))
        peer.end()

    told: list[object] = []
    with linked(script) as link:
        link.on_event(lambda *args: told.append(args))
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 3
    assert told == []


def test_reply_of_another_procedure() -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        peer.socket.sendall(reply(call.header._replace(procedure=73), storage.Count(7).pack()))
        peer.end()

    with linked(script) as link:
        assert failure(link).code == 39


def test_reply_that_cannot_be_read() -> None:
    def script(peer: Peer) -> None:
        peer.socket.sendall(reply(peer.expect(storage.NUM_OF_POOLS).header, b"\0"))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(3))
        peer.end()

    with linked(script) as link:
        error = failure(link)
        assert (error.code, error.domain) == (39, Domain.RPC)
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 3


def test_call_that_cannot_be_written() -> None:
    with linked(Peer.end) as link:
        with pytest.raises(RemoteFailure) as caught:
            link.call(storage.POOL_LOOKUP_BY_NAME, storage.Name("x" * (5 << 20)))
        assert caught.value.error.code == 39


def test_errors_are_those_of_the_other_side() -> None:
    sent = RemoteError(49, 18, "Storage pool not found: x", str1="a", str2="b", int1=3, int2=4)

    def script(peer: Peer) -> None:
        peer.refuse(peer.expect(storage.NUM_OF_POOLS), sent)
        peer.end()

    with linked(script) as link:
        assert failure(link) == sent


@pytest.mark.parametrize("length", [0, 3, 27, 33_554_433 + 4, 0xFFFFFFFF])
def test_impossible_length(length: int) -> None:
    def script(peer: Peer) -> None:
        peer.expect(storage.NUM_OF_POOLS)
        peer.socket.sendall(struct.pack(">I", length) + bytes(24))

    with linked(script) as link:
        assert failure(link).code == 39
        assert not link.alive
        assert failure(link).message == "internal error: client socket is closed"


@pytest.mark.parametrize("sent", [0, 3, 12, 30])
def test_daemon_dies_in_the_middle(sent: int) -> None:
    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        peer.socket.sendall(reply(call.header, storage.Count(3).pack())[:sent])

    reasons: list[int] = []
    with linked(script) as link:
        link.on_close(reasons.append)
        error = failure(link)
        assert (error.code, error.domain, error.int1) == (38, Domain.RPC, 5)
        assert error.message == "End of file while reading data: Input/output error"
        error = failure(link)
        assert (error.code, error.domain) == (1, Domain.RPC)
        assert error.message == "internal error: client socket is closed"
        until(lambda: reasons)
    assert reasons == [CloseReason.EOF]


def test_daemon_dies_before_it_reads() -> None:
    sent = threading.Event()

    def script(_peer: Peer) -> None:
        assert sent.wait(20)

    with linked(script) as link:
        pending = link.begin(storage.NUM_OF_POOLS, Void())
        sent.set()
        with pytest.raises(RemoteFailure) as caught:
            pending.result(20)
        assert str(caught.value) == "Cannot recv data: Connection reset by peer"
        assert (caught.value.error.code, caught.value.error.int1) == (38, 104)


def test_daemon_is_gone_before_the_call() -> None:
    with linked(lambda _peer: None) as link:
        until(lambda: link._transport.socket.recv(1, socket.MSG_PEEK) == b"")
        error = failure(link)
        assert (error.code, error.domain, error.int1) == (38, Domain.RPC, 32)
        assert error.message == "Cannot write data: Broken pipe"
        assert failure(link).message == "internal error: client socket is closed"


def test_all_waiting_fail_with_the_connection() -> None:
    def script(peer: Peer) -> None:
        for _ in range(5):
            peer.expect(storage.NUM_OF_POOLS)

    errors: list[RemoteError] = []
    with linked(script) as link:
        threads = [threading.Thread(target=lambda: errors.append(failure(link))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert [error.code for error in errors] == [38] * 5


def test_timeout_and_the_late_reply() -> None:
    late = threading.Event()

    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        assert late.wait(20)
        peer.answer(call, storage.Count(1))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(2))
        peer.end()

    with linked(script) as link:
        assert failure(link, timeout=0.05).code == 68
        late.set()
        assert link.call(storage.NUM_OF_POOLS, Void(), timeout=20).num == 2


def test_daemon_that_does_not_answer_the_good_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storaged.client.socketlink._CLOSE_TIMEOUT", 0.1)

    def script(peer: Peer) -> None:
        peer.expect(remote.CLOSE)
        with pytest.raises(EOFError):
            peer.take()

    reasons: list[int] = []
    with linked(script) as link:
        link.on_close(reasons.append)
    assert reasons == []


def test_close_fails_those_who_wait() -> None:
    def script(peer: Peer) -> None:
        peer.expect(storage.NUM_OF_POOLS)
        peer.answer(peer.expect(remote.CLOSE))
        with pytest.raises(EOFError):
            peer.take()

    errors: list[RemoteError] = []
    with linked(script) as link:
        thread = threading.Thread(target=lambda: errors.append(failure(link)))
        thread.start()
        until(lambda: link._calls)
        time.sleep(0.02)
        link.close()
        thread.join(20)
    assert [error.message for error in errors] == ["internal error: client socket is closed"]


def test_interrupted_call_leaves_the_link_in_order() -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        assert go.wait(20)
        peer.answer(call, storage.Count(1))
        peer.answer(peer.expect(storage.NUM_OF_POOLS), storage.Count(2))
        peer.end()

    with linked(script) as link:
        timer = threading.Timer(0.2, press_ctrl_c)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            link.call(storage.NUM_OF_POOLS, Void())
        timer.join()
        go.set()
        assert link.call(storage.NUM_OF_POOLS, Void()).num == 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 40))
def test_garbage(garbage: bytes, head: int) -> None:
    """Whatever comes, the call fails with an error, and nothing hangs."""

    def script(peer: Peer) -> None:
        call = peer.expect(storage.NUM_OF_POOLS)
        right = reply(call.header, storage.Count(3).pack())
        peer.socket.sendall(right[:head] + garbage)

    with linked(script) as link:
        try:
            answer = link.call(storage.NUM_OF_POOLS, Void())
        except RemoteFailure as err:
            assert err.error.message  # noqa: PT017 -- a chance that it is understood is left
        else:
            assert isinstance(answer, storage.Count)
