"""Servers over real engines, on event loops of their own threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storaged.backend import Durability
from storaged.driver import Driver, open_driver
from storaged.model import PoolDef
from storaged.paths import Paths
from storaged.registry import Registry
from storaged.rpc.remote import AuthType
from storaged.server.limits import Bounds, ServerLimits
from storaged.server.server import Role, Server
from storaged.server.sockets import Bound, bind
from storaged.service import Service
from tests.doubles import Control, eventually, make_double
from tests.server.peer import Peer, letters

T = TypeVar("T")


class Running:
    """A server that runs on a thread of its own."""

    def __init__(self, make: Callable[[], Server], directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.run(make)

    def run(self, call: Callable[[], T]) -> T:
        """Call something on the loop and return its result."""

        async def called() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(20)

    def listen(self, name: str, role: Role, auth: AuthType = AuthType.NONE) -> Path:
        """Listen at a path, which is returned."""
        path = self.directory / name
        bound = bind(path, mode=0o700)
        self.run(lambda: self.server.listen(bound, role, auth))
        return path

    def adopt(self, bound: Bound, role: Role) -> None:
        self.run(lambda: self.server.listen(bound, role))

    def start(self) -> None:
        self.run(self.server.start)

    def stop(self, patience: float = 10.0) -> None:
        """Stop the server and its loop."""
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self.server.stop(patience), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()


@dataclass
class Daemon:
    """An engine with its servers."""

    root: Path
    driver: Driver
    service: Service
    control: Control
    running: list[Running] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    def serve(
        self,
        bounds: Bounds | None = None,
        *,
        auth: AuthType = AuthType.NONE,
        limits: ServerLimits | None = None,
        **options: Any,
    ) -> Running:
        """Start a server with its two sockets."""
        made = Running(
            lambda: Server(
                "virtstoraged",
                limits or ServerLimits(),
                service=self.service,
                bounds=bounds or Bounds(),
                **options,
            ),
            self.root,
        )
        self.running.append(made)
        made.listen("rw", Role.READ_WRITE, auth)
        made.listen("ro", Role.READ_ONLY, auth)
        made.start()
        return made

    @property
    def server(self) -> Server:
        return self.running[-1].server

    def connect(self, name: str = "rw") -> Peer:
        """Connect to a socket; the connection is closed with the test."""
        peer = Peer(self.root / name)
        self.peers.append(peer)
        return peer

    def pool(self, name: str = "p", kind: str = "double") -> Path:
        """Define and start a pool, and return its directory."""
        target = self.root / f"pool-{name}"
        target.mkdir()
        ref = self.driver.pool_define(PoolDef(kind, name, target=str(target)))
        self.driver.pool_start(ref).result(20)
        return target

    def refresh(self, name: str = "p") -> None:
        self.driver.pool_refresh(self.driver.pool_lookup_by_name(name)).result(20)

    def rests(self) -> bool:
        """Tell whether nobody is connected and no thread is at work."""
        server = self.server
        resting = server.workers.resting and server.movers.resting
        return resting and not (server.clients() or server.partial or len(server.buffers))

    def close(self) -> None:
        self.control.release_all()
        for peer in self.peers:
            peer.close()
        for running in self.running:
            running.stop()
        self.driver.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """An engine that is not served yet."""
    backend, control = make_double()
    driver = open_driver(
        Paths.below(tmp_path / "root"),
        durability=Durability.NONE,
        registry=Registry({"double": backend}),
        lock_timeout=0,
    )
    made = Daemon(tmp_path, driver, Service(driver), control)
    yield made
    made.close()


@pytest.fixture
def served(daemon: Daemon) -> Daemon:
    """An engine with one pool "p", that is served without authentication."""
    daemon.pool()
    daemon.serve()
    return daemon


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- the plainest


@contextmanager
def nothing_left(daemon: Daemon) -> Iterator[None]:
    """Fail if the block leaves a client, a thread at work or a descriptor."""
    eventually(daemon.rests)
    before = descriptors()
    yield
    eventually(daemon.rests)
    eventually(lambda: descriptors() <= before)


@pytest.fixture
def target(daemon: Daemon) -> Path:
    """The directory of a pool "p" with a volume "v" of one MiB of letters."""
    directory = daemon.pool()
    (directory / "v").write_bytes(letters(1 << 20))
    daemon.refresh()
    return directory


@pytest.fixture
def peer(daemon: Daemon, target: Path) -> Peer:
    """An open connection."""
    daemon.serve()
    return daemon.connect().open()
