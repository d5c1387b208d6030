"""What in a qcow2 image refers to which clusters of its file.

The rules about what may lie beyond the end of the file are QEMU's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from storaged.formats.counts import Counts
from storaged.formats.handle import Handle
from storaged.formats.verdict import Verdict

#: Tables are read in pieces of at most this many bytes.
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Claim:
    """A run of clusters that nothing but what is named here may use."""

    name: str
    first: int
    count: int


class References:
    """Every reference that was met, counted by cluster.

    :param size: of the file, in bytes.
    """

    def __init__(self, size: int, cluster_size: int, verdict: Verdict) -> None:
        self.size = size
        self.cluster_size = cluster_size
        self.verdict = verdict
        #: clusters that lie in the file at least in part
        self.within = -(-size // cluster_size)
        #: the last cluster may be cut short, so what follows it may begin in the next
        self.counts = Counts(size // cluster_size + 2)
        self.claims: list[Claim] = []

    def claim(self, name: str, offset: int, length: int) -> bool:
        """Count a table or another area that is one's own; tell if nothing else was there yet."""
        if not length or not self.covers(name, offset, length):
            return False
        first = offset // self.cluster_size
        count = -(-(offset + length) // self.cluster_size) - first
        free = self.counts.is_zero(first, count)
        self.counts.add_run(first, count)
        self.claims.append(Claim(name, first, count))
        return free

    def covers(self, name: str, offset: int, length: int, times: int = 1) -> bool:
        """Tell whether an area ends less than a cluster behind the end of the file."""
        if offset + length - 1 < self.size + self.cluster_size:
            return True
        self.verdict.corrupt(
            "{} at {} of {} bytes lies beyond the end of the file", name, offset, length,
            times=times,
        )  # fmt: skip
        return False

    def add(self, name: str, clusters: list[int], times: int) -> None:
        """Count references to *clusters*, less those that lie beyond the end of the file."""
        last = self.size // self.cluster_size
        if clusters and max(clusters) > last:
            for cluster in clusters:
                if cluster > last:
                    offset = cluster * self.cluster_size
                    self.covers(name, offset, self.cluster_size, times)
            clusters = [cluster for cluster in clusters if cluster <= last]
        self.counts.add(clusters, times)

    def add_area(self, name: str, offset: int, length: int, times: int) -> None:
        """Count references to all clusters that an area touches."""
        if self.covers(name, offset, length, times):
            size = self.cluster_size
            self.counts.add(range(offset // size, -(-(offset + length) // size)), times)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a file that several tables of the same kind cover *times* over."""

    start: int
    stop: int
    times: int


def segments(tables: Iterable[tuple[int, int]]) -> Iterator[Segment]:
    """Cut tables, given as offset and length, into parts that are covered equally often.

    However many tables cover each other: no byte lies in more than one part.
    """
    steps: dict[int, int] = {}
    for offset, length in tables:
        steps[offset] = steps.get(offset, 0) + 1
        steps[offset + length] = steps.get(offset + length, 0) - 1
    times = 0
    for start, stop in pairwise(sorted(steps)):
        times += steps[start]
        if times:
            yield Segment(start, stop, times)


def read_table(handle: Handle, offset: int, length: int) -> Iterator[bytes]:
    """Yield what of a table is in the file and is no hole there, in pieces of whole entries."""
    end = min(offset + length, handle.size())
    if length <= _PIECE:
        if offset < end:
            yield handle.pread(end - offset, offset)
        return
    for extent in handle.map(offset, end - offset):
        if extent.data:
            last = extent.offset + extent.length
            for start in range(extent.offset & ~7, last, _PIECE):
                yield handle.pread(min(_PIECE, last - start), start)
