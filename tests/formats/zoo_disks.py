"""The zoo's LUKS, VHD and VDI images."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from storaged.formats import luks, vdi, vpc
from tests.formats.zoo_case import (
    ALL,
    CORRUPT,
    GIB,
    MIB,
    OK,
    SUSPICIOUS,
    UNSUPPORTED,
    Case,
    Patch,
    patched,
)


def with_checksum(data: bytearray, at: int, start: int, length: int) -> bytearray:
    value = vpc.checksum(bytes(data[start : start + length]), at)
    struct.pack_into(">I", data, start + at, value)
    return data


def vhd(*, disk_type: int = 3) -> bytearray:
    """A dynamic VHD of 1 GiB without any block."""
    data = bytearray(4096)
    footer = vpc.Footer(
        vpc.MAGIC, 2, vpc.VERSION, 512, 0, b"qem2", 0, b"Wi2k", GIB, GIB, 2080, 16, 63,
        disk_type, 0, hashlib.md5(b"uuid").digest(), 0,
    ).pack()  # fmt: skip
    header = vpc.DynamicHeader(
        vpc.DYNAMIC_MAGIC, ALL, 1536, 0x10000, 512, 2 * MIB, 0, bytes(16)
    ).pack()
    data[: len(footer)] = footer
    data[512 : 512 + len(header)] = header
    with_checksum(data, 36, 512, 1024)
    return with_checksum(data, 64, 0, 512)


def vdi_image(*patches: Patch) -> bytes:
    header = vdi.VdiHeader(
        b"<<< image >>>".ljust(64, b"\0"), 0xBEDA107F, vdi.VERSION, 0x190, 1, 0, bytes(256),
        512, 8192, 0, 0, 0, 512, 0, GIB, MIB, 0, 1024, 0, b"u" * 16, b"s" * 16, bytes(16),
        bytes(16),
    ).pack()  # fmt: skip
    return patched(bytearray(header.ljust(8192, b"\xff")), *patches)


def luks_image(*patches: Patch) -> bytes:
    header = luks.LuksHeader(
        b"LUKS\xba\xbe", 1, b"aes".ljust(32, b"\0"), b"xts-plain64".ljust(32, b"\0"),
        b"sha256".ljust(32, b"\0"), 4040, 64, bytes(20), bytes(32), 1000, b"u".ljust(40, b"\0"),
    )  # fmt: skip
    slots = [luks.KeySlot(luks.KEY_ENABLED, 1000, bytes(32), 8, 4000)]
    slots += [luks.KeySlot(luks.KEY_DISABLED, 0, bytes(32), 8, 4000)] * 7
    data = header.pack() + b"".join(slot.pack() for slot in slots)
    return patched(bytearray(data.ljust(3 * MIB, b"\0")), *patches)


#: Key material that begins where that of the first slot does.
SECOND_SLOT = luks.KeySlot(luks.KEY_ENABLED, 1000, bytes(32), 16, 4000).pack()


def luks_cases() -> Iterator[Case]:
    left = 3 * MIB - 4040 * 512
    yield Case("p-luks", luks_image(), "raw", OK, left)
    yield Case("p-luks-short", luks_image()[:100], "raw", CORRUPT, None, "truncated")
    yield Case("p-luks-7", luks_image()[:7], "raw", CORRUPT, None, "truncated")
    bad = luks_image((8, ">32s", b"x" * 32), (104, ">I", 0), (108, ">I", ALL >> 32))
    yield Case("p-luksbad", bad, "raw", CORRUPT, None, "cipher_name does not end")
    yield Case("p-luks2", luks_image((6, ">H", 2)), "raw", UNSUPPORTED, None, "version 2")
    yield Case("p-luks3", luks_image((6, ">H", 3)), "raw", UNSUPPORTED, None, "version 3")
    for name, patch, state, capacity, reason in (
        ("-cipher", (8, ">32s", b"x" * 32), CORRUPT, left, "cipher_name does not end"),
        ("-payload0", (104, ">I", 0), CORRUPT, None, "payload at sector 0"),
        ("-payloadff", (104, ">I", 0xFFFFFFFF), CORRUPT, None, "payload"),
        ("-key", (108, ">I", 0xFFFFFFFF), CORRUPT, left, "key of 4294967295 bytes"),
        ("iter", (164, ">I", 0xFFFFFFFF), SUSPICIOUS, left, "iterations"),
        ("-slotiter", (212, ">I", 0xFFFFFFFF), SUSPICIOUS, left, "key slot 0"),
        ("-slot", (208, ">I", 7), CORRUPT, left, "neither enabled nor disabled"),
        ("-stripes", (252, ">I", 1), CORRUPT, left, "1 stripes"),
        ("-overlap", (256, ">48s", SECOND_SLOT), CORRUPT, left, "key slots 0 and 1 overlap"),
        ("-slotoff", (248, ">I", 0xFFFFFFFF), CORRUPT, left, "key slot 0 at sector"),
    ):
        image = luks_image(patch)
        yield Case(f"p-luks{name}", image, "raw", state, capacity, reason)


def vpc_cases() -> Iterator[Case]:
    yield Case("p-vpc", bytes(vhd()), "vpc", OK, GIB)
    yield Case("p-vpc-sum", patched(vhd(), (64, ">I", 0)), "vpc", CORRUPT, GIB, "checksum")
    yield Case("p-vpc-version", patched(vhd(), (12, ">I", 0)), "vpc", UNSUPPORTED, None, "version")
    yield Case("p-vpc-diff", bytes(vhd(disk_type=4)), "vpc", UNSUPPORTED, GIB, "differencing")
    yield Case("p-vpc-fixed", bytes(vhd(disk_type=2)), "vpc", CORRUPT, GIB, "disk type 2")
    yield Case("p-vpc-size", patched(vhd(), (40, ">Q", ALL)), "vpc", CORRUPT, None, "original size")
    yield Case("p-vpc-nodyn", patched(vhd(), (512, ">Q", 0)), "vpc", CORRUPT, GIB, "no dynamic")
    yield Case("p-vpc-far", patched(vhd(), (16, ">Q", ALL)), "vpc", CORRUPT, GIB, "too far")
    yield Case("p-vpc-bat", patched(vhd(), (540, ">I", 1 << 30)), "vpc", CORRUPT, GIB, "table")
    yield Case("p-vpc-block", patched(vhd(), (544, ">I", 0)), "vpc", CORRUPT, GIB, "block size")
    yield Case("p-vpc-80", bytes(vhd()[:80]), "vpc", CORRUPT, None, "truncated")


def vdi_cases() -> Iterator[Case]:
    yield Case("p-vdi", vdi_image(), "vdi", OK, GIB)
    huge = vdi_image((0x170, "<Q", 1 << 60), (0x180, "<I", 0xFFFFFFFF))
    yield Case("p-vdi-huge", huge, "vdi", CORRUPT, None, "disk size")
    for name, patch, state, capacity, reason in (
        ("version", (0x44, "<I", 0), UNSUPPORTED, None, "version 0.0"),
        ("type9", (0x4C, "<I", 9), UNSUPPORTED, GIB, "image type 9"),
        ("diff", (0x4C, "<I", 4), UNSUPPORTED, GIB, "differencing"),
        ("parent", (0x1B8, "<I", 4), UNSUPPORTED, GIB, "linked"),
        ("sector", (0x168, "<I", 4096), UNSUPPORTED, GIB, "sector size"),
        ("block", (0x178, "<I", 0), UNSUPPORTED, GIB, "block size 0"),
        ("few", (0x180, "<I", 1023), CORRUPT, GIB, "too few"),
        ("map", (0x154, "<I", 1 << 31), CORRUPT, GIB, "block map"),
        ("unal", (0x154, "<I", 513), CORRUPT, GIB, "block map at 513"),
        ("alloc", (0x184, "<I", 1025), CORRUPT, GIB, "allocated"),
    ):
        yield Case(f"p-vdi-{name}", vdi_image(patch), "vdi", state, capacity, reason)
    yield Case("p-vdi-cut", vdi_image()[:100], "vdi", CORRUPT, None, "truncated")
