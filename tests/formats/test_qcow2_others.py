"""Every layout of qcow2 that we write, read by programs that share no code with us or QEMU."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from storaged.formats import convert, qcow2_create
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions, Preallocation
from storaged.formats.qcow2_writer import Qcow2Writer
from tests.formats import qemu
from tests.formats.memory import MemoryHandle

MIB = 1 << 20
SIZE = 5 * MIB + 512

LAYOUTS = {
    "usual": CreateOptions(SIZE),
    "version 2": CreateOptions(SIZE, version=2),
    "small clusters": CreateOptions(SIZE, cluster_size=512),
    "large clusters": CreateOptions(SIZE, cluster_size=2 * MIB),
    "narrow refcounts": CreateOptions(SIZE, refcount_bits=1),
    "wide refcounts": CreateOptions(SIZE, refcount_bits=64),
    "lazy refcounts": CreateOptions(SIZE, lazy_refcounts=True),
}


def content() -> bytes:
    """Text, noise and nothing, in pieces of all lengths."""
    chance = random.Random(5)
    made = bytearray()
    while len(made) < SIZE:
        length = chance.randrange(1, 300_000)
        made += chance.choice((bytes(length), b"text " * (length // 5), chance.randbytes(length)))
    return bytes(made[:SIZE])


def read(path: Path) -> bytes:
    dissect = import_module("dissect.hypervisor.disk.qcow2")  # it has no types
    with path.open("rb") as file:
        disk = dissect.QCow2(file).open()
        parts = [disk.read(min(MIB, SIZE - start)) for start in range(0, SIZE, MIB)]
    return b"".join(parts)


@pytest.mark.parametrize("compression", [None, CompressionType.DEFLATE])
@pytest.mark.parametrize("name", LAYOUTS)
def test_filled(tmp_path: Path, name: str, compression: CompressionType | None) -> None:
    expected = content()
    path = tmp_path / "image"
    with qemu.open_native(path) as handle:
        writer = Qcow2Writer(handle, LAYOUTS[name], compression=compression)
        convert.convert(MemoryHandle(expected), writer)
    assert read(path) == expected
    qemu.check(path)


@pytest.mark.parametrize("preallocation", list(Preallocation))
@pytest.mark.parametrize("name", LAYOUTS)
def test_empty(tmp_path: Path, name: str, preallocation: Preallocation) -> None:
    path = tmp_path / "image"
    with qemu.open_native(path) as handle:
        options = replace(LAYOUTS[name], preallocation=preallocation)
        qcow2_create.create(handle, options)
    assert read(path) == bytes(SIZE)
    qemu.check(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_by_7zip(tmp_path: Path, name: str) -> None:
    expected = content()
    path = tmp_path / "image.qcow2"
    with qemu.open_native(path) as handle:
        convert.convert(MemoryHandle(expected), Qcow2Writer(handle, LAYOUTS[name]))
    qemu.run("7z", "x", "-bd", f"-o{tmp_path / 'out'}", path)
    (unpacked,) = (tmp_path / "out").iterdir()
    assert unpacked.stat().st_size == SIZE
    assert unpacked.read_bytes() == expected
