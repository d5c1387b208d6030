"""Writer of empty qcow2 images.

All offsets are known before the first byte is written, the header is written last, and only what
differs from zero is written at all. An image without preallocation has the layout of qemu-img's:
header, refcount table, refcount blocks, L1 table; L2 tables and data follow if preallocated.

Source: the qcow2 specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from storaged.formats import qcow2, raw
from storaged.formats.errors import FormatError
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.qcow2 import (
    Autoclear,
    Compatible,
    CompressionType,
    ExtensionType,
    HeaderV2,
    HeaderV3Compression,
    Incompatible,
)
from storaged.formats.table_writer import Progress, Table, write_table
from storaged.formats.tables import pack_refcounts

#: QEMU leaves the table of feature names out where the first cluster is small.
_MIN_CLUSTER_FOR_FEATURE_NAMES = 8192
_PIECE = 1 << 20

_FEATURE_NAMES = (
    (0, 0, b"dirty bit"),
    (0, 1, b"corrupt bit"),
    (0, 2, b"external data file"),
    (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"),
    (1, 0, b"lazy refcounts"),
    (2, 0, b"bitmaps"),
    (2, 1, b"raw external data"),
)


class Preallocation(StrEnum):
    """How much of a new image is there from the start."""

    OFF = "off"
    #: every cluster is mapped, its data are a hole
    METADATA = "metadata"
    #: every cluster is mapped and its space taken
    FALLOC = "falloc"
    #: every cluster is mapped and written with zeros
    FULL = "full"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What image to make.

    :param capacity: virtual size in bytes, rounded up to 512.
    :param version: 2 (libvirt's compat 0.10) or 3 (compat 1.1).
    :param cluster_size: a power of two, 512 to 2 MiB.
    :param refcount_bits: 1, 2, 4 ... 64.
    :param backing: the name of the backing image as it shall stand in the header.
    :param backing_format: the backing image's format; recorded only with *backing*.
    :param data_file: the name of an external file for the data as it shall stand in the header.
    :param data_file_raw: the data file is to be a raw image of the disk by itself: every cluster is
        mapped to its own place in it.
    :param compression: how clusters that are written compressed later are to be packed.
    """

    capacity: int
    version: int = 3
    cluster_size: int = 65536
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    extended_l2: bool = False
    backing: bytes | None = None
    backing_format: str | None = None
    preallocation: Preallocation = Preallocation.OFF
    data_file: bytes | None = None
    data_file_raw: bool = False
    compression: CompressionType = CompressionType.DEFLATE

    @property
    def mapped(self) -> bool:
        """Whether every cluster is mapped from the start."""
        return self.data_file_raw or self.preallocation is not Preallocation.OFF


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies: offsets in bytes, lengths in clusters unless said otherwise."""

    cluster_size: int
    refcount_order: int
    refcount_table_offset: int
    refcount_table_clusters: int
    refcount_block_offset: int
    refcount_blocks: int
    l1_table_offset: int
    #: entries
    l1_size: int
    l2_offset: int
    l2_tables: int
    #: in the data file if there is one
    data_offset: int
    data_clusters: int
    #: every cluster of the image itself up to the last one used
    clusters: int

    @property
    def file_size(self) -> int:
        """Length of the file: QEMU does not round the L1 table's end up to a cluster."""
        if self.l2_tables or not self.l1_size:
            return self.clusters * self.cluster_size
        return self.l1_table_offset + 8 * self.l1_size


def create(
    handle: Handle,
    options: CreateOptions,
    checkpoint: Checkpoint | None = None,
    *,
    data_file: Handle | None = None,
) -> None:
    """Write an empty image. Nothing is flushed.

    What is there is overwritten; a file is given the image's length. The header comes last: until
    then the file is no qcow2 image.

    :param data_file: the external data file, which is emptied and given the disk's length. If it is
        not given, that is the caller's affair.
    :param checkpoint: called with bytes done and the image's length, regularly also while tables
        are written.
    :raise FormatError: if the options do not go together or exceed the format's limits; nothing
        was written.
    """
    check(options)
    place = layout(options)
    header = header_cluster(options, place)
    _empty(handle, place.file_size)
    progress = Progress(checkpoint, place.file_size)
    if data_file is not None:
        _empty(data_file, _rounded(options.capacity))
        space = (data_file, _rounded(options.capacity))
    else:
        space = (handle, place.file_size)
    _preallocate(*space, options.preallocation, progress)
    _write_refcounts(handle, place, progress)
    _write_mappings(handle, options, place, progress)
    handle.pwrite(header, 0)


def check(options: CreateOptions) -> None:
    """Check that the options are legal and go together.

    :raise FormatError: naming the option and its value.
    """
    size, bits = options.cluster_size, options.refcount_bits
    if options.version not in (2, 3):
        raise FormatError(f"version must be 2 or 3, not {options.version}")
    if not 512 <= size <= 2 << 20 or size & size - 1:
        raise FormatError(f"cluster size must be a power of two from 512 to 2097152, not {size}")
    if not 1 <= bits <= 64 or bits & bits - 1:
        raise FormatError(f"refcount width must be a power of two from 1 to 64 bits, not {bits}")
    if options.version == 2:
        _check_version2(options)
    if options.extended_l2 and size < 1 << qcow2.MIN_CLUSTER_BITS_EXTENDED_L2:
        raise FormatError(f"extended L2 entries need clusters of at least 16384 bytes, not {size}")
    check_backing(options.backing, options.backing_format)
    _check_data_file(options)
    if options.backing and options.mapped and not options.extended_l2:
        raise FormatError("preallocation with a backing file needs extended L2 entries")
    if options.capacity < 0:
        raise FormatError(f"capacity must not be negative: {options.capacity}")
    limit = min(qcow2.max_capacity(size, options.extended_l2), qcow2.MAX_OFFSET)
    if options.capacity > limit:
        raise FormatError(
            f"capacity {options.capacity} exceeds {limit} bytes, the most that an L1 table of "
            f"32 MiB maps with clusters of {size} bytes"
        )


def layout(options: CreateOptions) -> Layout:
    """Compute where everything lies.

    :raise FormatError: if the refcount table would exceed 8 MiB.
    """
    size = options.cluster_size
    order = options.refcount_bits.bit_length() - 1
    capacity = _rounded(options.capacity)
    l1_size = qcow2.l1_entries(capacity, size, options.extended_l2)
    l1_clusters = -(-8 * l1_size // size)
    data = -(-capacity // size) if options.mapped else 0
    l2_tables = l1_size if options.mapped else 0
    external = options.data_file is not None
    base = 1 + l1_clusters + l2_tables + (0 if external else data)
    blocks, table = _refcount_structures(base, size, order)
    first_block = 1 + table
    first_l1 = first_block + blocks
    first_l2 = first_l1 + l1_clusters
    return Layout(
        cluster_size=size,
        refcount_order=order,
        refcount_table_offset=size,
        refcount_table_clusters=table,
        refcount_block_offset=first_block * size,
        refcount_blocks=blocks,
        l1_table_offset=first_l1 * size if l1_size else 0,
        l1_size=l1_size,
        l2_offset=first_l2 * size,
        l2_tables=l2_tables,
        data_offset=0 if external else (first_l2 + l2_tables) * size,
        data_clusters=data,
        clusters=base + blocks + table,
    )


def header_cluster(options: CreateOptions, place: Layout) -> bytes:
    """Return the used part of the first cluster: header, extensions, backing file name.

    The backing format comes first among the extensions: libvirt looks for it with a step that
    forgets the padding.

    :raise FormatError: if the backing file's name does not fit.
    """
    blob = _extensions(options)
    length = HeaderV2.length() if options.version == 2 else HeaderV3Compression.length()
    backing = options.backing or b""
    name_offset = length + len(blob)
    if name_offset + len(backing) > place.cluster_size:
        raise FormatError(f"backing file name of {len(backing)} bytes does not fit in a cluster")
    fixed = (
        qcow2.MAGIC,
        options.version,
        name_offset if backing else 0,
        len(backing),
        place.cluster_size.bit_length() - 1,
        _rounded(options.capacity),
        0,  # not encrypted
        place.l1_size,
        place.l1_table_offset,
        place.refcount_table_offset,
        place.refcount_table_clusters,
        0,
        0,
    )
    if options.version == 2:
        return HeaderV2(*fixed).pack() + blob + backing
    header = HeaderV3Compression(
        *fixed, *_features(options), place.refcount_order, length, options.compression
    )
    return header.pack() + blob + backing


def _features(options: CreateOptions) -> tuple[int, int, int]:
    """Return the incompatible, the compatible and the autoclear features."""
    incompatible = 0
    if options.extended_l2:
        incompatible |= Incompatible.EXTENDED_L2.value
    if options.data_file is not None:
        incompatible |= Incompatible.DATA_FILE.value
    if options.compression is not CompressionType.DEFLATE:
        incompatible |= Incompatible.COMPRESSION_TYPE.value
    return (
        incompatible,
        Compatible.LAZY_REFCOUNTS.value if options.lazy_refcounts else 0,
        Autoclear.RAW_EXTERNAL.value if options.data_file_raw else 0,
    )


def _check_version2(options: CreateOptions) -> None:
    if options.lazy_refcounts:
        raise FormatError("lazy refcounts need version 3")
    if options.extended_l2:
        raise FormatError("extended L2 entries need version 3")
    if options.refcount_bits != 16:
        raise FormatError(f"a refcount width of {options.refcount_bits} bits needs version 3")
    if options.data_file is not None:
        raise FormatError("an external data file needs version 3")
    if options.compression is not CompressionType.DEFLATE:
        raise FormatError(f"compression by {options.compression.name.lower()} needs version 3")


def _check_data_file(options: CreateOptions) -> None:
    name = options.data_file
    if name is None:
        if options.data_file_raw:
            raise FormatError("raw external data need a data file")
        return
    if not 0 < len(name) <= qcow2.MAX_BACKING_NAME:
        raise FormatError(f"data file name of {len(name)} bytes is empty or longer than 1023")
    if b"\0" in name:
        raise FormatError("data file name contains a zero byte")
    if options.data_file_raw and options.backing:
        raise FormatError("a raw data file cannot go with a backing file")


def check_backing(name: bytes | None, format: str | None) -> None:
    """Check that the header can hold a backing file's name and format.

    :raise FormatError: naming the option and its value.
    """
    if not name:
        return
    if len(name) > qcow2.MAX_BACKING_NAME:
        raise FormatError(f"backing file name of {len(name)} bytes is longer than 1023")
    if b"\0" in name:
        raise FormatError("backing file name contains a zero byte")
    recorded = format or ""
    if not recorded.isascii() or len(recorded) > qcow2.MAX_BACKING_FORMAT:
        raise FormatError(f"backing format {recorded!r} is not ASCII or longer than 15 bytes")


def _rounded(capacity: int) -> int:
    return -(-capacity // qcow2.SECTOR) * qcow2.SECTOR


def _refcount_structures(base: int, size: int, order: int) -> tuple[int, int]:
    """Return how many blocks and table clusters count *base* clusters and themselves."""
    per_block = size * 8 >> order
    blocks, table = 1, 1
    while True:
        needed = -(-(base + blocks + table) // per_block)
        needed_table = max(-(-8 * needed // size), 1)
        if (needed, needed_table) == (blocks, table):
            break
        blocks, table = needed, needed_table
    if table * size > qcow2.MAX_REFCOUNT_TABLE_BYTES:
        raise FormatError(
            f"the refcount table would be {table * size} bytes, more than 8 MiB: choose larger "
            f"clusters than {size} bytes or narrower refcounts than {1 << order} bits"
        )
    return blocks, table


def _extensions(options: CreateOptions) -> bytes:
    parts = []
    if options.backing and options.backing_format:
        name = options.backing_format.encode("ascii")
        parts.append(qcow2.pack_extension(ExtensionType.BACKING_FORMAT, name))
    if options.data_file is not None:
        parts.append(qcow2.pack_extension(ExtensionType.DATA_FILE, options.data_file))
    if options.version == 3 and options.cluster_size >= _MIN_CLUSTER_FOR_FEATURE_NAMES:
        table = b"".join(qcow2.FeatureName(*entry).pack() for entry in _FEATURE_NAMES)
        parts.append(qcow2.pack_extension(ExtensionType.FEATURE_NAMES, table))
    parts.append(qcow2.pack_extension(ExtensionType.END))
    return b"".join(parts)


def _empty(handle: Handle, size: int) -> None:
    """Make all of a file read as zeros."""
    old = handle.size()
    if old:
        handle.write_zeroes(0, min(old, size))
    handle.truncate(size)


def _preallocate(handle: Handle, size: int, how: Preallocation, progress: Progress) -> None:
    if how is Preallocation.FALLOC:
        raw.allocate(handle, 0, size, progress)
    elif how is Preallocation.FULL:
        zeros = memoryview(bytes(_PIECE))
        for offset in range(0, size, _PIECE):
            handle.pwrite(zeros[: size - offset], offset)
            progress(offset + _PIECE)


def _write_refcounts(handle: Handle, place: Layout, progress: Progress) -> None:
    """Count every cluster once. Blocks lie side by side, so their counts are one array."""
    batch = _PIECE * 8 >> place.refcount_order
    for first in range(0, place.clusters, batch):
        data = pack_refcounts(min(batch, place.clusters - first), place.refcount_order)
        handle.pwrite(data, place.refcount_block_offset + (first << place.refcount_order >> 3))
        progress(0)
    table = Table(place.refcount_block_offset, place.cluster_size, place.refcount_blocks)
    write_table(handle, place.refcount_table_offset, table, progress)


def _write_mappings(
    handle: Handle, options: CreateOptions, place: Layout, progress: Progress
) -> None:
    if not place.l2_tables:
        return
    size, stride = place.cluster_size, 2 if options.extended_l2 else 1
    l2 = Table(qcow2.COPIED | place.data_offset, size, place.data_clusters, stride)
    write_table(handle, place.l2_offset, l2, progress)
    l1 = Table(qcow2.COPIED | place.l2_offset, size, place.l2_tables)
    write_table(handle, place.l1_table_offset, l1, progress)
