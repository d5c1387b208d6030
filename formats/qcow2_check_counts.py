"""The refcounts that a qcow2 image stores, against the references that were counted.

Source: the qcow2 specification, "Host cluster management".
"""

from __future__ import annotations

from collections.abc import Iterator

from storaged.formats import qcow2
from storaged.formats.counts import Counts
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.qcow2 import Header
from storaged.formats.qcow2_references import References
from storaged.formats.tables import unpack_entries, unpack_refcounts

#: Refcounts that are taken apart at a time.
_BATCH = 1 << 20


class StoredCounts:
    """The refcounts as the image has them. What no block counts is zero."""

    def __init__(self, handle: Handle, header: Header, references: References) -> None:
        self._handle = handle
        self._order = header.refcount_order
        self._references = references
        self._verdict = references.verdict
        self._cluster_size = header.cluster_size
        self.counts = Counts(references.counts.clusters)
        length = header.fixed.refcount_table_clusters * header.cluster_size
        self._table = unpack_entries(handle.pread(length, header.fixed.refcount_table_offset))

    def load(self, checkpoint: Checkpoint | None = None) -> None:
        """Read all blocks that count clusters of the file, and count the blocks themselves.

        :param checkpoint: called with 0 and the file's size.
        """
        per_block = self._cluster_size * 8 >> self._order
        size = self._references.size
        for index, block in self._blocks():
            self._references.counts.add_run(block, 1)
            first = index * per_block
            # Counts of what does not exist are of no account.
            count = min(per_block, self._references.within - first)
            for start in range(0, count, _BATCH):
                self._read(block, start, min(_BATCH, count - start), first)
            if checkpoint is not None:
                checkpoint(0, size)

    def require_single_blocks(self) -> None:
        """Report each refcount block whose cluster is used for something else as well."""
        counts = self._references.counts
        for block in sorted({block for _, block in self._blocks(silent=True)}):
            if counts[block] != 1:
                self._verdict.corrupt(
                    "the refcount block in cluster {} is used {} times", block, counts[block]
                )

    def compare(self) -> None:
        """Report every cluster that is counted too often or not often enough."""
        verdict, references = self._verdict, self._references.counts
        # A wider refcount cannot be stored, and every reference beyond is one too many.
        most = (1 << (1 << self._order)) - 1
        for cluster in references.differing(self.counts):
            stored, found = self.counts[cluster], references[cluster]
            if found > most:
                verdict.corrupt(
                    "cluster {} is used {} times, more than a refcount can say", cluster, found,
                    times=found - most,
                )  # fmt: skip
                found = most
            if stored < found:
                verdict.corrupt(
                    "cluster {} has refcount {} but is used {} times", cluster, stored, found
                )
            elif stored > found:
                verdict.leaked(
                    "cluster {} has refcount {} but is used {} times", cluster, stored, found
                )

    def _blocks(self, *, silent: bool = False) -> Iterator[tuple[int, int]]:
        """Yield the index and the cluster of each block that can be one."""
        for index, entry in enumerate(self._table):
            if not entry:
                continue
            if entry & ~qcow2.REFCOUNT_OFFSET_MASK:
                text = "entry {} of the refcount table is {:#x}: reserved bits are set"
            elif entry % self._cluster_size:
                text = "refcount block {} at {:#x} is not aligned to a cluster"
            elif entry >= self._references.size:
                text = "refcount block {} at {:#x} lies beyond the end of the file"
            else:
                yield index, entry // self._cluster_size
                continue
            if not silent:
                self._verdict.corrupt(text, index, entry)

    def _read(self, block: int, start: int, count: int, first: int) -> None:
        """Take over *count* counts of a block from its number *start* on."""
        offset = block * self._cluster_size + (start << self._order >> 3)
        data = self._handle.pread((count << self._order) + 7 >> 3, offset)
        if data.count(0) < len(data):
            planes = unpack_refcounts(data, self._order)
            self.counts.fill(first + start, [plane[:count] for plane in planes])
