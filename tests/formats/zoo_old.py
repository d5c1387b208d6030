"""The zoo's QED, qcow, UML and Parallels images."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.formats.zoo_case import ALL, CORRUPT, GIB, OK, SUSPICIOUS, UNSUPPORTED, Case


def qed(**change: int) -> bytes:
    facts = {
        "cluster": 65536, "table": 4, "header": 1, "features": 0, "compat": 0, "auto": 0,
        "l1": 65536, "size": GIB, "name": 64, "length": 0,
    } | change  # fmt: skip
    header = struct.pack("<4sIIIQQQQQII", b"QED\0", *facts.values())
    return (header + b"/etc/passwd").ljust(327680, b"\0")


def qed_cases() -> Iterator[Case]:
    yield Case("p-qed", qed(features=1, length=11), "qed", OK, GIB)
    yield Case("p-qed-cl", qed(cluster=0), "qed", CORRUPT, GIB, "cluster_size is 0")
    yield Case("p-qed-table", qed(table=3), "qed", CORRUPT, GIB, "table_size")
    yield Case("p-qed-size", qed(size=ALL), "qed", CORRUPT, None, "image_size")
    yield Case("p-qed-l1", qed(l1=1 << 40), "qed", CORRUPT, GIB, "L1 table")
    yield Case("p-qed-feat", qed(features=8), "qed", UNSUPPORTED, GIB, "unknown features 0x8")
    yield Case("p-qed-check", qed(features=2), "qed", SUSPICIOUS, GIB, "not closed")
    yield Case("p-qed-name", qed(features=1, length=2000), "qed", CORRUPT, GIB, "more than 1023")
    yield Case("p-qed-text", b"QED. " * 50, "qed", CORRUPT, None, "magic")


def qcow(**change: int) -> bytes:
    facts = {
        "name": 0, "length": 0, "mtime": 0, "size": GIB, "bits": 12, "l2": 9, "pad": 0,
        "crypt": 0, "l1": 48,
    } | change  # fmt: skip
    return struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, *facts.values()).ljust(65536, b"\0")


def qcow_cases() -> Iterator[Case]:
    yield Case("p-q1", qcow(), "qcow", OK, GIB)
    yield Case("p-q1-cb8", qcow(bits=8), "qcow", CORRUPT, GIB, "cluster_bits is 8")
    yield Case("p-q1-l2big", qcow(l2=63), "qcow", CORRUPT, GIB, "l2_bits is 63")
    yield Case("p-q1-size", qcow(size=ALL), "qcow", CORRUPT, None, "size is")
    yield Case("p-q1-bs", qcow(name=48, length=0xFFFFFFFF), "qcow", CORRUPT, GIB, "1023")
    yield Case("p-q1-bo", qcow(name=ALL, length=4), "qcow", CORRUPT, GIB, "not within")
    yield Case("p-q1-l1", qcow(l1=ALL), "qcow", CORRUPT, GIB, "L1 table")
    yield Case("p-q1-crypt", qcow(crypt=2), "qcow", UNSUPPORTED, GIB, "crypt_method 2")
    yield Case("p-q1-cut", qcow()[:40], "qcow", CORRUPT, None, "QcowHeader|truncated")


def cow(version: int, name: bytes, size: int) -> bytes:
    return struct.pack(">4sI1024sIQI", b"OOOM", version, name, 0, size, 512)


def cow_cases() -> Iterator[Case]:
    yield Case("p-cow", cow(2, b"/etc/passwd", GIB), "cow", OK, GIB)
    yield Case("p-cow-ver", cow(3, b"", GIB), "cow", UNSUPPORTED, None, "version 3")
    yield Case("p-cow-size", cow(2, b"", ALL), "cow", CORRUPT, None, "size is")
    yield Case("p-cow-name", cow(2, b"x" * 1024, GIB), "cow", CORRUPT, GIB, "does not end")
    yield Case("p-cow-cut", cow(2, b"", GIB)[:600], "cow", CORRUPT, None, "truncated")


def ploop(tracks: int, entries: int, sectors: int, in_use: int = 0, version: int = 2) -> bytes:
    return struct.pack(
        "<16sIIIIIQIIIQ", b"WithouFreSpacExt", version, 16, 1, tracks, entries, sectors,
        in_use, 64, 0, 0,
    ).ljust(8192, b"\0")  # fmt: skip


def ploop_cases() -> Iterator[Case]:
    yield Case("p-par", ploop(2048, 1024, GIB // 512), "ploop", OK, GIB)
    yield Case("p-par-tracks0", ploop(0, 1024, GIB // 512), "ploop", CORRUPT, GIB, "0 sectors")
    yield Case("p-par-bat", ploop(2048, 1 << 31, GIB // 512), "ploop", CORRUPT, GIB, "beyond")
    yield Case("p-par-few", ploop(2048, 1, GIB // 512), "ploop", CORRUPT, GIB, "too small")
    yield Case("p-par-size", ploop(2048, 1024, ALL), "ploop", CORRUPT, None, "sectors")
    yield Case(
        "p-par-use", ploop(2048, 1024, GIB // 512, 0x746F6E59), "ploop", SUSPICIOUS, GIB, "closed"
    )
    yield Case(
        "p-par-ver", ploop(2048, 1024, GIB // 512, 0, 3), "ploop", UNSUPPORTED, GIB, "version 3"
    )
