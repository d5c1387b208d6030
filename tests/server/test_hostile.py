"""Peers that break the rules, dribble, or keep silent: they get an error or are hung up on."""

from __future__ import annotations

import random
import resource
import struct
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc import remote, storage
from storaged.rpc.errors import AuthFailed, RPCError
from storaged.rpc.keepalive import PING, PONG
from storaged.rpc.packet import PACKET_MAX, Kind, Status, pack
from storaged.rpc.program import KEEPALIVE, REMOTE
from storaged.rpc.remote import AuthType, FeatureArgs
from storaged.rpc.storage import ListPoolsArgs, PoolArgs
from storaged.server.limits import Bounds, ServerLimits
from storaged.service import Identity
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon, nothing_left
from tests.server.peer import Peer, Refusal, call, words

QUICK = Bounds(tick=0.02, message_time=0.2, message_rate=1 << 20, anonymous_time=0.3)


@pytest.mark.parametrize("length", [*range(28), PACKET_MAX + 5, 0x7FFFFFFF, 0xFFFFFFFF])
def test_lengths_that_no_packet_has(served: Daemon, length: int) -> None:
    peer = served.connect()
    peer.send(words(length) + bytes(24))
    assert peer.hung_up(5)


def test_longest_packet(served: Daemon) -> None:
    peer = served.connect().open()
    payload = storage.Name("p").pack()
    payload += bytes(PACKET_MAX - 24 - len(payload))
    peer.send(pack(REMOTE, 84, Kind.CALL, 9, payload=payload))
    assert peer.reply(9, storage.POOL_LOOKUP_BY_NAME).pool.name == "p"


def test_cut_off_at_every_byte(served: Daemon) -> None:
    whole = call(remote.OPEN, remote.OpenArgs("storage:///system", 0))
    with nothing_left(served):
        for at in range(len(whole)):
            with served.connect() as peer:
                peer.send(whole[:at])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(remote.PROCEDURES)), st.binary(max_size=80))
def test_any_arguments_are_decoded_or_refused(number: int, payload: bytes) -> None:
    with suppress(RPCError):
        remote.PROCEDURES[number].args.unpack(payload)


def test_garbage_over_the_wire(served: Daemon) -> None:
    """A connection that gets nonsense as arguments answers each and lives."""
    chance = random.Random(7)
    peer = served.connect().open()
    harmless = [number for number in remote.PROCEDURES if number not in (2, 76, 77, 93, 125)]
    for serial in range(1000, 1600):
        number = chance.choice(harmless)
        payload = chance.randbytes(chance.choice((0, 3, 4, 24, 60)))
        peer.send(pack(REMOTE, number, Kind.CALL, serial, payload=payload))
        while True:
            header, _ = peer.receive()
            if header.kind == Kind.REPLY:
                break
        assert (header.procedure, header.serial) == (number, serial)
    assert peer.pool().name == "p"


def test_noise(served: Daemon) -> None:
    chance = random.Random(8)
    with nothing_left(served):
        for _ in range(50):
            with served.connect() as peer:
                peer.send(chance.randbytes(200))
    assert served.connect().open().pool().name == "p"


def test_huge_counts_take_no_memory(served: Daemon) -> None:
    peer = served.connect().open()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for payload in (words(0xFFFFFFFF), words(20, 0x7FFFFFFF), words(4 << 20) + b"x" * 100):
        peer.send(pack(REMOTE, 419, Kind.CALL, 70, payload=payload))
        with pytest.raises(Refusal) as caught:
            peer.reply(70, remote.SET_IDENTITY)
        assert (caught.value.code, caught.value.domain) == (39, 7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_one_byte_now_and_then(daemon: Daemon) -> None:
    """A message must be whole in time, however alive the peer shows itself."""
    daemon.pool()
    daemon.serve(QUICK)
    peer, other = daemon.connect().open(), daemon.connect().open()
    before = time.monotonic()
    dribbled = call(storage.LIST_ALL_POOLS, ListPoolsArgs(1))
    with suppress(ConnectionError):
        for byte in dribbled:
            peer.send(bytes([byte]))
            time.sleep(0.02)
    assert peer.hung_up()
    assert time.monotonic() - before < 5
    assert other.pool().name == "p"


@pytest.mark.parametrize("sent", [1, 4, 27, 28, 40])
def test_half_a_message(daemon: Daemon, sent: int) -> None:
    daemon.serve(QUICK)
    peer = daemon.connect()
    message = pack(REMOTE, 84, Kind.CALL, 0, payload=bytes(100))
    peer.send(call(remote.AUTH_LIST) + message[:sent])
    peer.receive()
    before = time.monotonic()
    assert peer.hung_up(5)
    assert time.monotonic() - before > 0.1


def test_long_messages_have_more_time(daemon: Daemon) -> None:
    daemon.pool()
    daemon.serve(Bounds(tick=0.02, message_time=0.1, message_rate=1 << 20))
    peer = daemon.connect().open()
    message = pack(REMOTE, 84, Kind.CALL, 3, payload=storage.Name("p").pack() + bytes(1 << 20))
    peer.send(message[: 1 << 19])
    time.sleep(0.5)
    peer.send(message[1 << 19 :])
    assert peer.reply(3, storage.POOL_LOOKUP_BY_NAME).pool.name == "p"


def test_silence_is_no_crime(daemon: Daemon) -> None:
    daemon.serve(QUICK)
    peer = daemon.connect().open()
    time.sleep(1)
    assert peer.call(storage.LIST_ALL_POOLS, ListPoolsArgs(1)).ret == 0


def test_budget_of_incomplete_messages(daemon: Daemon) -> None:
    """Who keeps the most is hung up on when all exceed what they may keep, not who comes last."""
    daemon.pool()
    daemon.serve(Bounds(partial=3 << 20))
    hoarder, other = daemon.connect().open(), daemon.connect().open()
    arguments = storage.Name("p").pack()
    hoarder.send(pack(REMOTE, 84, Kind.CALL, 3, payload=arguments + bytes(5 << 19))[:-1])
    eventually(lambda: daemon.server.partial > 2 << 20)
    message = pack(REMOTE, 84, Kind.CALL, 3, payload=arguments + bytes(1 << 20))
    other.send(message[:-1])
    assert hoarder.hung_up()
    other.send(message[-1:])
    assert other.reply(3, storage.POOL_LOOKUP_BY_NAME).pool.name == "p"
    eventually(lambda: daemon.server.partial == 0)


# Authentication


class Asked:
    """An authority that lets in whom the test says."""

    def __init__(self) -> None:
        self.allowed = True
        self.asked: list[tuple[int | None, bool]] = []

    def check(self, identity: Identity, *, readonly: bool) -> None:
        self.asked.append((identity.uid, readonly))
        if not self.allowed:
            raise AuthFailed("access denied by policy")


def ordinary(_connected: Any) -> Identity:
    return Identity(uid=1000, gid=1000, pid=1)


def test_polkit(daemon: Daemon) -> None:
    asked = Asked()
    daemon.serve(auth=AuthType.POLKIT, authority=asked, identify=ordinary)
    for name in ("rw", "ro"):
        peer = daemon.connect(name)
        refused: list[tuple[Any, Any]] = [
            (remote.OPEN, remote.OpenArgs("storage:///system", 0)),
            (remote.SUPPORTS_FEATURE, FeatureArgs(10)),
            (remote.CLOSE, None),
        ]
        for procedure, args in refused:
            with pytest.raises(Refusal) as caught:
                peer.call(procedure, args)
            assert (caught.value.code, caught.value.domain) == (39, 7)
            assert caught.value.message == "authentication required"
        peer.send(pack(REMOTE, 9999, Kind.CALL, 90))
        assert peer.receive()[0].status == Status.ERROR
        assert peer.call(remote.AUTH_LIST).types == (2,)
        asked.allowed = False
        with pytest.raises(Refusal) as caught:
            peer.call(remote.AUTH_POLKIT)
        assert (caught.value.code, caught.value.domain) == (45, 7)
        assert daemon.server.anonymous() == 1
        asked.allowed = True
        assert peer.call(remote.AUTH_POLKIT).complete == 1
        assert daemon.server.anonymous() == 0
        assert peer.call(remote.AUTH_LIST).types == (0,)
        with pytest.raises(Refusal) as caught:
            peer.call(remote.AUTH_POLKIT)
        assert caught.value.code == 45
        peer.open()
    assert asked.asked == [(1000, False)] * 2 + [(1000, True)] * 2


def test_a_person_may_think(daemon: Daemon) -> None:
    """Neither a time limit nor a second question comes in between."""
    asked, answer = Asked(), threading.Event()
    check = asked.check

    def thoughtful(identity: Identity, *, readonly: bool) -> None:
        answer.wait(20)
        check(identity, readonly=readonly)

    asked.check = thoughtful  # type: ignore[method-assign]
    daemon.serve(QUICK, auth=AuthType.POLKIT, authority=asked, identify=ordinary)
    peer = daemon.connect()
    serial = peer.begin(remote.AUTH_POLKIT)
    time.sleep(0.6)
    with pytest.raises(Refusal) as caught:
        peer.call(remote.AUTH_POLKIT)
    assert caught.value.code == 45
    answer.set()
    assert peer.reply(serial, remote.AUTH_POLKIT).complete == 1
    peer.send(bytes(2))
    assert peer.hung_up(5)  # its messages have time limits again


def test_superuser_need_not_be_asked_about(daemon: Daemon) -> None:
    superuser = Identity(uid=0, gid=0, pid=1, trusted=True)
    daemon.serve(auth=AuthType.POLKIT, authority=Asked(), identify=lambda _: superuser)
    peer = daemon.connect()
    with pytest.raises(Refusal):
        peer.open()
    assert peer.call(remote.AUTH_LIST).types == (0,)
    peer.open()


@pytest.mark.parametrize(
    "procedure", [remote.AUTH_SASL_INIT, remote.AUTH_SASL_START, remote.AUTH_SASL_STEP]
)
def test_sasl_is_on_no_socket(served: Daemon, procedure: Any) -> None:
    args = {
        remote.AUTH_SASL_START: remote.SaslStartArgs("PLAIN", 1, b""),
        remote.AUTH_SASL_STEP: remote.SaslStepArgs(1, b""),
    }
    with pytest.raises(Refusal) as caught:
        served.connect().call(procedure, args.get(procedure))
    assert (caught.value.code, caught.value.domain) == (45, 7)


def test_strangers_are_given_little(daemon: Daemon) -> None:
    """Small messages and little time, until they have proved who they are."""
    daemon.serve(QUICK, auth=AuthType.POLKIT, authority=Asked(), identify=ordinary)
    peer = daemon.connect()
    peer.send(words(256 * 1024 + 5) + bytes(24))
    assert peer.hung_up(5)
    peer = daemon.connect()
    before = time.monotonic()
    assert peer.hung_up(5)
    assert time.monotonic() - before > 0.2
    peer = daemon.connect()
    peer.call(remote.AUTH_POLKIT)
    time.sleep(0.5)
    peer.open()
    peer.send(pack(REMOTE, 84, Kind.CALL, 3, payload=storage.Name("p").pack() + bytes(1 << 20)))
    assert peer.receive()[0].serial == 3


def test_crowds_wait(daemon: Daemon) -> None:
    limits = ServerLimits(max_clients=4, max_anonymous_clients=2)
    daemon.serve(limits=limits, auth=AuthType.POLKIT, authority=Asked(), identify=ordinary)
    first, second = daemon.connect(), daemon.connect()
    eventually(lambda: daemon.server.anonymous() == 2)
    third = daemon.connect()
    third.send(call(remote.AUTH_LIST))
    assert third.silent()
    first.call(remote.AUTH_POLKIT)
    assert third.receive()[0].procedure == 66
    second.call(remote.AUTH_POLKIT)
    third.serial = 5
    third.call(remote.AUTH_POLKIT)
    fourth, fifth = daemon.connect(), daemon.connect()
    fourth.call(remote.AUTH_POLKIT)
    fifth.send(call(remote.AUTH_LIST))
    assert fifth.silent()
    assert len(daemon.server.clients()) == 4
    first.close()
    assert fifth.receive()[0].procedure == 66


# Keepalive


def beating(interval: float = 0.1, count: int = 2) -> ServerLimits:
    return ServerLimits(keepalive_interval=interval, keepalive_count=count)


def test_pings_are_answered_at_any_time(daemon: Daemon) -> None:
    daemon.serve(auth=AuthType.POLKIT, authority=Asked(), identify=ordinary)
    peer = daemon.connect()
    peer.send(PING)
    assert peer.receive()[0][:4] == (KEEPALIVE, 1, 2, Kind.MESSAGE)


def test_nobody_is_pinged_unasked(daemon: Daemon) -> None:
    daemon.serve(limits=beating(0.05))
    peer = daemon.connect().open()
    assert peer.silent(0.5)
    assert peer.call(storage.LIST_ALL_POOLS, ListPoolsArgs(1)).ret == 0


def test_who_asked_is_pinged_and_given_up(daemon: Daemon) -> None:
    daemon.serve(limits=beating())
    answering, dead = daemon.connect(), daemon.connect()
    for peer in (answering, dead):
        assert peer.call(remote.SUPPORTS_FEATURE, FeatureArgs(10)).supported == 1
    for _ in range(8):
        header, _ = answering.receive()
        assert header[:4] == (KEEPALIVE, 1, 1, Kind.MESSAGE)
        answering.send(PONG)
    answering.open()
    for _ in range(2):
        assert dead.receive()[0].program == KEEPALIVE
    with pytest.raises(EOFError):
        dead.receive()
    assert len(daemon.server.clients()) == 1


def test_no_keepalive_where_it_is_off(daemon: Daemon) -> None:
    daemon.serve(limits=beating(0))
    peer = daemon.connect()
    assert peer.call(remote.SUPPORTS_FEATURE, FeatureArgs(10)).supported == 1
    assert peer.silent(0.3)


# Others


def test_slow_reader_beside_a_fast_one(daemon: Daemon) -> None:
    target = daemon.pool()
    for number in range(2000):
        (target / f"volume-{number}").touch()
    daemon.refresh()
    daemon.serve()
    slow, fast = daemon.connect().open(), daemon.connect().open()
    pool = fast.pool()
    for serial in range(200):
        slow.serial = serial
        slow.begin(storage.POOL_LIST_ALL_VOLUMES, storage.ListVolsArgs(pool, 1))
    slowest = 0.0
    for _ in range(200):
        before = time.monotonic()
        fast.call(storage.POOL_GET_INFO, PoolArgs(pool))
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 0.5
    total = daemon.server.partial
    assert total < 256 << 10
    with promptly(20):
        for _ in range(200):
            slow.receive()


def test_all_at_once_leaves_nothing(served: Daemon) -> None:
    chance = random.Random(9)
    with nothing_left(served):
        peers = [served.connect() for _ in range(100)]
        for peer in peers:
            kind = chance.randrange(4)
            if kind == 0:
                peer.send(struct.pack(">I", chance.randrange(40)))
            elif kind == 1:
                Peer.open(peer)
            elif kind == 2:
                peer.send(call(remote.AUTH_LIST)[: chance.randrange(28)])
        for peer in peers:
            peer.close()
