"""Several daemons, each as if on a host of its own, that share one Ceph pool."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import storaged
from tests.backends import rbdpools
from tests.bench.measure import Report, Row
from tests.ceph.cluster import Cluster
from tests.ceph.images import Pool
from tests.daemon.running import Daemon, storaged_daemon

HOSTS = (2, 4, 8)
IMAGES = (200, 1000)
#: Creates that are awaited one by one, and that each host does while all do.
SINGLE = 15
AT_ONCE = 25
#: Seconds between two that are awaited, and of rest that are measured.
PAUSE = 0.6
REST = 5.0

_MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_LATE = 30.0


def run(report: Report, directory: Path) -> None:
    """Measure each number of hosts with each number of images."""
    with Cluster(directory / "cluster", store="memstore") as cluster:
        for images in IMAGES:
            for count in HOSTS:
                name = f"pool-{images}-{count}"
                pool = cluster.create_pool(name)
                for number in range(images):
                    pool.create(f"image-{number}", _MIB)
                with _sites(directory / name, cluster, pool, count) as sites:
                    _measure(report, sites, f"hosts: {count}, {images} images")
                cluster.admin.delete_pool(name)


@dataclass
class Site:
    """One daemon with the pool, a client of it, and when that heard of changes."""

    daemon: Daemon
    storage: storaged.Storage
    pool: storaged.Pool
    told: list[float] = field(default_factory=list)
    heard: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: storaged.Event) -> None:
        """Note that the pool was scanned because of others, and has changed."""
        if event.lifecycle is None:
            self.told.append(time.monotonic())
            self.heard.set()

    @property
    def processes(self) -> list[int]:
        """The daemon, and its child with librbd."""
        found = [self.daemon.pid]
        for path in Path(f"/proc/{self.daemon.pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
        return found

    def cpu(self) -> float:
        """Return the processor's seconds that it has used."""
        return sum(map(_cpu, self.processes))

    def resident(self) -> float:
        """Return the MiB that it has in memory."""
        return sum(map(_resident, self.processes))


@contextmanager
def _sites(root: Path, cluster: Cluster, source: Pool, count: int) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        sites = []
        for number in range(count):
            daemon = stack.enter_context(storaged_daemon(root / str(number)))
            storage = stack.enter_context(storaged.connect(daemon.uri()))
            rbdpools.set_key(storage, cluster)
            site = Site(daemon, storage, rbdpools.start(storage, cluster, source))
            storage.subscribe(site.hear)
            sites.append(site)
        time.sleep(2.5)  # until all listen
        yield sites


def _measure(report: Report, sites: list[Site], what: str) -> None:
    count = len(sites)
    seen = [_until_seen(sites, f"single-{number}") for number in range(SINGLE)]
    report.samples(f"{what}: a create is seen by all", seen)
    report.add(_row(f"{what}: the latest of them", [max(seen)], "ms"))
    began = _cpu_of(sites)
    time.sleep(REST)
    report.add(_row(f"{what}: at rest, processor of each", _shares(sites, began, REST), "%"))
    report.add(_row(f"{what}: memory of each", [site.resident() for site in sites], "MiB"))
    for places, how in ((sites, "by all"), ([sites[0]] * count, "by as many clients of one")):
        for site in sites:
            site.told.clear()
        began = _cpu_of(sites)
        took = _create_at_once(places, how)
        report.add(_row(f"{what}: creates {how}", [count * AT_ONCE / took], "/s"))
        shares = _shares(sites, began, took)
        report.add(_row(f"{what}: creates {how}, processor of each", shares, "%"))
        _await_all(sites, len(sites[0].pool.names()))
        scans = [len(site.told) / took for site in sites]
        report.add(_row(f"{what}: creates {how}, scans told by each", scans, "/s"))
    cpu, began_at = sites[0].cpu(), time.monotonic()
    for _ in range(10):
        sites[0].pool.refresh()
    took = time.monotonic() - began_at
    report.add(_row(f"{what}: a scan", [took * 100], "ms"))
    report.add(_row(f"{what}: a scan, processor", [(sites[0].cpu() - cpu) * 100], "ms"))


def _until_seen(sites: list[Site], name: str) -> float:
    """Make an image on one host; return after how many milliseconds all others have been told."""
    time.sleep(PAUSE)
    for site in sites:
        site.heard.clear()
    sites[0].pool.create(name, _MIB)
    made = time.monotonic()
    for site in sites[1:]:
        assert site.heard.wait(_LATE), "nothing was heard"
        assert name in site.pool.names()
    return (max(site.told[-1] for site in sites[1:]) - made) * 1000


def _create_at_once(places: list[Site], how: str) -> float:
    """Make many images on all of *places* at once; return how many seconds it took."""

    def work(site: Site, number: int) -> Callable[[], None]:
        def make() -> None:
            with storaged.connect(site.daemon.uri()) as storage:
                pool = storage.pool(rbdpools.NAME)
                start.wait()
                for one in range(AT_ONCE):
                    pool.create(f"{how}-{number}-{one}", _MIB)

        return make

    start = threading.Barrier(len(places) + 1)
    threads = [threading.Thread(target=work(site, at)) for at, site in enumerate(places)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def _await_all(sites: list[Site], least: int) -> None:
    deadline = time.monotonic() + _LATE
    while any(len(site.pool.names()) < least for site in sites):
        assert time.monotonic() < deadline, "the hosts do not agree"
        time.sleep(0.05)
    time.sleep(PAUSE)


def _row(name: str, values: list[float], unit: str) -> Row:
    return Row(name, statistics.median(values), min(values), len(values), unit)


def _cpu_of(sites: list[Site]) -> list[float]:
    return [site.cpu() for site in sites]


def _shares(sites: list[Site], began: list[float], seconds: float) -> list[float]:
    used = (site.cpu() - before for site, before in zip(sites, began, strict=True))
    return [100 * one / seconds for one in used]


def _cpu(process: int) -> float:
    """Return the seconds that a process has used, its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
