"""What a scan, a list and a look-up cost beside 10,000 images."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import storaged
from tests.bench.images import Template, fill
from tests.bench.measure import Report, each, query_until_end, repeat

COUNT = 10_000
ROUNDS = 7
#: How many images are looked up one by one.
SAMPLE = 1000


def run(report: Report, directory: Path) -> None:
    """Measure start, refresh, list and look-up."""
    images = directory / "images"
    fill(images, COUNT, Template.make(directory))
    _starts(report, directory, images)
    with storaged.open(directory / "scan-state") as storage:
        pool = storage.ensure_dir_pool("bench", images)
        pool.refresh()
        _refreshes(report, pool, images)
        report.samples(
            f"list {COUNT:,} with all figures",
            repeat(ROUNDS, pool.infos),
            reference=33.0,
            goal=33.0,
        )
        report.samples(f"list {COUNT:,} names", repeat(ROUNDS, pool.names))
        _look_ups(report, storage, pool, images)
        _queries_beside(report, pool)


def _starts(report: Report, directory: Path, images: Path) -> None:
    """Measure from nothing to a list of all: open, start, first scan."""
    state = directory / "scan-state"
    with storaged.open(state) as storage:
        storage.ensure_dir_pool("bench", images)

    def start() -> None:
        with storaged.open(state) as storage:
            pool = storage.pool("bench")
            pool.start()
            assert len(pool.names()) == COUNT

    def stop() -> None:
        with storaged.open(state) as storage:
            if storage.pool("bench").active:
                storage.pool("bench").stop()

    times = repeat(ROUNDS, start, before=stop)
    report.samples(f"open and start with {COUNT:,} images", times, reference=250.0, goal=250.0)


def _refreshes(report: Report, pool: storaged.Pool, images: Path) -> None:
    def touch() -> None:
        # A new time of change makes every record stale: each image is opened and read again.
        for image in images.iterdir():
            image.chmod(0o600)

    changed = repeat(ROUNDS, pool.refresh, before=touch)
    report.samples(f"refresh {COUNT:,}, all changed", changed, reference=213.0, goal=213.0)
    unchanged = repeat(ROUNDS, pool.refresh)
    report.samples(f"refresh {COUNT:,}, unchanged", unchanged, reference=213.0, goal=60.0)


def _look_ups(report: Report, storage: storaged.Storage, pool: storaged.Pool, images: Path) -> None:
    paths = [str(path) for path in random.Random(1).sample(sorted(images.iterdir()), SAMPLE)]
    report.samples(
        f"look-up by path beside {COUNT:,}",
        each(partial(storage.volume_by_path, path) for path in paths),
    )
    volumes = [storage.volume_by_path(path) for path in paths]
    report.samples(
        f"figures of one volume beside {COUNT:,}", each(volume.info for volume in volumes)
    )


def _queries_beside(report: Report, pool: storaged.Pool) -> None:
    times: list[float] = []
    for _ in range(ROUNDS):
        times += query_until_end(pool, pool.refresh(wait=False))
    report.latencies("pool query during a refresh", times)
