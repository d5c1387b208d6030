"""What a probe says of a qcow2 image: every field of the header checked, nothing followed.

A cluster's contents are never looked at, so an image whose tables lie can still be ``ok`` here;
whatever writes to an image in place checks what it relies on.

Source: the qcow2 specification; the limits are QEMU's.
"""

from __future__ import annotations

from storaged.formats import qcow2
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.qcow2 import (
    Autoclear,
    Compatible,
    CompressionType,
    CryptMethod,
    ExtensionType,
    Header,
    HeaderV3,
    HeaderV3Compression,
    Incompatible,
    SnapshotHeader,
)
from storaged.formats.window import HEAD_LIMIT, Window

#: The formats a backing file may be said to have: those that libvirt's volume XML can name.
BACKING_FORMATS = frozenset(
    {
        "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi",
        "fat", "vhd", "ploop", "cow", "qcow", "qcow2", "qed", "vmdk",
    }
)  # fmt: skip
_ENCRYPTION: dict[int, str] = {CryptMethod.AES: "qcow", CryptMethod.LUKS: "luks"}
#: Version 3 demands two of the optional fields of a snapshot.
_SNAPSHOT_EXTRA = {2: 0, 3: 16}
_COMPRESSION: dict[int, str] = {CompressionType.DEFLATE: "zlib", CompressionType.ZSTD: "zstd"}
_CRYPT_METHODS = frozenset(CryptMethod)
_COMPRESSION_TYPES = frozenset(CompressionType)
_EXTENSION_TYPES = frozenset(ExtensionType)
_NO_FEATURES: frozenset[str] = frozenset()
#: What every image is asked for. Before Python 3.12 a look at a member of an enum takes longer than
#: all that is done with it, and so does a record's length.
_LUKS = int(CryptMethod.LUKS)
_DATA_FILE_NAME, _LUKS_HEADER = int(ExtensionType.DATA_FILE), int(ExtensionType.ENCRYPTION)
_BACKING_FORMAT, _BITMAPS = int(ExtensionType.BACKING_FORMAT), int(ExtensionType.BITMAPS)
_FIXED_LENGTH, _HEADER_LENGTH = HeaderV3.length(), HeaderV3Compression.length()
_MAX_BITMAPS = 65535


def inspect(window: Window) -> ImageInfo:
    """Say what a file with qcow2's magic is. Bounded and total.

    With state ``ok`` nothing in the answer depends on the file's size but that it is large enough.
    """
    findings = Findings()
    try:
        header = qcow2.read_header(window.head(_HEADER_LENGTH))
    except UnsupportedFormat as err:
        findings.unsupported(str(err))
        return findings.info("qcow2", window.size)
    except FormatError as err:
        findings.corrupt(str(err))
        return findings.info("qcow2", window.size)
    unknown = header.incompatible & ~qcow2.KNOWN_INCOMPATIBLE
    if unknown:
        # Whatever follows may mean something else then.
        findings.unsupported(f"unknown incompatible features {unknown:#x}")
        return _Inspection(header, window, findings).info(None, None)
    return _Inspection(header, window, findings).run()


class _Inspection:
    """One header under examination."""

    def __init__(self, header: Header, window: Window, findings: Findings) -> None:
        self.header = header
        self.fixed = header.fixed
        self.window = window
        self.findings = findings
        bits = header.fixed.cluster_bits
        self.good_clusters = qcow2.MIN_CLUSTER_BITS <= bits <= qcow2.MAX_CLUSTER_BITS
        self.cluster_size = header.cluster_size if self.good_clusters else 0
        self.extended_l2 = header.has(Incompatible.EXTENDED_L2)
        self.bitmaps = 0

    def run(self) -> ImageInfo:
        """Check all, in an order in which each check may rely on those before it."""
        self.check_features()
        if not self.good_clusters:
            self.findings.corrupt(f"cluster_bits is {self.fixed.cluster_bits}, not 9 to 21")
            return self.info(None, None)
        self.check_fields()
        self.check_l1()
        self.check_refcount_table()
        self.check_snapshots()
        backing = self.backing_name()
        found = self.extensions()
        self.check_encryption(found)
        self.check_bitmaps(found)
        return self.info(self.backing(backing, found), self.data_file(found))

    def info(self, backing: BackingRef | None, data_file: bytes | None) -> ImageInfo:
        """Return the answer with what was found so far."""
        snapshots = self.fixed.nb_snapshots
        order = self.header.refcount_order
        return ImageInfo(
            "qcow2",
            self.capacity(),
            encryption=_ENCRYPTION.get(self.fixed.crypt_method),
            compat="1.1" if self.fixed.version == 3 else None,
            cluster_size=self.cluster_size,
            features=self.features() if self.fixed.version == 3 else None,
            backing=backing,
            data_file=data_file,
            snapshots=snapshots if snapshots <= qcow2.MAX_SNAPSHOTS else 0,
            refcount_bits=1 << order if order <= qcow2.MAX_REFCOUNT_ORDER else 0,
            compression=_COMPRESSION.get(self.header.compression_type),
            bitmaps=self.bitmaps,
            state=self.findings.state,
            reasons=tuple(self.findings.reasons),
            harmless=tuple(self.findings.harmless),
        )

    def capacity(self) -> int:
        """Whole sectors as QEMU counts them; the file's size where the field is beyond use."""
        limit = qcow2.MAX_OFFSET
        if self.good_clusters:
            limit = min(limit, qcow2.max_capacity(self.cluster_size, self.extended_l2))
        if self.fixed.size > limit:
            return self.window.size
        return self.fixed.size // qcow2.SECTOR * qcow2.SECTOR

    def features(self) -> frozenset[str]:
        """Return the features under libvirt's names."""
        if not self.header.compatible and not self.header.incompatible:
            return _NO_FEATURES
        names = []
        if self.header.compatible & Compatible.LAZY_REFCOUNTS:
            names.append("lazy_refcounts")
        if self.header.has(Incompatible.DATA_FILE):
            names.append("data_file")
        if self.extended_l2:
            names.append("extended_l2")
        return frozenset(names)

    def check_features(self) -> None:
        header = self.header
        if not header.incompatible and not header.autoclear:
            return
        if header.has(Incompatible.CORRUPT):
            self.findings.corrupt("the image is marked as corrupt")
        if header.has(Incompatible.DIRTY):
            self.findings.note("the image was not closed cleanly: its refcounts may be wrong")
        if header.autoclear & Autoclear.RAW_EXTERNAL and not header.has(Incompatible.DATA_FILE):
            self.findings.corrupt("raw external data without a data file")

    def check_fields(self) -> None:
        fixed, header, findings = self.fixed, self.header, self.findings
        if self.extended_l2 and fixed.cluster_bits < qcow2.MIN_CLUSTER_BITS_EXTENDED_L2:
            findings.corrupt(f"extended L2 entries with cluster_bits {fixed.cluster_bits}")
        if header.refcount_order > qcow2.MAX_REFCOUNT_ORDER:
            findings.corrupt(f"refcount_order is {header.refcount_order}, more than 6")
        if fixed.crypt_method not in _CRYPT_METHODS:
            findings.unsupported(f"crypt_method {fixed.crypt_method}")
        if fixed.size % qcow2.SECTOR:
            findings.note(f"size is {fixed.size}, no multiple of 512")
        if fixed.version == 3:
            self.check_version3()

    def check_version3(self) -> None:
        header, findings = self.header, self.findings
        length = header.header_length
        if not _FIXED_LENGTH <= length <= self.cluster_size:
            findings.corrupt(f"header_length is {length}")
        elif length % 8 or length + 8 > self.cluster_size:
            findings.suspicious(f"header_length is {length}")
        flagged = header.has(Incompatible.COMPRESSION_TYPE)
        if header.compression_type not in _COMPRESSION_TYPES:
            findings.unsupported(f"compression_type {header.compression_type}")
        elif flagged != bool(header.compression_type):
            findings.corrupt(f"compression_type {header.compression_type} against its feature bit")

    def check_l1(self) -> None:
        fixed, cluster_size = self.fixed, self.cluster_size
        entries = fixed.l1_size
        if fixed.size > qcow2.MAX_OFFSET:
            self.findings.corrupt(f"size is {fixed.size}, more than 2^63 - 1")
        if entries < qcow2.l1_entries(fixed.size, cluster_size, self.extended_l2):
            self.findings.corrupt(f"l1_size {entries} is too small for size {fixed.size}")
        if 8 * entries > qcow2.MAX_L1_BYTES:
            self.findings.corrupt(f"l1_size is {entries}, more than 4194304")
        elif entries:
            self.check_table("L1 table", fixed.l1_table_offset, 8 * entries)
            table = fixed.refcount_table_offset
            table_end = table + fixed.refcount_table_clusters * cluster_size
            if table < fixed.l1_table_offset + 8 * entries and fixed.l1_table_offset < table_end:
                self.findings.corrupt("L1 table overlaps the refcount table")

    def check_refcount_table(self) -> None:
        length = self.fixed.refcount_table_clusters * self.cluster_size
        if not length:
            self.findings.corrupt("no refcount table")
        elif length > qcow2.MAX_REFCOUNT_TABLE_BYTES:
            self.findings.corrupt(f"refcount table of {length} bytes, more than 8 MiB")
        else:
            self.check_table("refcount table", self.fixed.refcount_table_offset, length)

    def check_snapshots(self) -> None:
        count = self.fixed.nb_snapshots
        if count > qcow2.MAX_SNAPSHOTS:
            self.findings.corrupt(f"nb_snapshots is {count}, more than 65536")
        elif count:
            least = SnapshotHeader.length() + _SNAPSHOT_EXTRA[self.fixed.version]
            self.check_table("snapshot table", self.fixed.snapshots_offset, count * least)

    def check_table(self, name: str, offset: int, length: int) -> None:
        """Check that a table is aligned, behind the header and within the file."""
        if offset % self.cluster_size:
            self.findings.corrupt(f"{name} at {offset} is not aligned to a cluster")
        elif not offset:
            self.findings.corrupt(f"{name} overlaps the header")
        elif offset + length > self.window.size:
            self.findings.corrupt(f"{name} at {offset} reaches beyond the end of the file")

    def backing_name(self) -> bytes | None:
        """Return the backing file's name if there is one that can be trusted to be one."""
        offset, length = self.fixed.backing_file_offset, self.fixed.backing_file_size
        if not offset or not length:
            return None
        if length > qcow2.MAX_BACKING_NAME:
            self.findings.corrupt(f"backing_file_size is {length}, more than 1023")
        elif offset + length > self.cluster_size:
            self.findings.corrupt(f"backing file name at {offset} reaches beyond the first cluster")
        elif offset < self.header.header_length:
            self.findings.corrupt(f"backing file name at {offset} lies inside the header")
        elif offset + length > min(HEAD_LIMIT, self.window.size):
            self.findings.corrupt(f"backing file name at {offset} is not within the file's start")
        else:
            return self.window.head(offset + length)[offset:]
        return None

    def extensions(self) -> dict[int, bytes]:
        """Return the extensions that have a meaning, the first of each type."""
        start, end = self.header.header_length, self.header.extensions_end
        found: dict[int, bytes] = {}
        try:
            for kind, data in qcow2.extensions(self.window.head, start, end):
                if kind in found and kind in _EXTENSION_TYPES:
                    self.findings.suspicious(f"second header extension {kind:#x}")
                found.setdefault(kind, data)
        except CorruptImage as err:
            self.findings.corrupt(str(err))
        except UnsupportedFormat as err:
            self.findings.suspicious(str(err))
        return found

    def backing(self, name: bytes | None, found: dict[int, bytes]) -> BackingRef | None:
        raw = found.get(_BACKING_FORMAT)
        if raw is not None and len(raw) > qcow2.MAX_BACKING_FORMAT:
            self.findings.corrupt(f"backing format of {len(raw)} bytes, more than 15")
        if name is None:
            return None
        if b"\0" in name:
            self.findings.suspicious("the backing file's name contains a zero byte")
        if not raw:
            return BackingRef(name)
        text = raw.decode("ascii", "replace")
        if text not in BACKING_FORMATS:
            # Quoted by repr: a name from an image is not for a terminal.
            self.findings.suspicious(f"unknown backing format {text[:16]!a}")
            return BackingRef(name)
        return BackingRef(name, text)

    def data_file(self, found: dict[int, bytes]) -> bytes | None:
        name = found.get(_DATA_FILE_NAME)
        if not self.header.has(Incompatible.DATA_FILE):
            if name is not None:
                self.findings.suspicious("a data file is named but its feature bit is not set")
            return None
        if not name:
            self.findings.corrupt("the data lie in an external file that has no name")
            return None
        self.findings.note("the data lie in an external file")
        return name

    def check_encryption(self, found: dict[int, bytes]) -> None:
        data = found.get(_LUKS_HEADER)
        if (data is not None) != (self.fixed.crypt_method == _LUKS):
            self.findings.corrupt(
                f"crypt_method {self.fixed.crypt_method} "
                + ("with" if data is not None else "without")
                + " an encryption header"
            )
        elif data is not None:
            self.check_encryption_header(data)

    def check_encryption_header(self, data: bytes) -> None:
        if len(data) != qcow2.EncryptionExtension.length():
            self.findings.corrupt(f"encryption header extension of {len(data)} bytes, not 16")
            return
        place = qcow2.EncryptionExtension.unpack(data)
        self.check_table("encryption header", place.offset, place.size)

    def check_bitmaps(self, found: dict[int, bytes]) -> None:
        data = found.get(_BITMAPS)
        if data is None:
            if self.header.autoclear and self.header.autoclear & Autoclear.BITMAPS:
                self.findings.note("bitmaps are said to be consistent but there are none")
            return
        if len(data) != qcow2.BitmapsExtension.length():
            self.findings.note(f"bitmaps extension of {len(data)} bytes, not 24")
            return
        place = qcow2.BitmapsExtension.unpack(data)
        end = place.bitmap_directory_offset + place.bitmap_directory_size
        if (
            not 0 < place.nb_bitmaps <= _MAX_BITMAPS
            or place.bitmap_directory_size > 1024 * _MAX_BITMAPS
            or place.bitmap_directory_offset % self.cluster_size
            or not 0 < place.bitmap_directory_offset < end <= self.window.size
        ):
            self.findings.note("invalid bitmaps extension")
        elif self.header.autoclear & Autoclear.BITMAPS:
            self.bitmaps = place.nb_bitmaps
