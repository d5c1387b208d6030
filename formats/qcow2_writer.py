"""qcow2 images filled with the content of a disk, plain or compressed.

The file is laid out in the order in which it is filled: header, L1 table, then data and L2 tables,
refcount blocks and the refcount table. The header is written last: until then it is no qcow2 image.

Source: the qcow2 specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from storaged.formats import qcow2_create
from storaged.formats.errors import FormatError
from storaged.formats.handle import Bytes, Handle
from storaged.formats.packing import packer
from storaged.formats.parallel import Ordered
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_counting import Counting
from storaged.formats.qcow2_create import CreateOptions, Layout, Preallocation
from storaged.formats.qcow2_mapping import Mapping
from storaged.formats.qcow2_packed import PackedRoom
from storaged.formats.writer import Place, Writer

#: Bytes that a thread packs at a time: small clusters go together.
_BATCH = 1 << 18
#: What a part counts besides its data, so that parts without any do not pile up.
_PART = 256


class _Part(NamedTuple):
    """A cluster to be packed, or a part that reads as zeros where there are no *data*."""

    offset: int
    length: int
    data: bytes | None = None
    packed: bytes | None = None


_Batch = Sequence[_Part]


class Qcow2Writer(Writer):
    """Fills a new qcow2 image.

    An image over a backing image leaves to it what is never given.

    :param handle: an empty file, or what may be overwritten from its start on.
    :param compression: how to pack the clusters; None stores them plain.
    :param threads: that pack.
    :param level: of the compression; None is the method's default.
    :raise FormatError: the options do not go together, or not with a conversion; nothing was
        written.
    """

    def __init__(
        self, handle: Handle, options: CreateOptions, *,
        compression: CompressionType | None = None, threads: int = 2, level: int | None = None,
    ) -> None:  # fmt: skip
        if compression is not None:
            options = replace(options, compression=compression)
        _check(options)
        self._options = options
        self.unit = size = options.cluster_size
        self.needs_zeros = bool(options.backing)
        self._handle = handle
        self._l1_size = qcow2_create.layout(options).l1_size
        self._header(0, 0)
        self._clusters = 1
        self._counting = Counting(
            handle, size, options.refcount_bits.bit_length() - 1, self._allocate
        )
        self._counting.add(1)
        self._mapping = Mapping(handle, size, extended=options.extended_l2, allocate=self._allocate)
        self._packed = PackedRoom(
            handle, size, self._counting.most, extend=self._extend, count=self._count
        )
        self._batch: list[_Part] = []
        self._held = 0
        self._packing: Ordered[_Batch, _Batch] | None = None
        if compression is not None:
            pack = [_packing(packer(compression, level), size) for _ in range(max(threads, 1))]
            self._packing = Ordered(pack, self._store)
        if handle.size():  # ext4 writes a file to the disk at once that was ever cut to nothing
            handle.truncate(0)
        self.blank = handle.size() == 0  # a device keeps its length and what it holds
        if not self.blank:
            handle.write_zeroes(0, size)  # no longer the image that was there
        self._allocate(-(-8 * self._l1_size // size))

    def place(self, offset: int, length: int) -> Place | None:
        """Claim room for all of a part; None if it is to be compressed.

        :raise FormatError: the refcount table would exceed its limit.
        """
        if self._packing is not None:
            return None
        return self._place(offset, length)

    def write(self, offset: int, data: Bytes) -> None:
        """Take a cluster, or the last part of one."""
        if self._packing is not None:
            self._put(_Part(offset, len(data), bytes(data)))
        else:
            self._write_plain(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make a part read as zeros."""
        if self._packing is not None:
            self._put(_Part(offset, length))
        else:
            self._zero(offset, length)

    def finish(self) -> None:
        """Write the tables, and the header last."""
        if self._packing is not None:
            self._send()
            self._packing.drain()
            self._packing.close()
        size = self.unit
        self._mapping.finish(size, whole=0 if self.blank else self._l1_size)
        self._packed.close()
        table, clusters = self._counting.finish()
        header = self._header(table, clusters)
        self._handle.pwrite(header if self.blank else header.ljust(size, b"\0"), 0)

    def abort(self) -> None:
        """End the threads."""
        if self._packing is not None:
            self._packing.close()

    def _place(self, offset: int, length: int) -> Place:
        count = -(-length // self.unit)
        host = self._allocate(count)
        self._mapping.data(offset // self.unit, count, host)
        if length % self.unit and not self.blank:
            self._handle.write_zeroes(host + length, count * self.unit - length)
        return Place(self._handle, host, length)

    def _write_plain(self, offset: int, data: Bytes) -> None:
        self._handle.pwrite(data, self._place(offset, len(data)).offset)

    def _zero(self, offset: int, length: int) -> None:
        if not self.needs_zeros:
            return
        count = -(-length // self.unit)
        if self._options.version > 2:
            self._mapping.zeros(offset // self.unit, count)
            return
        # Version 2 has no way to say it but by clusters that hold zeros.
        host = self._allocate(count)
        self._mapping.data(offset // self.unit, count, host)
        if not self.blank:
            self._handle.write_zeroes(host, count * self.unit)

    def _put(self, part: _Part) -> None:
        self._batch.append(part)
        self._held += len(part.data or b"") + _PART
        if self._held >= _BATCH:
            self._send()

    def _send(self) -> None:
        batch, self._batch, self._held = self._batch, [], 0
        if batch and self._packing is not None:
            self._packing.put(batch)

    def _store(self, batch: _Batch) -> None:
        for part in batch:
            if part.packed is not None:
                entry = self._packed.add(part.packed)
                self._mapping.packed(part.offset // self.unit, entry)
            elif part.data is not None:
                self._write_plain(part.offset, part.data)
            else:
                self._zero(part.offset, part.length)
        self._counting.spill()

    def _allocate(self, clusters: int) -> int:
        """Take clusters at the end of the file, used once each; return their offset."""
        self._packed.close()
        offset = self._extend(clusters)
        self._counting.add(clusters)
        return offset

    def _extend(self, clusters: int = 1) -> int:
        if self._clusters + clusters > self._counting.limit:
            raise FormatError(
                f"the image would be longer than {self._counting.limit * self.unit} bytes, the "
                f"most that a refcount table of 8 MiB counts with clusters of {self.unit} bytes"
            )
        offset = self._clusters * self.unit
        self._clusters += clusters
        return offset

    def _count(self, references: int) -> None:
        self._counting.add(1, references)

    def _header(self, table: int, clusters: int) -> bytes:
        """Return the header for a refcount table of so many clusters.

        :raise FormatError: if the backing file's name does not fit.
        """
        place = Layout(
            cluster_size=self.unit,
            refcount_order=self._options.refcount_bits.bit_length() - 1,
            refcount_table_offset=table,
            refcount_table_clusters=clusters,
            refcount_block_offset=0,
            refcount_blocks=0,
            l1_table_offset=self.unit if self._l1_size else 0,
            l1_size=self._l1_size,
            l2_offset=0,
            l2_tables=0,
            data_offset=0,
            data_clusters=0,
            clusters=0,
        )
        return qcow2_create.header_cluster(self._options, place)


def _check(options: CreateOptions) -> None:
    qcow2_create.check(options)
    if options.preallocation is not Preallocation.OFF:
        raise FormatError("preallocation does not go with content to be written")
    if options.data_file is not None:
        raise FormatError("content is not written to an external data file")


def _packing(pack: Callable[[bytes], bytes | None], size: int) -> Callable[[_Batch], _Batch]:
    """Return a function for one thread: it packs what is to be packed of a batch."""

    def work(batch: _Batch) -> _Batch:
        return [
            part if part.data is None else part._replace(packed=pack(part.data.ljust(size, b"\0")))
            for part in batch
        ]

    return work
