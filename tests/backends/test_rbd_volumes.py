"""Volumes of rbd pools on a real Ceph cluster: they come, change, are wiped, and go."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    OperationInvalid,
    StorageError,
    SystemFailure,
    Unsupported,
    VolumeBusy,
    VolumeExists,
)
from storaged.flow import WipeAlgorithm
from storaged.poolhandle import Pool as StoragedPool
from tests.backends.rbdpools import backend_of, opened
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool
from tests.kernel.programs import eventually

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def there(ceph_open: Cluster, ceph_pools: CephPools) -> Pool:
    """A fresh Ceph pool in a cluster without cephx."""
    return ceph_pools(ceph_open)


@pytest.fixture
def pool(tmp_path: Path, ceph_open: Cluster, there: Pool) -> Iterator[StoragedPool]:
    """A pool of it, started; allocations are counted."""
    with opened(tmp_path / "root", ceph_open, there, allocation="default") as (_, pool):
        yield pool


def leftovers(there: Pool) -> list[str]:
    """Return the names of the objects that images have, beside the lists of them."""
    return [name for name in there.objects() if name.startswith(("rbd_data", "rbd_h", "rbd_ob"))]


# They come


def test_what_cannot_be_made_is_refused(pool: StoragedPool, there: Pool) -> None:
    with pytest.raises(ConfigUnsupported, match="only RAW volumes are supported"):
        pool.create("volume", MIB, format="qcow2")
    with pytest.raises(Unsupported, match="volume capacity required"):
        pool.create("volume", 0)
    with pytest.raises(InvalidArgument, match="unsupported flags"):
        pool.create("volume", MIB, preallocate_metadata=True)
    assert there.images() == []


def test_somebody_elses_image_is_never_touched(pool: StoragedPool, there: Pool) -> None:
    """It has come since the last scan, and has the name that is wished."""
    source = pool.create("source", 4 * MIB)
    foreign = there.create("taken", 8 * MIB)
    foreign.write(0, b"precious")
    with pytest.raises(VolumeExists):
        pool.create("taken", MIB)
    for capacity in (4 * MIB, 16 * MIB):
        with pytest.raises(StorageError, match="taken"):
            source.clone_to("taken", capacity=capacity)
    assert foreign.read(0, 8) == b"precious"
    assert foreign.size() == 8 * MIB
    assert there.images() == ["source", "taken"]
    source.delete()


# They go


def test_a_deleted_image_has_no_objects_left(pool: StoragedPool, there: Pool) -> None:
    """Few objects go a moment later, many before the delete is done."""
    for name, size in (("small", 5 * MIB), ("large", 80 * MIB)):
        there.create(name, size, order=20).write(0, b"x" * size)
    pool.refresh()
    pool.volume("small").delete()
    pool.volume("large").delete()
    assert pool.names() == there.images() == []
    eventually(lambda: not leftovers(there) and not there.trash(), what="all of it to go")


def test_automatic_snapshots_go_with_the_image(pool: StoragedPool, there: Pool) -> None:
    source = pool.create("source", 4 * MIB)
    clone = source.clone_to("clone")
    with pytest.raises(VolumeBusy, match=rf"has clones that need its data: {there.name}/clone"):
        source.delete(snapshots=True)
    clone.delete()
    source.delete()
    assert there.images() == []
    eventually(lambda: not leftovers(there), what="all of it to go")


def test_a_users_snapshots_are_kept_unless_told(pool: StoragedPool, there: Pool) -> None:
    image = there.create("volume", 4 * MIB)
    image.create_snap("monday")
    image.create_snap("tuesday", protect=True)
    pool.refresh()
    volume = pool.volume("volume")
    with pytest.raises(OperationInvalid, match="monday, tuesday") as why:
        volume.delete()
    assert "--snapshots" in (why.value.advice or "")
    assert image.snaps() == ["monday", "tuesday"]
    with image.held() as held:
        held.write(0, b"x")
        with pytest.raises(VolumeBusy, match=r"in use by other clients: 127\.0\.0\.1"):
            volume.delete(snapshots=True)
    assert image.snaps() == ["monday", "tuesday"]
    child = there.clone(image, "tuesday", "child")
    with pytest.raises(VolumeBusy, match="child"):
        volume.delete(snapshots=True)
    assert image.snaps() == ["monday", "tuesday"]
    child.remove()
    volume.delete(snapshots=True)
    assert there.images() == []


def test_a_refused_delete_leaves_no_note(pool: StoragedPool, there: Pool) -> None:
    """Else a later start would remove what its owner has put into the trash."""
    pool.create("volume", 4 * MIB)
    image = there.image("volume")
    with image.held() as held:
        held.write(0, b"x")
        with pytest.raises(VolumeBusy):
            pool.volume("volume").delete()
    assert image.query("metadata_list") == []
    there.rbd("trash_move", "volume", 0)
    pool.stop()
    pool.start()
    pool.create("other", MIB)
    assert there.trash() == ["volume"]


def kill_in_a_delete(pool: StoragedPool, there: Pool) -> None:
    """Kill the process that has put off the removal of a volume, before it comes to that."""
    link = backend_of(pool).link
    for _ in range(5):
        volume = pool.create("volume", MIB)
        child = link.pid
        assert child is not None
        volume.delete()
        os.kill(child, signal.SIGKILL)
        eventually(lambda: link.pid != child, what="the child to die")  # noqa: B023
        if "volume" in there.trash():
            break


def test_a_killed_delete_is_ended_by_the_next_start(
    tmp_path: Path, ceph_open: Cluster, there: Pool
) -> None:
    """And what a user has put into the trash is not touched."""
    there.create("precious", MIB)
    there.rbd("trash_move", "precious", 0)
    with opened(tmp_path, ceph_open, there) as (_, pool):
        kill_in_a_delete(pool, there)
        assert there.trash() == ["precious", "volume"]
        pool.stop()
        pool.start()
        eventually(lambda: there.trash() == ["precious"], what="the trash to be swept")
        there.rbd("trash_restore", there.rbd("trash_list")[0]["id"], "precious")
    assert there.images() == ["precious"]


# They change


def test_resize(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 8 * MIB)
    image = there.image("volume")
    image.write(0, b"x" * 6 * MIB)
    volume.resize(20 * MIB)
    assert volume.info().capacity == image.size() == 20 * MIB
    volume.resize(12 * MIB, shrink=True)
    assert volume.info().capacity == image.size() == 12 * MIB
    with pytest.raises(InvalidArgument):
        volume.resize(4 * MIB, shrink=True)
    with pytest.raises(InvalidArgument):
        volume.resize(4 * MIB)
    with pytest.raises(InvalidArgument):
        volume.resize(16 * MIB, allocate=True)
    assert image.size() == 12 * MIB
    volume.resize(4 * MIB, shrink=True, force=True)
    assert image.size() == 4 * MIB
    volume.resize(8 * MIB)
    assert image.read(3 * MIB, 2 * MIB) == b"x" * MIB + bytes(MIB)


def test_resize_while_it_is_open_elsewhere(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 8 * MIB)
    image = there.image("volume")
    with image.held() as held:
        held.write(0, b"x")
        volume.resize(16 * MIB)
        with pytest.raises(VolumeBusy, match=r"in use by other clients: 127\.0\.0\.1"):
            volume.resize(8 * MIB, shrink=True)
        assert held.call("size") == 16 * MIB
    volume.resize(8 * MIB, shrink=True)
    assert image.size() == 8 * MIB


# They are wiped


@pytest.mark.parametrize("size", [9 * MIB + 5, 40 * KIB])
def test_a_wipe_writes_zeros_or_gives_up(pool: StoragedPool, there: Pool, size: int) -> None:
    volume = pool.create("volume", size)
    image = there.image("volume")
    image.write(0, b"x" * size)
    volume.wipe()
    assert image.read(0, size) == bytes(size)
    assert volume.info().allocation == size  # they were written
    image.write(0, b"x" * size)
    volume.wipe(WipeAlgorithm.TRIM)
    assert image.read(0, size) == bytes(size)
    assert volume.info().allocation == size % (4 * MIB)  # the last object is no whole one


def test_a_wipe_with_patterns(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 5 * MIB + 3)
    image = there.image("volume")
    image.write(MIB, b"secret" * 1000)
    volume.wipe(WipeAlgorithm.DOD)
    data = image.read(0, 5 * MIB + 3)
    assert b"secret" not in data
    volume.wipe(WipeAlgorithm.RANDOM)
    assert image.read(0, 5 * MIB + 3) != data


def test_no_wipe_where_a_snapshot_keeps_it_all(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 4 * MIB)
    image = there.image("volume")
    image.write(0, b"x")
    clone = volume.clone_to("clone")
    with pytest.raises(OperationInvalid, match="snapshots, which keep what it holds: storaged-"):
        volume.wipe()
    clone.delete()
    image.create_snap("monday")
    with pytest.raises(OperationInvalid, match="which keep what it holds: monday"):
        volume.wipe()
    assert image.snaps() == ["monday"]  # ours has gone, as nobody needs it any more
    assert image.read(0, 1) == b"x"
    volume.wipe(force=True)
    assert image.read(0, 1) == b"\0"
    assert there.image("volume", "monday").read(0, 1) == b"x"
    image.remove_snap("monday")
    with image.held() as held:
        held.write(0, b"y")
        with pytest.raises(VolumeBusy):
            volume.wipe()
    volume.wipe()
    assert image.read(0, 1) == b"\0"


# Their bytes


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (511, 3 * MIB + 7), (4 * MIB - 1, 2), (4 * MIB, 4 * MIB), (9 * MIB, 12_345)],
)
def test_a_part_is_moved(pool: StoragedPool, there: Pool, offset: int, length: int) -> None:
    size = 9 * MIB + 12_345
    volume = pool.create("volume", size)
    held = bytearray(b"old " * (size // 4 + 1))[:size]
    there.image("volume").write(0, bytes(held))
    data = os.urandom(length)
    assert volume.upload(BytesIO(data + b"more"), offset=offset, length=length) == length
    held[offset : offset + length] = data
    back = BytesIO()
    volume.download(back)
    assert back.getvalue() == held
    part = BytesIO()
    assert volume.download(part, offset=offset, length=length) == length
    assert part.getvalue() == data
    assert there.image("volume").read(0, size) == held


def test_holes_stay_holes(pool: StoragedPool, there: Pool, tmp_path: Path) -> None:
    size = 64 * MIB
    sent, back = tmp_path / "sent", tmp_path / "back"
    with sent.open("wb") as file:
        file.write(b"a" * MIB)
        file.seek(40 * MIB)
        file.write(b"b" * MIB)
        file.truncate(size)
    volume = pool.create("volume", size)
    there.image("volume").write(20 * MIB, b"old" * 1000)
    assert volume.upload(sent, sparse=True) == size
    assert volume.info().allocation == 8 * MIB
    assert volume.download(back, sparse=True) == size
    assert back.read_bytes() == sent.read_bytes()
    assert back.stat().st_blocks * 512 <= 3 * MIB
    volume.download(back)
    assert back.read_bytes() == sent.read_bytes()


def test_what_is_too_long_is_refused(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 5 * MIB)
    with pytest.raises(SystemFailure, match="cannot write to stream: No space left on device"):
        volume.upload(BytesIO(b"x" * (5 * MIB + 1)))
    with pytest.raises(StorageError):
        volume.upload(BytesIO(b"x" * 10), offset=5 * MIB - 5)
    back = BytesIO()
    assert volume.download(back, offset=5 * MIB - 5, length=100) == 5
    with pytest.raises(StorageError):
        volume.upload(BytesIO(b"x"), offset=6 * MIB)
    assert there.image("volume").size() == 5 * MIB


def test_an_upload_that_is_broken_off(pool: StoragedPool, there: Pool) -> None:
    """What was written stays, and the volume is nobody's at once."""
    volume = pool.create("volume", 12 * MIB)
    sink = volume.open_upload()
    sink.write(b"x" * 5 * MIB)
    with pytest.raises(VolumeBusy):
        volume.delete()
    sink.abort()
    image = there.image("volume")
    assert image.read(0, 5 * MIB) == b"x" * 5 * MIB
    assert image.watchers() == []
    volume.delete()


def test_an_upload_to_what_others_write_is_refused(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume", 4 * MIB)
    with there.image("volume").held() as held:
        held.write(0, b"x")
        with pytest.raises(VolumeBusy, match=r"in use by other clients: 127\.0\.0\.1"):
            volume.upload(BytesIO(b"y"))
        back = BytesIO()
        volume.download(back, length=1)  # to read is allowed
        assert back.getvalue() == b"x"
    volume.upload(BytesIO(b"y"))


def test_leftovers_of_this_host_go_at_a_start(
    tmp_path: Path, ceph_open: Cluster, there: Pool
) -> None:
    with opened(tmp_path, ceph_open, there) as (_, pool):
        host = backend_of(pool).host.id
        ours = f".storaged-{host}-99999999-7.part"
        for name in (ours, ".storaged-other-99999999-7.part", ".storaged-odd", "volume"):
            there.create(name, MIB)
        pool.stop()
        pool.start()
        eventually(lambda: ours not in there.images(), what="the leftover to go")
        assert pool.names() == [".storaged-odd", "volume"]
        assert ".storaged-other-99999999-7.part" in there.images()
        assert json.dumps(pool.problems) == "[]"
