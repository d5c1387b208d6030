"""Many clients at once, and clients that go away in the middle: nothing wrong, nothing left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import wire
from tests.clients.daemons import Served, file_system, require_binding, serve_storaged
from tests.clients.peers import Peer
from tests.clients.scenarios import load
from tests.clients.wire import CONTINUE, STREAM, Connection

CREATE_VOLUME, CLONE, UPLOAD, DOWNLOAD, WIPE, REFRESH, INFO = 93, 125, 208, 209, 165, 83, 87
MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Storaged's daemon alone."""
    base = tmp_path_factory.mktemp("load")
    with (
        file_system(base / "pools") as directory,
        serve_storaged(base, directory) as running,
    ):
        yield running


def crowd(served: Served, clients: int, seconds: float, seed: int) -> int:
    require_binding()
    peer = Peer(load, served)
    try:
        calls: int = peer.run("crowd", clients, seconds, seed)
    finally:
        peer.close()
    return calls


def test_forty_clients(served: Served) -> None:
    assert crowd(served, 40, 1.5, 1) > 400


@pytest.mark.slow
def test_two_hundred_clients_for_a_minute(served: Served) -> None:
    before = descriptors(served)
    assert crowd(served, 200, 60.0, 2) > 10_000
    settled(served, before)


def descriptors(served: Served) -> int:
    return sum(1 for _ in Path(f"/proc/{served.pid}/fd").iterdir())


def threads(served: Served) -> int:
    return sum(1 for _ in Path(f"/proc/{served.pid}/task").iterdir())


def settled(served: Served, before: int) -> None:
    """Wait until the daemon has no more descriptors than *before*."""
    _until(lambda: descriptors(served) <= before, lambda: f"{before} became {descriptors(served)}")


def _until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Ground:
    """A pool with a source volume, and calls on it that take a while."""

    def __init__(self, served: Served, name: str, capacity: int) -> None:
        self.served = served
        self.directory = served.directory / name
        self.connection = Connection(served.socket).open()
        xml = (
            f"<pool type='dir'><name>{name}</name>"
            f"<target><path>{self.directory}</path></target></pool>"
        )
        self.pool = self.connection.good(76, wire.text(xml) + wire.words(1))
        self.name = name
        self.capacity = capacity
        self.source = self.connection.good(CREATE_VOLUME, self.creation("source"))

    def document(self, name: str) -> bytes:
        return wire.text(
            f"<volume><name>{name}</name><capacity>{self.capacity}</capacity></volume>"
        )

    def creation(self, name: str) -> bytes:
        return self.pool + self.document(name) + wire.words(0)

    def calls(self, number: int) -> list[tuple[int, bytes]]:
        """Return a call of each kind, on names with *number* where they make something."""
        return [
            (CREATE_VOLUME, self.creation(f"made-{number}")),
            (CLONE, self.pool + self.document(f"cloned-{number}") + self.source + wire.words(0)),
            (WIPE, self.source + wire.words(0)),
            (DOWNLOAD, self.source + wire.hypers(0, 0) + wire.words(0)),
            (REFRESH, self.pool + wire.words(0)),
            (INFO, self.pool),
        ]

    def listed(self) -> list[str]:
        """Return the names that the daemon lists, once nothing works on the pool any more."""
        _until(
            lambda: self.connection.call(REFRESH, self.pool + wire.words(0)).status == wire.OK,
            lambda: "the pool stays busy",
        )
        payload = self.connection.good(92, self.pool + wire.words(10_000))
        count, names, offset = int.from_bytes(payload[:4]), [], 4
        for _ in range(count):
            length = int.from_bytes(payload[offset : offset + 4])
            names.append(payload[offset + 4 : offset + 4 + length].decode())
            offset += 4 + length + -length % 4
        return sorted(names)


def test_clients_that_hang_up_in_calls(served: Served) -> None:
    """Whatever was half made is gone; what was made in time is whole."""
    ground = Ground(served, "dropped", 24 * MIB)
    before = descriptors(served)
    chance = random.Random(1)
    for number in range(10):
        for procedure, payload in ground.calls(number):
            with Connection(served.socket) as client:
                client.open()
                client.send(procedure, payload)
                time.sleep(chance.choice((0, 0, 0.002, 0.01)))
            for made in ground.directory.glob("made-*"):
                made.unlink(missing_ok=True) if made.stat().st_size else None
            for made in ground.directory.glob("cloned-*"):
                made.unlink(missing_ok=True)
    listed = ground.listed()
    settled(served, before)
    assert [name for name in listed if not name.startswith(("made-", "cloned-"))] == ["source"]
    hidden = [path.name for path in ground.directory.iterdir() if path.name.startswith(".")]
    assert hidden == []
    for path in ground.directory.iterdir():
        assert path.stat().st_size == ground.capacity, f"{path.name} is half made"
    ground.connection.socket.close()


def test_clients_that_hang_up_in_uploads(served: Served) -> None:
    """What they had sent is there, and nothing else of them."""
    ground = Ground(served, "cut", 2 * MIB)
    before = descriptors(served)
    for number in range(30):
        volume = ground.connection.good(CREATE_VOLUME, ground.creation(f"v{number}"))
        with Connection(served.socket) as client:
            client.open()
            serial = client.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(0))
            client.answer(serial)
            data = bytes([number + 1]) * 100_000
            client.send(UPLOAD, data, type=STREAM, serial=serial, status=CONTINUE)
            if number % 3 == 0:  # in the middle of a packet
                client.socket.sendall((28 + 5000).to_bytes(4) + b"half of a header")
        path = ground.directory / f"v{number}"
        _until(lambda path=path, data=data: path.read_bytes()[:100_000] == data, lambda: "lost")  # type: ignore[misc]
    settled(served, before)
    assert len(ground.listed()) == 31
    ground.connection.socket.close()


def test_a_hundred_idle_uploads_cost_no_threads(served: Served) -> None:
    ground = Ground(served, "idle", MIB)
    before = descriptors(served)
    busy = threads(served)
    clients = [Connection(served.socket).open() for _ in range(10)]
    for number in range(100):
        volume = ground.connection.good(CREATE_VOLUME, ground.creation(f"v{number}"))
        client = clients[number % 10]
        client.answer(client.send(UPLOAD, volume + wire.hypers(0, 0) + wire.words(0)))
    assert threads(served) <= busy + 8
    assert ground.connection.good(INFO, ground.pool)
    assert len(ground.listed()) == 101
    for client in clients:
        client.socket.close()
    settled(served, before)
    ground.connection.socket.close()


def test_connections_come_and_go(served: Served) -> None:
    before = descriptors(served)
    for _ in range(300):
        with Connection(served.socket) as client:
            client.send(66)
    with Connection(served.socket) as client:
        client.open()
    settled(served, before)


@pytest.mark.slow
def test_idle_threads_end(tmp_path: Path) -> None:
    """After a rush, the daemon has the threads that its configuration keeps."""
    with (
        file_system(tmp_path / "pools") as directory,
        serve_storaged(tmp_path, directory) as fresh,
    ):
        crowd(fresh, 1, 0.1, 1)
        assert crowd(fresh, 60, 2, 3) > 500
        _until(lambda: threads(fresh) <= 16, lambda: f"{threads(fresh)} threads", 30)
