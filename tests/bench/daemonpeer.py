"""The calls that `tests.bench.daemons` times, made by libvirt's own binding.

It comes with the system's Python only, so this runs there as a program of its own: its argument
says, in JSON, how much to do and where the two daemons are, theirs first. Each line of the output
is a row: its name, its unit, and what libvirt's daemon and storaged took, run by run in turn.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.pairs import Rows

libvirt: Any = importlib.import_module("libvirt")

PIECE = 262_120


@dataclass(frozen=True)
class Sizes:
    """How much is done; see `tests.bench.daemons` for the figures."""

    rounds: int
    calls: int
    images: int
    asked: int
    creates: int
    transfer: int


class Side:
    """One daemon: a connection, a pool of images, and an empty pool to work in."""

    def __init__(self, uri: str, pid: int, directory: str, sizes: Sizes) -> None:
        self.uri = uri
        self.pid = pid
        self.sizes = sizes
        self.directory = Path(directory)
        self.connection = libvirt.open(uri)
        self.images = self.pool("images", start=False)
        self.work = self.pool("work")
        self._some: list[Any] = []
        self._many: list[Any] = []
        self._data: Any = None

    def pool(self, name: str, *, start: bool = True) -> Any:
        xml = (
            f"<pool type='dir'><name>{name}</name>"
            f"<target><path>{self.directory / name}</path></target></pool>"
        )
        found = self.connection.storagePoolDefineXML(xml)
        if start:
            found.build()
            found.create()
        return found

    def ask(self, connections: int) -> None:
        """Ask for a pool's info again and again, from several connections at once."""
        pools = [self.work]
        if connections > 1:
            opened = [libvirt.open(self.uri) for _ in range(connections)]
            pools = [each.storagePoolLookupByName("work") for each in opened]
        _at_once([lambda pool=pool: self._infos(pool) for pool in pools])  # type: ignore[misc]

    def _infos(self, pool: Any) -> None:
        for _ in range(self.sizes.calls):
            pool.info()

    def touch(self) -> None:
        """Change what a refresh looks at of every image."""
        now = time.time_ns()
        for entry in os.scandir(self.directory / "images"):
            os.utime(entry.path, ns=(now, now))

    def infos(self) -> None:
        for volume in self.some():
            volume.info()

    def by_path(self) -> None:
        for volume in self.some():
            self.connection.storageVolLookupByPath(str(self.directory / "images" / volume.name()))

    def some(self) -> list[Any]:
        if not self._some:
            self._some = list(self.images.listAllVolumes())[: self.sizes.asked]
        return self._some

    def create(self, format: str, pool: Any = None) -> None:
        for number in range(self.sizes.creates):
            xml = volume_xml(f"{format}-{number}", 1 << 30, format)
            (pool or self.work).createXML(xml)

    def create_in_many(self) -> None:
        _at_once([lambda pool=pool: self.create("raw", pool) for pool in self.many()])  # type: ignore[misc]

    def many(self) -> list[Any]:
        if not self._many:
            for number in range(8):
                self.pool(f"many-{number}")
            opened = [libvirt.open(self.uri) for _ in range(8)]
            self._many = [
                each.storagePoolLookupByName(f"many-{number}") for number, each in enumerate(opened)
            ]
        return self._many

    def clear(self) -> None:
        """Delete all that was made, for the next run."""
        for pool in [self.work, *self._many]:
            for volume in pool.listAllVolumes():
                if volume.name() != "data":
                    volume.delete()

    def data(self) -> Any:
        """Return a volume to send data to and from."""
        if self._data is None:
            self._data = self.work.createXML(volume_xml("data", self.sizes.transfer, "raw"))
        return self._data

    def upload(self) -> None:
        stream = self.connection.newStream()
        self.data().upload(stream, 0, self.sizes.transfer)
        piece, left = bytes(range(256)) * (PIECE // 256 + 1), self.sizes.transfer
        while left:
            left -= stream.send(piece[: min(left, PIECE)])
        stream.finish()

    def download(self) -> None:
        stream = self.connection.newStream()
        self.data().download(stream, 0, 0)
        while stream.recv(PIECE):
            pass
        stream.finish()

    def clone(self) -> None:
        xml = volume_xml("clone", self.sizes.transfer, "raw")
        self.work.createXMLFrom(xml, self.data())

    def under_load(self) -> list[float]:
        """Ask while the images are refreshed twice and a file is cloned; return the times."""
        times: list[float] = []
        client = libvirt.open(self.uri)
        pool = client.storagePoolLookupByName("images")

        def refresh() -> None:
            for _ in range(2):
                client.storagePoolLookupByName("images").refresh()

        threads = [threading.Thread(target=work) for work in (refresh, self.clone)]
        other = self.connection.storagePoolLookupByUUID(pool.UUID())
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            start = time.perf_counter()
            other.info()
            times.append((time.perf_counter() - start) * 1000)
            time.sleep(0.0005)
        return times

    def resident(self) -> float:
        """Return the daemon's memory in MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError(self.pid)


def volume_xml(name: str, capacity: int, format: str) -> str:
    return (
        f"<volume><name>{name}</name><capacity>{capacity}</capacity><allocation>0</allocation>"
        f"<target><format type='{format}'/></target></volume>"
    )


def _at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure all rows."""
    task = json.loads(sys.argv[1])
    sizes = Sizes(**task["sizes"])
    sides = [Side(uri, pid, directory, sizes) for uri, pid, directory in task["sides"]]
    rows: Rows[Side] = Rows(sides, sizes.rounds)
    _ask(rows, sizes)
    _scan(rows, sizes)
    _make(rows, sizes)
    _transfer(rows)
    rows.value("99 of 100 pool infos, while busy", _late)
    rows.value("resident memory", lambda side: side.resident(), "MiB")


def _late(side: Side) -> float:
    side.clear()
    times = sorted(side.under_load())
    return times[int(len(times) * 0.99)]


def _ask(rows: Rows[Side], sizes: Sizes) -> None:
    rows.time(f"{sizes.calls} pool infos, 1 client", lambda side: side.ask(1))
    rows.time(f"{sizes.calls} pool infos, 8 clients each", lambda side: side.ask(8))


def _scan(rows: Rows[Side], sizes: Sizes) -> None:
    def stopped(side: Side) -> None:
        if side.images.isActive():
            side.images.destroy()

    rows.time(f"start, {sizes.images} images", lambda s: s.images.create(), before=stopped)
    rows.time("refresh, unchanged", lambda side: side.images.refresh())
    rows.time("refresh, all changed", lambda s: s.images.refresh(), before=lambda s: s.touch())
    rows.time("list of all volumes", lambda side: side.images.listAllVolumes())
    rows.time(f"info of {sizes.asked} volumes", lambda s: s.infos(), before=lambda s: s.some())
    rows.time(f"{sizes.asked} look-ups by path", lambda s: s.by_path(), before=lambda s: s.some())


def _make(rows: Rows[Side], sizes: Sizes) -> None:
    for format in ("raw", "qcow2", "vmdk"):
        rows.time(
            f"create {format}",
            lambda side, format=format: side.create(format),  # type: ignore[misc]
            before=lambda side: side.clear(),
            share=sizes.creates,
        )

    def prepared(side: Side) -> None:
        side.many()
        side.clear()

    rows.time(
        "create raw, 8 clients in 8 pools",
        lambda side: side.create_in_many(),
        before=prepared,
        share=sizes.creates * 8,
    )


def _transfer(rows: Rows[Side]) -> None:
    rows.time("upload", lambda side: side.upload(), before=lambda side: side.data())
    rows.time("download", lambda side: side.download())
    rows.time("clone, raw to raw", lambda side: side.clone(), before=lambda side: side.clear())


if __name__ == "__main__":
    main()
