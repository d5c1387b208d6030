"""Clones: which way the bytes take, and what needs a conversion that is not there."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backend import ImageSource
from storaged.backends import _copy
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    InternalError,
    NameTaken,
    OperationInvalid,
    OperationUnsupported,
    StorageError,
    SystemFailure,
    VolumeBusy,
)
from storaged.formats import syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Extent
from storaged.model import BackingStore, Encryption, VolumeDef, VolumeRecord
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats import qemu

MIB = 1 << 20


class Remote:
    """A source without a descriptor, as an image on a server is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self) -> int:
        return len(self._data)

    def pread(self, length: int, offset: int) -> bytes:
        return self._data[offset : offset + length]

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, data=True)

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def source(pool: Pool) -> VolumeRecord:
    """A sparse raw volume of 8 MiB with data at its start and its end."""
    with (pool.path / "source").open("wb") as file:
        file.write(b"start" * 10_000)
        file.seek(8 * MIB - 5)
        file.write(b"theend"[:5])
    return pool.look("source")


def test_sparse_stays_sparse(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source)
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()
    assert clone.capacity == 8 * MIB
    assert clone.allocation <= source.allocation
    assert (pool.path / "clone").stat().st_mode & 0o7777 == 0o600


def test_full_allocation(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source, allocation=None)
    assert clone.allocation == 8 * MIB
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()


def test_larger(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source, capacity=20 * MIB)
    assert clone.capacity == clone.physical == 20 * MIB
    data = (pool.path / "clone").read_bytes()
    assert data == (pool.path / "source").read_bytes() + bytes(12 * MIB)


def test_smaller_is_as_large_as_the_source(pool: Pool, source: VolumeRecord) -> None:
    assert pool.clone("clone", source, capacity=1).capacity == 8 * MIB


def test_zeros_become_holes_when_copied_by_hand(
    pool: Pool, source: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pool.path / "zeros").write_bytes(bytes(MIB) + b"x" * 4096 + bytes(MIB))

    def refuse(*_args: object) -> int:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    clone = pool.clone("clone", pool.look("zeros"))
    assert clone.allocation == 4096
    assert (pool.path / "clone").read_bytes() == (pool.path / "zeros").read_bytes()


def test_short_copies_go_on_by_hand(
    pool: Pool, source: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_args: 0)
    pool.clone("clone", source)
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()


def test_source_without_descriptor(pool: Pool) -> None:
    data = b"abc" * MIB + bytes(MIB) + b"tail"
    record = VolumeRecord("remote", len(data), len(data), format=None)
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), record)
    source: Any = Remote(data)
    job = new_job()
    clone = pool.backend.clone(planned, ImageSource(record, source), job, reflink=False)
    assert (pool.path / "clone").read_bytes() == data
    assert clone.allocation <= 3 * MIB + 4096 * 2
    assert job.done == job.total == len(data)


def test_reflink_or_nothing(pool: Pool, source: VolumeRecord) -> None:
    if _can_share(pool.path):
        pytest.skip("the temporary directory is on a file system that can share")
    with pytest.raises(SystemFailure, match="failed to clone files from 'source'"):
        pool.clone("clone", source, reflink=True)
    assert pool.names() == ["source"]


def test_cancel(pool: Pool, source: VolumeRecord) -> None:
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), source)
    job = new_job()
    job.subscribe(lambda _progress: job.cancel())
    handle = pool.backend.open_image(source)
    with pytest.raises(Cancelled):
        pool.backend.clone(planned, ImageSource(source, handle), job, reflink=False)
    handle.close()
    assert pool.names() == ["source"]


def test_name_is_taken_meanwhile(pool: Pool, source: VolumeRecord) -> None:
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), source)
    (pool.path / "clone").write_text("precious")
    handle = pool.backend.open_image(source)
    with pytest.raises(NameTaken):
        pool.backend.clone(planned, ImageSource(source, handle), new_job(), reflink=False)
    handle.close()
    assert (pool.path / "clone").read_text() == "precious"


# Images


@pytest.mark.parametrize("capacity", [0, 64 * MIB])
def test_qcow2(pool: Pool, capacity: int) -> None:
    qemu.create(pool.path / "source", 16 * MIB)
    qemu.io(pool.path / "source", "write -P 7 1M 64k")
    record = pool.look("source")
    clone = pool.clone("clone", record, capacity=capacity)
    assert clone.capacity == max(capacity, 16 * MIB)
    assert clone.format == "qcow2"
    qemu.check(pool.path / "clone")
    qemu.io(pool.path / "clone", "read -P 7 1M 64k", "read -P 0 0 1M")


def test_vmdk(pool: Pool) -> None:
    qemu.create(pool.path / "source", 16 * MIB, format="vmdk")
    clone = pool.clone("clone", pool.look("source"))
    assert clone.format == "vmdk"
    assert qemu.info(pool.path / "clone")["virtual-size"] == 16 * MIB
    with pytest.raises(OperationUnsupported, match="cannot be larger"):
        pool.clone("large", pool.look("source"), capacity=32 * MIB)


def test_iso_is_raw_data(pool: Pool) -> None:
    (pool.path / "cd").write_bytes(bytes(32769) + b"CD001" + bytes(100_000))
    record = pool.look("cd")
    assert record.format == "iso"
    assert pool.clone("copy", record, format="raw").capacity == record.capacity


def test_overlay_of_the_same_base(pool: Pool) -> None:
    base = str(pool.path / "base")
    qemu.create(pool.path / "base", 16 * MIB)
    qemu.run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", pool.path / "top")
    record = pool.look("top")
    with pytest.raises(ConfigUnsupported, match="has a backing store"):
        pool.clone("clone", record)
    with pytest.raises(InternalError, match="a different backing store cannot be specified"):
        pool.clone("clone", record, backing=BackingStore("/other", "qcow2"))
    clone = pool.clone("clone", record, backing=BackingStore(base, "qcow2"))
    assert clone.image is not None
    assert clone.image.backing is not None
    assert clone.image.backing.name == os.fsencode(base)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"format": "raw"}, ConfigUnsupported, "of format 'qcow2' cannot have format 'raw'"),
        ({"format": "vmdk"}, ConfigUnsupported, "of format 'qcow2' cannot have format 'vmdk'"),
        ({"format": "dir"}, OperationUnsupported, "cannot be cloned"),
        ({"compat": "0.10"}, ConfigUnsupported, "cannot have compat 0.10: the source has 1.1"),
        ({"cluster_size": 4096}, ConfigUnsupported, "cannot have clusterSize 4096"),
        ({"features": frozenset({"extended_l2"})}, ConfigUnsupported, "features extended_l2"),
        ({"encryption": Encryption("luks")}, ConfigUnsupported, "cannot be encrypted anew"),
        ({"backing": BackingStore("b", "raw")}, ConfigUnsupported, "has no backing store"),
    ],
)
def test_what_needs_a_conversion(
    pool: Pool, options: dict[str, Any], error: type[StorageError], text: str
) -> None:
    qemu.create(pool.path / "source", 16 * MIB)
    with pytest.raises(error) as caught:
        pool.clone("clone", pool.look("source"), **options)
    assert text in str(caught.value)
    assert pool.names() == ["source"]


def test_images_that_are_more_than_their_file(pool: Pool) -> None:
    qemu.create(pool.path / "snapshots", MIB)
    qemu.run("qemu-img", "snapshot", "-c", "one", pool.path / "snapshots")
    qemu.create(pool.path / "outside", MIB, f"data_file={pool.path}/data")
    with pytest.raises(ConfigUnsupported, match="internal snapshots") as caught:
        pool.clone("clone", pool.look("snapshots"))
    assert "qemu-img convert" in (caught.value.advice or "")
    with pytest.raises(OperationInvalid, match=r"cannot be cloned: .* external file"):
        pool.clone("clone", pool.look("outside"))


def test_preallocation_is_not_for_clones(pool: Pool, source: VolumeRecord) -> None:
    qemu.create(pool.path / "image", MIB)
    for name, text in (("source", "not supported for raw volumes"), ("image", "for a clone")):
        record = pool.look(name)
        with pytest.raises(ConfigUnsupported, match=text):
            pool.backend.plan_clone(
                VolumeDef("clone", format=record.format), record, preallocate_metadata=True
            )


def test_damaged_source(pool: Pool) -> None:
    (pool.path / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    with pytest.raises(OperationInvalid, match="volume 'bad' cannot be cloned"):
        pool.clone("clone", pool.look("bad"))


def test_directory_source(pool: Pool) -> None:
    (pool.path / "sub").mkdir()
    with pytest.raises(OperationUnsupported):
        pool.backend.plan_clone(VolumeDef("clone"), pool.look("sub"))


def test_running_source(pool: Pool, storage_daemon: Any) -> None:
    qemu.create(pool.path / "source", MIB)
    record = pool.look("source")
    storage_daemon(pool.path / "source")
    with pytest.raises(VolumeBusy):
        pool.clone("clone", record)
    assert pool.names() == ["source"]


def test_source_cannot_be_started_meanwhile(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu.create(pool.path / "source", MIB)
    seen = []

    def share(*_args: object, **_options: object) -> None:
        with pytest.raises(AssertionError, match="Failed to get"):
            qemu.io(pool.path / "source", "write 0 512")
        seen.append(qemu.run("qemu-img", "info", pool.path / "source"))
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(_copy, "share", share)
    pool.clone("clone", pool.look("source"))
    assert len(seen) == 1
    qemu.io(pool.path / "source", "write 0 512")


def test_source_that_was_changed_meanwhile(pool: Pool) -> None:
    """What was checked is not what is there: it has a backing store by now."""
    qemu.create(pool.path / "source", MIB)
    record = pool.look("source")
    qemu.create(pool.path / "base", MIB)
    qemu.run(
        "qemu-img", "rebase", "-u", "-F", "qcow2", "-b", pool.path / "base", pool.path / "source"
    )
    with pytest.raises(OperationInvalid, match="was changed while it was cloned"):
        pool.clone("clone", record)
    assert pool.names() == ["base", "source"]


# Sharing, on file systems that can


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_shared(loop_mount: Any, kind: str) -> None:
    pool = make_pool(loop_mount(kind))
    (pool.path / "source").write_bytes(os.urandom(4 * MIB))
    for reflink in (True, False):
        free = _used(pool.path)
        pool.clone(f"clone-{reflink}", pool.look("source"), reflink=reflink)
        assert _used(pool.path) - free < 2 * MIB
        data = (pool.path / f"clone-{reflink}").read_bytes()
        assert data == (pool.path / "source").read_bytes()
    clone = pool.clone("large", pool.look("source"), capacity=8 * MIB, allocation=None)
    assert clone.allocation == clone.capacity == 8 * MIB


def test_nocow_on_btrfs(loop_mount: Any) -> None:
    pool = make_pool(loop_mount("btrfs"))

    def flag(name: str) -> bool:
        fd = os.open(pool.path / name, os.O_RDONLY)
        try:
            return syscalls.is_nocow(fd)
        finally:
            os.close(fd)

    pool.create("source", MIB, nocow=True, allocation=MIB)
    pool.create("image", MIB, nocow=True, format="qcow2")
    pool.create("plain", MIB, allocation=MIB)
    assert [flag(name) for name in ("source", "image", "plain")] == [True, True, False]
    pool.clone("shared", pool.look("source"), reflink=True)  # refused if the flags differ
    assert flag("shared")
    pool.clone("copied", pool.look("plain"), nocow=True)
    assert flag("copied")
    with pytest.raises(SystemFailure):
        pool.clone("never", pool.look("plain"), nocow=True, reflink=True)


# The pieces


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_data_runs_leave_out_zeros_only(pieces: list[tuple[bool, int]]) -> None:
    data = b"".join((b"x" if full else b"\0") * length for full, length in pieces)
    rebuilt = bytearray(len(data))
    runs = _copy.data_runs(data)
    for start, stop in runs:
        rebuilt[start:stop] = data[start:stop]
        assert any(data[start:stop])
    assert bytes(rebuilt) == data
    assert all(first[1] < second[0] for first, second in itertools.pairwise(runs))


def test_source_that_shrinks(tmp_path: Path) -> None:
    class Shrinking(Remote):
        def pread(self, length: int, offset: int) -> bytes:
            return super().pread(length, offset)[:10]

    source: Any = Shrinking(b"x" * 100)
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    with FileHandle(fd) as target, pytest.raises(OSError, match="ends at 10 instead of 100"):
        _copy.copy(target, source, 100, lambda _done, _total: None)


def _can_share(path: Path) -> bool:
    (path / "a").write_text("a")
    first = os.open(path / "a", os.O_RDONLY)
    second = os.open(path / "b", os.O_RDWR | os.O_CREAT)
    try:
        syscalls.ficlone(second, first)
    except OSError:
        return False
    finally:
        os.close(first)
        os.close(second)
        (path / "a").unlink()
        (path / "b").unlink()
    return True


def _used(path: Path) -> int:
    os.sync()
    facts = os.statvfs(path)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
