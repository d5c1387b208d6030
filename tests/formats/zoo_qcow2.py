"""The zoo's qcow2 images."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

from storaged.formats import qcow2
from storaged.formats.image import ImageState
from storaged.formats.qcow2_create import CreateOptions, create
from tests.formats.memory import MemoryHandle
from tests.formats.zoo_case import (
    ALL,
    CORRUPT,
    GIB,
    OK,
    SUSPICIOUS,
    UNSUPPORTED,
    Case,
    Patch,
    patched,
)

#: Name, wrong fields of an image of 1 GiB, state, capacity, reason.
Lie: TypeAlias = tuple[str, list[Patch], ImageState, int | None, str]


def qcow2_cases() -> Iterator[Case]:
    for name, patches, state, capacity, reason in lies():
        yield Case(name, patched(sound(), *patches), "qcow2", state, capacity, reason)
    yield from extension_cases()
    yield from truncated()


def sound(capacity: int = GIB, **options: object) -> bytearray:
    handle = MemoryHandle()
    create(handle, CreateOptions(capacity, **options))  # type: ignore[arg-type]
    return handle.data


def lies() -> Iterator[Lie]:
    """One or two wrong fields in a qcow2 of 1 GiB: name, patches, state, capacity, reason."""
    for name, version in (("0", 0), ("4", 4), ("ff", 0xFFFFFFFF)):
        yield f"q-ver{name}", [(4, ">I", version)], UNSUPPORTED, None, "version"
    for bits in (0, 8, 22, 63, 64, 0xFFFFFFFF):
        name = "neg" if bits > 64 else str(bits)
        yield f"q-cb{name}", [(20, ">I", bits)], CORRUPT, GIB, f"cluster_bits is {bits}"
    for name, order in (("7", 7), ("64", 64), ("ff", 0xFFFFFFFF)):
        yield f"q-ro{name}", [(96, ">I", order)], CORRUPT, GIB, "refcount_order"
    for name, length in (("0", 0), ("72", 72), ("103", 103), ("big", 65544), ("ff", ALL >> 32)):
        yield f"q-hl{name}", [(100, ">I", length)], CORRUPT, GIB, "header_length"
    for name, length in (("105", 105), ("cl", 65536)):
        yield f"q-hl{name}", [(100, ">I", length)], SUSPICIOUS, GIB, "header_length"
    for bit in (5, 63):
        patch: list[Patch] = [(72, ">Q", 1 << bit)]
        yield f"q-incompat{bit}", patch, UNSUPPORTED, GIB, "unknown incompatible"
    yield "q-dirty", [(72, ">Q", 1)], SUSPICIOUS, GIB, "not closed cleanly"
    yield "q-corrupt", [(72, ">Q", 2)], CORRUPT, GIB, "marked as corrupt"
    yield "q-compat63", [(80, ">Q", 1 << 63)], OK, GIB, ""
    yield "q-auto63", [(88, ">Q", 1 << 63)], OK, GIB, ""
    yield "q-autobm", [(88, ">Q", 1)], SUSPICIOUS, GIB, "bitmaps"
    yield "q-autoraw", [(88, ">Q", 2)], CORRUPT, GIB, "raw external"
    yield "q-comp-nobit", [(104, "B", 1)], CORRUPT, GIB, "compression_type 1 against"
    yield "q-comp-bit0", [(72, ">Q", 8)], CORRUPT, GIB, "compression_type 0 against"
    yield "q-comp2", [(72, ">Q", 8), (104, "B", 2)], UNSUPPORTED, GIB, "compression_type 2"
    yield "q-crypt1", [(32, ">I", 1)], OK, GIB, ""
    yield "q-crypt2", [(32, ">I", 2)], CORRUPT, GIB, "without an encryption header"
    yield "q-crypt3", [(32, ">I", 3)], UNSUPPORTED, GIB, "crypt_method 3"
    yield "q-extl2-cb9", [(72, ">Q", 16), (20, ">I", 9)], CORRUPT, GIB, "extended L2"
    yield from size_lies()
    yield from table_lies()
    yield from backing_lies()


def size_lies() -> Iterator[Lie]:
    yield "q-size-odd", [(24, ">Q", GIB - 1)], SUSPICIOUS, GIB - 512, "no multiple of 512"
    yield "q-size-odd-l1", [(24, ">Q", GIB + 1)], CORRUPT, GIB, "l1_size 2 is too small"
    yield "q-size-max", [(24, ">Q", ALL)], CORRUPT, None, r"2\^63"
    yield "q-size-2^63", [(24, ">Q", 1 << 63)], CORRUPT, None, r"2\^63"
    yield "q-size-2^63-512", [(24, ">Q", (1 << 63) - 512)], CORRUPT, None, "too small"
    yield "q-size-huge-l1small", [(24, ">Q", 1 << 45)], CORRUPT, 1 << 45, "too small"


def table_lies() -> Iterator[Lie]:
    for name, value, reason in (
        ("unal", 196609, "not aligned"),
        ("eof", 1 << 40, "beyond the end"),
        ("ovf", ALL - 65535, "beyond the end"),
        ("2^63", (1 << 63) - 65536, "beyond the end"),
        ("overlap-hdr", 0, "overlaps the header"),
        ("overlap-rt", 65536, "overlaps the refcount table"),
    ):
        yield f"q-l1-{name}", [(40, ">Q", value)], CORRUPT, GIB, f"L1 table.*{reason}"
    for name, entries in (("0", 0), ("big", 0x7FFFFFFF), ("ff", 0xFFFFFFFF), ("32M", 4194304)):
        yield f"q-l1size{name}", [(36, ">I", entries)], CORRUPT, GIB, "l1_size|L1 table"
    for name, value in (("unal", 65537), ("eof", 1 << 40), ("ovf", ALL - 65535), ("zero", 0)):
        yield f"q-rt-{name}", [(48, ">Q", value)], CORRUPT, GIB, "refcount table"
    for name, clusters in (("0", 0), ("big", 0x7FFFFFFF), ("ff", 0xFFFFFFFF), ("100", 100)):
        yield f"q-rt{name}", [(56, ">I", clusters)], CORRUPT, GIB, "refcount table"
    for name, count in (("65537", 65537), ("ff", 0xFFFFFFFF)):
        yield f"q-snap{name}", [(60, ">I", count)], CORRUPT, GIB, "nb_snapshots"
    beyond: list[Patch] = [(60, ">I", 65536), (64, ">Q", 131072)]
    yield "q-snap65536", beyond, CORRUPT, GIB, "snapshot table.*beyond"
    yield "q-snapunal", [(60, ">I", 1), (64, ">Q", 131073)], CORRUPT, GIB, "not aligned"
    yield "q-snap-ok", [(60, ">I", 3), (64, ">Q", 131072)], OK, GIB, ""


def backing_lies() -> Iterator[Lie]:
    for name, offset, length, state, reason in (
        ("len1024", 512, 1024, CORRUPT, "backing_file_size is 1024"),
        ("lenff", 512, 0xFFFFFFFF, CORRUPT, "backing_file_size"),
        ("offbig", 65537, 10, CORRUPT, "beyond the first cluster"),
        ("off2^64", ALL, 10, CORRUPT, "beyond the first cluster"),
        ("end", 65530, 10, CORRUPT, "beyond the first cluster"),
        ("far", 60000, 10, CORRUPT, "not within the file's start"),
        ("inhdr", 100, 4, CORRUPT, "inside the header"),
        ("len0", 512, 0, OK, ""),
        ("nul", 600, 4, SUSPICIOUS, "zero byte"),
    ):
        yield f"q-bk-{name}", [(8, ">Q", offset), (16, ">I", length)], state, GIB, reason


def with_extensions(*extensions: bytes, patches: tuple[Patch, ...] = ()) -> bytes:
    data = sound(cluster_size=65536)
    blob = b"".join(extensions) + qcow2.pack_extension(0)
    data[112 : 112 + len(blob)] = blob
    return patched(data, *patches)


def extension_cases() -> Iterator[Case]:
    pack, kind = qcow2.pack_extension, qcow2.ExtensionType
    data_file = ((72, ">Q", 4),)
    bitmaps = qcow2.BitmapsExtension
    for name, data, state, reason in (
        ("len", struct.pack(">II", 0x12345678, 0xFFFFFFFF), CORRUPT, "too long"),
        ("noend", pack(0x12345678) * 8178, SUSPICIOUS, "more than 256"),
        ("far", pack(0x12345678, bytes(40000)), SUSPICIOUS, "too far"),
        ("unknown", pack(0x12345678, b"odd length"), OK, ""),
        ("datanobit", pack(kind.DATA_FILE, b"/etc/passwd"), SUSPICIOUS, "feature bit is not set"),
        ("dup", pack(kind.BACKING_FORMAT, b"raw") * 2, SUSPICIOUS, "second header extension"),
        ("bm0", pack(kind.BITMAPS, bitmaps(0, 0, 64, 65536).pack()), SUSPICIOUS, "bitmaps"),
        ("bmbig", pack(kind.BITMAPS, bitmaps(1, 0, 1 << 40, 65536).pack()), SUSPICIOUS, "bitmaps"),
        ("bmeof", pack(kind.BITMAPS, bitmaps(1, 0, 64, 1 << 30).pack()), SUSPICIOUS, "bitmaps"),
        ("bmlen", pack(kind.BITMAPS, bytes(23)), SUSPICIOUS, "23 bytes, not 24"),
        ("fntesc", pack(kind.FEATURE_NAMES, b"\x1b[2J" * 12), OK, ""),
        ("crypt", pack(kind.ENCRYPTION, bytes(16)), CORRUPT, "with an encryption header"),
    ):
        yield Case(f"q-ext-{name}", with_extensions(data), "qcow2", state, GIB, reason)
    for name, extensions, state, reason in (
        ("datafile", pack(kind.DATA_FILE, b"/etc/passwd"), SUSPICIOUS, "external file"),
        ("dataraw", pack(kind.DATA_FILE, b"data.raw"), SUSPICIOUS, "external file"),
        ("datafifo", pack(kind.DATA_FILE, b"fifo"), SUSPICIOUS, "external file"),
        ("datajson", pack(kind.DATA_FILE, b'json:{"x":1}'), SUSPICIOUS, "external file"),
        ("datanone", b"", CORRUPT, "no name"),
    ):
        image = with_extensions(extensions, patches=data_file)
        yield Case(f"q-ext-{name}", image, "qcow2", state, GIB, reason)
    image = with_extensions(pack(kind.ENCRYPTION, bytes(15)), patches=((32, ">I", 2),))
    yield Case("q-ext-fdelen", image, "qcow2", CORRUPT, GIB, "15 bytes, not 16")
    place = qcow2.EncryptionExtension(65536, 65536).pack()
    image = with_extensions(pack(kind.ENCRYPTION, place), patches=((32, ">I", 2),))
    yield Case("q-ext-fde", image, "qcow2", OK, GIB)
    place = qcow2.EncryptionExtension(65536, 1 << 40).pack()
    image = with_extensions(pack(kind.ENCRYPTION, place), patches=((32, ">I", 2),))
    yield Case("q-ext-fdeeof", image, "qcow2", CORRUPT, GIB, "encryption header.*beyond")
    image = with_extensions(pack(kind.BACKING_FORMAT, b"r" * 60))
    yield Case("q-bk-fmtlong", image, "qcow2", CORRUPT, GIB, "60 bytes, more than 15")
    unknown = ((72, ">Q", 32),)
    for name, names in (
        ("fnt", b"A" * 47),
        ("fntmsg", b"\0\5\x1b[2J\x1b]0;pwn\a".ljust(48, b"\0")),
    ):
        image = with_extensions(pack(kind.FEATURE_NAMES, names), patches=unknown)
        yield Case(f"q-ext-{name}", image, "qcow2", UNSUPPORTED, GIB, "^unknown incompatible")
    named = bytes(sound(backing=b"x", backing_format="evil\x1b[2J"))
    yield Case("q-bk-fmtbogus", named, "qcow2", SUSPICIOUS, GIB, r"backing format 'evil\\x1b\[2J'")


def truncated() -> Iterator[Case]:
    data = bytes(sound())
    for name, length in (("magic-trunc", 4), ("7", 7), ("71", 71), ("103", 103)):
        yield Case(f"q-{name}", data[:length], "qcow2", CORRUPT, None, "truncated")
    yield Case("q-hdronly", data[:65536], "qcow2", CORRUPT, GIB, "beyond the end")
    yield Case("q-512", data[:512], "qcow2", CORRUPT, GIB, "beyond the end")
    yield Case("q-l1-cut", data[:-1], "qcow2", CORRUPT, GIB, "L1 table.*beyond")
    version1 = patched(sound(), (4, ">I", 1))
    yield Case("q-ver1-on-q2", version1, "qcow", CORRUPT, GIB)
    second = bytes(sound(version=2))
    yield Case("q-v2-short", second[:71], "qcow2", CORRUPT, None, "truncated")
    yield Case("q-v2", second, "qcow2", OK, GIB)
    wrong = patched(sound(), (3, "B", 0))
    yield Case("q-magic3", wrong, "qcow2", CORRUPT, None, "magic")
    yield Case("q-magic3-ver9", patched(sound(), (3, "B", 0), (4, ">I", 9)), "raw", OK)
