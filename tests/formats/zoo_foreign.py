"""Images that libvirt lists as raw, made here, and what `identify` has to say of them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator

from storaged.formats import bochs, dmg, luks2, vhdx
from storaged.formats.crc32c import crc32c
from storaged.formats.image import ImageState
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
from tests.formats.zoo_disks import vhd, with_checksum

_REQUIRED = 4
_HEAD, _REGIONS, _BAT, _METADATA = 64 << 10, 192 << 10, 2 * MIB, 3 * MIB
_ITEMS = _METADATA + (64 << 10)


def sealed(data: bytearray, offset: int, length: int) -> None:
    data[offset + 4 : offset + 8] = bytes(4)
    struct.pack_into("<I", data, offset + 4, crc32c(bytes(data[offset : offset + length])))


def vhdx_image(*patches: Patch, parent: bytes = b"") -> bytes:
    """A dynamic VHDX of 1 GiB without any block; *patches* come before the checksums."""
    data = bytearray(4 * MIB)
    data[:8] = vhdx.MAGIC
    for number in range(2):
        header = vhdx.VhdxHeader(
            b"head", 0, number, bytes(16), bytes(16), bytes(16), 0, 1, MIB, MIB
        )  # fmt: skip
        struct.pack_into("<80s", data, _HEAD * (number + 1), header.pack())
    table = vhdx.TableHeader(b"regi", 0, 2, 0).pack()
    table += vhdx.RegionEntry(vhdx.BAT, _BAT, MIB, 1).pack()
    table += vhdx.RegionEntry(vhdx.METADATA, _METADATA, MIB, 1).pack()
    for offset in (_REGIONS, _REGIONS + (64 << 10)):
        data[offset : offset + len(table)] = table
    flags = 2 if parent else 0
    items = [
        (vhdx.FILE_PARAMETERS, struct.pack("<II", 8 * MIB, flags)),
        (vhdx.VIRTUAL_DISK_SIZE, struct.pack("<Q", GIB)),
        (vhdx.LOGICAL_SECTOR_SIZE, struct.pack("<I", 512)),
        (vhdx.PARENT_LOCATOR, parent),
    ]
    at = 64 << 10
    metadata = vhdx.MetadataHeader(b"metadata", 0, 4 if parent else 3, bytes(16), 0).pack()
    for guid, value in items[: 4 if parent else 3]:
        metadata += vhdx.MetadataEntry(guid, at, len(value), _REQUIRED, 0).pack()
        data[_METADATA + at : _METADATA + at + len(value)] = value
        at += len(value)
    data[_METADATA : _METADATA + len(metadata)] = metadata
    data = bytearray(patched(data, *patches))
    for offset, length in ((1, 4096), (2, 4096), (3, 65536), (4, 65536)):
        sealed(data, _HEAD * offset, length)
    return bytes(data)


def locator(**entries: str) -> bytes:
    head, body = bytes(18) + struct.pack("<H", len(entries)), b""
    start = 20 + 12 * len(entries)
    for key, value in entries.items():
        pair = key.encode("utf-16-le"), value.encode("utf-16-le")
        place = start + len(body)
        head += struct.pack("<IIHH", place, place + len(pair[0]), len(pair[0]), len(pair[1]))
        body += pair[0] + pair[1]
    return head + body


def vhdx_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, state: ImageState, capacity: int | None, reason: str) -> Case:
        return Case(f"p-vhdx-{name}", data, "vhdx", state, capacity, reason)

    yield case("ok", vhdx_image(), OK, GIB, "")
    yield case("nohdr", b"vhdxfile".ljust(4 * MIB, b"\0"), CORRUPT, None, "no valid header")
    yield case("short", b"vhdxfile", CORRUPT, None, "header at 65536")
    yield case("noise", b"vhdxfile".ljust(MIB, b"\xff"), CORRUPT, None, "no valid header")
    broken = bytearray(vhdx_image())
    broken[_HEAD + 8] ^= 1
    yield case("onehdr", bytes(broken), OK, GIB, "")
    broken[_REGIONS + 70] ^= 1
    yield case("oneregion", bytes(broken), SUSPICIOUS, GIB, "region table at 196608")
    parent = locator(absolute_win32_path="C:\\base.vhdx", relative_path="..\\base.vhdx")
    yield case("diff", vhdx_image(parent=parent), UNSUPPORTED, GIB, "differencing")
    yield case("diffcut", vhdx_image(parent=b"x"), CORRUPT, None, "parent locator")
    many = b"x" * 18 + b"\xff\xff"
    yield case("diffmany", vhdx_image(parent=many), CORRUPT, None, "65535 entries")
    both = [_HEAD, 2 * _HEAD]
    log = vhdx_image(*((offset + 48, "<B", 1) for offset in both))
    yield case("log", log, SUSPICIOUS, GIB, "log has to be replayed")
    version = vhdx_image(*((offset + 66, "<H", 2) for offset in both))
    yield case("version", version, UNSUPPORTED, GIB, "version 2")
    far = vhdx_image(*((offset + 72, "<Q", 1 << 62) for offset in both))
    yield case("logfar", far, CORRUPT, GIB, "log at")
    for name, patch, state, capacity, reason in (
        ("count", (_REGIONS + 8, "<I", ALL >> 32), CORRUPT, None, "4294967295 entries"),
        ("twice", (_REGIONS + 48, "<16s", vhdx.BAT), CORRUPT, None, "twice"),
        ("unknown", (_REGIONS + 16, "<16s", b"u" * 16), CORRUPT, None, "no block allocation"),
        ("eof", (_REGIONS + 32, "<Q", 1 << 40), CORRUPT, None, "beyond the end"),
        ("unal", (_REGIONS + 32, "<Q", 3), CORRUPT, None, "at 3"),
        ("nometa", (_METADATA, "<8s", b""), CORRUPT, None, "metadata table"),
        ("metacount", (_METADATA + 10, "<H", 0xFFFF), CORRUPT, None, "metadata table"),
        ("itemfar", (_METADATA + 32 + 16, "<I", ALL >> 32), CORRUPT, None, "metadata item"),
        ("itemlong", (_METADATA + 32 + 20, "<I", ALL >> 32), CORRUPT, None, "metadata item"),
        ("itemnone", (_METADATA + 32, "<16s", b""), CORRUPT, None, "unknown metadata item"),
        ("block0", (_ITEMS, "<I", 0), CORRUPT, None, "block size is 0"),
        ("block3", (_ITEMS, "<I", 3 * MIB), CORRUPT, None, "block size"),
        ("size", (_ITEMS + 8, "<Q", ALL), CORRUPT, None, "virtual disk size"),
        ("sector", (_ITEMS + 16, "<I", 513), CORRUPT, None, "sectors of 513"),
        ("bat", (_ITEMS + 8, "<Q", 32 << 40), CORRUPT, 32 << 40, "too small"),
    ):
        patches = (patch, (patch[0] + (64 << 10), *patch[1:])) if patch[0] < MIB else (patch,)
        image = vhdx_image(*patches)
        yield case(name, image, state, capacity, reason)


def fixed_vhd(*patches: Patch, disk_type: int = 2, app: bytes = b"qem2") -> bytes:
    footer = bytearray(vhd(disk_type=disk_type)[:512])
    footer[28:32] = app
    struct.pack_into(">QQ", footer, 40, MIB, MIB)
    footer = bytearray(patched(footer, *patches))
    return bytes(MIB) + bytes(with_checksum(footer, 64, 0, 512))


def vhd_cases() -> Iterator[Case]:
    yield Case("p-fixed", fixed_vhd(), "vpc", OK, MIB)
    chs = fixed_vhd((56, ">H", 1), (58, ">B", 4), app=b"vpc ")
    yield Case("p-fixed-chs", chs, "vpc", OK, 4 * 63 * 512)
    short = bytes(fixed_vhd()[MIB // 2 :])
    yield Case("p-fixed-short", short, "vpc", CORRUPT, MIB, "more than the file")
    dynamic = fixed_vhd(disk_type=3)
    yield Case("p-fixed-dyn", dynamic, "vpc", CORRUPT, MIB, "disk type 3")
    version = fixed_vhd((12, ">I", 7))
    yield Case("p-fixed-version", version, "vpc", UNSUPPORTED, MIB, "version 0x7")
    size = fixed_vhd((48, ">Q", ALL))
    yield Case("p-fixed-size", size, "vpc", CORRUPT, None, "the disk is")
    magic = bytes(MIB) + b"conectix".ljust(512, b"\0")
    yield Case("p-raw-vhdfoot", magic, "raw", SUSPICIOUS, None, "VHD")
    name = "parent.vhd".encode("utf-16-be")
    data = bytearray(vhd(disk_type=4))
    data[576 : 576 + len(name)] = name
    data = with_checksum(data, 36, 512, 1024)
    yield Case("p-vhd-parent", bytes(data), "vpc", UNSUPPORTED, GIB, "differencing")


def bochs_image(version: int = 2, **change: int) -> bytes:
    facts = {"header": 512, "catalog": 2048, "bitmap": 1, "extent": MIB, "disk": GIB} | change
    disk = facts.pop("disk")
    size = struct.pack("<4xQ" if version == 2 else "<Q4x", disk)
    return bochs.BochsHeader(
        bochs.MAGIC.ljust(32, b"\0"), b"Redolog".ljust(16, b"\0"), b"Growing".ljust(16, b"\0"),
        version << 16, facts["header"], facts["catalog"], facts["bitmap"], facts["extent"], size,
    ).pack().ljust(16384, b"\0")  # fmt: skip


def cloop_image(block: int, count: int) -> bytes:
    head = b"#!/bin/sh\n#V2.0 Format\n".ljust(128, b"\n")
    return (head + struct.pack(">II", block, count)).ljust(4096, b"\0")


def dmg_image(*, version: int = 4, xml: int = 0, sectors: int = 2048) -> bytes:
    return bytes(4096) + dmg.Trailer(
        dmg.MAGIC, version, 512, 1, 0, 0, 4096, 0, 0, bytes(160), 0, xml, bytes(260), sectors
    ).pack().ljust(512, b"\0")


def parallels_image(tracks: int, entries: int, sectors: int) -> bytes:
    return struct.pack(
        "<16sIIIIIQIIIQ", b"WithoutFreeSpace", 2, 16, 1, tracks, entries, sectors, 0, 64, 0, 0
    ).ljust(65536, b"\0")


def old_cases() -> Iterator[Case]:
    high = (7 << 32) + GIB // 512
    yield Case("p-parallels", parallels_image(2048, 1024, high), "parallels", OK, GIB)
    zero = parallels_image(0, 1 << 31, GIB // 512)
    yield Case("p-parallels-0", zero, "parallels", CORRUPT, GIB, "0 sectors")
    yield Case("p-parallels-cut", zero[:20], "parallels", CORRUPT, None, "truncated")
    yield Case("p-bochs-ok", bochs_image(), "bochs", OK, GIB)
    yield Case("p-bochs-1", bochs_image(1), "bochs", OK, GIB)
    yield Case("p-bochs-3", bochs_image(3), "bochs", UNSUPPORTED, None, "0x30000")
    huge = bochs_image(catalog=ALL >> 32)
    yield Case("p-bochs", huge, "bochs", CORRUPT, GIB, "catalog of 4294967295")
    yield Case("p-bochs-few", bochs_image(catalog=1), "bochs", CORRUPT, GIB, "too small")
    yield Case("p-bochs-size", bochs_image(disk=ALL), "bochs", CORRUPT, None, "disk size")
    yield Case("p-bochs-ext", bochs_image(extent=0), "bochs", CORRUPT, GIB, "0 bytes")
    yield Case("p-bochs-cut", bochs_image()[:80], "bochs", CORRUPT, None, "truncated")
    yield Case("p-cloop-ok", cloop_image(65536, 16), "cloop", OK, MIB)
    yield Case("p-cloop", cloop_image(0xFFFFFE00, 1), "cloop", CORRUPT, None, "blocks of")
    count = cloop_image(512, 0xFFFFFFFF)
    yield Case("p-cloop-count", count, "cloop", CORRUPT, 512 * 0xFFFFFFFF, "table of")
    yield Case("p-cloop-cut", count[:130], "cloop", CORRUPT, None, "truncated")
    yield Case("p-dmg-ok", dmg_image(), "dmg", OK, MIB)
    yield Case("p-dmg.dmg", dmg_image(xml=ALL), "dmg", CORRUPT, MIB, "property list")
    yield Case("p-dmg-size", dmg_image(sectors=ALL), "dmg", CORRUPT, None, "sectors")
    # Not told from chance: it stays what the prober says.
    yield Case("p-dmg-ver", dmg_image(version=9), "raw", SUSPICIOUS, None, "dmg")


def luks2_image(segments: object, *, spoil: bool = False, area: int = 16384) -> bytes:
    text = json.dumps({"segments": segments}).encode().ljust(area - 4096, b"\0")
    data = b""
    for number, magic in enumerate((luks2.MAGIC, luks2.SECOND_MAGIC)):
        header = luks2.Luks2Header(
            magic, 2, area, 1, bytes(48), b"sha256".ljust(32, b"\0"), bytes(64), bytes(40),
            bytes(48), area * number, bytes(184), bytes(64),
        ).pack().ljust(4096, b"\0")  # fmt: skip
        total = hashlib.sha256(header + text).digest()
        if spoil and not number:
            total = bytes(32)
        data += header[:448] + total.ljust(64, b"\0") + header[512:] + text
    return data.ljust(MIB, b"\0")


def luks2_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, state: ImageState, capacity: int | None, reason: str) -> Case:
        return Case(f"p-luks2-{name}", data, "luks", state, capacity, reason)

    half = {"offset": "524288", "size": "dynamic"}
    yield case("ok", luks2_image({"0": half}), UNSUPPORTED, MIB // 2, "version 2")
    fixed = {"offset": "32768", "size": "4096"}
    yield case("sum", luks2_image({"0": fixed, "1": half}), UNSUPPORTED, MIB // 2 + 4096, "LUKS")
    spoiled = luks2_image({"0": half}, spoil=True)
    yield case("second", spoiled, CORRUPT, MIB // 2, "checksum of the header at 0")
    for name, segments, reason in (
        ("none", {}, "no data segments"),
        ("list", [1], "no data segments"),
        ("text", {"0": "x"}, "no object"),
        ("far", {"0": {"offset": "9" * 20, "size": "1"}}, "not within"),
        ("long", {"0": {"offset": "0", "size": "9" * 20}}, "bytes"),
        ("minus", {"0": {"offset": "-1", "size": "1"}}, "without a place"),
        ("digits", {"0": {"offset": "9" * 5000, "size": "1"}}, "without a place"),
        ("number", {"0": {"offset": 5, "size": None}}, "without a place"),
    ):
        yield case(name, luks2_image(segments), CORRUPT, None, reason)
    deep = bytearray(luks2_image({}))
    yield case("zeros", b"LUKS\xba\xbe\0\2".ljust(MIB, b"\0"), CORRUPT, None, "no second header")
    yield case("cut", bytes(deep[:9000]), CORRUPT, None, "second header")


def described_cases() -> list[Case]:
    """Return all; *format*, *state* and *capacity* are those of `identify`."""
    sources = (vhdx_cases, vhd_cases, old_cases, luks2_cases)
    return [case for source in sources for case in source()]
