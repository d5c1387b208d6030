"""The L1 and L2 tables of a qcow2 image under examination.

However often tables refer to each other, every cluster is read once as an L2 table, and every byte
once as part of an L1 table of the snapshots.

Source: the qcow2 specification; what counts as a contradiction is what QEMU counts.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from storaged.formats import qcow2
from storaged.formats.counts import Counts
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.qcow2 import Header, Incompatible
from storaged.formats.qcow2_references import References, read_table, segments
from storaged.formats.tables import pack_offsets, unpack_entries

_COMPRESSED = 1 << 62
_ZERO = 1
#: Bits 1 to 8 and 56 to 61 of an entry of an L2 table, 0 to 8 and 56 to 62 of one of an L1 table.
_L2_RESERVED = 0x3F000000000001FE
_L1_RESERVED = 0x7F000000000001FF
_ALLOCATED = 0xFFFFFFFF
#: Bytes of a table that are looked at together for whether they are in use.
_STEP = 1024


@dataclass(slots=True)
class Mapped:
    """How many clusters of the disk have room in the file."""

    allocated: int = 0
    compressed: int = 0


class MapCheck:
    """Follows L1 tables, then all L2 tables together.

    :param stored: the refcounts as the image has them.
    """

    def __init__(
        self, handle: Handle, header: Header, references: References, stored: Counts
    ) -> None:
        self._handle = handle
        self._references = references
        self._verdict = references.verdict
        self._cluster_size = header.cluster_size
        self._bits = header.fixed.cluster_bits
        self._stored = stored
        self._ones = stored.ones()
        #: how many L1 entries name a cluster, and how many of them are the disk's own
        self._tables = Counts(references.counts.clusters)
        self._active = Counts(references.counts.clusters)
        self._extended = header.has(Incompatible.EXTENDED_L2)
        self._data_file = header.has(Incompatible.DATA_FILE)
        self._odd = _L2_RESERVED | header.cluster_size - 1 & qcow2.OFFSET_MASK
        if self._extended or header.fixed.version == 2:
            self._odd |= _ZERO
        #: where the data end in their own file
        self.data_end = 0
        self.mapped = Mapped()

    def add_active(self, offset: int, entries: int) -> None:
        """Follow the disk's own L1 table."""
        for piece in read_table(self._handle, offset, 8 * entries):
            self._add_l1(unpack_entries(piece), 1, active=True)

    def add_snapshots(self, tables: Iterable[tuple[int, int]]) -> None:
        """Follow the L1 tables of the snapshots, given as offset and length."""
        for part in segments(tables):
            for piece in read_table(self._handle, part.start, part.stop - part.start):
                self._add_l1(unpack_entries(piece), part.times, active=False)

    def follow(self, checkpoint: Checkpoint | None = None) -> None:
        """Examine all L2 tables.

        :param checkpoint: called with the place in the file and its size.
        """
        size, end = self._cluster_size, self._references.size
        hole, width = 0, 16 if self._extended else 8
        for cluster in self._tables.used():
            if (cluster + 1) * size <= hole:
                continue
            data = _without_zeros(self._handle.pread(size, cluster * size), width)
            if data:
                self._add_l2(unpack_entries(data), cluster)
            else:
                hole = self._hole_end(cluster * size)
            if checkpoint is not None:
                checkpoint(min(cluster * size, end), end)

    def _hole_end(self, offset: int) -> int:
        """Return where the hole ends that begins at *offset* or before, 0 if there is none."""
        end = self._references.size
        for extent in self._handle.map(offset, end - offset):
            return 0 if extent.data else extent.offset + extent.length
        return 0

    def require_single_use(self) -> None:
        """Report each cluster that is an L2 table and something else, unless refcounts tell."""
        counts = self._references.counts
        for cluster in self._tables.used():
            if (
                counts[cluster] != self._tables[cluster]
                and self._stored[cluster] >= counts[cluster]
            ):
                self._verdict.corrupt(
                    "cluster {} is an L2 table and used for something else", cluster
                )

    def _add_l1(self, entries: array[int], times: int, *, active: bool) -> None:
        verdict, mask = self._verdict, self._cluster_size - 1
        found = []
        for entry in filter(None, entries):
            if entry & _L1_RESERVED:
                verdict.corrupt("L1 entry {:#x} has reserved bits set", entry, times=times)
            offset = entry & qcow2.OFFSET_MASK
            if not offset or offset & mask:
                verdict.corrupt("L1 entry {:#x} is no place for an L2 table", entry, times=times)
                if offset:
                    self._references.add_area("an L2 table", offset, mask + 1, times)
                continue
            found.append(offset >> self._bits)
            if active:
                single = self._is_single(offset >> self._bits)
                self._check_copied("L1 entry", entry, 1, single=single)
        self._references.add("an L2 table", found, times)
        within = self._references.within
        found = [cluster for cluster in found if cluster < within]
        self._tables.add(found, times)
        if active:
            self._active.add(found, times)

    def _add_l2(self, entries: array[int], table: int) -> None:
        active, times = self._active[table], self._tables[table]
        plain = entries
        if self._extended:
            plain, bitmaps = entries[0::2], entries[1::2]
            self._check_bitmaps(plain, bitmaps, times)
        if plain and not self._data_file and self._add_run(plain, times, active):
            return
        clusters = [] if self._data_file else self._undisturbed(plain, active)
        if not clusters:
            clusters = self._each(plain, times, active)
        if not self._data_file:
            self._references.add("a data cluster", clusters, times)

    def _add_run(self, entries: array[int], times: int, active: int) -> bool:
        """Add the clusters of a table if each follows the one before; tell whether they do.

        That is how a disk's tables are that was written in order, and takes no step an entry.
        """
        first, count, size = entries[0], len(entries), self._cluster_size
        cluster = first - qcow2.COPIED >> self._bits
        if (
            not 0 < cluster <= self._references.within - count
            or entries[-1] != first + (count - 1) * size
            or first != qcow2.COPIED | cluster << self._bits
            or entries != unpack_entries(pack_offsets(first, size, count))
            or (active and self._ones[cluster : cluster + count].count(1) != count)
        ):
            return False
        self.mapped.allocated += count * active
        self._references.counts.add_run(cluster, count, times)
        return True

    def _undisturbed(self, entries: array[int], active: int) -> list[int]:
        """Return the clusters if every entry is a plain one with the right flag, else nothing.

        That is how nearly all tables are, and one step a kind of check instead of many an entry.
        """
        groups = {qcow2.COPIED: _clusters(entries, qcow2.COPIED, self._bits)}
        if groups[qcow2.COPIED] is None:  # there are gaps, or clusters that snapshots have too
            used = list(filter(None, entries))
            for flag in (qcow2.COPIED, 0):
                group = array("Q", [entry for entry in used if entry & qcow2.COPIED == flag])
                groups[flag] = _clusters(group, flag, self._bits)
        clusters: list[int] = []
        for flag, found in groups.items():
            if found is None or not self._are_flagged(found, bool(flag), active):
                return []
            clusters += found
        self.mapped.allocated += len(clusters) * active
        return clusters

    def _are_flagged(self, clusters: list[int], flag: bool, active: int) -> bool:
        """Tell whether clusters lie in the file and their flag says whether refcounts are one."""
        if not clusters:
            return True
        if not 0 < min(clusters) <= max(clusters) < self._references.within:
            return False
        ones = bytes(map(self._ones.__getitem__, clusters)).count(1) if active else 0
        return not active or ones == (len(clusters) if flag else 0)

    def _each(self, entries: array[int], times: int, active: int) -> list[int]:
        """Examine entry by entry; return the clusters that are left to count."""
        clusters = []
        for entry in filter(None, entries):
            if entry & _COMPRESSED:
                self._add_compressed(entry, times, active)
                continue
            offset = entry & qcow2.OFFSET_MASK
            if entry & self._odd and not self._is_usable(entry, offset, times):
                continue
            if not offset and not (self._data_file and entry & qcow2.COPIED):
                continue
            self.mapped.allocated += active
            cluster = offset >> self._bits
            clusters.append(cluster)
            if active:
                single = self._data_file or self._is_single(cluster)
                self._check_copied("L2 entry", entry, active, single=single)
        if self._data_file and clusters:
            self.data_end = max(self.data_end, max(clusters) + 1 << self._bits)
        return clusters

    def _is_usable(self, entry: int, offset: int, times: int) -> bool:
        """Report an odd entry; tell whether the cluster it names is still to be counted."""
        if entry & _L2_RESERVED:
            self._verdict.corrupt("L2 entry {:#x} has reserved bits set", entry, times=times)
        if entry & _ZERO & self._odd:
            self._verdict.corrupt("L2 entry {:#x} has a zero flag", entry, times=times)
        if not offset & self._cluster_size - 1:
            return True
        self._verdict.corrupt("L2 entry {:#x} is not aligned to a cluster", entry, times=times)
        if not self._data_file:
            self._references.add_area("a data cluster", offset, self._cluster_size, times)
        return False

    def _add_compressed(self, entry: int, times: int, active: int) -> None:
        verdict = self._verdict
        if entry & qcow2.COPIED:
            verdict.corrupt("compressed L2 entry {:#x} has a refcount flag", entry, times=times)
        if self._data_file:
            verdict.corrupt("compressed L2 entry {:#x} with a data file", entry, times=times)
            return
        offset, length = qcow2.compressed_place(entry, self._bits)
        if offset >= self._references.size:
            verdict.corrupt(
                "a compressed cluster at {} lies beyond the end of the file", offset, times=times
            )
        else:
            self._references.add_area("a compressed cluster", offset, length, times)
        self.mapped.allocated += active
        self.mapped.compressed += active

    def _check_bitmaps(self, plain: array[int], bitmaps: array[int], times: int) -> None:
        """Check the subclusters of extended L2 entries."""
        if not any(bitmaps):
            return
        for entry, bitmap in zip(plain, bitmaps, strict=False):
            if entry & _COMPRESSED and bitmap:
                text = "compressed L2 entry {:#x} with subclusters {:#x}"
            elif bitmap >> 32 & bitmap:
                text = "L2 entry {:#x} has subclusters {:#x} both allocated and zero"
            elif bitmap & _ALLOCATED and not entry & (qcow2.OFFSET_MASK | qcow2.COPIED):
                text = "L2 entry {:#x} has subclusters {:#x} but no cluster"
            else:
                continue
            self._verdict.corrupt(text, entry, bitmap, times=times)

    def _is_single(self, cluster: int) -> bool:
        return cluster < len(self._ones) and self._ones[cluster] == 1

    def _check_copied(self, name: str, entry: int, times: int, *, single: bool) -> None:
        """Check that the flag says whether the stored refcount is one."""
        if bool(entry & qcow2.COPIED) is not single:
            text = "{} {:#x} has a wrong refcount flag"
            self._verdict.corrupt(text, name, entry, times=times)


def _clusters(entries: array[int], flag: int, bits: int) -> list[int] | None:
    """Return what entries name that have an aligned place, *flag* and nothing else, or None.

    They are taken as one large integer: with nothing below a place, a shift of it shifts each.
    """
    order, count = sys.byteorder, len(entries)
    others = ~(qcow2.OFFSET_MASK & -1 << bits) & (1 << 64) - 1
    number = int.from_bytes(entries.tobytes(), order)
    flags = int.from_bytes(flag.to_bytes(8, order) * count, order)
    if number & int.from_bytes(others.to_bytes(8, order) * count, order) != flags:
        return None
    return array("Q", ((number ^ flags) >> bits).to_bytes(8 * count, order)).tolist()


def _without_zeros(data: bytes, width: int) -> bytes:
    """Leave out what is not in use, in steps of whole entries; where an entry stands is lost.

    :param width: bytes of an entry.
    """
    zeros = bytes(_STEP)
    steps = (data[start : start + _STEP] for start in range(0, len(data), _STEP))
    used = b"".join(step for step in steps if step != zeros[: len(step)])
    first, last = len(used) - len(used.lstrip(b"\0")), len(used.rstrip(b"\0"))
    return used[first - first % width : last + -last % width]
