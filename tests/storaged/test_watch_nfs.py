"""A real NFS server that dies under load, and comes back: the whole story of an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storaged.errors import StorageError
from storaged.model import PoolDef, PoolSource, PoolState, SourceHost
from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from tests.kernel.nfs import NfsServer
from tests.kernel.programs import patience

pytestmark = pytest.mark.kernel("nfs", "nfsd")

#: In this time GET_INFO must tell of a server's death, in seconds.
NOTICED = 10.0


@pytest.fixture
def storage(tmp_path: Path, nfs_server: NfsServer, unmounted: Path) -> Iterator[Storage]:
    with open_storage(tmp_path / "root", watch=True, durability="none") as opened:
        yield opened
        nfs_server.resume()
        for pool in opened.pools(active=True):
            pool.stop(force=True)


@pytest.fixture
def remote(storage: Storage, nfs_server: NfsServer, tmp_path: Path) -> Pool:
    """A pool on the server; its mount is a hard one, as libvirt makes it."""
    export = tmp_path / "export"
    export.mkdir()
    source = PoolSource(
        hosts=(SourceHost("127.0.0.1"),),
        dir=nfs_server.export(export),
        format="nfs",
        protocol="3",
    )
    target = str(tmp_path / "mounted")
    pool = storage.define_pool(PoolDef("netfs", "remote", source=source, target=target))
    pool.start(build=True)
    return pool


@pytest.fixture
def local(storage: Storage, tmp_path: Path) -> Pool:
    pool = storage.define_pool(PoolDef("dir", "local", target=str(tmp_path / "local")))
    pool.start(build=True)
    return pool


def becomes(pool: Pool, state: PoolState, seconds: float) -> float:
    """Wait until a pool has a state; return how long that took."""
    began = time.monotonic()
    while pool.info().state is not state:
        assert time.monotonic() - began < seconds, pool.info()
        time.sleep(0.05)
    return time.monotonic() - began


def busily(work: Callable[[int], object], over: threading.Event) -> list[float]:
    """Do work again and again; return how long each took."""
    taken: list[float] = []
    while not over.is_set():
        before = time.monotonic()
        try:
            work(len(taken))
        except StorageError:
            time.sleep(0.05)
        taken.append(time.monotonic() - before)
    return taken


def test_a_server_dies_under_load_and_comes_back(
    storage: Storage, remote: Pool, local: Pool, nfs_server: NfsServer
) -> None:
    remote.create("kept", "1 MiB")
    known = remote.info().space
    events: list[str] = []
    storage.subscribe(
        lambda event: events.append(
            f"{event.pool.name} {'REFRESH' if event.lifecycle is None else event.lifecycle.name}"
        )
    )
    over, name = threading.Event(), threading.current_thread().name
    with ThreadPoolExecutor(4, thread_name_prefix=f"{name}-load") as threads:
        lists = threads.submit(
            busily, lambda _n: (storage.pool_infos(), remote.names(), remote.info()), over
        )
        creates = threads.submit(busily, lambda n: local.create(f"l{n}", 65536).delete(), over)
        doomed = threads.submit(busily, lambda n: remote.create(f"r{n}", 65536), over)
        time.sleep(patience(0.2))
        nfs_server.stop()
        assert becomes(remote, PoolState.INACCESSIBLE, NOTICED) < NOTICED
        info = remote.info()
        assert info.outage is not None
        assert "does not answer since " in info.problems[0]
        assert info.space.capacity == known.capacity
        assert "kept" in remote.names()
        assert {pool.name for pool in storage.pools(active=True)} == {"local", "remote"}
        with pytest.raises(StorageError, match="does not answer"):
            remote.refresh()
        time.sleep(1)
        assert local.info().state is PoolState.RUNNING
        nfs_server.resume()
        becomes(remote, PoolState.RUNNING, patience(30))
        over.set()
        listed, created = lists.result(patience(30)), creates.result(patience(30))
        doomed.result(patience(60))
    assert sorted(listed)[len(listed) * 9 // 10] < patience(0.1)
    assert len(created) > 5
    assert max(created) < patience(1)
    deadline = time.monotonic() + patience(10)
    while "remote REFRESH" not in events:
        assert time.monotonic() < deadline, events
        time.sleep(0.05)
    assert not any(event.startswith("remote STOP") for event in events)
    assert remote.info().problems == ()
    remote.create("after", "1 MiB")


def test_a_forced_stop_under_a_dead_server(
    remote: Pool, nfs_server: NfsServer, tmp_path: Path
) -> None:
    remote.create("kept", "1 MiB")
    nfs_server.stop()
    job = remote.create("doomed", "1 MiB", wait=False)
    becomes(remote, PoolState.INACCESSIBLE, NOTICED)
    before = time.monotonic()
    remote.stop(force=True)
    assert time.monotonic() - before < patience(4)
    assert not remote.active
    assert not (tmp_path / "mounted").is_mount()
    with pytest.raises(StorageError):
        job.result(patience(2))
    nfs_server.resume()
    remote.start()
    assert "kept" in remote.names()
