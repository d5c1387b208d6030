"""qcow2: records, flags and limits; reading of the header and its extensions.

Source: the qcow2 specification (docs/interop/qcow2 of QEMU), whose field names are used here.
All integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.record import U8, U16, U32, U64, Bytes4, Record

MAGIC = b"QFI\xfb"

MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
#: A subcluster is a 32nd of a cluster and at least one sector.
MIN_CLUSTER_BITS_EXTENDED_L2 = 14
MAX_REFCOUNT_ORDER = 6
#: QEMU's limits; the specification sets none for the first two.
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_BACKING_NAME = 1023
MAX_BACKING_FORMAT = 15
MAX_SNAPSHOTS = 65536
#: No writer needs more; the number of tiny extensions that fit in a cluster is no limit.
MAX_EXTENSIONS = 256
MAX_OFFSET = 2**63 - 1

SECTOR = 512

#: As much of a file is read for its header extensions before more is.
_MOST_END_WITHIN = 512

#: Bit 63 of an entry of an L1 or L2 table: the refcount of what it points to is exactly one.
COPIED = 1 << 63
#: Bits 9 to 55 of an entry of an L1, L2 or (9 to 63) refcount table: a host offset.
OFFSET_MASK = 0x00FFFFFFFFFFFE00
REFCOUNT_OFFSET_MASK = 0xFFFFFFFFFFFFFE00


class Incompatible(IntFlag):
    """Features a program must know to open an image at all."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION_TYPE = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(IntFlag):
    """Features a program may ignore."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(IntFlag):
    """Features that a writer who does not know them must clear."""

    BITMAPS = 1 << 0
    RAW_EXTERNAL = 1 << 1


KNOWN_INCOMPATIBLE = sum(Incompatible)
KNOWN_AUTOCLEAR = sum(Autoclear)


class CryptMethod(IntEnum):
    """How the guest's data are encrypted."""

    NONE = 0
    AES = 1
    LUKS = 2


class CompressionType(IntEnum):
    """How compressed clusters are packed."""

    DEFLATE = 0
    ZSTD = 1


class ExtensionType(IntEnum):
    """Header extensions with a meaning."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    ENCRYPTION = 0x0537BE77
    DATA_FILE = 0x44415441


@dataclass(frozen=True)
class HeaderV2(Record):
    """The header of version 2."""

    magic: Bytes4
    version: U32
    backing_file_offset: U64
    backing_file_size: U32
    cluster_bits: U32
    size: U64
    crypt_method: U32
    l1_size: U32
    l1_table_offset: U64
    refcount_table_offset: U64
    refcount_table_clusters: U32
    nb_snapshots: U32
    snapshots_offset: U64


@dataclass(frozen=True)
class HeaderV3(HeaderV2):
    """What every version 3 header has."""

    incompatible_features: U64
    compatible_features: U64
    autoclear_features: U64
    refcount_order: U32
    header_length: U32


@dataclass(frozen=True)
class HeaderV3Compression(HeaderV3):
    """A version 3 header as QEMU has written it since 5.1."""

    compression_type: U8 = 0
    padding: Annotated[bytes, "7s"] = bytes(7)


@dataclass(frozen=True)
class BitmapsExtension(Record):
    """Where the persistent bitmaps' directory lies."""

    nb_bitmaps: U32
    reserved: U32
    bitmap_directory_size: U64
    bitmap_directory_offset: U64


@dataclass(frozen=True)
class EncryptionExtension(Record):
    """Where the LUKS header lies."""

    offset: U64
    size: U64


@dataclass(frozen=True)
class FeatureName(Record):
    """One entry of the feature name table."""

    type: U8
    bit: U8
    name: Annotated[bytes, "46s"]


@dataclass(frozen=True)
class SnapshotHeader(Record):
    """The fixed part of an entry of the snapshot table."""

    l1_table_offset: U64
    l1_size: U32
    id_str_size: U16
    name_size: U16
    date_sec: U32
    date_nsec: U32
    vm_clock_nsec: U64
    vm_state_size: U32
    extra_data_size: U32


class Header(NamedTuple):
    """A header of either version, with the values that version 2 implies."""

    fixed: HeaderV2
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = 72
    compression_type: int = 0

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster. Only for a `fixed.cluster_bits` that was checked."""
        return 1 << self.fixed.cluster_bits

    def has(self, feature: Incompatible) -> bool:
        """Tell whether an incompatible feature is set."""
        # Most images have none, and the operators of an IntFlag are slow.
        return bool(self.incompatible and self.incompatible & feature)

    @property
    def extensions_end(self) -> int:
        """Where header extensions end at the latest: at the backing file's name, if there is one.

        Only for a `fixed.cluster_bits` that was checked.
        """
        name = self.fixed.backing_file_offset
        return name if self.header_length <= name < self.cluster_size else self.cluster_size


def l2_entries(cluster_size: int, extended_l2: bool) -> int:
    """Return how many clusters one L2 table maps."""
    return cluster_size // (16 if extended_l2 else 8)


def l1_entries(capacity: int, cluster_size: int, extended_l2: bool) -> int:
    """Return how many entries the L1 table of a disk of *capacity* bytes needs."""
    return -(-capacity // (cluster_size * l2_entries(cluster_size, extended_l2)))


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Return offset and length in bytes of what an L2 entry of a compressed cluster names.

    The length is that up to the end of its last sector, so it may be more than the data have.
    """
    shift = 62 - (cluster_bits - 8)
    offset = entry & (1 << shift) - 1
    sectors = (entry & (1 << 62) - 1) >> shift
    return offset, (sectors + 1) * SECTOR - offset % SECTOR


def max_capacity(cluster_size: int, extended_l2: bool) -> int:
    """Return the largest virtual size whose L1 table stays within QEMU's limit."""
    return MAX_L1_BYTES // 8 * cluster_size * l2_entries(cluster_size, extended_l2)


def read_header(data: bytes) -> Header:
    """Read the header at the start of *data*; give it 112 bytes where the file has them.

    Only magic, version and length are checked.

    :raise CorruptImage: if the data are shorter than the version's header.
    :raise UnsupportedFormat: for a version that is neither 2 nor 3.
    :raise FormatError: for another magic.
    """
    if data[:4] != MAGIC:
        raise FormatError(f"magic is {data[:4]!r}, not {MAGIC!r}")
    version = int.from_bytes(data[4:8], "big") if len(data) >= 8 else None
    if version is not None and version not in (2, 3):
        raise UnsupportedFormat(f"qcow2 version {version}")
    record = HeaderV2 if version == 2 else HeaderV3
    length = record.length()
    if version is None or len(data) < length:
        raise CorruptImage(f"truncated header: only {len(data)} bytes are there")
    if version == 2:
        return Header(HeaderV2.unpack(data))
    fixed = HeaderV3.unpack(data)
    compression = data[length] if fixed.header_length > length < len(data) else 0
    return Header(
        fixed,
        fixed.incompatible_features,
        fixed.compatible_features,
        fixed.autoclear_features,
        fixed.refcount_order,
        fixed.header_length,
        compression,
    )


class Extension(NamedTuple):
    """A header extension; *data* without its padding."""

    type: int
    data: bytes


def extensions(read: Callable[[int], bytes], start: int, end: int) -> Iterator[Extension]:
    """Yield the header extensions but the end marker, in their order.

    :param read: called with a length, which may be more than is needed; returns that many bytes
        from the start of the image, or as many as there are or the reader is willing to look at.
    :param start: the header's length.
    :param end: where they have to end.
    :raise CorruptImage: if one reaches over *end*.
    :raise UnsupportedFormat: for more than 256 of them, or more bytes than *read* gives.
    """
    position = start
    data = read(_MOST_END_WITHIN)
    for _ in range(MAX_EXTENSIONS):
        if position + 8 > end:
            return
        if position + 8 > len(data):
            data = read(position + 8)
            if len(data) < position + 8:
                raise UnsupportedFormat(f"header extensions do not end within {len(data)} bytes")
        kind, length = _EXTENSION.unpack_from(data, position)
        if not kind:  # the end marker
            return
        position += 8
        if length > end - position:
            raise CorruptImage(f"header extension {kind:#x} of {length} bytes is too long")
        if position + length > len(data):
            data = read(position + length)
            if len(data) < position + length:
                raise UnsupportedFormat(f"header extension {kind:#x} lies too far from the start")
        yield Extension(kind, data[position : position + length])
        position += -(-length // 8) * 8
    raise UnsupportedFormat(f"more than {MAX_EXTENSIONS} header extensions")


def pack_extension(kind: int, data: bytes = b"") -> bytes:
    """Return a header extension with its padding."""
    return _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


_EXTENSION = struct.Struct(">II")
