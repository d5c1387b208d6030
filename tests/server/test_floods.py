"""Clients that ask for much and take nothing: what they cost is bounded."""

from __future__ import annotations

import threading

import pytest

from storaged.rpc import remote, storage
from storaged.rpc.keepalive import PING
from storaged.rpc.packet import Status
from storaged.rpc.program import AnyProcedure
from storaged.rpc.remote import AuthType
from storaged.rpc.storage import ListVolsArgs, PoolFlagsArgs, StorageVol, VolArgs
from storaged.server.limits import Bounds, ServerLimits
from storaged.service import Identity
from tests.doubles import PATIENCE, eventually
from tests.server.conftest import Daemon
from tests.server.peer import Refusal
from tests.server.test_hostile import Asked, ordinary


def test_pongs_for_who_does_not_read(daemon: Daemon) -> None:
    daemon.serve(Bounds(unsent=64 << 10))
    peer = daemon.connect()
    for _ in range(64):
        peer.send(PING * 4096)  # 7 MiB in all
    client = next(iter(daemon.server._clients.values()))
    transport = client._transport
    assert transport is not None
    eventually(lambda: client.full)
    assert transport.get_write_buffer_size() < 1 << 20
    other = daemon.connect().open()
    assert other.call(remote.GET_TYPE).type == "storage"


def test_questions_of_clients_that_are_gone_still_count(daemon: Daemon) -> None:
    asked, answer = Asked(), threading.Event()
    check, begun = asked.check, threading.Semaphore(0)

    def thoughtful(identity: Identity, *, readonly: bool) -> None:
        begun.release()
        answer.wait(PATIENCE)
        check(identity, readonly=readonly)

    asked.check = thoughtful  # type: ignore[method-assign]
    limits = ServerLimits(max_anonymous_clients=3)
    daemon.serve(limits=limits, auth=AuthType.POLKIT, authority=asked, identify=ordinary)
    for _ in range(3):
        peer = daemon.connect()
        peer.begin(remote.AUTH_POLKIT)
        assert begun.acquire(timeout=PATIENCE)
        peer.close()
    eventually(lambda: not daemon.server._clients)
    assert daemon.server.anonymous() == 3
    assert not daemon.server.accepting
    answer.set()
    eventually(lambda: daemon.server.anonymous() == 0)
    assert daemon.server.accepting
    peer = daemon.connect()
    assert peer.call(remote.AUTH_POLKIT).complete == 1


def test_no_limit_of_anonymous_clients(daemon: Daemon) -> None:
    limits = ServerLimits(max_anonymous_clients=0)
    daemon.serve(limits=limits, auth=AuthType.POLKIT, authority=Asked(), identify=ordinary)
    peers = [daemon.connect() for _ in range(30)]
    assert all(peer.call(remote.AUTH_LIST).types == (2,) for peer in peers)


def test_a_reply_that_cannot_be_made_is_an_error(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies are made on the threads of jobs; what goes wrong there reaches the client."""

    def broken(*_arguments: object, **_options: object) -> None:
        raise KeyError("a bug")

    (daemon.pool() / "v").write_bytes(b"x")
    daemon.serve(limits=ServerLimits(max_client_requests=1))
    peer = daemon.connect().open()
    vol = StorageVol("p", "v", "")
    peer.call(storage.POOL_REFRESH, PoolFlagsArgs(peer.pool(), 0))
    monkeypatch.setattr("storaged.service.volumes.volume_info", broken)
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            peer.call(storage.VOL_GET_INFO, VolArgs(vol))
        assert (caught.value.code, caught.value.domain) == (1, 7)
    assert peer.call(storage.VOL_GET_PATH, VolArgs(vol)).name.endswith("/v")


def test_replies_of_threads_between_much_else(daemon: Daemon) -> None:
    """Whoever sends, packets come whole."""
    (daemon.pool() / "v").write_bytes(b"x")
    for number in range(200):
        (daemon.root / "pool-p" / f"other-{number}").touch()
    daemon.serve(Bounds(unsent=32 << 10), limits=ServerLimits(max_client_requests=50))
    peer = daemon.connect().open()
    pool, vol = peer.pool(), StorageVol("p", "v", "")
    peer.call(storage.POOL_REFRESH, PoolFlagsArgs(pool, 0))
    for _ in range(20):
        wanted: dict[int, AnyProcedure] = {}
        for _ in range(40):
            wanted[peer.begin(storage.VOL_GET_INFO, VolArgs(vol))] = storage.VOL_GET_INFO
            listing = storage.POOL_LIST_ALL_VOLUMES
            wanted[peer.begin(listing, ListVolsArgs(pool, 1))] = listing
        while wanted:
            header, payload = peer.receive()
            assert header.status == Status.OK
            procedure = wanted.pop(header.serial)
            assert procedure.number == header.procedure
            assert len(procedure.ret.unpack(payload).pack()) == len(payload)
