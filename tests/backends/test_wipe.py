"""Overwriting: what is on the disk afterwards, and that an image is still an image."""

from __future__ import annotations

import os
from typing import Any

import pytest

from storaged.backend import WipeAlgorithm
from storaged.backends import _passes
from storaged.errors import (
    ArgumentUnsupported,
    Cancelled,
    OperationUnsupported,
    SystemFailure,
    VolumeBusy,
)
from storaged.formats import syscalls
from storaged.formats.file import FileHandle
from storaged.model import BackingStore, Encryption, VolumeRecord
from tests.backends.conftest import Pool, new_job
from tests.formats import qemu

MIB = 1 << 20
SECRET = b"secret" * 50_000
RANDOM_AT_THE_END = {
    WipeAlgorithm.GUTMANN,
    WipeAlgorithm.SCHNEIER,
    WipeAlgorithm.PFITZNER7,
    WipeAlgorithm.PFITZNER33,
    WipeAlgorithm.RANDOM,
}


def wipe(
    pool: Pool, record: VolumeRecord, algorithm: WipeAlgorithm = WipeAlgorithm.ZERO, **options: bool
) -> VolumeRecord:
    return pool.backend.wipe(record, algorithm, new_job("wipe"), **options)


@pytest.fixture
def disk(pool: Pool) -> VolumeRecord:
    with (pool.path / "disk").open("wb") as file:
        file.write(SECRET)
        file.truncate(8 * MIB)
        file.seek(8 * MIB - 3)
        file.write(b"end")
    return pool.look("disk")


def test_zero(pool: Pool, disk: VolumeRecord) -> None:
    after = wipe(pool, disk)
    assert (pool.path / "disk").read_bytes() == bytes(8 * MIB)
    assert (after.capacity, after.allocation) == (disk.capacity, disk.allocation)


@pytest.mark.parametrize("algorithm", [one for one in WipeAlgorithm if one < WipeAlgorithm.TRIM])
def test_every_algorithm(pool: Pool, disk: VolumeRecord, algorithm: WipeAlgorithm) -> None:
    after = wipe(pool, disk, algorithm)
    data = (pool.path / "disk").read_bytes()
    assert b"secret" not in data
    assert b"end" not in data[-3:]
    assert len(data) == 8 * MIB
    assert after.allocation <= disk.allocation
    start = data[: len(SECRET)]
    if algorithm in RANDOM_AT_THE_END:
        assert len(set(start)) == 256
    else:
        last = _passes.PASSES[algorithm][-1].pattern
        assert start == last * len(start)


def test_what_a_guest_discarded_is_overwritten_too(pool: Pool) -> None:
    """It reads as zeros, but its blocks still hold what was written."""
    (pool.path / "disk").write_bytes(b"s" * MIB)
    with FileHandle(os.open(pool.path / "disk", os.O_RDWR)) as handle:
        handle.flush()
        try:
            syscalls.fallocate(handle.fileno() or 0, syscalls.FALLOC_FL_ZERO_RANGE, 0, MIB)
        except OSError as err:
            pytest.skip(f"the temporary directory is on a file system without it: {err}")
        job = new_job("wipe")
        pool.backend.wipe(pool.look("disk"), WipeAlgorithm.BSI, job)
        assert (job.done, job.total) == (9 * MIB, 9 * MIB)
        assert handle.pread(MIB, 0) == b"\x7f" * MIB


def test_replaced_meanwhile(pool: Pool, disk: VolumeRecord) -> None:
    """What is wiped is what is locked, whatever was there when it was looked at."""
    pool.create("other", 64 * MIB, format="qcow2")
    (pool.path / "other").rename(pool.path / "disk")
    after = wipe(pool, disk)
    assert (after.format, after.capacity) == ("qcow2", 64 * MIB)
    qemu.check(pool.path / "disk")


def test_numbers_of_passes() -> None:
    counts = {one.name.lower(): len(passes) for one, passes in _passes.PASSES.items()}
    assert counts == {
        "zero": 1, "nnsa": 4, "dod": 4, "bsi": 9, "gutmann": 35, "schneier": 7,
        "pfitzner7": 7, "pfitzner33": 33, "random": 1,
    }  # fmt: skip


def test_every_pass_is_made(
    pool: Pool, disk: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = FileHandle.pwrite

    def pwrite(handle: FileHandle, data: bytes, offset: int) -> None:
        if offset == 0:
            written.append(bytes(data[:3]))
        real(handle, data, offset)

    monkeypatch.setattr(FileHandle, "pwrite", pwrite)
    wipe(pool, disk, WipeAlgorithm.BSI)
    assert written == [bytes([one]) * 3 for one in (255, 254, 253, 251, 247, 239, 223, 191, 127)]


def test_verification(pool: Pool, disk: VolumeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileHandle, "pwrite", lambda *_args: None)  # a disk that forgets
    with pytest.raises(SystemFailure) as caught:
        wipe(pool, disk, WipeAlgorithm.NNSA)
    assert str(caught.value) == f"failed to wipe volume '{pool.path}/disk': Input/output error"


def test_trim(pool: Pool, disk: VolumeRecord) -> None:
    with pytest.raises(ArgumentUnsupported) as caught:
        wipe(pool, disk, WipeAlgorithm.TRIM)
    assert caught.value.detail == "'trim' algorithm not supported"


def test_progress_and_cancel(pool: Pool, disk: VolumeRecord) -> None:
    job = new_job("wipe")
    pool.backend.wipe(disk, WipeAlgorithm.SCHNEIER, job)
    assert job.done == job.total == 7 * disk.allocation
    job = new_job("wipe")
    job.subscribe(lambda _progress: job.cancel())
    with pytest.raises(Cancelled):
        pool.backend.wipe(disk, WipeAlgorithm.SCHNEIER, job)
    assert (pool.path / "disk").stat().st_size == 8 * MIB


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "1.1", "cluster_size": 4096, "features": frozenset({"lazy_refcounts"})},
        {"compat": "1.1", "features": frozenset({"extended_l2"})},
    ],
)
def test_qcow2_is_an_empty_image_again(pool: Pool, options: dict[str, Any]) -> None:
    record = pool.create("disk", 64 * MIB, format="qcow2", **options)
    qemu.io(pool.path / "disk", "write -P 0xab 0 4M")
    qemu.run("qemu-img", "snapshot", "-c", "one", pool.path / "disk")
    watcher = os.open(pool.path / "disk", os.O_RDONLY)
    try:
        after = wipe(pool, pool.look("disk"))
        assert os.fstat(watcher).st_nlink == 1  # the very same file, overwritten in place
    finally:
        os.close(watcher)
    assert after.image == record.image
    assert after.capacity == 64 * MIB
    assert after.allocation < MIB
    qemu.io(pool.path / "disk", "read -P 0 0 64M")
    qemu.check(pool.path / "disk")


def test_data_are_overwritten_before_the_image_is_made_anew(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("disk", 64 * MIB, format="qcow2")
    qemu.io(pool.path / "disk", "write -P 0xab 0 4M")
    seen = []
    real = FileHandle.truncate

    def truncate(handle: FileHandle, size: int) -> None:
        if size == 0:
            seen.append((pool.path / "disk").read_bytes())
        real(handle, size)

    monkeypatch.setattr(FileHandle, "truncate", truncate)
    wipe(pool, pool.look("disk"))
    assert len(seen) == 1
    assert len(seen[0]) > 4 * MIB
    assert not seen[0].strip(b"\0")


def test_overlay_keeps_its_base(pool: Pool) -> None:
    pool.create("base", 8 * MIB, format="qcow2")
    qemu.io(pool.path / "base", "write -P 1 0 1M")
    pool.create("top", 0, format="qcow2", backing=BackingStore("base", "qcow2"))
    qemu.io(pool.path / "top", "write -P 2 0 1M")
    after = wipe(pool, pool.look("top"))
    assert after.image is not None
    assert after.image.backing is not None
    qemu.io(pool.path / "top", "read -P 1 0 1M")


def test_vmdk_is_an_empty_image_again(pool: Pool) -> None:
    record = pool.create("disk", 64 * MIB, format="vmdk")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 7 0 1M", pool.path / "disk")
    after = wipe(pool, pool.look("disk"), WipeAlgorithm.RANDOM)
    assert (after.format, after.capacity) == ("vmdk", record.capacity)
    qemu.run("qemu-io", "-f", "vmdk", "-c", "read -P 0 0 64M", pool.path / "disk")


def test_vmdk_keeps_its_parent(pool: Pool) -> None:
    pool.create("base", MIB, format="vmdk")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 64k", pool.path / "base")
    before = pool.create("top", MIB, format="vmdk", backing=BackingStore("base", "vmdk"))
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 2 0 64k", pool.path / "top")
    after = wipe(pool, pool.look("top"))
    assert (after.format, after.capacity) == ("vmdk", MIB)
    assert before.image is not None
    assert after.image is not None
    assert after.image.backing == before.image.backing
    qemu.run("qemu-io", "-f", "vmdk", "-c", "read -P 1 0 64k", pool.path / "top")


@pytest.mark.slow
def test_encrypted_qcow2_is_kept(pool: Pool) -> None:
    """An empty image would have to be encrypted too, and nobody gives the passphrase."""
    record = pool.create(
        "disk", MIB, format="qcow2", encryption=Encryption("luks"), secret=b"secret"
    )
    before = (pool.path / "disk").read_bytes()
    with pytest.raises(OperationUnsupported, match="it is encrypted") as caught:
        wipe(pool, record)
    assert caught.value.advice == "Delete it and create it anew."
    assert (pool.path / "disk").read_bytes() == before


def test_other_formats_are_bytes(pool: Pool) -> None:
    qemu.create(pool.path / "disk", MIB, format="vdi")
    size = (pool.path / "disk").stat().st_size
    after = wipe(pool, pool.look("disk"))
    assert (after.format, after.capacity) == ("raw", size)


def test_external_data_would_not_be_wiped(pool: Pool) -> None:
    qemu.create(pool.path / "disk", MIB, f"data_file={pool.path}/data")
    with pytest.raises(OperationUnsupported, match="lie in another file"):
        wipe(pool, pool.look("disk"))


def test_directory(pool: Pool) -> None:
    (pool.path / "sub").mkdir()
    with pytest.raises(OperationUnsupported, match="is a directory"):
        wipe(pool, pool.look("sub"))


def test_what_runs(pool: Pool, storage_daemon: Any) -> None:
    record = pool.create("disk", MIB, format="qcow2")
    storage_daemon(pool.path / "disk")
    before = (pool.path / "disk").read_bytes()
    with pytest.raises(VolumeBusy):
        wipe(pool, record)
    assert (pool.path / "disk").read_bytes() == before
