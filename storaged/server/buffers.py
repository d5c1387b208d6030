"""Where uploads are received: buffers that are used again once their data are written.

New memory for each piece would cost more time than all else that is done with it.
"""

from __future__ import annotations

import threading
from typing import Final

#: The size of a buffer, in bytes.
SIZE: Final = 256 << 10
#: So many unused ones are kept: what waits of one upload takes hardly more.
_KEPT: Final = 24


class Buffers:
    """Buffers, each with its holders. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[bytearray] = []
        #: those in use, by their identity, with the number of their holders
        self._used: dict[int, tuple[bytearray, int]] = {}

    def __len__(self) -> int:
        """Return how many are in use."""
        return len(self._used)

    def take(self) -> memoryview:
        """Return all of a buffer that nobody uses; the caller is its first holder."""
        with self._lock:
            found = self._free.pop() if self._free else bytearray(SIZE)
            self._used[id(found)] = (found, 1)
        return memoryview(found)

    def hold(self, part: memoryview) -> None:
        """Become a further holder of the buffer that *part* belongs to."""
        with self._lock:
            found, holders = self._used[id(part.obj)]
            self._used[id(part.obj)] = (found, holders + 1)

    def release(self, *parts: memoryview) -> None:
        """Hold the buffers of some parts no more: their data may change from now on."""
        with self._lock:
            for part in parts:
                found, holders = self._used.pop(id(part.obj))
                if holders > 1:
                    self._used[id(found)] = (found, holders - 1)
                elif len(self._free) < _KEPT:
                    self._free.append(found)
