"""The calls that `tests.bench.rbd` times, made by libvirt's own binding.

It runs in the system's Python, as `tests.bench.daemonpeer` does. Its arguments are what is to be
timed, ``operations`` or ``streams``, and a task in JSON.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.pairs import Rows
from tests.bench.rbdtool import Tool, Transfer, time_transfers

libvirt: Any = importlib.import_module("libvirt")
rados: Any = importlib.import_module("rados")
rbd: Any = importlib.import_module("rbd")

GIB = 1 << 30
PIECE = 262_120
#: Seconds within which deleted images have to be gone.
PATIENCE = 30


@dataclass(frozen=True)
class Sizes:
    """How much is done; see `tests.bench.rbd` for the figures."""

    rounds: int
    calls: int
    images: int
    changes: int


class Side:
    """One daemon, by a pool that has images.

    :param ceph: the pool as Ceph's own binding sees it.
    """

    def __init__(self, pool: Any, pid: int, ceph: Any, sizes: Sizes) -> None:
        self.pool = pool
        self.pid = pid
        self.ceph = ceph
        self.sizes = sizes
        self._made: list[Any] = []
        self._source: Any = None

    def start(self) -> None:
        """Start the pool, up to where its volumes are known."""
        self.pool.create()
        assert len(self.pool.listAllVolumes()) == self.sizes.images

    def stop(self) -> None:
        if self.pool.isActive():
            self.pool.destroy()

    def refresh(self) -> None:
        self.pool.refresh()

    def ask(self) -> None:
        for _ in range(self.sizes.calls):
            self.pool.info()

    def details(self) -> None:
        """Ask as ``virsh vol-list --details`` does."""
        for volume in self.pool.listAllVolumes():
            volume.info()

    def create(self) -> None:
        for number in range(self.sizes.changes):
            self._made.append(self.pool.createXML(volume_xml(f"made-{number}", GIB)))

    def clone(self) -> None:
        """Clone an image that does not change."""
        if self._source is None:
            self._source = self.pool.storageVolLookupByName("image-0")
        for number in range(self.sizes.changes):
            xml = volume_xml(f"clone-{number}", GIB)
            self._made.append(self.pool.createXMLFrom(xml, self._source))

    def resize(self) -> None:
        for volume in self._made:
            volume.resize(2 * GIB)

    def delete(self) -> None:
        while self._made:
            self._made.pop().delete()

    def clear(self) -> None:
        """Delete what was made, and wait until nothing is left of it."""
        self.delete()
        deadline = time.monotonic() + PATIENCE
        while list(rbd.RBD().trash_list(self.ceph)):
            assert time.monotonic() < deadline, "deleted images stay in the trash"
            time.sleep(0.005)

    def create_anew(self) -> None:
        self.clear()
        self.create()

    def resident(self) -> float:
        """Return the memory of the daemon and its children, in MiB."""
        return sum(map(resident, family(self.pid)))


def define(uri: str, secret: str, key: str, xml: str) -> Any:
    """Define a pool, and the secret with the *key* of Ceph's user, in base64."""
    secrets = libvirt.open(uri.replace("storage:", "secret:", 1))
    secrets.secretDefineXML(secret).setValue(base64.b64decode(key))
    return libvirt.open(uri).storagePoolDefineXML(xml)


def volume_xml(name: str, capacity: int) -> str:
    return f"<volume><name>{name}</name><capacity>{capacity}</capacity></volume>"


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has ended, and nobody has waited for it


class Stream:
    """A daemon that is sent an image, and sends it, in a stream of libvirt's."""

    name = "stream"

    def __init__(self, pool: Any, transfer: Transfer) -> None:
        self._pool = pool
        self._transfer = transfer
        self._connection = pool.connect()

    def upload(self) -> None:
        size = Path(self._transfer.data).stat().st_size
        volume = self._pool.createXML(volume_xml(self.name, size))
        stream = self._connection.newStream()
        volume.upload(stream, 0, size)
        with Path(self._transfer.data).open("rb") as file:
            while piece := file.read(PIECE):
                while piece:
                    piece = piece[stream.send(piece) :]
        stream.finish()

    def download(self) -> None:
        stream = self._connection.newStream()
        self._pool.storageVolLookupByName(self.name).download(stream, 0, 0)
        with Path(self._transfer.back).open("wb") as file:
            while piece := stream.recv(PIECE):
                file.write(piece)
        stream.finish()

    def remove(self) -> None:
        self._pool.storageVolLookupByName(self.name).delete()


def operations(task: dict[str, Any]) -> None:
    """Time what both daemons can do."""
    sizes = Sizes(**task["sizes"])
    cluster = rados.Rados(conffile=task["conf"], name="client.libvirt")
    cluster.connect()
    sides = [
        Side(define(**side["server"]), side["pid"], cluster.open_ioctx(name), sizes)
        for name, side in task["sides"].items()
    ]
    rows = Rows(sides, sizes.rounds)
    count, changes = sizes.images, sizes.changes
    rows.time(f"start and list, {count} images", Side.start, before=Side.stop)
    rows.time(f"refresh, {count} images", Side.refresh)
    rows.time(f"list and info of {count} volumes", Side.details)
    rows.time(f"{sizes.calls} pool infos", Side.ask)
    rows.time("create", Side.create, before=Side.clear, share=changes)
    rows.time("clone", Side.clone, before=Side.clear, share=changes)
    rows.time("resize", Side.resize, before=Side.create_anew, share=changes)
    rows.time("delete", Side.delete, before=Side.create_anew, share=changes)
    rows.time("delete, until all is gone", Side.clear, before=Side.create_anew, share=changes)
    rows.value("resident memory, with children", Side.resident, "MiB")


def streams(task: dict[str, Any]) -> None:
    """Time a daemon's streams, beside Ceph's own tool."""
    pool = define(**task["server"])
    pool.create()
    transfer = Transfer(**task["transfer"])
    time_transfers(Rows([Tool(transfer), Stream(pool, transfer)], task["rounds"]), transfer)


def main() -> None:
    """Time what the first argument names."""
    what = {"operations": operations, "streams": streams}[sys.argv[1]]
    what(json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
