"""Hostile and odd images, made here from sound ones: what each is called and what it must be.

The names begin with q for qcow2, v for VMDK, r for raw, p for others and for polyglots. What only a
directory can hold (links, sockets, odd names) is in `tests.formats.zoo_files`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.formats.zoo_case import CORRUPT, GIB, MIB, OK, SUSPICIOUS, Case, patched
from tests.formats.zoo_deep import deep_cases
from tests.formats.zoo_disks import luks_cases, luks_image, vdi_cases, vdi_image, vhd, vpc_cases
from tests.formats.zoo_foreign import described_cases
from tests.formats.zoo_old import cow_cases, ploop_cases, qcow_cases, qed_cases
from tests.formats.zoo_qcow2 import qcow2_cases, sound
from tests.formats.zoo_references import disguised, reference_cases
from tests.formats.zoo_vmdk import vmdk_cases


def iso(data: bytes = b"") -> bytes:
    image = bytearray(data.ljust(65536, b"\0"))
    image[32768:32775] = b"\1CD001\1"
    struct.pack_into("<I", image, 32768 + 80, 32)
    struct.pack_into("<H", image, 32768 + 128, 2048)
    return bytes(image)


def polyglots() -> Iterator[Case]:
    both = iso(bytes(sound(MIB)))
    yield Case("p-iso-qcow2", both, "iso", SUSPICIOUS, None, "also qcow2")
    yield Case("p-iso-luks", iso(luks_image()), "iso", SUSPICIOUS, None, "also luks")
    yield Case("p-iso-ver4", iso(patched(sound(), (4, ">I", 4))), "iso", SUSPICIOUS, None, "qcow2")
    mbr = patched(sound(), (510, ">H", 0x55AA))
    yield Case("p-qcow2-mbr", mbr, "qcow2", OK, GIB)
    other = bytearray(vhd())
    other[64:68] = b"\x7f\x10\xda\xbe"
    yield Case("p-vhd-vdi", bytes(other), "vpc", CORRUPT, GIB, "also vdi")
    hidden = patched(sound(), (64, ">I", 0x7F10DABE))
    yield Case("p-qcow2-vdi", hidden, "qcow2", SUSPICIOUS, GIB, "also vdi")
    # libvirt passes over a version it does not know, so it would say vdi here
    hidden = patched(bytearray(vdi_image()), (0, ">Q", 0x636F6E6563746978))
    yield Case("p-vpc0-vdi", hidden, "vdi", SUSPICIOUS, GIB, "also vpc")


def foreign_cases() -> Iterator[Case]:
    yield Case("r-empty", b"", "raw", OK)
    yield Case("r-1", b"Q", "raw", OK)
    yield Case("r-text", b"QFX, KDM and other texts" * 50, "raw", OK)
    yield Case("p-iso", iso(), "iso", OK)
    yield Case("p-iso-cut", iso()[:33000], "iso", CORRUPT, None, "truncated")
    yield Case("p-iso-short", iso()[:40000], "iso", SUSPICIOUS, None, "more than the file")
    for name, head, reason in (
        ("vhdx", b"vhdxfile", "VHDX"),
        ("parallels", b"WithoutFreeSpace", "Parallels"),
        ("bochs", b"Bochs Virtual HD Image", "Bochs"),
        ("cloop", b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
        ("cowd", b"COWD\1\0\0\0", "COWD"),
    ):
        data = head.ljust(MIB, b"\xff")
        yield Case(f"p-{name}-magic", data, "raw", SUSPICIOUS, None, reason)
    for name, trailer, reason in (("vhdfoot", b"conectix", "VHD"), ("koly", b"koly", "dmg")):
        data = bytes(MIB - 512) + trailer.ljust(512, b"\0")
        yield Case(f"p-{name}", data, "raw", SUSPICIOUS, None, reason)


def cases() -> list[Case]:
    """Return those whose header or trailer decides, as the prober sees them."""
    sources = (
        qcow2_cases, vmdk_cases, luks_cases, vpc_cases, vdi_cases, qed_cases, qcow_cases,
        cow_cases, ploop_cases, polyglots, foreign_cases,
    )  # fmt: skip
    return [case for source in sources for case in source()]


def whole() -> list[Case]:
    """Return all that are made in memory.

    Of those that only `identify` knows by name, *format*, *state* and *capacity* are what it says.
    """
    sources = (cases, deep_cases, reference_cases, disguised, described_cases)
    return [case for source in sources for case in source()]
