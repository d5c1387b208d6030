"""What it costs to create, clone and delete a volume."""

from __future__ import annotations

import os
import statistics
from functools import partial
from pathlib import Path

import storaged
from tests.bench.images import Template
from tests.bench.measure import (
    DURABILITIES,
    Durability,
    Report,
    each,
    file_system,
    query_until_end,
    repeat,
)

CREATES = 60
SIZE = 10 << 30
CLONES = 3
CLONE_SIZE = 256 << 20

#: Milliseconds that the C daemon takes to create a volume of each format.
REFERENCE = {"raw": 1.0, "qcow2": 19.0, "vmdk": 9.0}


def run(report: Report, directory: Path) -> None:
    """Measure creates, deletes and clones, durable and not."""
    for durability in DURABILITIES:
        extra = 0.0
        if durability == "full":
            syncs = _two_syncs(directory)
            report.samples("a bare file as large, written and two fsyncs", syncs, durability="full")
            extra = statistics.median(syncs)
        _creates(report, directory / f"volumes-{durability}", durability, 1.0 + extra)
    for durability in DURABILITIES:
        _clones(report, directory / f"clones-{durability}", durability)


def _two_syncs(directory: Path) -> list[float]:
    """Return what the disk costs whoever writes a small qcow2 under a new name and syncs both."""
    qcow2 = Template.make(directory)
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def write(path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        qcow2.write(fd)
        os.fsync(fd)
        os.close(fd)
        path.rename(path.with_suffix(".made"))
        os.fsync(parent)

    try:
        paths = [directory / f"sync-{number}" for number in range(CREATES)]
        return each(partial(write, path) for path in paths)
    finally:
        os.close(parent)


def _creates(report: Report, place: Path, durability: Durability, qcow2_goal: float) -> None:
    with storaged.open(place / "state", durability=durability) as storage:
        pool = storage.ensure_dir_pool("bench", place / "images")
        for kind, reference in REFERENCE.items():
            names = [f"disk-{number}.{kind}" for number in range(CREATES)]
            report.samples(
                f"create {kind}, sparse, 10 GiB",
                each(partial(pool.create, name, SIZE, format=kind) for name in names),
                durability=durability,
                reference=reference,
                goal=qcow2_goal if kind == "qcow2" else reference,
            )
        deletes = each(volume.delete for volume in pool.volumes())
        report.samples("delete", deletes, durability=durability)


def _clones(report: Report, place: Path, durability: Durability) -> None:
    how = "reflink" if file_system(place.parent) in ("xfs", "btrfs") else "copy"
    with storaged.open(place / "state", durability=durability) as storage:
        pool = storage.ensure_dir_pool("bench", place / "images")
        source = pool.create("source.raw", CLONE_SIZE)
        Path(source.path).write_bytes(os.urandom(1 << 20) * (CLONE_SIZE >> 20))
        pool.refresh()
        names = [f"clone-{number}.raw" for number in range(CLONES)]
        times = [
            time for name in names for time in repeat(1, partial(source.clone_to, name), os.sync)
        ]
        report.samples(f"clone raw, 256 MiB ({how})", times, durability=durability)
        if durability == "none":
            job = source.clone_to("beside.raw", wait=False)
            report.latencies("pool query during a clone", query_until_end(pool, job))
