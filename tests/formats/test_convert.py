"""The engine: content, chains, sizes, progress, and what happens when something fails."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storaged.formats.convert import Moved, Sharing, convert
from storaged.formats.file import FileHandle
from storaged.formats.handle import Bytes
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.raw_writer import RawWriter
from tests.formats import contents, qemu
from tests.formats.contents import MIB, Write, writes

SIZE = 4 * MIB
FRESH = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(writes(SIZE), st.sampled_from((512, 4096, 65536, 2 * MIB)), st.booleans())
@FRESH
def test_there_and_back(tmp_path: Path, content: list[Write], cluster: int, hand: bool) -> None:
    raw = contents.raw(tmp_path / "raw", SIZE, content)
    sharing = Sharing.NEVER if hand else Sharing.AUTO
    with qemu.open_native(raw) as source:
        contents.to_qcow2(
            source, tmp_path / "q", SIZE, how={"sharing": sharing}, cluster_size=cluster
        )
    qemu.check(tmp_path / "q")
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, tmp_path / "q")
    disk = contents.opened(tmp_path / "q")
    contents.to_raw(disk, tmp_path / "back", SIZE, sharing=sharing)
    disk.close()
    assert (tmp_path / "back").read_bytes() == raw.read_bytes()


@given(writes(SIZE, unit=512), st.sampled_from((512, 65536)), st.sampled_from((4096, 65536, MIB)))
@FRESH
def test_images_of_qemu(tmp_path: Path, content: list[Write], old: int, new: int) -> None:
    """Also from one cluster size to another, and with packed clusters among the others."""
    (tmp_path / "old").unlink(missing_ok=True)
    image = qemu.create(tmp_path / "old", SIZE, f"cluster_size={old}")
    packed = {write.offset // old * old for write in content[::3]}
    commands = [f"write -c -P 7 {start} {old}" for start in packed]
    for write in content:
        how = f"-P {write.seed}" if write.seed else "-z"
        commands.append(f"write {how} {write.offset} {write.length}")
    qemu.io(image, *commands)
    disk = contents.opened(image)
    contents.to_qcow2(disk, tmp_path / "new", SIZE, cluster_size=new)
    disk.close()
    qemu.check(tmp_path / "new")
    qemu.run("qemu-img", "compare", image, tmp_path / "new")


@given(
    base=writes(SIZE, unit=512),
    layer=writes(SIZE, unit=512, most=5),
    old=st.sampled_from((4096, 65536)),
    new=st.sampled_from((512, 4096, 65536, MIB)),
    version=st.sampled_from((2, 3)),
    packing=st.sampled_from((None, CompressionType.DEFLATE)),
)
@FRESH
@example([Write(0, MIB, 3)], [Write(4096, 4096, 0)], 4096, 65536, 2, None)
@example([Write(0, MIB, 3)], [Write(0, MIB, 0)], 4096, 65536, 3, CompressionType.DEFLATE)
def test_top_layer_alone(
    tmp_path: Path, base: list[Write], layer: list[Write], old: int, new: int, version: int,
    packing: CompressionType | None,
) -> None:  # fmt: skip
    """What the layer leaves to its base is left to it; zeros of the layer stay zeros."""
    below = contents.raw(tmp_path / "base", SIZE, base)
    overlay = tmp_path / "overlay"
    overlay.unlink(missing_ok=True)
    qemu.create(overlay, SIZE, f"cluster_size={old}", f"backing_file={below}", "backing_fmt=raw")
    commands = [
        f"write {'-z' if it.seed == 0 else f'-P {it.seed}'} {it.offset} {it.length}" for it in layer
    ]
    qemu.io(overlay, *commands)
    disk = contents.opened(overlay, qemu.open_native(below))
    contents.to_qcow2(
        disk, tmp_path / "new", SIZE, packing=packing, cluster_size=new, version=version,
        backing=bytes(below), backing_format="raw", how={"chain": False},
    )  # fmt: skip
    disk.close()
    qemu.check(tmp_path / "new")
    qemu.run("qemu-img", "compare", overlay, tmp_path / "new")
    if not layer:
        assert not any(
            entry["data"] and not entry["depth"] for entry in qemu.mapping(tmp_path / "new")
        )


@pytest.mark.parametrize("size", [0, 512, MIB + 512, SIZE, SIZE + 4096, 9 * MIB + 1024])
@pytest.mark.parametrize("hand", [False, True])
def test_other_size(tmp_path: Path, size: int, hand: bool) -> None:
    content = [Write(MIB - 5000, 20_000, 2), Write(SIZE - 70_000, 70_000, 4)]
    raw = contents.raw(tmp_path / "raw", SIZE, content)
    expected = raw.read_bytes()[:size].ljust(size, b"\0")
    how = {"size": size, "sharing": Sharing.NEVER if hand else Sharing.AUTO}
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", size, how=how)
        contents.to_raw(source, tmp_path / "r", size, sharing=how["sharing"])
    qemu.check(tmp_path / "q")
    assert contents.bytes_of(tmp_path / "q") == expected
    assert (tmp_path / "r").read_bytes() == expected


def test_larger_than_its_base(tmp_path: Path) -> None:
    """What lies behind the old end reads as zeros although the base has data there."""
    below = contents.raw(tmp_path / "base", 2 * MIB, [Write(0, 2 * MIB, 2)])
    overlay = qemu.create(tmp_path / "top", MIB + 512, f"backing_file={below}", "backing_fmt=raw")
    disk = contents.opened(overlay, qemu.open_native(below))
    contents.to_qcow2(
        disk, tmp_path / "new", 2 * MIB, backing=bytes(below), backing_format="raw",
        how={"chain": False, "size": 2 * MIB},
    )  # fmt: skip
    disk.close()
    qemu.check(tmp_path / "new")
    content = contents.bytes_of(tmp_path / "new", below)
    assert content == below.read_bytes()[: MIB + 512] + bytes(MIB - 512)


def test_flattened_over_another_base(tmp_path: Path) -> None:
    """With the whole chain, nothing shines through from a base that the new image has."""
    raw = contents.raw(tmp_path / "raw", MIB, [Write(100_000, 200_000, 2)])
    other = contents.raw(tmp_path / "other", MIB, [Write(0, MIB, 4)])
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "new", MIB, backing=bytes(other), backing_format="raw")
    assert contents.bytes_of(tmp_path / "new", other) == raw.read_bytes()


def test_zeros_that_are_found(tmp_path: Path) -> None:
    content = [Write(0, SIZE, 0), Write(MIB, 4096, 2)]
    raw = contents.raw(tmp_path / "raw", SIZE, content)
    with qemu.open_native(raw) as source:
        by_hand: Any = {"sharing": Sharing.NEVER}
        found = contents.to_qcow2(source, tmp_path / "q", SIZE, how=by_hand)
        kept = contents.to_qcow2(
            source, tmp_path / "all", SIZE, how=by_hand | {"detect_zeros": False}
        )
    assert found == Moved(0, 0, 4096)
    assert kept == Moved(0, 0, SIZE)
    used = [entry for entry in qemu.mapping(tmp_path / "q") if entry["data"]]
    assert used[0]["start"] == MIB
    assert sum(entry["length"] for entry in used) == 65536
    assert contents.bytes_of(tmp_path / "all") == raw.read_bytes()


# Targets that hold old data


class Device(FileHandle):
    """A file that keeps its length, as a block device does."""

    def truncate(self, size: int) -> None:
        if size > self.size():
            raise OSError(errno.ENOSPC, "device")


@given(writes(SIZE), st.booleans())
@FRESH
def test_old_data_are_overwritten(tmp_path: Path, content: list[Write], hand: bool) -> None:
    raw = contents.raw(tmp_path / "raw", SIZE, content)
    sharing = Sharing.NEVER if hand else Sharing.AUTO
    with qemu.open_native(raw) as source:
        for name, backing in (("r", None), ("q", None), ("b", b"raw")):
            contents.raw(tmp_path / name, 2 * SIZE, [Write(0, 2 * SIZE, 5)])
            with qemu.open_native(tmp_path / name) as file:
                device = Device(file.fileno() or 0, owned=False)
                options = CreateOptions(SIZE, backing=backing, backing_format=None)
                convert(
                    source,
                    RawWriter(device, SIZE, zeroed=False)
                    if name == "r"
                    else Qcow2Writer(device, options),
                    sharing=sharing,
                )
    assert (tmp_path / "r").read_bytes()[:SIZE] == raw.read_bytes()
    assert contents.bytes_of(tmp_path / "q") == raw.read_bytes()
    assert contents.bytes_of(tmp_path / "b", tmp_path / "raw") == raw.read_bytes()
    qemu.check(tmp_path / "q")


def test_slow_zeros_are_given_in_whole_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2 has clusters of zeros only: each is mapped once, however small the steps become."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    size = 64 * MIB
    base = contents.raw(tmp_path / "base", size, [Write(0, MIB, 3)])
    with qemu.open_native(contents.raw(tmp_path / "raw", size, [])) as source:
        contents.to_qcow2(
            source, tmp_path / "q", size, version=2, cluster_size=2 * MIB,
            backing=bytes(base), backing_format="raw",
        )  # fmt: skip
    qemu.check(tmp_path / "q")
    qemu.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "q", tmp_path / "raw")


def test_device_is_too_short(tmp_path: Path) -> None:
    contents.raw(tmp_path / "device", MIB, [])
    raw = contents.raw(tmp_path / "raw", SIZE, [])
    with qemu.open_native(raw) as source, qemu.open_native(tmp_path / "device") as file:
        device = Device(file.fileno() or 0, owned=False)
        with pytest.raises(OSError, match="device"):
            convert(source, RawWriter(device, SIZE))


# Progress and cancelling


class Stop(Exception):
    pass


@pytest.mark.parametrize("total", [0, 3 * MIB])
@pytest.mark.parametrize("packing", [None, CompressionType.DEFLATE])
@pytest.mark.parametrize("sharing", [Sharing.AUTO, Sharing.NEVER])
def test_progress(
    tmp_path: Path, total: int, packing: CompressionType | None, sharing: Sharing
) -> None:
    content = [Write(0, MIB, 2), Write(8 * MIB, 3 * MIB, 4)]
    raw = contents.raw(tmp_path / "raw", 64 * MIB, content)
    seen: list[tuple[int, int]] = []
    how = {"total": total, "checkpoint": lambda *figures: seen.append(figures), "sharing": sharing}
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", 64 * MIB, packing=packing, how=how)
    end = total or 64 * MIB
    assert seen == sorted(seen)
    assert {figure for _, figure in seen} == {end}
    assert seen[0][0] == 0
    assert seen[-1][0] == end


@pytest.mark.parametrize("packing", [None, CompressionType.DEFLATE])
@pytest.mark.parametrize("sharing", [Sharing.AUTO, Sharing.NEVER])
def test_cancel(tmp_path: Path, packing: CompressionType | None, sharing: Sharing) -> None:
    raw = contents.raw(tmp_path / "raw", 40 * MIB, [Write(0, 40 * MIB, 2)])
    threads = threading.active_count()

    def checkpoint(done: int, _total: int) -> None:
        if done > 8 * MIB:
            raise Stop

    how = {"checkpoint": checkpoint, "sharing": sharing}
    with qemu.open_native(raw) as source, pytest.raises(Stop):
        contents.to_qcow2(source, tmp_path / "q", 40 * MIB, packing=packing, how=how)
    assert threading.active_count() == threads
    assert not (tmp_path / "q").read_bytes()[:512].strip(b"\0")  # no image to anyone
    assert (tmp_path / "q").stat().st_size <= 34 * MIB


# Sources and targets that fail


class Remote:
    """A source without a descriptor that counts what is asked of it, and may fail."""

    def __init__(self, handle: FileHandle, fail: int = -1) -> None:
        self._handle = handle
        self._fail = fail
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def fileno(self) -> None:
        return None

    def pread(self, length: int, offset: int) -> bytes:
        self.reads += 1
        if self.reads == self._fail:
            raise OSError(errno.EIO, "reading failed")
        return self._handle.pread(length, offset)

    def pwrite(self, data: Bytes, offset: int) -> None:
        self.reads += 1
        if self.reads == self._fail:
            raise OSError(errno.ENOSPC, "no space")
        self._handle.pwrite(data, offset)


@pytest.mark.parametrize("packing", [None, CompressionType.DEFLATE])
@pytest.mark.parametrize("fail", range(1, 9))
def test_every_call_that_fails(tmp_path: Path, fail: int, packing: CompressionType | None) -> None:
    raw = contents.raw(tmp_path / "raw", SIZE, [Write(0, SIZE, 2)])
    threads = threading.active_count()
    with qemu.open_native(raw) as file, qemu.open_native(tmp_path / "q") as target:
        source: Any = Remote(file, fail if fail <= 4 else -1)
        handle: Any = Remote(target, fail - 4 if fail > 4 else -1)
        writer = Qcow2Writer(handle, CreateOptions(SIZE), compression=packing)
        with pytest.raises(OSError, match="reading failed" if fail <= 4 else "no space"):
            convert(source, writer)
    assert threading.active_count() == threads


@pytest.mark.parametrize("sharing", [Sharing.AUTO, Sharing.NEVER])
def test_source_becomes_shorter(tmp_path: Path, sharing: Sharing) -> None:
    raw = contents.raw(tmp_path / "raw", 8 * MIB, [Write(0, 8 * MIB, 2)])

    with qemu.open_native(raw) as source:

        def checkpoint(done: int, _total: int) -> None:
            if done:
                source.truncate(MIB)

        how = {"sharing": sharing, "checkpoint": checkpoint}
        with pytest.raises(OSError, match=r"the source ends at \d+ instead of") as error:
            # A first call copies one unit, the next one finds the source cut.
            contents.to_qcow2(source, tmp_path / "q", 8 * MIB, how=how)
    assert error.value.errno == errno.EIO


@pytest.mark.slow
def test_full_file_system(tmp_path: Path, loop_mount: Any) -> None:
    raw = contents.raw(tmp_path / "raw", 64 * MIB, [Write(0, 64 * MIB, 2)])
    target = loop_mount("ext4", mebibytes=32)
    for packing in (None, CompressionType.DEFLATE):
        with qemu.open_native(raw) as source, pytest.raises(OSError) as error:  # noqa: PT011
            contents.to_qcow2(source, target / "q", 64 * MIB, packing=packing)
        assert error.value.errno == errno.ENOSPC
        (target / "q").unlink()
