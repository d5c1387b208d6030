"""Shrinking of a qcow2 image in place, safe against a crash at every point.

Only clusters that lie wholly behind the new end are dropped. The size changes first, by one write
of the first sector; then nobody refers to the clusters any more; only then are they counted as free
and their space is given back. A crash leaves the old image or the new one, at worst with clusters
that are counted but not used.

Source: the qcow2 specification. The rules about what can be resized are QEMU's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress
from mmap import mmap

from storaged.formats import qcow2
from storaged.formats.counts import STEP, Counts, make_plane
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.qcow2 import CryptMethod, ExtensionType, Header, Incompatible
from storaged.formats.qcow2_check import check
from storaged.formats.qcow2_refcounts import Refcounts
from storaged.formats.qcow2_rewrite import read_extensions, read_sound, switch
from storaged.formats.qcow2_tail import Tail, clear_tail, find_tail
from storaged.formats.tables import unpack_entries

_COMPRESSED = 1 << 62


@dataclass(slots=True)
class _Plan:
    """What lies behind an end.

    :param tables: entries of the L1 table whose L2 tables are dropped in full.
    :param part: the entry of the L2 table that the end lies in, and where its part behind it is.
    :param cleared: offset and length of the entries that are to be cleared.
    :param tail: what is to be cleared of the last cluster that stays.
    """

    tables: list[int] = field(default_factory=list)
    part: tuple[int, int] | None = None
    cleared: list[tuple[int, int]] = field(default_factory=list)
    tail: Tail | None = None


def shrink(handle: Handle, capacity: int, *, checkpoint: Checkpoint | None = None) -> None:
    """Set the virtual size of an image to *capacity*, rounded up to 512 bytes.

    What lies behind the new end is lost, also to a later `grow`. The whole image is checked first.
    Everything unknown in the header is kept, but unknown autoclear features are cleared, as the
    format demands of a writer. The caller holds QEMU's locks on the image. The change is on the
    disk when this returns.

    :param checkpoint: called with bytes of the file done and its size, while the image is checked
        and while space is given back. If it raises in the first, nothing was changed; in the
        second, the image is the new one and sound, with a longer file.
    :raise FormatError: if *capacity* exceeds the present size.
    :raise UnsupportedFormat: if the image has something that this code does not shrink with it.
    :raise CorruptImage: if the image contradicts itself. After these three nothing was changed.
    :raise OSError: the image is then either the old or the new one.
    """
    header = _shrinkable(handle)
    fixed = header.fixed
    if capacity < 0:
        raise FormatError(f"capacity must not be negative: {capacity}")
    size = -(-capacity // qcow2.SECTOR) * qcow2.SECTOR
    if size > fixed.size:
        raise FormatError(f"capacity {capacity} exceeds the present {fixed.size}")
    if size == fixed.size:
        return
    _require_sound(handle, checkpoint)
    plan = _plan(handle, header, size)
    dropped = _count(handle, header, plan)
    switch(handle, replace(fixed, size=size))
    _carry_out(handle, header, plan, dropped, checkpoint)


def drop_behind_end(handle: Handle, header: Header) -> None:
    """Finish what a shrink has begun before it was interrupted, so that a disk may grow again.

    QEMU, too, leaves old data in the last cluster when it shrinks an image.

    :raise UnsupportedFormat: if that lies in clusters that cannot be changed.
    :raise CorruptImage: if there is something to do and the image contradicts itself. After these
        two nothing was changed.
    """
    plan = _plan(handle, header, header.fixed.size)
    if plan.cleared or plan.tail is not None:
        _require_sound(handle, None)
        _carry_out(handle, header, plan, _count(handle, header, plan), None)


def _require_sound(handle: Handle, checkpoint: Checkpoint | None) -> None:
    report = check(handle, checkpoint=checkpoint)
    if report.corruptions:
        raise CorruptImage("; ".join(report.findings[:3]))


def _shrinkable(handle: Handle) -> Header:
    """Return the header of an image that may be shrunk."""
    header = read_sound(handle)
    if header.fixed.crypt_method != CryptMethod.NONE:
        raise UnsupportedFormat("the image is encrypted")
    if header.fixed.nb_snapshots:
        raise UnsupportedFormat("internal snapshots refer to what would be dropped")
    for extension in read_extensions(handle, header):
        if extension.type == ExtensionType.BITMAPS:
            raise UnsupportedFormat("persistent bitmaps would have to shrink with the image")
    return header


def _plan(handle: Handle, header: Header, size: int) -> _Plan:
    """Find what lies behind an end."""
    cluster_size, fixed = header.cluster_size, header.fixed
    plan = _Plan()
    if fixed.crypt_method == CryptMethod.NONE:  # zeros would have to be encrypted
        plan.tail = find_tail(handle, header, size)
    width = _entry_width(header)
    first, place = divmod(-(-size // cluster_size), cluster_size // width)
    l1 = unpack_entries(handle.pread(8 * fixed.l1_size, fixed.l1_table_offset))
    if place and first < len(l1):
        table, start = l1[first] & qcow2.OFFSET_MASK, width * place
        if table and any(handle.pread(cluster_size - start, table + start)):
            plan.part = (l1[first], start)
            plan.cleared.append((table + start, cluster_size - start))
        first += 1
    plan.tables = list(filter(None, l1[first:]))
    if plan.tables:
        plan.cleared.append((fixed.l1_table_offset + 8 * first, 8 * (len(l1) - first)))
    return plan


def _entry_width(header: Header) -> int:
    return 16 if header.has(Incompatible.EXTENDED_L2) else 8


def _count(handle: Handle, header: Header, plan: _Plan) -> Counts:
    """Count the references that clusters of the file lose, in an image found to be sound."""
    cluster_size = header.cluster_size
    dropped = Counts(handle.size() // cluster_size + 2)
    parts = [(entry, 0) for entry in plan.tables]
    if plan.part is not None:
        parts.append(plan.part)
    for entry, start in parts:
        table = entry & qcow2.OFFSET_MASK
        if not entry & qcow2.COPIED:
            raise UnsupportedFormat(f"the L2 table at {table} is used more than once")
        data = handle.pread(cluster_size - start, table + start)
        _drop_entries(dropped, unpack_entries(data)[:: _entry_width(header) // 8], header)
        if not start:
            dropped.add((table // cluster_size,))
    return dropped


def _drop_entries(dropped: Counts, entries: array[int], header: Header) -> None:
    """Count the references that L2 entries have to clusters of the file."""
    bits = header.fixed.cluster_bits
    used = list(filter(None, entries))
    plain = [entry & qcow2.OFFSET_MASK for entry in used if not entry & _COMPRESSED]
    dropped.add(offset >> bits for offset in filter(None, plain))
    for entry in used if len(plain) < len(used) else ():
        if entry & _COMPRESSED:
            offset, length = qcow2.compressed_place(entry, bits)
            dropped.add(range(offset >> bits, (offset + length - 1 >> bits) + 1))


def _carry_out(
    handle: Handle, header: Header, plan: _Plan, dropped: Counts, checkpoint: Checkpoint | None
) -> None:
    """Drop what lies behind the end that the header has."""
    for offset, length in plan.cleared:
        handle.pwrite(bytes(length), offset)
    if plan.tail is not None:
        clear_tail(handle, plan.tail)
    handle.flush()
    freed = _uncount(handle, header, dropped)
    _give_back(handle, header.cluster_size, freed, checkpoint)


def _uncount(handle: Handle, header: Header, dropped: Counts) -> bytearray | mmap:
    """Lower the refcounts, block by block; return a byte for each cluster, 1 if it is free now."""
    counts = Refcounts(handle, header)
    freed = make_plane(dropped.clusters)
    for first in range(0, dropped.clusters, counts.per_block):
        last = min(first + counts.per_block, dropped.clusters)
        for cluster in _often(dropped, first, last):
            left = counts.get(cluster) - dropped[cluster] + dropped.planes[0][cluster]
            counts.set((cluster,), left)
        if not dropped.is_zero(first, last - first):
            amounts = bytes(dropped.planes[0][first:last])
            freed[first:last] = counts.lower(first // counts.per_block, amounts)
            counts.write(added=False)
            counts.forget()
    handle.flush()
    return freed


def _often(dropped: Counts, first: int, last: int) -> Iterator[int]:
    """Yield the clusters that lose 256 references or more."""
    if len(dropped.planes) > 1:
        parts = (plane[first:last] for plane in dropped.planes[1:])
        yield from compress(range(first, last), map(any, zip(*parts, strict=True)))


def _give_back(
    handle: Handle, cluster_size: int, freed: bytearray | mmap, checkpoint: Checkpoint | None
) -> None:
    """Cut off what is free at the file's end, and punch holes where it is not."""
    size = handle.size()
    used = _before_free(freed, -(-size // cluster_size))
    if used * cluster_size < size:
        handle.truncate(used * cluster_size)
    for first, count in _runs(freed, used):
        handle.write_zeroes(first * cluster_size, count * cluster_size)
        if checkpoint is not None:
            checkpoint(size, size)


def _before_free(freed: bytearray | mmap, end: int) -> int:
    """Return where the free clusters begin that reach to *end*."""
    while end:
        part = freed[max(end - STEP, 0) : end]
        used = len(part.rstrip(b"\1"))
        end -= len(part) - used
        if used:
            break
    return end


def _runs(freed: bytearray | mmap, end: int) -> Iterator[tuple[int, int]]:
    """Yield first and count of adjoining clusters that are free, up to *end*."""
    first = freed.find(b"\1", 0, end)
    while first >= 0:
        stop = freed.find(b"\0", first, end)
        if stop < 0:
            stop = end
        yield first, stop - first
        first = freed.find(b"\1", stop, end)
