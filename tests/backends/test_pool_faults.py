"""A pool on storage that is full, immense, or changed by others in the worst moment."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import storaged
from storaged import Pool, Storage
from storaged.errors import StorageError, SystemFailure
from tests.conftest import LoopMount
from tests.formats import qemu
from tests.formats.zoo_qcow2 import sound

MIB = 1 << 20
#: The longest file that Linux has.
LONGEST = 2**63 - 1


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with storaged.open(tmp_path / "root", durability="none") as opened:
        yield opened


def pool_on(storage: Storage, name: str, path: Path) -> Pool:
    path.mkdir(exist_ok=True)
    document = f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"
    pool = storage.define_pool(document)
    pool.start()
    return pool


def test_a_hole_of_eight_exbibytes(storage: Storage, loop_mount: LoopMount) -> None:
    target = loop_mount("xfs")
    with (target / "hole").open("wb") as file:
        file.truncate(LONGEST)
    with (target / "data").open("wb") as file:
        file.truncate(LONGEST)
        file.seek(1 << 62)
        file.write(b"storaged" * 512)
    start = time.monotonic()
    pool = pool_on(storage, "xfs", target)
    volume = pool.volume("hole")
    assert volume.info().capacity == LONGEST
    assert volume.info().allocation == 0
    copy = pool.clone(pool.volume("data"), "copy")
    assert copy.info().capacity == LONGEST
    assert copy.info().allocation < MIB
    with (target / "copy").open("rb") as file:
        file.seek(1 << 62)
        assert file.read(8) == b"storaged"
    # no qcow2 can be that long
    with pytest.raises(StorageError):
        pool.clone(volume, "qcow2", format="qcow2")
    with pytest.raises(StorageError):
        volume.resize(2**63)
    assert pool.names() == ["copy", "data", "hole"]
    assert time.monotonic() - start < 30
    pool.stop()


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_a_full_disk_leaves_nothing(
    storage: Storage, loop_mount: LoopMount, tmp_path: Path, format: str
) -> None:
    source = pool_on(storage, "source", tmp_path / "source")
    (tmp_path / "source/disk").write_bytes(os.urandom(64 * MIB))
    source.refresh()
    target = loop_mount("ext4", mebibytes=32)
    small = pool_on(storage, "small", target)
    with pytest.raises(StorageError) as caught:
        small.clone(source.volume("disk"), "copy", format=format)
    assert isinstance(caught.value, SystemFailure), caught.value
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in target.iterdir()} == {"lost+found"}
    assert "copy" not in small.names()
    assert os.statvfs(target).f_bavail * 4096 > 20 * MIB
    small.stop()


def test_a_convert_on_a_full_disk_keeps_the_image(storage: Storage, loop_mount: LoopMount) -> None:
    target = loop_mount("ext4", mebibytes=48)
    data = os.urandom(24 * MIB)
    (target / "disk").write_bytes(data)
    pool = pool_on(storage, "small", target)
    with pytest.raises(StorageError):
        pool.volume("disk").convert(format="qcow2")
    assert (target / "disk").read_bytes() == data
    assert pool.volume("disk").info().format == "raw"
    assert {path.name for path in target.iterdir()} == {"lost+found", "disk"}
    pool.stop()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _directory(path: Path) -> None:
    path.mkdir()


def _hostile(path: Path) -> None:
    path.write_bytes(sound(MIB, backing=b"json:{}", backing_format="raw"))


@pytest.mark.parametrize("become", [_fifo, _link, _dangling, _directory, _hostile])
def test_an_image_that_becomes_something_else(
    storage: Storage, tmp_path: Path, become: Callable[[Path], None]
) -> None:
    """What was listed is not what is opened: each use says so, at once, and touches nothing."""
    pool = pool_on(storage, "vms", tmp_path / "vms")
    path = tmp_path / "vms/disk"
    qemu.create(path, MIB)
    pool.refresh()
    volume = pool.volume("disk")
    path.unlink()
    become(path)
    start = time.monotonic()
    for use in (
        lambda: pool.clone(volume, "copy"),
        lambda: pool.clone(volume, "copy", format="raw"),
        lambda: volume.resize(2 * MIB),
        lambda: volume.convert(format="raw"),
        volume.check if become is not _hostile else lambda: volume.resize(3 * MIB),
    ):
        with pytest.raises(StorageError):
            use()
    assert time.monotonic() - start < 5
    assert {entry.name for entry in path.parent.iterdir()} == {"disk"}
    pool.stop()


def test_files_that_come_and_go(storage: Storage, tmp_path: Path) -> None:
    """Refreshes beside someone who replaces, truncates and removes images all the time."""
    pool = pool_on(storage, "vms", tmp_path / "vms")
    images = [bytes(sound(MIB)), b"QFI\xfb", bytes(4096), b""]
    for number in range(200):
        path = tmp_path / "vms" / f"disk{number % 7}"
        if number % 5 == 4:
            path.unlink(missing_ok=True)
        elif number % 3:
            path.write_bytes(images[number % 4])
        else:
            other = tmp_path / "other"
            other.write_bytes(images[number % 4])
            other.rename(path)
        if number % 2:
            job = pool.refresh(wait=False)
        else:
            job.wait() if number else None
    pool.refresh()
    assert pool.names() == sorted(path.name for path in (tmp_path / "vms").iterdir())
    pool.stop()
