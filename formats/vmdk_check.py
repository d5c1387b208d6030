"""Check of a VMDK's tables: both copies agree, and every grain has its own room in the file.

Of compressed extents the markers are read as well, and those of a stream from its first to its
last. The data themselves are not unpacked.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from storaged.formats.checkreport import CheckReport
from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.image import ImageState
from storaged.formats.verdict import Verdict
from storaged.formats.vmdk import MAGIC, Marker, inspect
from storaged.formats.vmdk_claims import Claims
from storaged.formats.vmdk_descriptor import SECTOR
from storaged.formats.vmdk_extent import SparseExtent
from storaged.formats.vmdk_read import open_extents
from storaged.formats.vmdk_stream import walk
from storaged.formats.vmdk_tables import (
    Geometry,
    read_directory,
    read_marker,
    repeated,
    unpack_entries,
)
from storaged.formats.window import Window

#: Tables that are looked at between two calls of a checkpoint.
_TABLES_A_STEP = 64


def check(
    handle: Handle, *, extents: Sequence[Handle] = (), checkpoint: Checkpoint | None = None
) -> CheckReport:
    """Look for contradictions in the tables of a disk. Nothing is changed.

    :param extents: the files that the descriptor names, in its order.
    :param checkpoint: called with bytes of the disk done and in all.
    :raise UnsupportedFormat: if the disk is of a kind or has a feature that is not known.
    """
    try:
        opened = open_extents(handle, extents)
    except CorruptImage as err:
        return CheckReport("vmdk", corruptions=1, findings=(str(err),))
    report = CheckReport("vmdk")
    verdict = Verdict()
    _judge_header(handle, verdict)
    total = sum(extent.length for extent in opened)
    for extent in opened:
        if isinstance(extent, SparseExtent):
            one = _Check(extent.file, extent.geometry, verdict)
            one.run(_step(checkpoint, extent.start, total))
            report = replace(
                report,
                end=max(report.end, one.end),
                total=report.total + one.total,
                allocated=report.allocated + one.allocated,
                compressed=report.compressed + one.compressed,
            )
    if checkpoint is not None:
        checkpoint(total, total)
    return replace(
        report,
        corruptions=verdict.corruptions,
        leaks=verdict.leaks,
        findings=tuple(verdict.findings),
    )


def _judge_header(handle: Handle, verdict: Verdict) -> None:
    """Tell what a probe has against a header that can be read, and the descriptor behind it."""
    if handle.pread(len(MAGIC), 0) != MAGIC:
        return
    info = inspect(Window(handle.pread, handle.size()))
    for reason in info.reasons:
        if info.state is ImageState.CORRUPT:
            verdict.corrupt("{}", reason)
        else:
            verdict.note("{}", reason)


def _step(checkpoint: Checkpoint | None, done: int, total: int) -> Callable[[int], None]:
    def step(offset: int) -> None:
        if checkpoint is not None:
            checkpoint(min(done + offset, total), total)

    return step


class _Check:
    """The check of one sparse extent."""

    def __init__(self, file: Handle, geometry: Geometry, verdict: Verdict) -> None:
        self._file = file
        self._geometry = geometry
        self._verdict = verdict
        self._size = file.size()
        self._grain = geometry.grain // SECTOR
        self._claims = Claims(1 if geometry.compressed else self._grain)
        self.total = -(-geometry.capacity // geometry.grain)
        self.allocated = 0

    @property
    def compressed(self) -> int:
        """How many grains are compressed: all or none."""
        return self.allocated if self._geometry.compressed else 0

    @property
    def end(self) -> int:
        """Where the last thing ends that is used, in bytes."""
        return max(self._claims.end * SECTOR, min(self._geometry.over_head * SECTOR, self._size))

    def run(self, step: Callable[[int], None]) -> None:
        """Look at all tables."""
        geometry = self._geometry
        try:
            directory = read_directory(self._file, geometry, geometry.directory)
            other = None
            if geometry.redundant:
                other = read_directory(self._file, geometry, geometry.redundant)
        except CorruptImage as err:
            self._verdict.corrupt("{}", err)
            return
        self._claim_metadata(geometry.directory // SECTOR, 4 * geometry.tables)
        known = self._find_repeated(directory)
        for index, sector in enumerate(directory):
            if known[index]:
                continue
            if not index % _TABLES_A_STEP:
                step(index * geometry.span)
            if sector:
                self._look_at(index, sector, other[index] if other is not None else None)
            elif other is not None and other[index]:
                self._verdict.corrupt("grain table {} stands in one directory only", index)
        for sector, count in self._claims.overlaps():
            self._verdict.corrupt(
                "sector {} belongs to something else already", sector, times=count
            )
        if geometry.stream:
            walk(self._file, geometry, self.allocated, self._verdict, step)
        elif geometry.hosted and not geometry.compressed:
            room = (self._size - geometry.over_head * SECTOR) // geometry.grain
            if room > self.allocated:
                self._verdict.leaks += room - self.allocated
                self._verdict.note(
                    "{} grains of the file are used by nothing", room - self.allocated
                )

    def _find_repeated(self, directory: array[int]) -> bytearray:
        """Return a flag for each table, set if it was named before; tell of them.

        Each table is looked into once, or a short file could keep a check busy for hours.
        """
        known = repeated(directory)
        first = known.find(1)
        if first >= 0:
            self._verdict.corrupt(
                "grain table {} at sector {} belongs to something else already",
                first, directory[first], times=known.count(1),
            )  # fmt: skip
        return known

    def _look_at(self, index: int, sector: int, other: int | None) -> None:
        """Look at a grain table and its other copy."""
        size = 4 * self._geometry.entries
        raw = self._file.pread(size, sector * SECTOR)
        if len(raw) != size:
            self._verdict.corrupt("grain table {} at sector {} is outside the file", index, sector)
            return
        if other is not None and other != sector:
            copy = self._file.pread(size, other * SECTOR) if other else b""
            if copy != raw:
                self._verdict.corrupt("the two copies of grain table {} differ", index)
        self._claim_metadata(sector, size)
        if raw.count(0) < size:
            self._look_into(index, unpack_entries(raw))

    def _look_into(self, index: int, table: array[int]) -> None:
        geometry = self._geometry
        first = index * geometry.entries
        inside = min(geometry.entries, self.total - first)
        if inside < geometry.entries and any(table[inside:]):
            self._verdict.corrupt("grain table {} has entries beyond the disk's end", index)
            table = table[:inside]
        places = geometry.first_place
        if geometry.compressed:
            self._look_at_markers(first, table)
            return
        starts = array("I", [entry for entry in table if entry >= places])
        self.allocated += len(starts)
        if not starts:
            return
        if min(starts) * SECTOR < geometry.over_head * SECTOR or (
            (max(starts) + self._grain) * SECTOR > self._size
        ):
            starts = array("I", self._sound(first, table))
        grain = self._grain
        self._claims.add(starts, array("Q", [start + grain for start in starts]))

    def _sound(self, first: int, table: array[int]) -> list[int]:
        """Return the entries that lie where grains can; tell of the others."""
        geometry = self._geometry
        sound = []
        for index, entry in enumerate(table, first):
            if entry < geometry.first_place:
                continue
            length = min(geometry.grain, geometry.capacity - index * geometry.grain)
            if entry < geometry.over_head or entry * SECTOR + length > self._size:
                self._verdict.corrupt("grain {} at sector {} is outside the data", index, entry)
            else:
                sound.append(entry)
        return sound

    def _look_at_markers(self, first: int, table: array[int]) -> None:
        geometry = self._geometry
        starts, ends = array("I"), array("Q")
        for index, entry in enumerate(table, first):
            if entry < geometry.first_place:
                continue
            self.allocated += 1
            try:
                marker = read_marker(self._file, geometry, entry * SECTOR, index)
            except CorruptImage as err:
                self._verdict.corrupt("{}", err)
                continue
            end = entry * SECTOR + Marker.length() + marker.size
            if entry < geometry.over_head or end > self._size:
                self._verdict.corrupt("grain {} at sector {} is outside the data", index, entry)
                continue
            starts.append(entry)
            ends.append(-(-end // SECTOR))
        self._claims.add(starts, ends)

    def _claim_metadata(self, sector: int, size: int) -> None:
        """Claim the room of a table that lies among the grains."""
        if sector >= self._geometry.over_head:
            end = sector + -(-size // SECTOR)
            self._claims.add(array("I", (sector,)), array("Q", (end,)))
