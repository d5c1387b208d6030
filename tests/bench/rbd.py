"""Pools of type rbd on a Ceph cluster of one node: beside libvirt's daemon, and Ceph's own tool."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import storaged
from tests.bench.measure import Report, Row
from tests.bench.pairs import Found, Rows
from tests.bench.rbdtool import Moves, Tool, Transfer, time_transfers
from tests.ceph.cluster import Cluster, missing
from tests.clients.daemons import SYSTEM_PYTHON
from tests.daemon.running import PROJECT, storaged_daemon
from tests.storaged.libvirtd import libvirtd, require_libvirtd

ROUNDS = 5
IMAGES = 200
CALLS = 500
#: How many images are made, cloned and so on, one after the other.
CHANGES = 20
TRANSFER = 512 << 20

#: What our figure may be of libvirt's, by what a row is called; else `SHARE`.
SHARES = {
    "pool infos": 1.2,  # no storage is asked: it is a round trip, as in `daemons`
    "resize": 1.0,  # to open and close an image takes Ceph's library a third of it already
    "delete, until": None,
    "resident memory": None,
}
SHARE = 1 / 3
#: What our speed must be of that of Ceph's tool.
SPEED = 0.7

_UUID = "5e0e1b5a-0001-4c3f-9f4e-00000000ceff"
_SECRET = (
    f"<secret ephemeral='no' private='no'><uuid>{_UUID}</uuid>"
    "<usage type='ceph'><name>client.libvirt secret</name></usage></secret>"
)


def run(report: Report, directory: Path) -> None:
    """Measure what both daemons can do, and what moves data."""
    _require()
    with Cluster(directory / "memory", store="memstore") as cluster:
        _operations(report, directory, cluster)
    # its files lie in memory, so that only the cluster waits for the disk
    with (
        tempfile.TemporaryDirectory(prefix="storaged-bench-", dir="/dev/shm") as memory,
        Cluster(directory / "disk", store="bluestore", size=8 << 30) as cluster,
    ):
        transfer = Transfer(os.fspath(cluster.conf), "bench", f"{memory}/data", f"{memory}/back")
        _fill(Path(transfer.data))
        cluster.create_pool(transfer.pool)
        _streams(report, directory, cluster, transfer)
        _library(report, directory, cluster, transfer)


def _require() -> None:
    """Skip where a cluster or libvirt's daemon cannot run."""
    if why := missing():
        pytest.skip(why)
    module = require_libvirtd().parents[1] / "storage-backend/libvirt_storage_backend_rbd.so"
    if not module.exists():
        pytest.skip(f"{module} is missing (Debian: libvirt-daemon-driver-storage-rbd)")


def _operations(report: Report, directory: Path, cluster: Cluster) -> None:
    for name in ("theirs", "ours"):
        pool = cluster.create_pool(name)
        for number in range(IMAGES):
            pool.create(f"image-{number}", 1 << 30)
    with (
        libvirtd(directory / "libvirtd", secrets=True) as theirs,
        storaged_daemon(directory / "storaged") as ours,
    ):
        sides = {
            "theirs": {"server": _server(cluster, theirs.uri, "theirs"), "pid": theirs.pid},
            "ours": {"server": _server(cluster, ours.uri(), "ours"), "pid": ours.pid},
        }
        sizes = {"rounds": ROUNDS, "calls": CALLS, "images": IMAGES, "changes": CHANGES}
        task = {"sides": sides, "sizes": sizes, "conf": os.fspath(cluster.conf)}
        for found in _peer("operations", task):
            goals = (goal for start, goal in SHARES.items() if start in found["name"])
            share = next(goals, SHARE)
            report.add(Row.of_pairs(found | {"name": f"rbd: {found['name']}"}, share))


def _streams(report: Report, directory: Path, cluster: Cluster, transfer: Transfer) -> None:
    """Measure a stream of libvirt's to and from our daemon; libvirt's has none for this type."""
    with storaged_daemon(directory / "streams") as daemon:
        task = {
            "server": _server(cluster, daemon.uri(), transfer.pool),
            "transfer": asdict(transfer),
            "rounds": ROUNDS,
        }
        for found in _peer("streams", task):
            _add_speed(report, found, "through a stream")


def _library(report: Report, directory: Path, cluster: Cluster, transfer: Transfer) -> None:
    with storaged.open(directory / "library") as storage:
        storage.secrets.define(_SECRET).set_value(base64.b64decode(cluster.key()))
        pool = storage.define_pool(_pool_xml(cluster, transfer.pool))
        pool.start()
        sides: list[Moves] = [Tool(transfer), Library(pool, transfer)]
        rows = Rows(sides, ROUNDS, lambda found: _add_speed(report, found, "by the library"))
        time_transfers(rows, transfer)


class Library:
    """The library, in this process."""

    name = "library"

    def __init__(self, pool: storaged.Pool, transfer: Transfer) -> None:
        self._pool = pool
        self._transfer = transfer

    def upload(self) -> None:
        size = Path(self._transfer.data).stat().st_size
        self._pool.create(self.name, size).upload(self._transfer.data)

    def download(self) -> None:
        self._pool.volume(self.name).download(self._transfer.back)

    def remove(self) -> None:
        self._pool.volume(self.name).delete()


def _server(cluster: Cluster, uri: str, pool: str) -> dict[str, Any]:
    """Return what a client needs to define a pool on a daemon."""
    xml = _pool_xml(cluster, pool)
    return {"uri": uri, "secret": _SECRET, "key": cluster.key(), "xml": xml}


def _pool_xml(cluster: Cluster, name: str) -> str:
    """Return the definition of a pool that has the name of Ceph's."""
    return (
        f"<pool type='rbd'><name>{name}</name><source>"
        f"<host name='{cluster.host}' port='{cluster.port}'/><name>{name}</name>"
        f"<auth type='ceph' username='libvirt'><secret uuid='{_UUID}'/></auth></source></pool>"
    )


def _peer(what: str, task: dict[str, Any]) -> Iterator[Found]:
    command = [SYSTEM_PYTHON, "-m", "tests.bench.rbdpeer", what, json.dumps(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as peer:
        assert peer.stdout is not None
        yield from map(json.loads, peer.stdout)
    assert peer.returncode == 0, f"{what}: exit {peer.returncode}"


def _add_speed(report: Report, found: Found, how: str) -> None:
    named = found | {"name": f"rbd: {found['name']}, {how}"}
    report.add(Row.of_pairs(named, SPEED, more=True))


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(0, TRANSFER, 1 << 20):
            file.write(os.urandom(1 << 20))
