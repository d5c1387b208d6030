"""Which sectors of a file are taken, to find those that are taken twice."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import chain

#: Grains that fit into one part of the file. Each part is sorted alone.
_PER_PART = 1 << 17
#: Slack for what is no grain.
_EXTRA = 1 << 10


class Claims:
    """The sectors that grains and tables take.

    Memory is bounded by what can lie in the file side by side: of a part that holds more claims
    than that, some are certain to overlap and need not be kept.

    :param smallest: how many sectors a claim takes at least, as a rule.
    """

    def __init__(self, smallest: int) -> None:
        self._shift = (smallest * _PER_PART - 1).bit_length()
        self._starts: dict[int, array[int]] = {}
        self._ends: dict[int, array[int]] = {}
        #: claims that were not kept
        self._dropped: dict[int, int] = {}
        self.end = 0

    def add(self, starts: array[int], ends: array[int]) -> None:
        """Claim the sectors from each of *starts* to before the same of *ends*."""
        if not starts:
            return
        self.end = max(self.end, max(ends))
        low, high = min(starts) >> self._shift, max(starts) >> self._shift
        if low == high:
            self._add(low, starts, ends)
            return
        for start, end in zip(starts, ends, strict=True):
            self._add(start >> self._shift, array("I", (start,)), array("Q", (end,)))

    def overlaps(self) -> Iterator[tuple[int, int]]:
        """Yield (sector, count): how many claims begin there, or from there on, in another's."""
        last = 0
        for part in sorted(self._starts):
            starts, ends = sorted(self._starts[part]), sorted(self._ends[part])
            # Claims are disjoint exactly if the nth of them to end does so before the next begins.
            for start, before in zip(starts, chain((last,), ends), strict=False):
                if before > start:
                    yield start, 1
            last = max(last, ends[-1])
            if part in self._dropped:
                yield starts[0], self._dropped[part]

    def _add(self, part: int, starts: array[int], ends: array[int]) -> None:
        kept = self._starts.setdefault(part, array("I"))
        if len(kept) > _PER_PART + _EXTRA:
            self._dropped[part] = self._dropped.get(part, 0) + len(starts)
            return
        kept.extend(starts)
        self._ends.setdefault(part, array("Q")).extend(ends)
