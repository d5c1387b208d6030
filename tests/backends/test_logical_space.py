"""Space of logical volumes on a kernel with device-mapper: thin pools, sparse clones, new sizes."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import pytest

from storaged.backend import CloneOptions, WipeAlgorithm
from storaged.backends.logical import Logical
from storaged.errors import InvalidArgument, NoSpace, OperationUnsupported, StorageError
from storaged.formats.luks_volume import unlock
from storaged.model import BackingStore, Encryption, VolumeRecord
from tests.backends.conftest import Pool
from tests.backends.volumegroups import (
    DURABLE,
    MIB,
    Lab,
    clone,
    create,
    lab,
    new_job,
    pool_of,
    read,
    upload,
    volumes,
    write,
)
from tests.kernel.programs import run

__all__ = ["lab"]

pytestmark = pytest.mark.kernel("lvm", "loop", "dm", "thin")

THIN = BackingStore("tp")


def with_thin_pool(lab: Lab, mebibytes: int = 64, **options: Any) -> Logical:
    pool = pool_of(lab, **options)
    create(pool, "tp", mebibytes * MIB, format="thin-pool")
    return pool


def used(pool: Logical) -> float:
    """How much of the thin pool is used, in MiB, once all is on the disk."""
    run("sync")
    found = pool.report().volumes["tp"]
    return (found.data or 0) * found.size / 100 / MIB


def sparse_file(pool: Pool, name: str, capacity: int, *data: tuple[int, bytes]) -> VolumeRecord:
    """A raw volume of a directory with data at some places."""
    made = pool.create(name, capacity, format="raw")
    with closing(pool.backend.open_image(made, writable=True)) as handle:
        for offset, content in data:
            handle.pwrite(content, offset)
    return pool.look(name)


def test_zeros_take_no_space_of_a_thin_pool(lab: Lab, pool: Pool) -> None:
    group = with_thin_pool(lab)
    data = os.urandom(MIB)
    sparse = sparse_file(pool, "sparse", 1024 * MIB, (300 * MIB, data), (900 * MIB + 4096, b"x"))
    image = pool.clone("image", sparse, format="qcow2")
    made = clone(group, "copy", image, giving=pool.backend, backing=THIN)
    assert made.capacity == 1024 * MIB
    assert read(made, MIB, 300 * MIB) == data
    assert read(made, 2, 900 * MIB + 4095) == b"\0x"
    assert used(group) < 2
    # the holes of an upload give back what was there, and take nothing
    write(made, data * 8)
    before = used(group)
    sink = group.upload(made, 0, 0)
    sink.write(b"begin")
    sink.hole(1024 * MIB - 10)
    sink.write(b"the end"[-5:])
    sink.finish()
    assert read(made, 8) == b"begin\0\0\0"
    assert read(made, 8 * MIB - 8, 8) == bytes(8 * MIB - 8)
    assert read(made, MIB, 300 * MIB) == bytes(MIB)
    assert read(made, 6, 1024 * MIB - 6) == b"\0e end"
    assert used(group) < before - 7
    # a pool that gives out its blocks as they are: the rest of each is written as well
    run("lvchange", "-qq", "--zero", "n", "vg/tp")
    before = used(group)
    made = clone(group, "copy-2", sparse, giving=pool.backend, backing=THIN)
    assert read(made, MIB + 131072, 300 * MIB - 65536) == bytes(65536) + data + bytes(65536)
    assert used(group) - before < 3


def test_what_cannot_fit_is_not_begun_or_ends_before_the_pool_is_full(lab: Lab, pool: Pool) -> None:
    group = with_thin_pool(lab, 32)
    thin = create(group, "thin", 64 * MIB, backing=THIN)
    write(thin, b"mine")
    large = sparse_file(pool, "large", 1024 * MIB, (MIB, os.urandom(40 * MIB)))
    before = used(group)
    with pytest.raises(NoSpace, match=r"takes at least 40.* MiB, and thin pool 'tp' has 3"):
        clone(group, "never", large, giving=pool.backend, backing=THIN)
    locked = CloneOptions(secret=b"word")
    encrypted = Encryption("luks")
    with pytest.raises(NoSpace, match="takes at least 6"):
        clone(group, "never", thin, locked, backing=THIN, encryption=encrypted)
    assert used(group) == before
    # a device does not tell where it holds data: that is found while it is copied
    plain = create(group, "plain", 64 * MIB)
    write(plain, os.urandom(48 * MIB))
    with pytest.raises(NoSpace, match="thin pool 'tp'"):
        clone(group, "never", plain, backing=THIN)
    # a snapshot of nothing has its own space
    small = sparse_file(pool, "small", 64 * MIB, (MIB, os.urandom(6 * MIB)))
    made = clone(group, "sparse", small, giving=pool.backend, allocation=8 * MIB)
    assert read(made, 6 * MIB, MIB) == read_file(pool, "small", 6 * MIB, MIB)
    assert lab.names("vg") == {"tp", "thin", "plain", "sparse"}
    assert read(thin, 4) == b"mine"


def read_file(pool: Pool, name: str, length: int, offset: int) -> bytes:
    with (pool.path / name).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def test_a_full_thin_pool_is_told_and_the_rest_goes_on(lab: Lab) -> None:
    group = with_thin_pool(lab, 16, host=DURABLE)
    run("lvchange", "-qq", "--errorwhenfull", "y", "vg/tp")
    thin = create(group, "thin", 64 * MIB, backing=THIN)
    plain = create(group, "plain", 8 * MIB)
    with pytest.raises(StorageError, match="cannot write to stream"):
        upload(group, thin, os.urandom(24 * MIB))
    found = volumes(group)
    assert found.keys() == {"tp", "thin", "plain"}
    assert "100 % of its space for data are used" in (found["tp"].problem or "")
    group.wipe(plain, WipeAlgorithm.ZERO, new_job())
    with pytest.raises(NoSpace):
        group.wipe(found["thin"], WipeAlgorithm.ZERO, new_job())
    grown = group.resize(found["tp"], 32 * MIB, new_job())
    assert grown.capacity == 32 * MIB
    assert volumes(group)["tp"].problem is None
    write(thin, b"it goes on", 30 * MIB)
    group.delete(volumes(group)["thin"], new_job())
    assert volumes(group).keys() == {"tp", "plain"}


def test_sizes_of_thin_and_of_encrypted_volumes(lab: Lab) -> None:
    group = with_thin_pool(lab)
    thin = create(group, "thin", 64 * MIB, backing=THIN)
    write(thin, b"data")
    grown = group.resize(thin, 2048 * MIB, new_job())
    assert (grown.capacity, grown.allocation < MIB) == (2048 * MIB, True)
    with pytest.raises(InvalidArgument, match="shrink"):
        group.resize(grown, 32 * MIB, new_job())
    with pytest.raises(OperationUnsupported, match="allocated when it is written"):
        group.resize(grown, 4096 * MIB, new_job(), allocate=True)
    small = group.resize(grown, 32 * MIB, new_job(), shrink=True)
    assert (small.capacity, read(small, 4)) == (32 * MIB, b"data")
    # the header of an encrypted volume takes up to 2 MiB of its device
    locked = create(group, "locked", 16 * MIB, encryption=Encryption("luks"), secret=b"word")
    assert locked.capacity == 20 * MIB
    with closing(group.open_image(locked, writable=True)) as handle:
        disk = unlock(handle, b"word")
        size = disk.size()
        assert 18 * MIB <= size < 20 * MIB
        disk.pwrite(b"secret data", 17 * MIB)
    snapshot = create(group, "snap", 8 * MIB, backing=BackingStore("locked"))
    known = {"locked": group.look("locked", locked) or locked}
    assert known["locked"].image is not None
    # a scan does not forget what it is, with a snapshot neither
    assert group.refresh(known, new_job()).volumes["locked"].image is not None
    group.delete(snapshot, new_job())
    larger = group.resize(locked, 24 * MIB, new_job(), secret=b"word")
    assert larger.capacity == 24 * MIB
    with closing(group.open_image(larger)) as handle:
        disk = unlock(handle, b"word")
        assert (disk.size(), disk.pread(11, 17 * MIB)) == (size + 4 * MIB, b"secret data")
