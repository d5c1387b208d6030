"""Small sound images of every kind, made natively: what the fuzzer damages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import Any

from storaged.formats import luks_create
from storaged.formats.convert import convert
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions, Preallocation
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.vmdk_stream_writer import VmdkStreamWriter
from storaged.formats.vmdk_writer import VmdkWriter
from tests.formats import test_qcow2_bitmaps, test_qcow2_snapshots
from tests.formats.memory import MemoryHandle
from tests.formats.vmdk_images import cowd
from tests.formats.zoo import cases, iso
from tests.formats.zoo_case import OK
from tests.formats.zoo_disks import luks_image
from tests.formats.zoo_foreign import luks2_image, old_cases, vhd_cases
from tests.formats.zoo_qcow2 import sound
from tests.formats.zoo_vmdk import descriptor_files

KIB = 1 << 10


def disk(size: int, unit: int) -> bytes:
    """Return a disk with some data, some of which packs well, and some zeros."""
    random = Random(size)
    data = bytearray(size)
    for number in range(0, size // unit, 2):
        start = number * unit
        part = random.randbytes(unit) if number % 4 else b"%d storaged " % number * unit
        data[start : start + unit] = part[: len(data[start : start + unit])]
    return bytes(data)


def qcow2(size: int = 12 * KIB, packing: CompressionType | None = None, **options: Any) -> bytes:
    """Return a qcow2 image that holds `disk`."""
    choice = CreateOptions(size, **{"cluster_size": 512} | options)
    target = MemoryHandle()
    writer = Qcow2Writer(target, choice, compression=packing, threads=1)
    convert(MemoryHandle(disk(size, choice.cluster_size)), writer)
    return bytes(target.data)


def qcow2_images() -> Iterator[bytes]:
    yield qcow2()
    yield qcow2(version=2)
    yield qcow2(100 * KIB)
    for bits in (1, 4, 64):
        yield qcow2(6 * KIB, refcount_bits=bits)
    yield qcow2(8 * KIB, lazy_refcounts=True, backing=b"base.qcow2", backing_format="qcow2")
    yield qcow2(8 * KIB, version=2, backing=b"base.raw", backing_format="raw")
    yield qcow2(80 * KIB, cluster_size=16 * KIB, extended_l2=True)
    yield qcow2(16 * KIB, packing=CompressionType.DEFLATE, cluster_size=4 * KIB)
    zstd = CompressionType.ZSTD
    yield qcow2(16 * KIB, packing=zstd, cluster_size=4 * KIB, compression=zstd)
    yield bytes(sound(8 * KIB, cluster_size=512, data_file=b"data.raw", data_file_raw=True))
    yield bytes(sound(8 * KIB, cluster_size=512, preallocation=Preallocation.METADATA))
    yield with_snapshot(qcow2(8 * KIB))


def with_snapshot(image: bytes) -> bytes:
    """Give a qcow2 image with clusters of 512 bytes a snapshot: both use all data."""
    l1_size, l1_table = struct.unpack_from(">IQ", image, 36)
    data = bytearray(image + bytes(-len(image) % 512))
    copy = len(data)
    data += data[l1_table : l1_table + 8 * l1_size].ljust(512, b"\0")
    struct.pack_into(">IQ", data, 60, 1, len(data))
    size = struct.pack(">QQ", 0, struct.unpack_from(">Q", image, 24)[0])
    data += test_qcow2_snapshots.entry(l1=(copy, l1_size), extra=size)
    return bytes(data)


def vmdk_images() -> Iterator[bytes]:
    for kind in (VmdkWriter, VmdkStreamWriter):
        target = MemoryHandle()
        writer = kind(target, 192 * KIB, cid=0x1234ABCD)
        convert(MemoryHandle(disk(192 * KIB, 64 * KIB)), writer)
        yield bytes(target.data)
    yield cowd([None, b"x" * 4096, None, bytes(4096)])
    yield from descriptors()


def descriptors() -> Iterator[bytes]:
    for file in descriptor_files():
        if len(file.data) < 4096:
            yield file.data


def snapshot_images() -> Iterator[bytes]:
    entry = test_qcow2_snapshots.entry
    yield bytes(test_qcow2_snapshots.image(entry(), entry(id=b"2", extra=bytes(24))).data)
    yield with_snapshot(qcow2(4 * KIB))
    yield with_snapshot(qcow2(4 * KIB, version=2))


def bitmap_images() -> Iterator[bytes]:
    entry = test_qcow2_bitmaps.entry
    yield bytes(test_qcow2_bitmaps.image(entry(), entry(b"second", flags=0)).data)


def luks_images() -> Iterator[bytes]:
    """Containers whose passphrase is ``x``, and headers without content."""
    target = MemoryHandle()
    luks_create.create(target, 4 * KIB, b"x", key_bytes=32, iterations=1000)
    yield bytes(target.data)
    yield luks_image()[: 32 * KIB]
    yield luks2_image({"0": {"offset": "32768", "size": "dynamic"}})[: 64 * KIB]


def all_images() -> Iterator[bytes]:
    """Images of every format there is."""
    for case in (*cases(), *old_cases(), *vhd_cases()):
        if case.state is OK and len(case.data) < 256 * KIB:
            yield case.data
    yield iso()[: 40 * KIB]
    yield from luks_images()
    yield from vmdk_images()
    yield from qcow2_images()
