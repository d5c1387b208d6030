"""What else a qcow2 image keeps in clusters of its own: snapshots, bitmaps, a LUKS header.

Source: the qcow2 specification, "Snapshots" and "Bitmaps extension"; the limits are QEMU's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

from storaged.formats import qcow2
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import BitmapsExtension, EncryptionExtension, Header, SnapshotHeader
from storaged.formats.qcow2_references import References, read_table
from storaged.formats.tables import unpack_entries
from storaged.formats.verdict import Verdict

_MAX_SNAPSHOT_TABLE = 64 << 20
_MAX_SNAPSHOT_EXTRA = 1024
#: Version 3 demands two of the optional fields.
_SNAPSHOT_EXTRA = {2: 0, 3: 16}
#: L1 offset and size, lengths of id and name, length of the extra data.
_SNAPSHOT = struct.Struct(">QIHH20xI")
#: Table offset and size, flags, type, granularity, length of the name, length of the extra data.
_BITMAP = struct.Struct(">QIIBBHI")
_BITMAP_IN_USE = 1
_DIRTY_TRACKING = 1
_MAX_BITMAP_TABLE = 0x8000000
#: Bits 1 to 8 and 56 to 63 of an entry of a bitmap's table; bit 0 says "all ones" without a place.
_BITMAP_RESERVED = 0xFF000000000001FE
_ALL_ONES = 1


def claim_snapshots(
    handle: Handle, header: Header, references: References
) -> list[tuple[int, int]]:
    """Count the snapshot table and the L1 tables; return their offsets and lengths.

    An L1 table belongs to one snapshot alone.
    """
    fixed = header.fixed
    tables: list[tuple[int, int]] = []
    end = 0
    table = _read_snapshots(handle, fixed.snapshots_offset) if fixed.nb_snapshots else b""
    for number in range(fixed.nb_snapshots):
        if end + _SNAPSHOT.size > len(table):
            text = "snapshot table ends in snapshot {}"
            references.verdict.corrupt(text, number)
            break
        offset, entries, id_size, name_size, extra = _SNAPSHOT.unpack_from(table, end)
        if extra > _MAX_SNAPSHOT_EXTRA:
            text = "snapshot {} has {} bytes of extra data"
            references.verdict.corrupt(text, number, extra)
            break
        if extra < _SNAPSHOT_EXTRA[fixed.version]:
            references.verdict.corrupt("snapshot {} lacks fields of version 3", number)
        end += SnapshotHeader.length() + extra + id_size + name_size
        end += -end % 8
        if offset % header.cluster_size or 8 * entries > qcow2.MAX_L1_BYTES:
            text = "L1 table of snapshot {} at {:#x} of {} entries is unaligned or too large"
            references.verdict.corrupt(text, number, offset, entries)
        elif entries and references.covers("L1 table of a snapshot", offset, 8 * entries):
            tables.append((offset, 8 * entries))
    references.claim("snapshot table", fixed.snapshots_offset, min(end, len(table)))
    _claim_l1(tables, references)
    return tables


def _read_snapshots(handle: Handle, offset: int) -> bytes:
    """Return as much as may belong to the table: it does not say how long it is."""
    return handle.pread(min(_MAX_SNAPSHOT_TABLE, max(handle.size() - offset, 0)), offset)


def _claim_l1(tables: list[tuple[int, int]], references: References) -> None:
    """Count the snapshots' L1 tables, each piece of the file once however many cover it."""
    once = sorted(set(tables))
    for (start, length), (following, _) in pairwise(once):
        if start + length > following:
            references.verdict.corrupt(
                "L1 tables of snapshots at {:#x} and {:#x} overlap", start, following
            )
    repeated = len(tables) - len(once)
    if repeated:
        references.verdict.corrupt("{} snapshots share an L1 table with others", repeated)
    end = 0
    for start, length in once:
        if start + length > end:
            begin = max(start, end)
            references.claim("L1 table of a snapshot", begin, start + length - begin)
            end = -(-(start + length) // references.cluster_size) * references.cluster_size


def claim_encryption(data: bytes | None, references: References) -> None:
    """Count the LUKS header's clusters.

    :param data: of the header extension, which was found to be sound.
    """
    if data is not None:
        place = EncryptionExtension.unpack(data)
        references.claim("encryption header", place.offset, place.size)


def claim_bitmaps(handle: Handle, data: bytes | None, references: References) -> None:
    """Count what the persistent bitmaps have: directory, tables, clusters.

    :param data: of the header extension.
    """
    if data is None or len(data) != BitmapsExtension.length():
        return
    place = BitmapsExtension.unpack(data)
    offset, length = place.bitmap_directory_offset, place.bitmap_directory_size
    verdict = references.verdict
    if length > references.size or offset > references.size - length or not place.nb_bitmaps:
        verdict.corrupt("the bitmap directory is empty or lies beyond the end of the file")
        return
    references.claim("bitmap directory", offset, length)
    tables = list(_bitmap_tables(handle.pread(length, offset), place.nb_bitmaps, verdict))
    left = references.size
    for table, entries in tables:
        left -= 8 * entries
        if left < 0:  # however much they overlap, no more is looked at than there is
            verdict.corrupt("the bitmap tables are longer than the file")
            return
        _claim_bitmap(handle, table, entries, references)


def _bitmap_tables(directory: bytes, count: int, verdict: Verdict) -> Iterator[tuple[int, int]]:
    """Yield offset and entries of each bitmap's table."""
    position = 0
    for number in range(count):
        if position + _BITMAP.size > len(directory):
            verdict.corrupt("the bitmap directory ends in bitmap {}", number)
            return
        table, entries, flags, kind, _, name, extra = _BITMAP.unpack_from(directory, position)
        position += _BITMAP.size + extra + name
        position += -position % 8
        if kind != _DIRTY_TRACKING or not name or position > len(directory):
            verdict.corrupt("entry {} of the bitmap directory is no bitmap", number)
            return
        if flags & _BITMAP_IN_USE:
            verdict.note("bitmap {} was not saved: it is in use or out of date", number)
        if entries:
            yield table, entries


def _claim_bitmap(handle: Handle, offset: int, entries: int, references: References) -> None:
    """Count a bitmap's table and its clusters."""
    size, verdict = references.cluster_size, references.verdict
    if offset % size or entries > _MAX_BITMAP_TABLE or offset + 8 * entries > references.size:
        text = "bitmap table at {:#x} of {} entries is unaligned, too large or not there"
        verdict.corrupt(text, offset, entries)
        return
    if not references.claim("bitmap table", offset, 8 * entries):
        return  # it overlaps something, as will be found
    for piece in read_table(handle, offset, 8 * entries):
        clusters = []
        for entry in filter(None, unpack_entries(piece)):
            place = entry & qcow2.OFFSET_MASK
            if entry & _BITMAP_RESERVED or place % size or (place and entry & _ALL_ONES):
                verdict.corrupt("entry {:#x} of a bitmap table has reserved bits set", entry)
            elif place:
                clusters.append(place // size)
        references.add("a bitmap", clusters, 1)
