"""VMDK images for tests: opened as the caller of the reader does it, and made by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from storaged.formats.file import FileHandle
from storaged.formats.vmdk_describe import describe
from storaged.formats.vmdk_read import VmdkDisk

GRAIN = 65536


def open_file(path: Path) -> FileHandle:
    return FileHandle(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def open_files(path: Path) -> tuple[FileHandle, list[FileHandle]]:
    """Open an image and the files that it names."""
    handle = open_file(path)
    extents = describe(handle, name=os.fsencode(path.name)).extents
    return handle, [open_file(path.parent / os.fsdecode(extent.name)) for extent in extents]


def open_disk(path: Path, parent: VmdkDisk | None = None) -> VmdkDisk:
    handle, extents = open_files(path)
    return VmdkDisk(handle, extents=extents, parent=parent)


def text(
    *extents: str, kind: str = "twoGbMaxExtentFlat", cid: str = "1234abcd", more: str = ""
) -> bytes:
    """Return a descriptor."""
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        f"CID={cid}",
        "parentCID=ffffffff",
        f'createType="{kind}"',
        *([more] if more else []),
        *extents,
        'ddb.adapterType = "ide"',
    )
    return "\n".join(lines).encode() + b"\n"


def cowd(grains: Sequence[bytes | None], *, grain_sectors: int = 8) -> bytes:
    """Return a redo log of ESX; None is a grain that is not allocated."""
    per_table = 4096
    tables = -(-len(grains) // per_table)
    directory_sectors = -(-4 * tables // 512)
    table_sectors = per_table * 4 // 512
    place = 4 + directory_sectors + tables * table_sectors
    entries, data = [], []
    for grain in grains:
        entries.append(0 if grain is None else place)
        if grain is not None:
            assert len(grain) == grain_sectors * 512
            data.append(grain)
            place += grain_sectors
    entries += [0] * (tables * per_table - len(entries))
    first = 4 + directory_sectors
    directory = [first + index * table_sectors for index in range(tables)]
    capacity = len(grains) * grain_sectors
    head = struct.pack("<4s7I", b"COWD", 1, 3, capacity, grain_sectors, 4, tables, place)
    return b"".join((
        head.ljust(2048, b"\0"),
        struct.pack(f"<{tables}I", *directory).ljust(directory_sectors * 512, b"\0"),
        struct.pack(f"<{len(entries)}I", *entries),
        *data,
    ))  # fmt: skip
