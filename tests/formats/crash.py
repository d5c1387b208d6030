"""What a crash could leave of an image: writes that no flush has secured are lost or reordered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from storaged.formats.handle import Bytes
from tests.formats.memory import MemoryHandle

#: Of so many writes between two flushes every subset may have come to the disk.
MAX_SUBSETS = 6


class CrashHandle(MemoryHandle):
    """Keeps every change, in groups that a flush ends."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.start = bytes(data)
        #: offset and bytes; None for bytes: the file is given that length
        self.groups: list[list[tuple[int, bytes | None]]] = [[]]

    def pwrite(self, data: Bytes, offset: int) -> None:
        # Sectors are what a disk does not tear.
        self.groups[-1].append((offset, bytes(data)))
        super().pwrite(data, offset)

    def truncate(self, size: int) -> None:
        if size < len(self.data):
            self.groups[-1].append((size, None))
        super().truncate(size)

    def flush(self) -> None:
        self.groups.append([])

    def states(self) -> Iterator[bytes]:
        """Yield every image once that a crash could leave, the old and the new one among them."""
        seen = {self.start}
        yield self.start
        settled = self.start
        for group in self.groups:
            for changes in _choices(group):
                image = MemoryHandle(settled)
                for offset, data in changes:
                    if data is None:
                        image.truncate(offset)
                    else:
                        image.pwrite(data, offset)
                state = bytes(image.data)
                if state not in seen:
                    seen.add(state)
                    yield state
            settled = state if group else settled


def _choices(
    group: list[tuple[int, bytes | None]],
) -> Iterator[tuple[tuple[int, bytes | None], ...]]:
    """Yield the changes that may have come to the disk; all of them last."""
    torn = [piece for change in group for piece in _torn(change)]
    if len(torn) <= MAX_SUBSETS:
        for count in range(len(torn) + 1):
            yield from itertools.combinations(torn, count)
        return
    for number in range(len(torn)):
        yield (torn[number],)
        yield tuple(torn[:number] + torn[number + 1 :])
        yield tuple(torn[: number + 1])


def _torn(change: tuple[int, bytes | None]) -> Iterator[tuple[int, bytes | None]]:
    """Cut a write into at most three parts at borders of sectors."""
    offset, data = change
    if data is None or len(data) <= 512:
        yield change
        return
    first = 512 - offset % 512
    middle = first + (len(data) - first) // 1024 * 512
    for start, stop in ((0, first), (first, middle), (middle, len(data))):
        if stop > start:
            yield offset + start, data[start:stop]
