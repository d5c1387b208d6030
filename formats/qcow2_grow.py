"""Growing of a qcow2 image in place, safe against a crash at every point.

What readers believe changes by one write of the first sector, which disks do not tear. All that it
refers to is on the disk before; what it no longer refers to is given up after. A crash leaves the
old image or the new one, at worst with clusters that are counted but not used.

Source: the qcow2 specification. The rules about what can be resized are QEMU's.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from storaged.formats import qcow2
from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import CryptMethod, ExtensionType, Header, HeaderV2
from storaged.formats.qcow2_refcounts import Refcounts
from storaged.formats.qcow2_rewrite import read_extensions, read_sound, switch
from storaged.formats.qcow2_shrink import drop_behind_end

#: How many clusters behind the end of the file may be in use before the search for room ends.
_MAX_SKIPPED = 4096


@dataclass(frozen=True, slots=True)
class _Room:
    """A run of free clusters for the new structures, which lie in it in this order."""

    first: int
    #: refcount blocks to add, by their number in the table
    blocks: tuple[int, ...]
    #: clusters of a new refcount table, 0 if the old one is long enough
    table: int
    l1: int

    @property
    def clusters(self) -> range:
        return range(self.first, self.first + len(self.blocks) + self.table + self.l1)

    @property
    def table_first(self) -> int:
        return self.first + len(self.blocks)

    @property
    def l1_first(self) -> int:
        return self.table_first + self.table


def grow(handle: Handle, capacity: int, *, backing_size: int | None = None) -> None:
    """Set the virtual size of an image to *capacity*, rounded up to 512 bytes.

    Everything unknown in the header is kept, but unknown autoclear features are cleared, as the
    format demands of a writer. The caller holds QEMU's locks on the image. The space that is new
    reads as zeros: what a shrink has left behind the present end is dropped first. The change is on
    the disk when this returns.

    :param backing_size: virtual size of the backing image, None if it is not known; of no account
        for an image without one.
    :raise FormatError: if *capacity* is below the present size or above the format's limit.
    :raise UnsupportedFormat: if the image has something that this code does not grow with it.
    :raise CorruptImage: if the image contradicts itself. After these three nothing was changed.
    :raise OSError: the image is then either the old or the new one.
    """
    header = _growable(handle)
    fixed = header.fixed
    size = -(-capacity // qcow2.SECTOR) * qcow2.SECTOR
    if size < fixed.size:
        raise FormatError(f"capacity {capacity} is less than the present {fixed.size}")
    extended_l2 = header.has(qcow2.Incompatible.EXTENDED_L2)
    limit = min(qcow2.max_capacity(header.cluster_size, extended_l2), qcow2.MAX_OFFSET)
    if size > limit:
        raise FormatError(
            f"capacity {capacity} exceeds {limit} bytes, the most that clusters of "
            f"{header.cluster_size} bytes allow"
        )
    if size == fixed.size:
        return
    if fixed.backing_file_offset:
        _require_short(backing_size, fixed.size)
    drop_behind_end(handle, header)
    entries = qcow2.l1_entries(size, header.cluster_size, extended_l2)
    allocated = -(-8 * fixed.l1_size // header.cluster_size) * header.cluster_size
    if entries <= fixed.l1_size:
        switch(handle, replace(fixed, size=size))
    elif 8 * entries <= allocated:
        _extend_l1(handle, header, entries)
        switch(handle, replace(fixed, size=size, l1_size=entries))
    else:
        _move_l1(handle, header, entries, size)


def _growable(handle: Handle) -> Header:
    """Return the header of an image that may be grown."""
    header = read_sound(handle)
    fixed = header.fixed
    if fixed.crypt_method == CryptMethod.AES:
        raise UnsupportedFormat("encrypted with AES, which QEMU has given up")
    if fixed.version == 2 and fixed.nb_snapshots:
        raise UnsupportedFormat("internal snapshots in version 2 do not record the disk's size")
    for extension in read_extensions(handle, header):
        if extension.type == ExtensionType.BITMAPS:
            raise UnsupportedFormat("persistent bitmaps would have to grow with the image")
    return header


def _require_short(backing_size: int | None, size: int) -> None:
    """Refuse a backing image whose data would show in the new space, which nothing covers yet."""
    if backing_size is None:
        raise UnsupportedFormat("the size of its backing image is not known")
    if backing_size > size:
        raise UnsupportedFormat(
            f"its backing image of {backing_size} bytes is longer than its {size} bytes, and would"
            " show in the new space"
        )


def _extend_l1(handle: Handle, header: Header, entries: int) -> None:
    """Zero the entries that the L1 table gains within its last cluster."""
    fixed = header.fixed
    old = 8 * fixed.l1_size
    Refcounts(handle, header).require_single("L1 table", fixed.l1_table_offset, old)
    handle.pwrite(bytes(8 * entries - old), fixed.l1_table_offset + old)
    handle.flush()


def _move_l1(handle: Handle, header: Header, entries: int, size: int) -> None:
    """Write a longer L1 table elsewhere and switch to it."""
    fixed, cluster_size = header.fixed, header.cluster_size
    counts = Refcounts(handle, header)
    old_l1 = counts.require_single("L1 table", fixed.l1_table_offset, 8 * fixed.l1_size)
    room = _find_room(handle, counts, header, entries)
    old_table = range(0)
    if room.table:
        length = fixed.refcount_table_clusters * cluster_size
        old_table = counts.require_single("refcount table", fixed.refcount_table_offset, length)
    for number, index in enumerate(room.blocks):
        counts.add_block(index, (room.first + number) * cluster_size)
    counts.set(room.clusters, 1)
    end = handle.size()
    try:
        _write_new(handle, counts, header, room, entries)
    except BaseException:
        with suppress(OSError):  # nothing refers to it: a full disk gets its space back
            handle.truncate(end)
        raise
    _count_new(handle, counts, room)
    switch(handle, _moved(header, room, entries, size))
    # What nothing refers to any more is given up last.
    counts.set(old_l1, 0)
    counts.set(old_table, 0)
    counts.write(added=False)
    counts.write(added=True)
    handle.flush()


def _write_new(
    handle: Handle, counts: Refcounts, header: Header, room: _Room, entries: int
) -> None:
    """Write all that the new header will refer to, behind the end of the file."""
    fixed, cluster_size = header.fixed, header.cluster_size
    l1 = handle.pread(8 * fixed.l1_size, fixed.l1_table_offset)
    handle.pwrite(l1 + bytes(8 * entries - len(l1)), room.l1_first * cluster_size)
    counts.write(added=True)
    if room.table:
        handle.pwrite(counts.table(room.table), room.table_first * cluster_size)
    handle.flush()


def _count_new(handle: Handle, counts: Refcounts, room: _Room) -> None:
    """Count the new clusters. Until the header refers to them they are leaked at worst."""
    counts.write(added=False)
    handle.flush()
    if not room.table:
        counts.write_entries()


def _moved(header: Header, room: _Room, entries: int, size: int) -> HeaderV2:
    """Return the header that refers to the new structures."""
    changed = replace(
        header.fixed,
        size=size,
        l1_size=entries,
        l1_table_offset=room.l1_first * header.cluster_size,
    )
    if not room.table:
        return changed
    return replace(
        changed,
        refcount_table_offset=room.table_first * header.cluster_size,
        refcount_table_clusters=room.table,
    )


def _find_room(handle: Handle, counts: Refcounts, header: Header, entries: int) -> _Room:
    """Find free clusters behind the end of the file."""
    end = -(-handle.size() // header.cluster_size)
    first = end
    while first - end <= _MAX_SKIPPED:
        room = _plan(first, counts, header, entries)
        used = [cluster for cluster in room.clusters if counts.get(cluster)]
        if not used:
            return room
        first = used[-1] + 1
    raise UnsupportedFormat("clusters behind the end of the file are counted as used")


def _plan(first: int, counts: Refcounts, header: Header, entries: int) -> _Room:
    """Lay out the new structures from cluster *first* on, with the refcounts they need."""
    size = header.cluster_size
    room = _Room(first, (), 0, -(-8 * entries // size))
    while True:
        last = room.clusters[-1] // counts.per_block
        covering = range(first // counts.per_block, last + 1)
        blocks = tuple(index for index in covering if not counts.block_offset(index))
        table = 0
        if last >= counts.table_entries:
            # Half as long again, like QEMU, so that it is not for the next cluster only.
            half = counts.table_clusters * 3 // 2
            table = max(-(-8 * (last + 1) // size), half)
            # Before the next turn, which would count the clusters of a table of any length.
            if table * size > qcow2.MAX_REFCOUNT_TABLE_BYTES:
                raise FormatError("the refcount table would exceed 8 MiB")
        planned = _Room(first, blocks, table, room.l1)
        if planned == room:
            break
        room = planned
    return room
