"""Random content for disks, and how to get it in and out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from storaged.formats.convert import Moved, convert
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.raw_writer import RawWriter
from tests.formats import qemu

KIB, MIB = 1 << 10, 1 << 20


class Write(NamedTuple):
    """One write to a disk; *seed* 0 writes zeros, an odd one what packs well."""

    offset: int
    length: int
    seed: int

    def data(self) -> bytes:
        if not self.seed:
            return bytes(self.length)
        if self.seed % 2:
            return (b"%d storaged " % self.seed * (self.length // 8 + 1))[: self.length]
        return random.Random(self.seed).randbytes(self.length)


def writes(size: int, *, most: int = 8, unit: int = 1) -> st.SearchStrategy[list[Write]]:
    """Writes within a disk of *size* bytes, at multiples of *unit*."""
    one = st.builds(
        Write,
        st.integers(0, size // unit - 1).map(lambda number: number * unit),
        st.sampled_from((1, 512, 4 * KIB, 5000, 64 * KIB, 200_000, MIB)),
        st.integers(0, 9),
    )
    aligned = one.map(lambda it: it._replace(length=-(-it.length // unit) * unit))
    inside = aligned.map(lambda it: it._replace(length=min(it.length, size - it.offset)))
    return st.lists(inside, max_size=most)


def raw(path: Path, size: int, content: list[Write]) -> Path:
    """Make a raw image, sparse where nothing is written."""
    with path.open("wb") as file:
        file.truncate(size)
        for write in content:
            file.seek(write.offset)
            file.write(write.data())
    return path


def to_qcow2(
    source: Handle, path: Path, size: int, *, packing: CompressionType | None = None,
    level: int | None = None, how: dict[str, Any] | None = None, **options: Any,
) -> Moved:  # fmt: skip
    """Convert to a fresh qcow2 image; *how* goes to `convert`."""
    path.unlink(missing_ok=True)
    with qemu.open_native(path) as target:
        image = CreateOptions(size, **options)
        writer = Qcow2Writer(target, image, compression=packing, level=level)
        return convert(source, writer, **(how or {}))


def to_raw(source: Handle, path: Path, size: int, **how: Any) -> Moved:
    """Convert to a fresh raw image."""
    path.unlink(missing_ok=True)
    with qemu.open_native(path) as target:
        return convert(source, RawWriter(target, size), size=size, **how)


def opened(path: Path, backing: Handle | None = None) -> Qcow2Disk:
    return Qcow2Disk(qemu.open_native(path), backing=backing)


def bytes_of(path: Path, backing: Path | None = None) -> bytes:
    """What a guest reads from a qcow2 image, over a raw one if *backing*."""
    disk = opened(path, qemu.open_native(backing) if backing else None)
    try:
        return disk.pread(disk.size(), 0)
    finally:
        disk.close()
