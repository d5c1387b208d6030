"""Tables of a qcow2 image in bulk: pages that are kept for a while, and runs of entries.

Tables are read a page of the file at a time and the pages kept in a small cache, so that memory is
bounded and reads are of a good size whatever the cluster size. The ends of long runs are found by
arithmetic on all entries as one large integer: a run of thousands takes no loop.
"""

from __future__ import annotations

import re
import sys
import threading
from array import array
from collections import OrderedDict

from storaged.formats.handle import Handle
from storaged.formats.layers import read_padded

#: Bytes of a page, and how many of them are kept.
_PAGE = 64 << 10
_PAGES = 64

_zeros = re.compile(rb"\0*").match


class Pages:
    """The pages of the tables that were used last. Several threads may share it."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return at most *length* bytes from *offset*, fewer where their page ends.

        Beyond the end of the file they are zeros.
        """
        skip = offset % _PAGE
        return self._page(offset - skip)[skip : skip + length]

    def zeros(self, offset: int) -> int:
        """Return how many bytes from *offset* on are zeros, counted in its page only.

        Where a page begins the answer is 0: it is not read in advance.
        """
        skip = offset % _PAGE
        match = _zeros(self._page(offset - skip), skip) if skip else None
        return match.end() - skip if match else 0

    def _page(self, offset: int) -> bytes:
        with self._lock:
            page = self._pages.get(offset)
            if page is not None:
                self._pages.move_to_end(offset)
                return page
        page = read_padded(self._handle, _PAGE, offset)
        with self._lock:
            self._pages[offset] = page
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        return page


class Entries:
    """Consecutive entries of an L2 table; tells how far those go on that are alike.

    :param width: bytes of an entry, 8 or 16.
    :param step: by how much host offsets rise.
    """

    __slots__ = ("_data", "_equal", "_rising", "_step", "_stride", "_width", "_words", "count")

    def __init__(self, data: bytes, width: int, step: int) -> None:
        words = array("Q", data)
        if sys.byteorder == "little":
            words.byteswap()
        self.count = len(data) // width
        self._data = data
        self._words = words
        self._width = width
        self._stride = width // 8
        self._step = step
        self._equal: bytes | None = None
        self._rising: bytes | None = None

    def word(self, index: int) -> int:
        """Return the word that has the host offset."""
        return self._words[index * self._stride]

    def second_word(self, index: int) -> int:
        """Return the word that has the subclusters' bitmap, of an entry of 16 bytes."""
        return self._words[2 * index + 1]

    def equal_until(self, index: int) -> int:
        """Return the index of the first entry behind *index* that differs from it."""
        after, words, stride = index + 1, self._words, self._stride
        if after == self.count or words[after * stride] != words[index * stride]:
            return after
        if self._equal is None:
            number = int.from_bytes(self._data, "big")
            self._equal = self._packed(number ^ number >> 8 * self._width)
        return self._end(self._equal, after)

    def rising_until(self, index: int) -> int:
        """Return the index of the first one whose offset is not the one before's and a step.

        All else has to be equal. The entry at *index* must have no reserved bits set: then no sum
        in its run can carry into the next word.
        """
        after, words, stride = index + 1, self._words, self._stride
        if after == self.count or words[after * stride] != words[index * stride] + self._step:
            return after
        if self._rising is None:
            number = int.from_bytes(self._data, "big")
            step = self._step.to_bytes(8, "big") + bytes(self._width - 8)
            steps = int.from_bytes(step * (self.count - 1), "big")
            self._rising = self._packed(number ^ (number >> 8 * self._width) + steps)
        return self._end(self._rising, after)

    def _packed(self, differences: int) -> bytes:
        # The first entry has none before it; what stands there is of no account.
        mask = (1 << 8 * len(self._data)) - 1
        return (differences & mask).to_bytes(len(self._data), "big")

    def _end(self, differences: bytes, index: int) -> int:
        """Return the first index from *index* on whose difference is not zero."""
        match = _zeros(differences, index * self._width)
        return match.end() // self._width if match else self.count
