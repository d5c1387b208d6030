"""Images whose header is sound: what is wrong stands in tables and in packed data.

A probe does not look so far. What it says is no more than that the header is sound; a check tells
of the rest, and whoever reads comes upon it or does not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storaged.formats import qcow2
from storaged.formats.convert import convert
from storaged.formats.qcow2 import CompressionType
from storaged.formats.vmdk_stream_writer import VmdkStreamWriter
from storaged.formats.vmdk_writer import VmdkWriter
from tests.formats import test_qcow2_bitmaps, test_qcow2_snapshots
from tests.formats.memory import MemoryHandle
from tests.formats.zoo_case import ALL, GIB, MIB, OK, Case, Patch, patched
from tests.formats.zoo_qcow2 import sound

CLUSTER = 65536
TABLE, BLOCK, L1, L2, DATA = (CLUSTER * number for number in (1, 2, 3, 4, 5))
COPIED, PACKED = qcow2.COPIED, 1 << 62
#: Bits of a compressed entry's offset with clusters of 64 KiB.
_PLACE_BITS = 62 - (16 - 8)


@dataclass(frozen=True)
class DeepCase(Case):
    """An image that a probe has nothing against.

    :param finding: what a check has to find; "" is nothing at all.
    :param unreadable: what a reader of the whole disk has to say; "" is nothing.
    :param big: why looking at it may take up to a second; "" if nothing excuses that.
    """

    finding: str = ""
    unreadable: str = ""
    big: str = ""


def qcow2_image(
    *patches: Patch, l2: Sequence[int] = (COPIED | DATA,), clusters: int = 6, data: bytes = b"data",
    **options: Any,
) -> bytes:  # fmt: skip
    """Return an image of 1 GiB with an L2 table and data behind it, then *patches*."""
    image = sound(options.pop("capacity", GIB), **options)
    image += bytes(clusters * CLUSTER - len(image))
    struct.pack_into(f">{clusters}H", image, BLOCK, *[1] * clusters)
    struct.pack_into(">Q", image, L1, COPIED | L2)
    struct.pack_into(f">{len(l2)}Q", image, L2, *l2)
    image[DATA : DATA + len(data)] = data
    return patched(image, *patches)


def packed_at(offset: int, sectors: int = 1) -> int:
    """Return the L2 entry of a compressed cluster."""
    return PACKED | offset | (sectors - 1) << _PLACE_BITS


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    return stream.compress(data) + stream.flush()


def deep_cases() -> Iterator[DeepCase]:
    for cases in (
        _first_level, _second_level, _counts, _snapshots, _packed, _zstd, _subclusters, _bitmaps,
        _wide, _vmdk, _vmdk_streams,
    ):  # fmt: skip
        yield from cases()


def _deep(name: str, data: bytes, finding: str = "", unreadable: str = "", **more: Any) -> DeepCase:
    capacity = more.pop("capacity", GIB)
    format, state = more.pop("format", "qcow2"), more.pop("state", OK)
    return DeepCase(
        name, data, format, state, capacity, finding=finding, unreadable=unreadable, **more
    )


def _first_level() -> Iterator[DeepCase]:
    yield _deep("q-deep-ok", qcow2_image())
    for name, entry, finding, unreadable in (
        ("self", COPIED | L1, "used", ""),
        ("resv", COPIED | 1 << 60 | L2, "reserved bits", "."),
        ("unal", COPIED | (L2 + 512), "L2 table|reserved|aligned", "."),
        ("eof", COPIED | 1 << 40, "beyond the end", "."),
        ("hdr", COPIED, "no place", ""),
        ("table", COPIED | TABLE, "used", ""),
        ("ff", ALL, "reserved", "."),
    ):
        yield _deep(f"q-l1e-{name}", qcow2_image((L1, ">Q", entry)), finding, unreadable)
    twice = qcow2_image((L1 + 8, ">Q", COPIED | L2))
    yield _deep("q-l1e-twice", twice, "used|flag|refcount")


def _second_level() -> Iterator[DeepCase]:
    for name, entry, finding, unreadable in (
        ("self", COPIED | L2, "used|refcount", ""),
        ("hdr", COPIED | 1 << 16, "used|refcount", ""),
        ("unal", COPIED | (DATA + 512), "aligned", "aligned"),
        ("eof", COPIED | 1 << 40, "beyond the end", "beyond|outside"),
        ("resv", COPIED | 1 << 61 | DATA, "reserved", "reserved"),
        ("ff", ALL, ".", "."),
        ("zeroflag", COPIED | DATA | 1, "", ""),
        ("flags", DATA, "flag", ""),
    ):
        yield _deep(f"q-l2e-{name}", qcow2_image(l2=(entry,)), finding, unreadable)
    shared = qcow2_image(l2=(COPIED | DATA,) * 8192)
    yield _deep("q-l2e-shared", shared, "refcount|used")


def _counts() -> Iterator[DeepCase]:
    for name, patch, finding in (
        ("q-rb-self", (TABLE, ">Q", 0), "refcount"),
        ("q-rb-unal", (TABLE, ">Q", BLOCK + 512), "aligned|reserved"),
        ("q-rb-eof", (TABLE, ">Q", 1 << 40), "beyond the end"),
        ("q-rb-table", (TABLE, ">Q", TABLE), "."),
        ("q-rb-twice", (TABLE + 8, ">Q", BLOCK), "."),
        ("q-rc0", (BLOCK, ">12s", bytes(12)), "refcount 0"),
        ("q-rcff", (BLOCK, ">12s", b"\xff" * 12), "refcount 65535"),
    ):
        yield _deep(name, qcow2_image(patch), finding)


def _snapshots() -> Iterator[DeepCase]:
    end = 6 * CLUSTER
    lie = qcow2_image((60, ">I", 1), (64, ">Q", end)) + b"\xff" * 64
    yield _deep("q-snap-lie", lie, "snapshot")
    many = test_qcow2_snapshots.entry(id=b"1", name=b"n") * 65536
    data = qcow2_image((60, ">I", 65536), (64, ">Q", end)) + many
    yield _deep("q-snap-many", data, ".", big="65,536 snapshots are read")
    loop = test_qcow2_snapshots.entry(l1=(L1, 2)) * 300
    yield _deep("q-snap-same", qcow2_image((60, ">I", 300), (64, ">Q", end)) + loop, ".")
    far = test_qcow2_snapshots.entry(l1=(ALL - 65535, ALL >> 32))
    yield _deep("q-snap-far", qcow2_image((60, ">I", 1), (64, ">Q", end)) + far, "snapshot")
    yield _deep("q-2M-1bit-snap", _overflow(), ".")


def _overflow() -> bytes:
    """Return an image with a snapshot whose refcounts of one bit cannot count both."""
    size = 2 * MIB
    image = sound(GIB, cluster_size=size, refcount_bits=1)
    image += bytes(6 * size - len(image))
    struct.pack_into(">Q", image, 3 * size, COPIED | 4 * size)
    struct.pack_into(">Q", image, 4 * size, COPIED | 5 * size)
    image[2 * size] = 0xFF
    image += bytes(image[3 * size : 3 * size + 8]).ljust(size, b"\0")
    struct.pack_into(">IQ", image, 60, 1, 7 * size)
    return bytes(image) + test_qcow2_snapshots.entry(l1=(6 * size, 1))


def _packed() -> Iterator[DeepCase]:
    content = deflated(b"x" * CLUSTER)
    sound_one = qcow2_image(l2=(packed_at(DATA),), data=content)
    yield _deep("q-comp-ok", sound_one)
    bomb = qcow2_image(l2=(packed_at(DATA),) * 8192, data=content)
    yield _deep("q-bomb-comp", bomb, "refcount", big="512 MiB are unpacked in full")
    for name, l2, data, finding, unreadable in (
        ("eof", packed_at(6 * CLUSTER - 512, 64), b"", "beyond the end|refcount", "compressed"),
        ("far", packed_at(1 << 50), b"", "beyond the end", "compressed|beyond"),
        ("noise", packed_at(DATA), b"\xff" * 512, "", "compressed cluster"),
        ("short", packed_at(DATA), deflated(b"x" * 100), "", "compressed cluster.*100 of 65536"),
        ("long", packed_at(DATA, 16), deflated(bytes(4 * MIB)), "", ""),
        ("copied", COPIED | packed_at(DATA), content, "flag", ""),
        ("hdr", packed_at(0), b"", "used|refcount", "compressed"),
        ("l2", packed_at(L2, 128), b"", "used|refcount", "compressed"),
    ):
        yield _deep(f"q-comp-{name}", qcow2_image(l2=(l2,), data=data), finding, unreadable)


def _zstd() -> Iterator[DeepCase]:
    """Frames are made by hand: magic, descriptor, window, content size, blocks."""
    magic = struct.pack("<I", 0xFD2FB528)
    block = struct.pack("<I", 3 | CLUSTER << 3)[:3] + b"x"  # RLE, the last one
    sized = magic + b"\xe0" + struct.pack("<Q", CLUSTER) + block
    for name, frame, unreadable in (
        ("ok", sized, ""),
        ("huge", magic + b"\xe0" + struct.pack("<Q", 1 << 62) + block, "compressed"),
        ("window", magic + b"\x00\xf8" + block, "compressed"),
        ("cut", sized[:12], "compressed"),
        ("noise", b"\xff" * 64, "compressed"),
    ):
        image = qcow2_image(
            l2=(packed_at(DATA),), data=frame, compression=CompressionType.ZSTD
        )  # fmt: skip
        yield _deep(f"q-zstd-{name}", image, "", unreadable)


def _subclusters() -> Iterator[DeepCase]:
    for name, entry, bitmap, finding, unreadable in (
        ("ok", COPIED | DATA, 0xFFFF, "", ""),
        ("both", COPIED | DATA, 1 << 32 | 1, ".", "."),
        ("nowhere", 0, 1, ".", "."),
        ("packed", packed_at(DATA), 1, ".", "beside subclusters"),
    ):
        image = qcow2_image(l2=(entry, bitmap), extended_l2=True, data=deflated(bytes(CLUSTER)))
        yield _deep(f"q-sub-{name}", image, finding, unreadable)


def _bitmaps() -> Iterator[DeepCase]:
    entry, image = test_qcow2_bitmaps.entry, test_qcow2_bitmaps.image
    for name, given in (
        ("inuse", {"flags": 1}),
        ("far", {"offset": 1 << 60}),
        ("huge", {"size": ALL >> 32}),
        ("hdr", {"offset": 0}),
        ("bits", {"bits": 255}),
        ("name", {"name_size": 65535}),
    ):
        data = bytes(image(entry(**given)).data)  # type: ignore[arg-type]
        yield _deep(f"q-bm-{name}", data, ".", capacity=MIB)


def _wide() -> Iterator[DeepCase]:
    """Large disks: what there is to look at grows with the claim, not with the file."""
    size = 1 << 46
    yield _deep("q-size-bomb", bytes(sound(size)), capacity=size)
    image = sound(size)
    entries = size // (8192 * CLUSTER)
    l2 = len(image) // CLUSTER * CLUSTER + CLUSTER
    image += bytes(l2 + 2 * CLUSTER - len(image))
    struct.pack_into(f">{entries}Q", image, L1, *[COPIED | l2] * entries)
    struct.pack_into(">8192Q", image, l2, *[COPIED | (l2 + CLUSTER), 0] * 4096)
    yield _deep(
        "q-map-bomb", bytes(image), ".", capacity=size, big="half a billion stretches on 64 TiB"
    )
    small = sound(1 << 33, cluster_size=512)
    table = struct.unpack_from(">Q", small, 40)[0]
    entries = (1 << 33) // (64 * 512)
    l2 = -(-len(small) // 512) * 512
    small += bytes(l2 + 1024 - len(small))
    struct.pack_into(f">{entries}Q", small, table, *[COPIED | l2] * entries)
    struct.pack_into(">64Q", small, l2, *[COPIED | (l2 + 512), 0] * 32)
    yield _deep(
        "q-map-small", bytes(small), ".", capacity=1 << 33, big="8 million stretches on 8 GiB"
    )


def vmdk_image(*patches: Patch, capacity: int = 64 * MIB, stream: bool = False) -> bytes:
    """Return a disk that begins with three grains of data."""
    target = MemoryHandle()
    writer = (VmdkStreamWriter if stream else VmdkWriter)(target, capacity, cid=1)
    convert(MemoryHandle(b"vmdk" * 3 * 16384), writer, size=capacity)
    return patched(target.data, *patches)


def _vmdk() -> Iterator[DeepCase]:
    data = vmdk_image()
    redundant, directory = struct.unpack_from("<QQ", data, 48)
    directory, redundant = 512 * directory, 512 * redundant
    table, copy = (512 * struct.unpack_from("<I", data, at)[0] for at in (directory, redundant))
    far = ALL >> 32
    for name, patches, finding, unreadable in (
        ("deep-ok", (), "", ""),
        ("gd-far", ((directory, far), (redundant, far)), "outside", "."),
        ("gd-hdr", ((directory, 1), (redundant, 1)), ".", "."),
        ("gd-differ", ((directory, 0),), "one directory only", ""),
        ("gt-differ", ((table, 0),), "copies of grain table", ""),
        ("gt-far", ((table, far), (copy, far)), "outside", "."),
        ("gt-hdr", ((table, 2), (copy, 2)), "outside", ""),
        ("gt-twice", ((table, 128, 128), (copy, 128, 128)), "belongs", ""),
        ("gt-self", ((table, table // 512), (copy, table // 512)), ".", ""),
    ):
        image = bytearray(data)
        for offset, *values in patches:
            struct.pack_into(f"<{len(values)}I", image, offset, *values)
        yield _deep(
            f"v-{name}", bytes(image), finding, unreadable, format="vmdk", capacity=64 * MIB
        )
    yield from _vmdk_wide()


def _vmdk_wide() -> Iterator[DeepCase]:
    capacity = 1 << 35
    image = bytearray(vmdk_image(capacity=capacity))
    for at in struct.unpack_from("<QQ", image, 48):
        count = capacity // (512 * CLUSTER)
        first = image[512 * at : 512 * at + 4]
        image[512 * at : 512 * at + 4 * count] = first * count
    yield _deep(
        "v-gd-shared", bytes(image), "belongs", format="vmdk", capacity=capacity,
        big="half a million stretches on 32 GiB",
    )  # fmt: skip


def _vmdk_streams() -> Iterator[DeepCase]:
    data = vmdk_image(stream=True)
    grain = 128 * 512
    assert struct.unpack_from("<Q", data, grain)[0] == 0  # the first marker: sector 0 of the disk
    bomb = zlib.compress(bytes(8 * MIB))
    room = struct.unpack_from("<I", data, grain + 8)[0]
    for name, offset, part, finding, unreadable in (
        ("ok", 0, b"", "", ""),
        ("lba", grain, struct.pack("<Q", 77), ".", "."),
        ("size", grain + 8, struct.pack("<I", ALL >> 32), ".", "."),
        ("size0", grain + 8, struct.pack("<I", 0), ".", "."),
        ("noise", grain + 12, b"\xff" * room, "", "."),
        ("bomb", grain + 12, bomb[:room], "", "."),
    ):
        image = bytearray(data)
        image[offset : offset + len(part)] = part
        yield _deep(
            f"v-stream-deep-{name}", bytes(image), finding, unreadable, format="vmdk",
            capacity=64 * MIB,
        )  # fmt: skip
