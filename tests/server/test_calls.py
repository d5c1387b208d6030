"""Calls as clients of all kinds make them."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import Any

import pytest

from storaged.errors import Domain
from storaged.rpc import admin, extension, remote, storage
from storaged.rpc.errors import RPCError
from storaged.rpc.extension import Hello
from storaged.rpc.packet import Kind, Status, pack
from storaged.rpc.program import ADMIN, EXTENSION, KEEPALIVE, REMOTE, AnyProcedure, Procedure
from storaged.rpc.record import Record, Void
from storaged.rpc.storage import (
    EventRegisterArgs,
    Flags,
    ListPoolsArgs,
    Name,
    PoolArgs,
    PoolFlagsArgs,
    PoolXMLArgs,
    VolFlagsArgs,
)
from storaged.server.limits import Bounds, ServerLimits
from storaged.server.server import Role, Server
from storaged.server.sockets import bind
from storaged.service import Identity
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon, Running, nothing_left
from tests.server.peer import Peer, Refusal, call, words

VOLUME = "<volume><name>{}</name><capacity>{}</capacity></volume>"


def create(peer: Peer, name: str, capacity: int = 4096) -> Any:
    args = PoolXMLArgs(peer.pool(), VOLUME.format(name, capacity))
    return peer.call(storage.VOL_CREATE_XML, args).vol


def test_read_only_socket(served: Daemon) -> None:
    create(served.connect().open(), "v")
    peer = served.connect("ro").open()
    pool, volume = peer.pool(), peer.volume("v")
    refused: list[tuple[AnyProcedure, Record]] = [
        (storage.POOL_DESTROY, PoolArgs(pool)),
        (storage.VOL_DELETE, VolFlagsArgs(volume)),
        (storage.VOL_CREATE_XML, PoolXMLArgs(pool, VOLUME.format("w", 1))),
    ]
    for procedure, args in refused:
        with pytest.raises(Refusal) as caught:
            peer.call(procedure, args)
        assert (caught.value.code, caught.value.domain) == (29, Domain.STORAGE)
        assert caught.value.message == (
            f"operation forbidden: read only access prevents {procedure.name}"
        )
    assert peer.call(storage.POOL_GET_INFO, PoolArgs(pool)).state == 2


def test_replies_out_of_order(served: Daemon) -> None:
    """While a volume is made, it is looked up and asked about on the same connection."""
    peer = served.connect().open()
    pool = peer.pool()
    served.control.hold("create")
    creating = peer.begin(storage.VOL_CREATE_XML, PoolXMLArgs(pool, VOLUME.format("v", 4096)))
    served.control.wait_for("create")
    with promptly():
        for _ in range(20):
            assert peer.volume("v").name == "v"
    served.control.release("create")
    assert peer.reply(creating, storage.VOL_CREATE_XML).vol.name == "v"


def test_calls_above_the_limit_wait_and_pings_do_not(daemon: Daemon) -> None:
    daemon.pool()
    running = daemon.serve(limits=ServerLimits(max_client_requests=3))
    peer = daemon.connect().open()
    pool = peer.pool()
    daemon.control.hold("create")
    made = [
        peer.begin(storage.VOL_CREATE_XML, PoolXMLArgs(pool, VOLUME.format(f"v{number}", 4096)))
        for number in range(3)
    ]
    daemon.control.wait_for("create", 3)
    waiting = peer.begin(storage.POOL_GET_INFO, PoolArgs(pool))
    assert peer.silent()
    peer.send(bytes.fromhex("0000001c6b6565700000000100000001000000020000000000000000"))
    assert peer.receive()[0].program == KEEPALIVE
    with promptly():
        assert daemon.connect().open().pool() == pool
    daemon.control.release("create")
    for serial in made:
        peer.reply(serial, storage.VOL_CREATE_XML)
    assert peer.reply(waiting, storage.POOL_GET_INFO).state == 2
    # a thread counts a call as answered a moment after the client has the reply
    eventually(lambda: not any(c.calls.in_progress for c in running.server._clients.values()))


def test_flood_of_calls(daemon: Daemon) -> None:
    """Ten thousand calls at once are all answered; meanwhile another client is, too."""
    daemon.pool()
    daemon.serve()
    flooding, other = daemon.connect().open(), daemon.connect().open()
    args = PoolArgs(other.pool())
    flood = b"".join(call(storage.POOL_GET_INFO, args, 100 + number) for number in range(10_000))
    flooding.socket.setblocking(False)
    sent = flooding.socket.send(flood)
    for _ in range(10):
        with promptly(0.5):
            other.call(storage.POOL_GET_INFO, args)
    flooding.socket.settimeout(20)
    seen: set[int] = set()

    feeder = threading.Thread(target=lambda: flooding.socket.sendall(flood[sent:]))
    feeder.start()
    while len(seen) < 10_000:
        header, _ = flooding.receive()
        seen.add(header.serial)
    feeder.join()
    assert seen == set(range(100, 10_100))


def test_who_does_not_read_is_not_served_on(daemon: Daemon) -> None:
    """Replies that nobody fetches pile up to a bound, and others are not slowed by that."""
    daemon.pool()
    daemon.serve(Bounds(unsent=64 << 10, backlog=64 << 10))
    lazy, other = daemon.connect().open(), daemon.connect().open()
    args = ListPoolsArgs(1)
    lazy.socket.settimeout(0.5)
    asked = call(storage.POOL_GET_XML_DESC, PoolFlagsArgs(other.pool())) * 100_000
    with pytest.raises(TimeoutError):
        lazy.send(asked)
    client = next(iter(daemon.server._clients.values()))
    eventually(lambda: client.full and client.calls.in_progress == 1)
    before = daemon.server.counts.calls
    with promptly():
        for _ in range(100):
            other.call(storage.LIST_ALL_POOLS, args)
    assert daemon.server.counts.calls - before == 100
    lazy.close()
    other.close()
    eventually(daemon.rests)


def test_large_list_is_made_on_a_thread(daemon: Daemon) -> None:
    target = daemon.pool(kind="dir")
    for number in range(300):
        (target / f"v{number}").touch()
    daemon.refresh()
    daemon.serve()
    peer = daemon.connect().open()
    found = peer.call(storage.POOL_LIST_ALL_VOLUMES, storage.ListVolsArgs(peer.pool(), 1))
    assert found.ret == len(found.vols) == 300


def test_error_that_is_too_long_is_cut(served: Daemon) -> None:
    peer = served.connect().open()
    with pytest.raises(Refusal) as caught:
        peer.call(storage.POOL_LOOKUP_BY_NAME, Name("x" * (4 << 20)))
    assert caught.value.code == 49
    assert len(caught.value.message or "") <= 1 << 20
    assert peer.pool().name == "p"


def test_a_bug_is_logged_and_the_connection_lives(
    served: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    peer = served.connect().open()
    pool = peer.pool()
    with monkeypatch.context() as patch:
        patch.setattr(served.driver, "pool_info", fail)
        patch.setattr(served.driver, "volume_list", fail, raising=False)
        with pytest.raises(Refusal) as caught:
            peer.call(storage.POOL_GET_INFO, PoolArgs(pool))
    assert (caught.value.code, caught.value.domain) == (1, 7)
    assert "a bug" in caplog.text
    assert peer.call(storage.POOL_GET_INFO, PoolArgs(pool)).state == 2


def test_extension_carries_class_and_advice(served: Daemon) -> None:
    peer = served.connect().open()
    assert peer.call(extension.HELLO, Hello("test")).level >= 1
    inner = extension.CallArgs(84, Name("nobody").pack())
    with pytest.raises(Refusal) as caught:
        peer.call(extension.CALL, inner)
    assert caught.value.code == 49
    assert caught.value.error.str1 == "NoSuchPool"
    unknown = Procedure(999, "none", Void, Void, program=EXTENSION)
    with pytest.raises(Refusal) as caught:
        peer.call(unknown)
    assert (caught.value.code, caught.value.domain) == (39, 7)


def test_descriptors_are_taken_and_dropped(served: Daemon) -> None:
    peer = served.connect().open()
    with nothing_left_but(served):
        payload = words(2) + Name("p").pack()
        peer.send(pack(REMOTE, 84, Kind.CALL_WITH_FDS, 60, payload=payload))
        for _ in range(2):
            socket.send_fds(peer.socket, [b"\0"], [0])
        assert peer.reply(60, storage.POOL_LOOKUP_BY_NAME).pool.name == "p"
        assert peer.pool().name == "p"
    peer.send(pack(REMOTE, 84, Kind.CALL_WITH_FDS, 61, payload=words(33)))
    assert peer.hung_up()


def nothing_left_but(daemon: Daemon) -> Any:
    from contextlib import contextmanager

    from tests.server.conftest import descriptors

    @contextmanager
    def same() -> Any:
        before = descriptors()
        yield
        assert descriptors() == before

    return same()


def test_close_is_answered_first(served: Daemon) -> None:
    with nothing_left(served):
        peer = served.connect()
        peer.send(call(remote.CLOSE) + call(remote.AUTH_LIST, None, 1))
        header, _ = peer.receive()
        assert (header.procedure, header.status) == (2, Status.OK)
        with pytest.raises(EOFError):
            peer.receive()  # what comes behind a CLOSE is not served
        peer.close()


def test_dropped_in_the_middle_of_calls(served: Daemon) -> None:
    """The job of a client that is gone is cancelled, and nothing is left of it."""
    with nothing_left(served):
        peer = served.connect().open()
        pool = peer.pool()
        served.control.hold("create", lively=True)
        peer.begin(storage.VOL_CREATE_XML, PoolXMLArgs(pool, VOLUME.format("v", 4096)))
        served.control.wait_for("create")
        peer.send(call(storage.POOL_GET_INFO, PoolArgs(pool))[:20])
        peer.close()
        eventually(lambda: not served.driver.jobs())
    assert [entry.name for entry in (served.root / "pool-p").iterdir()] == []


def test_many_connections_one_after_another(served: Daemon) -> None:
    with nothing_left(served):
        for _ in range(44):
            with served.connect() as peer:
                peer.open()
                assert peer.call(storage.LIST_ALL_POOLS, ListPoolsArgs(1)).ret == 1


class Administration:
    """An administration that only counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def session(self, identity: Identity) -> Administration:
        return self

    def procedure(self, program: int, number: int) -> AnyProcedure:
        if program != ADMIN or number not in admin.PROCEDURES:
            raise RPCError("unknown procedure: {number}")
        return admin.PROCEDURES[number]

    def ready(self, procedure: AnyProcedure, args: Record) -> bool:
        return procedure is admin.OPEN

    def call(self, procedure: AnyProcedure, args: Record) -> Record:
        self.calls.append(procedure.name)
        return Void() if procedure is admin.OPEN else admin.LibVersion(9_000_000)

    def close(self) -> None:
        self.calls.append("closed")


def test_role_admin(daemon: Daemon) -> None:
    made = Administration()
    running = Running(lambda: Server("admin", ServerLimits(), admin=made), daemon.root)
    daemon.running.append(running)
    running.listen("admin", Role.ADMIN)
    running.start()
    peer = daemon.connect("admin")
    peer.call(admin.OPEN, Flags())
    assert peer.call(admin.GET_LIB_VERSION).version == 9_000_000
    with pytest.raises(Refusal):
        peer.call(remote.AUTH_LIST)
    peer.call(admin.CLOSE)
    assert peer.hung_up()
    eventually(lambda: made.calls[-1] == "closed")
    with (
        closing(bind(daemon.root / "rw", mode=0o700)) as bound,
        pytest.raises(ValueError, match="rw"),
    ):
        running.adopt(bound, Role.READ_WRITE)


def test_events_come_after_the_reply(served: Daemon) -> None:
    peer = served.connect().open()
    for _ in range(20):
        serial = peer.begin(storage.EVENT_REGISTER, EventRegisterArgs(1, None))
        served.driver.pool_refresh(served.driver.pool_lookup_by_name("p"))
        header, payload = peer.receive()
        assert (header.kind, header.serial) == (Kind.REPLY, serial)
        identifier = storage.CallbackId.unpack(payload)
        deregistered = peer.begin(storage.EVENT_DEREGISTER, identifier)
        peer.reply(deregistered, storage.EVENT_DEREGISTER)
        while not peer.silent(0.02):
            pass
