"""What a pool of many volumes costs: memory, and the time of a look-up by the command line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import storaged
from tests.bench.images import Template, fill
from tests.bench.measure import Report, Row
from tests.bench.programs import storagectl, wall

#: Volumes of the pool unless the caller says otherwise.
COUNT = 100_000


def run(report: Report, directory: Path, count: int = COUNT) -> None:
    """Measure in processes of their own, so that nothing else counts."""
    images, state = directory / "many", directory / "many-state"
    fill(images, count, Template.make(directory))
    with storaged.open(state) as storage:
        storage.ensure_dir_pool("bench", images)
    for how, name in (("traced", "Python's own count"), ("resident", "resident")):
        command = [sys.executable, "-m", "tests.bench.memory", how, str(state)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        each = float(done.stdout)
        goal = 800.0 if how == "traced" else None
        report.add(Row(f"memory a volume at {count:,}, {name}", each, each, 1, "B", goal=goal))
    path = storagectl(state, "vol", "path", f"disk-{count // 2:06}.raw", "--pool", "bench")
    report.samples(f"storagectl vol path beside {count:,}", wall(5, path))


def measure(how: str, state: str) -> float:
    """Return the bytes that each volume of the pool takes in this process."""
    if how == "traced":
        tracemalloc.start()
    with storaged.open(state) as storage:
        pool = storage.pool("bench")
        before = _in_use(how)
        count = len(pool.names())
        return (_in_use(how) - before) / count


def _in_use(how: str) -> int:
    gc.collect()
    if how == "traced":
        return tracemalloc.get_traced_memory()[0]
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
