"""What a qcow2 image keeps of the disk's last cluster behind the disk's end.

A guest cannot read it, but would if the disk grew. QEMU leaves old data there when it shrinks an
image, so whoever moves the end sees to it.

Source: the qcow2 specification.
"""

from __future__ import annotations

from typing import NamedTuple

from storaged.formats import qcow2
from storaged.formats.errors import UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.packing import unpack
from storaged.formats.qcow2 import CompressionType, Header, Incompatible

_COMPRESSED = 1 << 62
_ZERO = 1


class Tail(NamedTuple):
    """Bytes of the file behind the disk's end, of a cluster that nothing else uses."""

    offset: int
    length: int


def find_tail(handle: Handle, header: Header, size: int) -> Tail | None:
    """Return what lies behind a disk's end in its last cluster, None if there is nothing but zeros.

    :param size: where the disk ends or shall end, in bytes.
    :raise UnsupportedFormat: if the cluster is compressed or shared, so that it cannot be changed.
    :raise CorruptImage: if it cannot be unpacked.
    """
    cluster_size = header.cluster_size
    rest = size % cluster_size
    entry = _entry(handle, header, size // cluster_size) if rest else 0
    if entry & _COMPRESSED:
        data = _unpack(handle, header, entry)[rest:]
    elif entry & _ZERO and not header.has(Incompatible.EXTENDED_L2):
        return None
    else:
        offset = entry & qcow2.OFFSET_MASK
        data = handle.pread(cluster_size - rest, offset + rest) if offset else b""
    if not any(data):
        return None
    if entry & _COMPRESSED or not entry & qcow2.COPIED:
        raise UnsupportedFormat(
            f"the disk's end at {size} lies within a cluster that is compressed or used more than"
            f" once, and has data behind it: only a multiple of {cluster_size} can be its end"
        )
    return Tail(offset + rest, len(data))


def clear_tail(handle: Handle, tail: Tail) -> None:
    """Make a tail read as zeros. Nothing is flushed."""
    # Plain zeros: a part of a block cannot be punched, and the file shall not grow.
    handle.pwrite(bytes(tail.length), tail.offset)


def _unpack(handle: Handle, header: Header, entry: int) -> bytes:
    offset, length = qcow2.compressed_place(entry, header.fixed.cluster_bits)
    kind = CompressionType(header.compression_type)
    return unpack(kind, handle.pread(length, offset), header.cluster_size)


def _entry(handle: Handle, header: Header, cluster: int) -> int:
    """Return the L2 entry of a cluster of the disk, 0 if there is no table for it."""
    extended = header.has(Incompatible.EXTENDED_L2)
    index, place = divmod(cluster, qcow2.l2_entries(header.cluster_size, extended))
    if index >= header.fixed.l1_size:
        return 0
    table = _read_entry(handle, header.fixed.l1_table_offset + 8 * index) & qcow2.OFFSET_MASK
    return _read_entry(handle, table + 8 * place * (2 if extended else 1)) if table else 0


def _read_entry(handle: Handle, offset: int) -> int:
    return int.from_bytes(handle.pread(8, offset), "big")
