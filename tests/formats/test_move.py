"""The means of moving bytes: which is taken, what is remembered, and what is really shared."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import syscalls
from storaged.formats.convert import Moved, Sharing
from storaged.formats.disk import Kind, Stretch
from storaged.formats.gather import gather
from storaged.formats.move import Means, Mover, Pace, copy, data_runs
from storaged.formats.qcow2 import CompressionType
from tests.formats import contents, qemu
from tests.formats.contents import MIB, Write
from tests.formats.memory import MemoryHandle

Calls = list[tuple[int, ...]]


@pytest.fixture
def cloned(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A kernel that shares nothing, and the requests that it got."""
    calls: Calls = []

    def refuse(*arguments: int) -> None:
        calls.append(arguments)
        raise OSError(errno.EOPNOTSUPP, "no reflinks")

    monkeypatch.setattr(syscalls, "ficlonerange", refuse)
    return calls


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A kernel that copies nothing."""
    calls: Calls = []

    def refuse(*arguments: int) -> int:
        calls.append(arguments)
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    return calls


def files(tmp_path: Path) -> tuple[Any, Any]:
    contents.raw(tmp_path / "a", 2 * MIB, [Write(0, 2 * MIB, 2)])
    return qemu.open_native(tmp_path / "a"), qemu.open_native(tmp_path / "b")


def test_refusals_are_remembered(tmp_path: Path, cloned: Calls, copied: Calls) -> None:
    seen: list[int] = []
    source, target = files(tmp_path)
    with source, target:
        mover = Mover(Sharing.AUTO, seen.append)
        route = mover.route(source, target)
        assert (route.means, route.tried) == (Means.SHARE, False)
        for start in range(0, 2 * MIB, 65536):
            mover.route(source, target).move(start, start, 65536)
        assert (route.means, route.tried) == (Means.HAND, True)
    assert (len(cloned), len(copied)) == (1, 1)
    assert (mover.shared, mover.copied, mover.written) == (0, 0, 2 * MIB)
    assert sum(seen) == 2 * MIB
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_never_asks_the_kernel(tmp_path: Path, cloned: Calls, copied: Calls) -> None:
    source, target = files(tmp_path)
    with source, target:
        Mover(Sharing.NEVER, ignore).route(source, target).move(0, 0, 2 * MIB)
    assert (cloned, copied) == ([], [])
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def ignore(_length: int) -> None:
    pass


def test_required_is_an_error_where_it_cannot_be(tmp_path: Path, cloned: Calls) -> None:
    source, target = files(tmp_path)
    with source, target:
        mover = Mover(Sharing.REQUIRED, ignore)
        with pytest.raises(OSError, match="no reflinks"):
            mover.route(source, target).move(0, 0, MIB)
        with pytest.raises(OSError, match="not aligned to"):
            mover.route(source, target).move(512, 0, MIB)
        with pytest.raises(OSError, match="not supported"):
            mover.route(MemoryHandle(bytes(100)), target).move(0, 0, 100)
    assert (tmp_path / "b").stat().st_size == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_errors_are_raised(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: int) -> None:
        raise OSError(number, "bad")

    source, target = files(tmp_path)
    with source, target:
        for owner, name in ((syscalls, "ficlonerange"), (os, "copy_file_range")):
            route = Mover(Sharing.AUTO, ignore).route(source, target)
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail)
                with pytest.raises(OSError, match="bad") as error:
                    route.move(0, 0, MIB)
            assert error.value.errno == number


def test_source_that_ends(tmp_path: Path) -> None:
    source, target = files(tmp_path)
    with source, target:
        route = Mover(Sharing.AUTO, ignore).route(source, target)
        with pytest.raises(OSError, match="ends at 2097152 instead of 3145728") as error:
            route.move(MIB, 0, 2 * MIB)
    assert error.value.errno == errno.EIO


def test_copy_of_a_file(tmp_path: Path, cloned: Calls, copied: Calls) -> None:
    raw = contents.raw(tmp_path / "a", 3 * MIB + 5, [Write(0, 5000, 2), Write(MIB, MIB, 0)])
    seen: list[tuple[int, int]] = []
    with qemu.open_native(raw) as source, qemu.open_native(tmp_path / "b") as target:
        copy(target, source, 2 * MIB, lambda *figures: seen.append(figures))
    assert (tmp_path / "b").read_bytes() == raw.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 <= 8192
    assert seen == sorted(seen)
    assert seen[-1][1] == 2 * MIB


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=6),
    st.sampled_from((512, 4096)),
)
@settings(max_examples=60, deadline=None)
def test_data_runs_leave_out_zeros_only(pieces: list[tuple[bool, int]], unit: int) -> None:
    data = b"".join((b"x" if full else b"\0") * length for full, length in pieces)
    rebuilt = bytearray(len(data))
    runs = data_runs(bytearray(data), unit)
    for start, stop in runs:
        rebuilt[start:stop] = data[start:stop]
        assert start % unit == 0
        for place in range(start, stop, unit):
            assert any(data[place : min(place + unit, stop)])
    assert bytes(rebuilt) == data
    assert all(first[1] < second[0] for first, second in itertools.pairwise(runs))


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces grow while they are quick and shrink while they are slow."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lengths: list[int] = []
    for offset, length in Pace(16, 4, 256).pieces(0, 10_000):
        assert offset == sum(lengths)
        lengths.append(length)
        now += 0.001 if offset < 2000 else 1
    assert sum(lengths) == 10_000
    assert lengths[:6] == [16, 32, 64, 128, 256, 256]
    assert lengths[-2] == 4


def test_pieces_that_lie_close_are_read_together() -> None:
    """A thousand clusters in a mixed-up order: a handful of reads."""
    unit, count = 4096, 1000
    file = MemoryHandle(os.urandom(unit * count * 2))
    hosts = [(number * 7919) % count * 2 * unit for number in range(count)]
    pieces = [
        Stretch(number * unit, unit, Kind.DATA, 0, file, host) for number, host in enumerate(hosts)
    ]
    data = gather(MemoryHandle(), pieces, 0, unit * count)
    assert data == b"".join(bytes(file.data[host : host + unit]) for host in hosts)
    assert len(file.reads) <= 3
    assert gather(file, [Stretch(0, 100, Kind.ZERO)], 0, 100) is None


# Real sharing


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1000])
def test_shared_between_formats(loop_mount: Any, kind: str, size: int) -> None:
    """raw to qcow2 to qcow2 to raw: no byte is read, none takes space a second time."""
    place = loop_mount(kind)
    content = [Write(0, 2 * MIB, 2), Write(3 * MIB, 65536, 4), Write(size - 70_000, 70_000, 6)]
    raw = contents.raw(place / "raw", size, content)
    required: Any = {"sharing": Sharing.REQUIRED}
    with qemu.open_native(raw) as source:
        moved = contents.to_qcow2(source, place / "q", size, how=required)
    assert moved.shared >= 2 * MIB + 65536 + 65536
    assert moved.copied + moved.written < 4096
    qemu.check(place / "q")
    disk = contents.opened(place / "q")
    again = contents.to_qcow2(disk, place / "q2", size, how=required, cluster_size=32768)
    back = contents.to_raw(disk, place / "back", size, **required)
    disk.close()
    assert again.copied + again.written + back.copied + back.written < 3 * 4096
    qemu.check(place / "q2")
    assert contents.bytes_of(place / "q2")[:size] == raw.read_bytes()
    assert (place / "back").read_bytes() == raw.read_bytes()


def test_holes_are_shared_along(loop_mount: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small pieces of a plain file within units: one request for all of them."""
    place = loop_mount("xfs")
    content = [Write(offset, 4096, 2) for offset in range(0, 4 * MIB, 16384)]
    raw = contents.raw(place / "raw", 4 * MIB, content)
    calls: Calls = []
    share = syscalls.ficlonerange

    def counted(*arguments: int) -> None:
        calls.append(arguments)
        share(*arguments)

    monkeypatch.setattr(syscalls, "ficlonerange", counted)
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, place / "q", 4 * MIB, how={"sharing": Sharing.REQUIRED})
    assert len(calls) < 8
    assert contents.bytes_of(place / "q") == raw.read_bytes()
    assert (place / "q").stat().st_blocks * 512 < 2 * MIB


def test_what_cannot_be_shared_is_an_error(tmp_path: Path, loop_mount: Any) -> None:
    place = loop_mount("xfs")
    raw = contents.raw(place / "raw", MIB, [Write(0, MIB, 1)])
    required: Any = {"sharing": Sharing.REQUIRED}
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, place / "packed", MIB, packing=CompressionType.DEFLATE)
        for packing, target in ((CompressionType.DEFLATE, place), (None, tmp_path)):
            with pytest.raises(OSError) as error:  # noqa: PT011
                contents.to_qcow2(source, target / "q", MIB, packing=packing, how=required)
            assert error.value.errno in (errno.EOPNOTSUPP, errno.EXDEV)
    disk = contents.opened(place / "packed")
    with pytest.raises(OSError, match="not supported"):
        contents.to_raw(disk, place / "r", MIB, **required)
    disk.close()


def test_never_shares_on_xfs(loop_mount: Any) -> None:
    place = loop_mount("xfs")
    raw = contents.raw(place / "raw", MIB, [Write(0, MIB, 2)])
    with qemu.open_native(raw) as source:
        moved = contents.to_raw(source, place / "r", MIB, sharing=Sharing.NEVER)
    assert moved == Moved(0, 0, MIB)
    assert "shared" not in qemu.run("filefrag", "-v", place / "r")


def test_small_pieces_are_read_together(tmp_path: Path, copied: Calls) -> None:
    """Where nothing is shared, a copy by the kernel is for what is worth it."""
    content = [Write(offset, 4096, 2) for offset in range(0, 8 * MIB, 8192)]
    raw = contents.raw(tmp_path / "raw", 8 * MIB, content)
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", 8 * MIB)
    assert len(copied) <= 1
    assert contents.bytes_of(tmp_path / "q") == raw.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_holes_of_an_image_are_not_filled(tmp_path: Path, cloned: Calls, kind: str) -> None:
    """Every cluster is mapped, and nearly all lie in a hole of the file."""
    image = qemu.create(tmp_path / "old", 256 * MIB, "preallocation=metadata")
    qemu.io(image, f"write -P 7 {100 * MIB} 100k")
    fill: Any = contents.to_raw if kind == "raw" else contents.to_qcow2
    disk = contents.opened(image)
    moved = fill(disk, tmp_path / "new", 256 * MIB)
    disk.close()
    assert moved.copied + moved.written <= MIB
    assert (tmp_path / "new").stat().st_blocks * 512 <= MIB
    qemu.run("qemu-img", "compare", "-F", kind, image, tmp_path / "new")


def test_holes_are_filled_where_old_data_may_lie(tmp_path: Path, cloned: Calls) -> None:
    source = contents.raw(tmp_path / "a", 2 * MIB, [Write(MIB, MIB, 2)])
    target = contents.raw(tmp_path / "b", 2 * MIB, [Write(0, 2 * MIB, 4)])
    with qemu.open_native(source) as reader, qemu.open_native(target) as writer:
        route = Mover(Sharing.AUTO, lambda _: None).route(reader, writer)
        route.move(0, 0, 2 * MIB, blank=False)
    assert target.read_bytes() == source.read_bytes()
