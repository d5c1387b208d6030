"""How often every cluster of a file is used: counted in bulk, for files of any length.

The counts lie in planes of one byte a cluster: plane 0 has the least significant byte of each. A
plane is made when the first count needs it; what is never touched of a long one takes no memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from mmap import mmap
from operator import ne, or_

from storaged.formats.errors import UnsupportedFormat

#: Clusters that are looked at together.
STEP = 4096
#: More clusters than this are not counted: 64 TiB of clusters of 64 KiB.
MAX_CLUSTERS = 1 << 30

#: Longer planes are left to the kernel, which makes only those pages that are written.
_LONG = 1 << 24

#: Finds the bytes that are not zero, which are few among many: L2 tables among clusters.
_MARKS = re.compile(rb"[^\0]").finditer

#: Add one to every byte; none may be 255.
_NEXT = bytes(range(1, 256)) + b"\0"


def make_plane(length: int) -> bytearray | mmap:
    """Return so many zero bytes that can be changed."""
    return bytearray(length) if length <= _LONG else mmap(-1, length)


class Counts:
    """A number for each cluster of a file, at first zero.

    :param clusters: how many there are.
    :raise UnsupportedFormat: if that is more than `MAX_CLUSTERS`.
    """

    def __init__(self, clusters: int) -> None:
        if clusters > MAX_CLUSTERS:
            raise UnsupportedFormat(f"a file of {clusters} clusters is too long to be checked")
        self.clusters = clusters
        self.planes = [make_plane(clusters)]

    def __getitem__(self, cluster: int) -> int:
        return sum(plane[cluster] << 8 * place for place, plane in enumerate(self.planes))

    def add(self, clusters: Iterable[int], times: int = 1) -> None:
        """Add *times* to each of *clusters*, which may repeat themselves."""
        counts, cluster = self.planes[0], 0
        rest = iter(clusters)
        while True:
            try:
                for cluster in rest:
                    counts[cluster] += times
            except ValueError:  # it does not fit in a byte
                self._carry(cluster, times)
            else:
                return

    def add_run(self, first: int, count: int, times: int = 1) -> None:
        """Add *times* to each of *count* clusters from *first* on."""
        for start in range(first, first + count, STEP):
            stop = min(start + STEP, first + count)
            old = self.planes[0][start:stop]
            if times == 1 and b"\xff" not in old:
                self.planes[0][start:stop] = old.translate(_NEXT)
            else:
                self.add(range(start, stop), times)

    def fill(self, first: int, planes: Sequence[bytes]) -> None:
        """Set the counts from *first* on, given as planes."""
        for place, values in enumerate(planes):
            if place < len(self.planes):
                self.planes[place][first : first + len(values)] = values
            elif any(values):
                self._grow(place)
                self.planes[place][first : first + len(values)] = values

    def used(self) -> Iterator[int]:
        """Yield the clusters whose number is not zero."""
        zeros = bytes(STEP)
        for first in range(0, self.clusters, STEP):
            parts = [plane[first : first + STEP] for plane in self.planes]
            if any(part != zeros[: len(part)] for part in parts):
                marks = parts[0] if len(parts) == 1 else bytes(map(any, zip(*parts, strict=True)))
                yield from (first + mark.start() for mark in _MARKS(marks))

    def differing(self, other: Counts) -> Iterator[int]:
        """Yield the clusters whose number is not that of *other*, which has as many."""
        zeros = bytes(STEP)
        places = range(max(len(self.planes), len(other.planes)))
        for first in range(0, self.clusters, STEP):
            last = min(first + STEP, self.clusters)
            alike = unlike = zeros[: last - first]
            for place in places:
                ours, theirs = (
                    counts.planes[place][first:last] if place < len(counts.planes) else zeros
                    for counts in (self, other)
                )
                if ours != theirs:
                    unlike = bytes(map(or_, unlike, map(ne, ours, theirs)))
            if unlike is not alike:
                yield from compress(range(first, last), unlike)

    def other_than_one(self, first: int, count: int) -> Iterator[int]:
        """Yield those of so many clusters from *first* on whose number is not one."""
        ones, zeros = b"\1" * STEP, bytes(STEP)
        for start in range(first, first + count, STEP):
            stop = min(start + STEP, first + count)
            low, *high = (plane[start:stop] for plane in self.planes)
            if low != ones[: stop - start] or any(part != zeros[: stop - start] for part in high):
                yield from (cluster for cluster in range(start, stop) if self[cluster] != 1)

    def ones(self) -> bytearray | mmap:
        """Return a plane in which a byte is 1 where the number is, and nowhere else."""
        if len(self.planes) == 1:
            return self.planes[0]
        ones = make_plane(self.clusters)
        for cluster in self.used():
            if self[cluster] == 1:
                ones[cluster] = 1
        return ones

    def last(self) -> int:
        """Return the last cluster whose number is not zero, -1 if there is none."""
        zeros = bytes(STEP)
        for stop in range(self.clusters, 0, -STEP):
            first = max(stop - STEP, 0)
            parts = [plane[first:stop] for plane in self.planes]
            if any(part != zeros[: stop - first] for part in parts):
                return first + max(len(part.rstrip(b"\0")) for part in parts) - 1
        return -1

    def is_zero(self, first: int, count: int) -> bool:
        """Tell whether so many clusters from *first* on all have the number zero."""
        zeros = bytes(STEP)
        for start in range(first, first + count, STEP):
            stop = min(start + STEP, first + count)
            if any(plane[start:stop] != zeros[: stop - start] for plane in self.planes):
                return False
        return True

    def _carry(self, cluster: int, times: int) -> None:
        value, place = self[cluster] + times, 0
        while value or place < len(self.planes):
            self._grow(place)
            self.planes[place][cluster] = value & 0xFF
            value >>= 8
            place += 1

    def _grow(self, place: int) -> None:
        while len(self.planes) <= place:
            self.planes.append(make_plane(self.clusters))
