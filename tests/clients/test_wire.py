"""Packets as go-libvirt sends them, and packets that nobody should send."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.clients import wire
from tests.clients.daemons import Daemons, Served
from tests.clients.differences import compare
from tests.clients.wire import CONTINUE, ERROR, HOLE, MESSAGE, OK, REPLY, STREAM, Connection

LOOKUP, INFO, DEFINE, BUILD, START, NAME = 84, 87, 77, 79, 78, 95
CREATE_VOLUME, DELETE_VOLUME, VOLUME_INFO, UPLOAD, DOWNLOAD = 93, 94, 98, 208, 209
MIB = 1 << 20


@pytest.fixture(params=["theirs", "ours"])
def served(request: pytest.FixtureRequest, daemons: Daemons) -> Served:
    """Each of the two daemons."""
    found: Served = getattr(daemons, request.param)
    return found


@pytest.fixture
def opened(served: Served) -> Iterator[Connection]:
    with Connection(served.socket) as connection:
        yield connection.open()


def new_pool(connection: Connection, served: Served, name: str) -> bytes:
    """Have a running pool; return it as it goes over the wire."""
    path = served.directory / name
    xml = f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"
    pool = connection.good(DEFINE, wire.text(xml) + wire.words(0))
    connection.good(BUILD, pool + wire.words(0))
    connection.good(START, pool + wire.words(0))
    return pool


def new_volume(connection: Connection, pool: bytes, name: str, capacity: int = MIB) -> bytes:
    xml = (
        f"<volume><name>{name}</name><capacity>{capacity}</capacity>"
        "<allocation>0</allocation></volume>"
    )
    return connection.good(CREATE_VOLUME, pool + wire.text(xml) + wire.words(0))


def test_life_as_go_sees_it(opened: Connection, served: Served) -> None:
    assert struct.unpack(">Q", opened.good(157))[0] >= 9_000_000
    pool = new_pool(opened, served, "go")
    assert opened.good(LOOKUP, wire.text("go")) == pool
    state, capacity, allocation, available = struct.unpack(">IQQQ", opened.good(INFO, pool))
    assert (state, capacity) == (2, allocation + available)
    volume = new_volume(opened, pool, "disk")
    assert volume == wire.volume("go", "disk", str(served.directory / "go/disk"))
    listed = opened.good(282, pool + wire.words(1, 0))
    assert listed == wire.words(1) + volume + wire.words(1)
    assert opened.good(282, pool + wire.words(0, 0)) == wire.words(0, 1)
    assert struct.unpack(">IQQ", opened.good(VOLUME_INFO, volume))[:2] == (0, MIB)
    opened.good(DELETE_VOLUME, volume + wire.words(0))
    assert opened.good(2) == b""
    with pytest.raises(EOFError):
        opened.receive()


def test_a_pool_is_its_uuid_and_a_volume_its_names(opened: Connection, served: Served) -> None:
    pool = new_pool(opened, served, "identity")
    other = wire.pool("another name", pool[-16:])
    assert opened.good(INFO, other) == opened.good(INFO, pool)
    new_volume(opened, pool, "disk")
    assert opened.good(100, wire.volume("identity", "disk", "another key")) == wire.text(
        str(served.directory / "identity/disk")
    )


def test_transfers_as_go_does_them(opened: Connection, served: Served) -> None:
    """Packets of 4 MiB; a download that is never finished."""
    pool = new_pool(opened, served, "transfers")
    volume = new_volume(opened, pool, "disk", 16 * MIB)
    data = bytes(range(256)) * (12 * MIB // 256)
    serial = opened.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(0))
    assert opened.answer(serial).status == OK
    for start in range(0, len(data), 4_194_276):
        piece = data[start : start + 4_194_276]
        opened.send(UPLOAD, piece, type=STREAM, serial=serial, status=CONTINUE)
    opened.send(UPLOAD, type=STREAM, serial=serial, status=OK)
    ended = opened.receive()
    assert (ended.type, ended.serial, ended.status, ended.payload) == (STREAM, serial, OK, b"")
    got, serial = bytearray(), opened.send(
        DOWNLOAD, volume + wire.hypers(0, len(data)) + wire.words(0)
    )  # fmt: skip
    assert opened.receive().type == REPLY
    while piece := opened.receive().payload:
        got += piece
    assert bytes(got) == data
    # no finish: the next calls come at once
    assert opened.good(INFO, pool)
    opened.good(DELETE_VOLUME, volume + wire.words(0))


def test_holes(opened: Connection, served: Served) -> None:
    pool = new_pool(opened, served, "holes")
    volume = new_volume(opened, pool, "disk", 4 * MIB)
    serial = opened.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(1))
    assert opened.answer(serial).status == OK
    hole = wire.hypers(2 * MIB) + wire.words(0)
    opened.send(UPLOAD, hole, type=HOLE, serial=serial, status=CONTINUE)
    opened.send(UPLOAD, b"x" * 4096, type=STREAM, serial=serial, status=CONTINUE)
    opened.send(UPLOAD, b"", type=STREAM, serial=serial, status=CONTINUE)
    opened.send(UPLOAD, type=STREAM, serial=serial, status=OK)
    assert opened.receive().status == OK
    serial = opened.send(DOWNLOAD, volume + wire.hypers(0, 0) + wire.words(1))
    packets = iter(opened.receive, None)
    first = next(packets)
    early = []
    while first.type != REPLY and served.name == "libvirtd":  # its stream may come before its reply
        early.append(first)
        first = next(packets)
    assert first.type == REPLY
    kinds = []
    for packet in chain(early, packets):
        if not packet.payload:
            break
        size = len(packet.payload)
        kinds.append(struct.unpack(">QI", packet.payload)[0] if packet.type == HOLE else -size)
    assert kinds[:2] == [2 * MIB, -4096]
    assert kinds[2:] in ([], [2 * MIB - 4096])  # libvirt's holes cut off what was behind them


def test_abort_is_answered(opened: Connection, served: Served) -> None:
    pool = new_pool(opened, served, "abort")
    volume = new_volume(opened, pool, "disk")
    for procedure in (UPLOAD, DOWNLOAD):
        serial = opened.send(procedure, volume + wire.hypers(0, 4096) + wire.words(0))
        assert opened.answer(serial).status == OK
        opened.send(procedure, type=STREAM, serial=serial, status=ERROR)
        while (packet := opened.receive()).status == CONTINUE:
            continue
        assert (packet.type, packet.serial, packet.status, packet.payload) == (
            STREAM,
            serial,
            OK,
            b"",
        )


def test_packets_of_no_stream_are_ignored(opened: Connection) -> None:
    for type in (STREAM, HOLE, REPLY, MESSAGE, 9):
        opened.send(UPLOAD, wire.hypers(4096) + wire.words(0), type=type, serial=77)
    opened.send(1, program=0x1234, type=MESSAGE, serial=0)
    assert opened.good(157)


def test_keepalive_is_answered_and_never_begun(served: Served) -> None:
    with Connection(served.socket) as connection:
        connection.send(1, program=wire.KEEPALIVE, type=MESSAGE, serial=0)
        answer = connection.receive()
        assert (answer.program, answer.procedure, answer.type) == (wire.KEEPALIVE, 2, MESSAGE)
        connection.open()
        connection.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.receive()


def test_events(served: Served) -> None:
    """The reply to the registration comes before any event; serial 1; a pool of 20 bytes."""
    with Connection(served.socket) as watcher, Connection(served.socket) as other:
        watcher.open()
        other.open()
        numbers = [
            struct.unpack(">I", watcher.good(368, wire.words(kind, 0)))[0] for kind in (0, 1)
        ]
        assert watcher.bad(368, wire.words(2, 0))[:2] == [1, 7]
        assert watcher.bad(368, wire.words(0, 0))[:1] == [8]
        pool = new_pool(other, served, "events")
        other.good(83, pool + wire.words(0))
        heard = [watcher.receive() for _ in range(4)]
        assert [packet.procedure for packet in heard] == [370, 370, 370, 373]
        assert {packet.type for packet in heard} == {MESSAGE}
        assert [packet.payload for packet in heard[:3]] == [
            wire.words(numbers[0]) + pool + wire.words(event, 0) for event in (0, 4, 2)
        ]
        assert heard[3].payload == wire.words(numbers[1]) + pool
        watcher.good(369, wire.words(numbers[0]))
        assert watcher.bad(369, wire.words(numbers[0]))[:2] == [1, 7]


def test_many_calls_in_flight(opened: Connection, served: Served) -> None:
    """All are answered, in whatever order."""
    pool = new_pool(opened, served, "flight")
    serials = {opened.send(INFO, pool) for _ in range(60)}
    serials |= {opened.send(282, pool + wire.words(1, 0)) for _ in range(20)}
    answered = {opened.receive().serial for _ in range(len(serials))}
    assert answered == serials


def errors(served: Served) -> dict[str, object]:
    """Return what a daemon answers to calls that cannot be."""
    told: dict[str, object] = {}
    with Connection(served.socket) as connection:
        told["not opened"] = connection.bad(LOOKUP, wire.text("x"))
        told["feature, not opened"] = connection.bad(60, wire.words(14))
        told["keepalive, not opened"] = connection.good(60, wire.words(10))
        told["sasl"] = connection.bad(67)
        for name in ("storage:///session", "storage:///", "qemu:///system", ""):
            told[f"open {name}"] = connection.bad(1, wire.optional(name) + wire.words(0))
        told["open nothing"] = connection.bad(1, wire.words(0, 0))
        connection.open()
        told["features"] = [connection.good(60, wire.words(number)) for number in range(20)]
        told["no such procedure"] = connection.bad(5000)
        told["an event as a call"] = connection.bad(370)
        told["no such program"] = connection.bad(1, program=0x77777777)
        told["no arguments"] = connection.bad(LOOKUP)
        told["long name"] = connection.bad(LOOKUP, wire.words(1 << 24))
        told["short name"] = connection.bad(LOOKUP, wire.words(100) + b"abcd")
        told["too many names"] = connection.bad(72, wire.words(20000))
        told["fewer than no names"] = connection.bad(72, wire.words(0xFFFFFFFF))
        told["name of bytes"] = connection.bad(LOOKUP, wire.text(b"\xff\xfe"))[:2]
        told["name with nul"] = connection.bad(LOOKUP, wire.text(b"ab\0cd"))
        told["empty uuid"] = connection.bad(85, bytes(16))
        told["more than the arguments"] = connection.bad(LOOKUP, wire.text("x") + bytes(40))
        told["pool of no uuid"] = connection.bad(INFO, wire.pool("x", bytes(16)))
        told["volume of no pool"] = connection.bad(VOLUME_INFO, wire.volume("x", "y"))
        told["pool of volume of no pool"] = connection.bad(86, wire.volume("x", "y"))
        told["status in a call"] = _status_in_a_call(connection)
        told["still there"] = connection.good(3)
        told["open twice"] = connection.bad(1, wire.optional("storage:///system") + wire.words(0))
    return told


def _status_in_a_call(connection: Connection) -> tuple[int, int, str]:
    serial = connection.send(157, status=ERROR)
    return wire.error(connection.answer(serial).payload)


def test_errors(daemons: Daemons) -> None:
    theirs, ours = (errors(served) for served in daemons)
    compare("wire", theirs, ours)


#: Procedures of the connection that every daemon answers in its own way or not at all.
SKIPPED = {1, 2, 7, 66, 67, 68, 69, 70, 403, 419}
SECRETS = {*range(139, 148), 287, 380, 381}
#: Libvirt's daemon dies of these three; ours answers them as it does their like.
DEADLY = {152, 153, 156}


def test_every_other_procedure(daemons: Daemons) -> None:
    """All that is not storage is refused with libvirt's code, and the connection stays."""
    answers = []
    for served in daemons:
        with Connection(served.socket) as connection:
            connection.open()
            found = {}
            for number in range(1, 444):
                if number in SKIPPED | SECRETS | DEADLY:
                    continue
                answer = connection.call(number, bytes(600))
                found[f"procedure {number}"] = (
                    wire.error(answer.payload)[:2] if answer.status == ERROR else OK
                )
            answers.append(found)
    compare("unserved", *answers)


def test_ours_answers_what_libvirt_dies_of(daemons: Daemons) -> None:
    with Connection(daemons.ours.socket) as connection:
        connection.open()
        for number in DEADLY:
            assert connection.bad(number, bytes(600))[:2] == [1, 7]


def test_hostile_lengths_hang_up(served: Served) -> None:
    for length in (0, 3, 4, 20, 27, 33_554_437, 0xFFFFFFFF):
        with Connection(served.socket, timeout=5) as connection:
            connection.socket.sendall(struct.pack(">I", length) + bytes(24))
            with pytest.raises((EOFError, ConnectionResetError)):
                connection.receive()
    with Connection(served.socket) as connection:
        connection.open()


def test_ours_takes_packets_before_the_reply(daemons: Daemons) -> None:
    """Libvirt loses what a client sends before it has the reply; storaged queues it."""
    served = daemons.ours
    with Connection(served.socket) as connection:
        connection.open()
        volume = new_volume(connection, new_pool(connection, served, "early"), "disk")
        serial = connection.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(0))
        connection.send(UPLOAD, b"early", type=STREAM, serial=serial, status=CONTINUE)
        connection.send(UPLOAD, type=STREAM, serial=serial, status=OK)
        assert [connection.receive().type for _ in range(2)] == [REPLY, STREAM]
        assert (served.directory / "early/disk").read_bytes()[:5] == b"early"


def test_ours_survives_malformed_streams(daemons: Daemons) -> None:
    """Holes that are not allowed, or backwards, are errors of the stream; libvirt's heap breaks."""
    served = daemons.ours
    with Connection(served.socket) as connection:
        connection.open()
        pool = new_pool(connection, served, "malformed")
        volume = new_volume(connection, pool, "disk")
        for flags, hole in ((1, -5), (1, 0), (1, -(1 << 62)), (0, 4096)):
            with Connection(served.socket) as client:
                client.open()
                serial = client.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(flags))
                assert client.answer(serial).status == OK
                payload = struct.pack(">qI", hole, 0)
                client.send(UPLOAD, payload, type=HOLE, serial=serial, status=CONTINUE)
                try:
                    packet = client.receive()
                except EOFError:
                    continue  # it may hang up, as libvirt does
                assert (packet.type, packet.status) == (STREAM, ERROR)
                assert client.good(INFO, pool)
        assert connection.good(INFO, pool)


def test_ours_takes_slow_clients(daemons: Daemons) -> None:
    """A client that sends a byte at a time is served, and holds up nobody."""
    with Connection(daemons.ours.socket) as slow, Connection(daemons.ours.socket) as quick:
        quick.open()
        packet = struct.pack(">7I", 28, wire.REMOTE, 1, 66, 0, 1, 0)
        for byte in packet:
            slow.socket.sendall(bytes([byte]))
            start = time.monotonic()
            quick.good(157)
            assert time.monotonic() - start < 1
        assert slow.receive().payload == wire.words(1, 0)


def test_ours_bounds_the_queue_of_who_does_not_read(daemons: Daemons, tmp_path: Path) -> None:
    """A client that asks and never reads costs no more than a few megabytes."""
    served = daemons.ours
    with Connection(served.socket) as deaf, Connection(served.socket) as other:
        other.open()
        pool = new_pool(other, served, "deaf")
        for number in range(200):
            new_volume(other, pool, f"v{number}", 4096)
        before = resident(served.pid)
        deaf.open()
        deaf.socket.settimeout(2)
        try:
            for _ in range(5000):
                deaf.send(282, pool + wire.words(1, 0))
        except TimeoutError:
            pass  # it reads no more of us
        assert other.good(INFO, pool)
        assert resident(served.pid) - before < 64 * MIB


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)
