"""What an image holds: as qemu-img says, and as our reader does."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from storaged.formats.disk import Disk, Kind
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import Snapshot
from tests.formats import qemu

#: Start, length, whether it may hold data, depth and host offset where there is one.
Mapped: TypeAlias = tuple[int, int, bool, int | None, int | None]


def read_only(path: Path) -> FileHandle:
    return FileHandle(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


@contextmanager
def opened(
    path: Path, *, backing: Handle | None = None, data_file: Handle | None = None,
    snapshot: Snapshot | None = None,
) -> Iterator[Qcow2Disk]:  # fmt: skip
    disk = Qcow2Disk(read_only(path), backing=backing, data_file=data_file, snapshot=snapshot)
    try:
        yield disk
    finally:
        disk.close()


def content(disk: Disk, step: int = 1 << 20) -> bytes:
    return b"".join(disk.pread(step, offset) for offset in range(0, disk.size(), step))


def qemu_content(path: Path, *options: str) -> bytes:
    raw = path.with_suffix(".as-raw")
    qemu.run("qemu-img", "convert", "-U", *options, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def our_map(disk: Disk) -> list[Mapped]:
    entries, end = [], 0
    for stretch in disk.stretches(0, disk.size()):
        assert stretch.offset == end
        assert stretch.length > 0
        end += stretch.length
        data = stretch.kind.data
        host = stretch.host if stretch.kind is Kind.DATA else None
        entries.append((*stretch[:2], data, stretch.depth if data else None, host))
    assert end == disk.size()
    return _joined(entries)


def qemu_map(path: Path) -> list[Mapped]:
    return _joined(
        (
            entry["start"],
            entry["length"],
            entry["data"],
            entry["depth"] if entry["data"] else None,
            entry.get("offset") if entry["data"] else None,
        )
        for entry in qemu.mapping(path)
    )


def _joined(entries: Iterator[Mapped] | list[Mapped]) -> list[Mapped]:
    """Join what only differs in why it reads as zeros."""
    result: list[Mapped] = []
    for start, length, data, depth, host in entries:
        if result and not data and not result[-1][2]:
            result[-1] = (result[-1][0], result[-1][1] + length, False, None, None)
        else:
            result.append((start, length, data, depth, host))
    return result


def assert_same(path: Path, disk: Disk) -> None:
    """The same bytes and the same map as QEMU's."""
    assert content(disk) == qemu_content(path, "-f", "qcow2")
    assert our_map(disk) == qemu_map(path)


def scattered(
    seed: int, size: int, cluster_size: int, *, count: int = 40, compressed: bool = True
) -> list[str]:
    """Return commands of qemu-io that leave clusters of every kind."""
    rng = random.Random(seed)
    commands = []
    if compressed:  # these only go to clusters that nothing was written to
        for cluster in rng.sample(range(size // cluster_size), size // cluster_size // 4):
            offset = cluster * cluster_size
            commands.append(f"write -c -P {cluster % 255 + 1} {offset} {cluster_size}")
    for number in range(count):
        offset = rng.randrange(size // 512) * 512
        length = min(rng.randrange(1, 4 * cluster_size // 512) * 512, size - offset)
        aligned = offset // cluster_size * cluster_size
        whole = min(cluster_size, size - aligned)
        commands.append(
            rng.choice(
                (
                    f"write -P {number + 1} {offset} {length}",
                    f"write -P {number + 1} {aligned} {whole}",
                    f"write -z {offset} {length}",
                    f"write -z -u {aligned} {whole}",
                    f"discard {aligned} {whole}",
                )
            )
        )
    return commands
