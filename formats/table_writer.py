"""Long tables of evenly spaced offsets, written piece by piece."""

from __future__ import annotations

from typing import NamedTuple

from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.tables import pack_offsets

#: Entries made at a time: short enough for other threads to get their turn.
_BATCH = 16384


class Progress:
    """Calls a checkpoint with figures that never go back."""

    def __init__(self, checkpoint: Checkpoint | None, total: int) -> None:
        self._checkpoint = checkpoint
        self._total = total
        self._done = 0

    def __call__(self, done: int, total: int = 0) -> None:
        """Report *done* bytes; a total that is passed is of no account."""
        if self._checkpoint is not None:
            self._done = max(self._done, min(done, self._total))
            self._checkpoint(self._done, self._total)


class Table(NamedTuple):
    """Entries that are evenly spaced offsets, see `pack_offsets`."""

    first: int
    step: int
    entries: int
    stride: int = 1


def write_table(handle: Handle, where: int, table: Table, progress: Progress) -> None:
    """Write a table to offset *where*, *progress* being told what it maps."""
    for start in range(0, table.entries, _BATCH):
        count = min(_BATCH, table.entries - start)
        first = table.first + start * table.step
        data = pack_offsets(first, table.step, count, stride=table.stride)
        handle.pwrite(data, where + 8 * table.stride * start)
        progress(start * table.step)
