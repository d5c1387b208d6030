"""Removing volumes and changing their capacity."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from storaged import imagelock
from storaged.errors import (
    Cancelled,
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    StorageError,
    SystemFailure,
    VolumeBusy,
)
from storaged.formats import qcow2_create, raw
from storaged.model import BackingStore, VolumeRecord
from tests.backends.conftest import Pool, new_job
from tests.formats import cryptsetup, qemu

MIB = 1 << 20


def delete(pool: Pool, record: VolumeRecord, *, force: bool = False) -> None:
    pool.backend.delete(record, new_job(), force=force)


def resize(pool: Pool, record: VolumeRecord, capacity: int, **options: Any) -> VolumeRecord:
    return pool.backend.resize(record, capacity, new_job(), **options)


# Delete


def test_delete(pool: Pool) -> None:
    for format in ("raw", "qcow2", "dir"):
        delete(pool, pool.create("x", MIB, format=format))
        assert pool.names() == []


def test_delete_what_is_gone(pool: Pool) -> None:
    for format in ("raw", "dir"):
        record = pool.create("x", 0, format=format)
        delete(pool, record)
        delete(pool, record)


def test_delete_a_link_not_what_it_leads_to(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("precious")
    for target in ("outside", "outside/file"):
        (pool.path / "link").symlink_to(tmp_path / target)
        delete(pool, pool.look("link"))
        assert pool.names() == []
    assert (tmp_path / "outside/file").read_text() == "precious"


def test_delete_damaged(pool: Pool) -> None:
    (pool.path / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    delete(pool, pool.look("bad"))
    assert pool.names() == []


def test_delete_full_directory(pool: Pool) -> None:
    (pool.path / "sub").mkdir()
    (pool.path / "sub/file").touch()
    with pytest.raises(SystemFailure) as caught:
        delete(pool, pool.look("sub"))
    assert str(caught.value) == (f"cannot remove directory '{pool.path}/sub': Directory not empty")
    assert caught.value.advice == "It holds files: only an empty directory is deleted."


def test_delete_ploop(pool: Pool) -> None:
    (pool.path / "ct").mkdir()
    for name in ("root.hds", "DiskDescriptor.xml"):
        (pool.path / "ct" / name).touch()
    delete(pool, pool.look("ct"))
    assert pool.names() == []


def test_delete_a_directory_that_was_a_ploop(pool: Pool) -> None:
    """Nothing but a ploop is deleted with all that is in it."""
    (pool.path / "ct").mkdir()
    for name in ("root.hds", "DiskDescriptor.xml"):
        (pool.path / "ct" / name).touch()
    record = pool.look("ct")
    (pool.path / "ct").rename(pool.path / "old")
    (pool.path / "ct").mkdir()
    (pool.path / "ct/precious").touch()
    with pytest.raises(SystemFailure, match="Directory not empty"):
        delete(pool, record)
    assert (pool.path / "ct/precious").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_delete_when_nobody_can_tell_whether_it_runs(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    record = pool.create("v", 4096)

    def fail(*_: object) -> None:
        raise OSError(number, "server")

    monkeypatch.setattr("storaged.imagelock.check", fail)
    with pytest.raises(SystemFailure, match="cannot unlink file"):
        delete(pool, record)
    assert pool.names() == ["v"]
    delete(pool, record, force=True)


def test_a_cancelled_delete(pool: Pool) -> None:
    for format in ("raw", "dir"):
        record = pool.create("x", 0, format=format)
        job = new_job()
        job.cancel()
        with pytest.raises(Cancelled):
            pool.backend.delete(record, job)
        assert pool.names() == ["x"]
        delete(pool, record)


def test_delete_what_runs(pool: Pool, storage_daemon: Any) -> None:
    record = pool.create("disk", MIB, format="qcow2")
    pid = storage_daemon(pool.path / "disk", read_only=True)
    with pytest.raises(VolumeBusy) as caught:
        delete(pool, record)
    assert caught.value.message.endswith("volume 'disk' is still in use.")
    assert f"(pid {pid})" in (caught.value.advice or "")
    assert pool.names() == ["disk"]
    delete(pool, record, force=True)
    assert pool.names() == []


# Resize


def test_raw(pool: Pool) -> None:
    record = pool.create("disk", MIB)
    (pool.path / "disk").write_bytes(b"x" * MIB)
    grown = resize(pool, record, 2 * MIB)
    assert (grown.capacity, grown.allocation) == (2 * MIB, MIB)
    shrunk = resize(pool, grown, MIB // 2, shrink=True)
    assert shrunk.capacity == MIB // 2
    assert (pool.path / "disk").read_bytes() == b"x" * (MIB // 2)


def test_raw_with_allocation(pool: Pool) -> None:
    record = pool.create("disk", 3 * MIB)
    fd = os.open(pool.path / "disk", os.O_WRONLY)
    os.pwrite(fd, b"data", MIB)
    os.close(fd)
    record = resize(pool, record, 4 * MIB, allocate=True)
    assert (record.capacity, record.allocation) == (4 * MIB, 4 * MIB)
    assert (pool.path / "disk").read_bytes() == b"data".rjust(MIB + 4, b"\0").ljust(4 * MIB, b"\0")


def test_same_size_is_done_already(pool: Pool) -> None:
    for format in ("raw", "qcow2", "vmdk"):
        record = pool.create(format, MIB, format=format)
        assert resize(pool, record, MIB) == record


def test_shrinking_must_be_wished(pool: Pool) -> None:
    record = pool.create("disk", MIB)
    with pytest.raises(InvalidArgument, match="unless shrink flag explicitly specified"):
        resize(pool, record, 1)


def test_no_space_leaves_the_old_size(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    record = pool.create("disk", MIB)

    def allocate(handle: Any, _start: int, end: int, _checkpoint: object) -> None:
        handle.truncate(end)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(raw, "allocate", allocate)
    with pytest.raises(SystemFailure, match="No space left"):
        resize(pool, record, 4 * MIB, allocate=True)
    assert pool.look("disk").capacity == MIB


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_qcow2(pool: Pool, compat: str) -> None:
    record = pool.create("disk", MIB, format="qcow2", compat=compat)
    qemu.io(pool.path / "disk", "write -P 5 0 64k")
    grown = resize(pool, record, 100 * MIB + 1)
    assert grown.capacity == 100 * MIB + 512
    assert qemu.info(pool.path / "disk")["virtual-size"] == grown.capacity
    qemu.io(pool.path / "disk", "read -P 5 0 64k", "write -P 6 99M 64k")
    qemu.check(pool.path / "disk")


@pytest.mark.parametrize(
    ("format", "capacity", "options", "text"),
    [
        ("qcow2", 2 * MIB, {"allocate": True}, "preallocate is only supported for raw type volume"),
        ("vmdk", 2 * MIB, {}, "volumes of format 'vmdk' cannot be resized"),
        ("dir", 2 * MIB, {}, "volumes of format 'dir' cannot be resized"),
    ],
)
def test_what_cannot_be_resized(
    pool: Pool, format: str, capacity: int, options: dict[str, bool], text: str
) -> None:
    record = pool.create("disk", MIB, format=format)
    with pytest.raises(OperationUnsupported, match=text):
        resize(pool, record, capacity, **options)


def test_qcow2_smaller(pool: Pool) -> None:
    pool.create("disk", 64 * MIB, format="qcow2")
    qemu.io(pool.path / "disk", "write -P 5 0 1M", "write -P 6 40M 8M")
    before = pool.look("disk")
    record = resize(pool, before, 32 * MIB, shrink=True)
    assert record.capacity == 32 * MIB
    assert record.allocation < before.allocation - 7 * MIB
    qemu.io(pool.path / "disk", "read -P 5 0 1M", "read -P 0 1M 31M")
    qemu.check(pool.path / "disk")
    grown = resize(pool, record, 64 * MIB)
    qemu.io(pool.path / "disk", "read -P 0 40M 8M")
    assert grown.capacity == 64 * MIB


@pytest.mark.slow
def test_what_qemu_resizes(pool: Pool) -> None:
    """An image with bitmaps, which have to grow with it, and one of a format that is not ours."""
    pool.create("disk", 4 * MIB, format="qcow2", compat="1.1")
    qemu.run("qemu-img", "bitmap", "--add", pool.path / "disk", "changed")
    pool.create("old", 4 * MIB, format="qed")
    for name in ("disk", "old"):
        assert resize(pool, pool.look(name), 8 * MIB).capacity == 8 * MIB
    qemu.check(pool.path / "disk")
    with pytest.raises(OperationUnsupported, match="qed volume 'old' cannot be made smaller"):
        resize(pool, pool.look("old"), MIB, shrink=True)


@pytest.mark.slow
@cryptsetup.needed
def test_raw_with_luks_keeps_its_header(pool: Pool) -> None:
    cryptsetup.create(pool.path / "secret", 8 * MIB)
    record = pool.look("secret")
    assert 0 < record.capacity < 8 * MIB
    grown = resize(pool, record, 12 * MIB)
    assert grown.capacity == 12 * MIB
    assert grown.physical - grown.capacity == record.physical - record.capacity
    told = qemu.info(pool.path / "secret")
    assert (told["format"], told["virtual-size"]) == ("luks", 12 * MIB)


def test_what_is_there_counts_not_what_was_known(pool: Pool) -> None:
    record = pool.create("disk", MIB)
    os.truncate(pool.path / "disk", 4 * MIB)
    with pytest.raises(InvalidArgument):
        resize(pool, record, 2 * MIB)
    (pool.path / "disk").unlink()
    with pytest.raises(NoSuchVolume):
        resize(pool, record, 2 * MIB)


def test_replaced_between_the_look_and_the_lock(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = pool.create("disk", MIB)
    pool.create("image", 64 * MIB, format="qcow2")
    real = imagelock.hold

    def hold(fd: int, volume: str, **options: bool) -> AbstractContextManager[None]:
        os.dup2(image, fd)  # as if the file had been replaced before it was opened
        return real(fd, volume, **options)

    image = os.open(pool.path / "image", os.O_RDWR)
    before = (pool.path / "image").read_bytes()
    monkeypatch.setattr(imagelock, "hold", hold)
    try:
        with pytest.raises(OperationInvalid, match="is of format qcow2 by now, not raw"):
            resize(pool, record, MIB // 2, shrink=True)
    finally:
        os.close(image)
    assert (pool.path / "image").read_bytes() == before


def test_overlay(pool: Pool) -> None:
    """What the backing image holds never shows in space that is to be empty."""
    pool.create("base", 8 * MIB, format="qcow2")
    qemu.io(pool.path / "base", "write -P 7 0 8M")
    pool.create("top", 8 * MIB, format="qcow2", backing=BackingStore("base", "qcow2"))
    assert resize(pool, pool.look("top"), 16 * MIB).capacity == 16 * MIB
    qemu.io(pool.path / "top", "read -P 7 0 8M", "read -P 0 8M 8M")
    pool.create("short", 4 * MIB, format="qcow2", backing=BackingStore("base", "qcow2"))
    with pytest.raises(OperationUnsupported, match="is longer than its 4194304 bytes"):
        resize(pool, pool.look("short"), 6 * MIB)
    (pool.path / "base").unlink()
    with pytest.raises(OperationUnsupported, match="size of its backing image is not known"):
        resize(pool, pool.look("top"), 32 * MIB)


@pytest.mark.parametrize("recorded", [True, False])
def test_overlay_of_a_file_outside_the_pool(pool: Pool, tmp_path: Path, recorded: bool) -> None:
    qemu.create(tmp_path / "base", MIB)
    options = qcow2_create.CreateOptions(
        MIB,
        backing=os.fsencode(tmp_path / "base"),
        backing_format="qcow2" if recorded else None,
    )
    qemu.write_native(pool.path / "top", lambda handle: qcow2_create.create(handle, options))
    if recorded:
        assert resize(pool, pool.look("top"), 2 * MIB).capacity == 2 * MIB
        return
    with pytest.raises(OperationUnsupported, match="size of its backing image is not known"):
        resize(pool, pool.look("top"), 2 * MIB)


def chained(pool: Pool, name: str, backing: str) -> VolumeRecord:
    """Make an overlay without a look at what it refers to."""
    options = qcow2_create.CreateOptions(MIB, backing=os.fsencode(backing), backing_format="qcow2")
    qemu.write_native(pool.path / name, lambda handle: qcow2_create.create(handle, options))
    return pool.look(name)


def test_no_size_over_a_chain_that_is_a_danger(pool: Pool) -> None:
    os.mkfifo(pool.path / "fifo")
    chained(pool, "below", "top")
    before = {
        "its backing chain is a loop": chained(pool, "top", "below"),
        "is no regular file": chained(pool, "over", "fifo"),
        "is on a network": chained(pool, "far", "nbd://host/x"),
    }
    chained(pool, "deep", "over")
    for text, record in before.items():
        content = (pool.path / record.name).read_bytes()
        with pytest.raises(OperationInvalid, match=f"cannot be resized: .*{text}"):
            resize(pool, record, 2 * MIB)
        assert (pool.path / record.name).read_bytes() == content
    with pytest.raises(OperationInvalid, match="is no regular file"):
        resize(pool, pool.look("deep"), 2 * MIB)


def test_damaged(pool: Pool) -> None:
    (pool.path / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    with pytest.raises(OperationInvalid, match="volume 'bad' cannot be resized"):
        resize(pool, pool.look("bad"), MIB)


def test_resize_what_runs(pool: Pool, storage_daemon: Any) -> None:
    record = pool.create("disk", MIB, format="qcow2")
    storage_daemon(pool.path / "disk")
    before = (pool.path / "disk").read_bytes()
    for force in (False, True):  # two writers would destroy the image
        with pytest.raises(VolumeBusy):
            resize(pool, record, 2 * MIB, force=force)
    assert (pool.path / "disk").read_bytes() == before


def test_force_is_for_raw(pool: Pool, storage_daemon: Any) -> None:
    record = pool.create("disk", MIB)
    storage_daemon(pool.path / "disk", format="raw")
    with pytest.raises(VolumeBusy):
        resize(pool, record, 2 * MIB)
    assert resize(pool, record, 2 * MIB, force=True).capacity == 2 * MIB


def test_errors_are_ours(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    record = pool.create("disk", MIB)

    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(StorageError) as caught:
        resize(pool, record, 2 * MIB)
    expected = f"Failed to resize file '{pool.path}/disk': Input/output error"
    assert str(caught.value) == expected


def test_all_of_a_sparse_volume_can_be_allocated(pool: Pool) -> None:
    record = pool.create("disk", MIB)
    with (pool.path / "disk").open("r+b") as file:
        file.write(b"data")
    assert pool.look("disk").allocation < MIB
    full = resize(pool, record, MIB, allocate=True)
    assert (full.capacity, full.allocation) == (MIB, MIB)
    assert (pool.path / "disk").read_bytes().rstrip(b"\0") == b"data"
