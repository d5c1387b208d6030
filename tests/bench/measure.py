"""Timing, and the table of what was measured."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import storaged
from tests.bench.pairs import Found

Durability = Literal["full", "none"]
DURABILITIES: tuple[Durability, ...] = ("none", "full")


@dataclass(frozen=True)
class Row:
    """One figure: the median and the best of *count* runs, in *unit*."""

    name: str
    median: float
    least: float
    count: int
    unit: str = "ms"
    #: "full", "none", or "" where nothing is written
    durability: str = ""
    #: the same work by libvirt's C daemon, or by qemu-img
    reference: float | None = None
    #: what the median must not exceed, or must reach where more is better
    goal: float | None = None
    more: bool = False

    @classmethod
    def of_pairs(
        cls, found: Found, share: float | None, *, bound: float | None = None, more: bool = False
    ) -> Row:
        """Return a row whose ratio is the median of those of the pairs.

        :param share: what of the others' figure is the goal, None for no goal.
        :param bound: the goal whatever theirs is.
        """
        theirs, ours = found["times"]
        ratios = [our / max(their, 1e-9) for their, our in zip(theirs, ours, strict=True)]
        median = statistics.median(ours)
        reference = median / max(statistics.median(ratios), 1e-9)
        goal = bound if bound is not None or share is None else share * reference
        return cls(
            found["name"],
            median,
            max(ours) if more else min(ours),
            len(ours),
            found["unit"],
            reference=round(reference, 3),
            goal=None if goal is None else round(goal, 3),
            more=more,
        )

    @property
    def ratio(self) -> float | None:
        """How long it took, as a share of the others' time."""
        return None if self.reference is None else self.median / self.reference

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.more else self.median <= self.goal


@dataclass
class Report:
    """The rows of one run, printed as they come."""

    stream: TextIO
    rows: list[Row] = field(default_factory=list)

    def head(self) -> None:
        """Print the names of the columns."""
        print(
            f"{'':<46} {'fsync':<5} {'median':>9} {'least':>9} {'n':>5} "
            f"{'':<4} {'others':>8} {'ratio':>5} {'goal':>7}",
            file=self.stream,
        )

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        self.rows.append(row)
        reference = "" if row.reference is None else f"{row.reference:g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        goal = "" if row.goal is None else f"{row.goal:g}"
        missed = "  missed" if row.met is False else ""
        print(
            f"{row.name:<46} {row.durability:<5} {row.median:>9.3f} {row.least:>9.3f} "
            f"{row.count:>5} {row.unit:<4} {reference:>8} {ratio:>5} {goal:>7}{missed}",
            file=self.stream,
            flush=True,
        )

    def samples(
        self,
        name: str,
        values: list[float],
        *,
        durability: str = "",
        reference: float | None = None,
        goal: float | None = None,
    ) -> None:
        """Add a row made of single measurements in milliseconds."""
        median, least = statistics.median(values), min(values)
        self.add(
            Row(
                name,
                median,
                least,
                len(values),
                durability=durability,
                reference=reference,
                goal=goal,
            )
        )

    def latencies(self, name: str, values: list[float]) -> None:
        """Add two rows: what is typical, and what 99 of 100 stay below."""
        self.samples(name, values)
        late = sorted(values)[int(len(values) * 0.99)]
        self.add(Row(f"{name}, 99 of 100 below", late, min(values), len(values)))

    def save(self, path: Path, directory: Path) -> None:
        """Write all rows as JSON, with what they were measured on."""
        document = {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "file_system": file_system(directory),
            "rows": [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in self.rows],
        }
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long *work* takes. The garbage collector runs as it does for everybody."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def each(works: Iterable[Callable[[], object]]) -> list[float]:
    """Return how long each of *works* takes, in milliseconds, starting without others' garbage."""
    gc.collect()
    return [milliseconds(work) for work in works]


def query_until_end(pool: storaged.Pool, job: storaged.Job[Any]) -> list[float]:
    """Ask for a pool's state again and again while a job runs; return what each answer took."""
    times: list[float] = []
    while not job.ended or not times:
        start = time.perf_counter()
        pool.info()
        times.append((time.perf_counter() - start) * 1000)
        time.sleep(0.0005)
    job.result()
    return times


def repeat(
    count: int, work: Callable[[], object], before: Callable[[], object] = lambda: None
) -> list[float]:
    """Return the times of *count* runs, in milliseconds; *before* each comes what is not timed."""
    times = []
    for _ in range(count):
        before()
        times += each([work])
    return times


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds *directory*, as the kernel names it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        target = before.split()[4]
        if directory.resolve().is_relative_to(target) and len(target) >= len(best):
            best, kind = target, after.split()[0]
    return kind
