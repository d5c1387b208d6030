"""Clones and copies of rbd images on a real Ceph cluster, from and into every other kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from storaged.backends._rbdhandle import RbdHandle
from storaged.errors import Cancelled, ConfigUnsupported, StorageError, SystemFailure
from storaged.formats.handle import Bytes
from storaged.job import Job
from storaged.poolhandle import Pool as StoragedPool
from storaged.storage import Storage
from storaged.volumehandle import Volume
from tests.backends.rbdpools import opened, start
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Image, Pool
from tests.kernel.programs import run

KIB, MIB = 1 << 10, 1 << 20

#: All features that an image can have beside those about one image alone.
_FEATURES = 61


@pytest.fixture
def there(ceph_open: Cluster, ceph_pools: CephPools) -> Pool:
    """A fresh Ceph pool in a cluster without cephx."""
    return ceph_pools(ceph_open)


@pytest.fixture
def storage_and_pool(
    tmp_path: Path, ceph_open: Cluster, there: Pool
) -> Iterator[tuple[Storage, StoragedPool]]:
    """An engine, and a pool of it, started."""
    with opened(tmp_path / "root", ceph_open, there) as both:
        yield both


@pytest.fixture
def storage(storage_and_pool: tuple[Storage, StoragedPool]) -> Storage:
    """The engine."""
    return storage_and_pool[0]


@pytest.fixture
def pool(storage_and_pool: tuple[Storage, StoragedPool]) -> StoragedPool:
    """The pool."""
    return storage_and_pool[1]


@pytest.fixture
def files(storage: Storage, tmp_path: Path) -> StoragedPool:
    """A pool of files in the same engine."""
    target = tmp_path / "files"
    target.mkdir()
    pool = storage.define_pool(
        f"<pool type='dir'><name>files</name><target><path>{target}</path></target></pool>"
    )
    pool.start()
    return pool


def fill(image: Image, size: int) -> dict[int, bytes]:
    """Write here and there, and return what."""
    written = {at: os.urandom(3000) for at in (0, MIB - 1, size // 2, size - 3000)}
    for at, data in written.items():
        image.write(at, data)
    return written


def check(image: Image, written: dict[int, bytes]) -> None:
    """Check that an image holds it."""
    assert {at: image.read(at, len(data)) for at, data in written.items()} == written


def automatic(image: Image) -> list[str]:
    """Return the snapshots that were taken for clones."""
    return [name for name in image.snaps() if name.startswith("storaged-")]


# Copy-on-write clones


@pytest.mark.parametrize("reflink", [False, True])
def test_a_clone_shares_its_parents_data(pool: StoragedPool, there: Pool, reflink: bool) -> None:
    how = {"order": 20, "stripe_unit": 64 * KIB, "stripe_count": 4}
    parent = there.create("parent", 20 * MIB, features=_FEATURES | 2, **how)
    written = fill(parent, 20 * MIB)
    pool.refresh()
    before = set(there.objects())
    clone = pool.volume("parent").clone_to("clone", reflink=reflink)
    image = there.image("clone")
    assert image.parent() == (there.name, "parent", *automatic(parent))
    assert clone.info().capacity == 20 * MIB
    assert image.features() == parent.features()
    for what in ("stripe_unit", "stripe_count"):
        assert image.query(what) == parent.query(what)
    assert image.stat()["order"] == 20
    assert not any(name.startswith("rbd_data") for name in set(there.objects()) - before)
    check(image, written)
    parent.write(0, b"new")
    check(image, written)
    image.write(MIB - 1, b"clone's")
    assert parent.read(MIB - 1, 3000) == written[MIB - 1]


def test_a_larger_clone(pool: StoragedPool, there: Pool) -> None:
    parent = pool.create("parent", 8 * MIB)
    written = fill(there.image("parent"), 8 * MIB)
    clone = parent.clone_to("clone", capacity=20 * MIB)
    assert clone.info().capacity == there.image("clone").size() == 20 * MIB
    check(there.image("clone"), written)
    assert there.image("clone").read(8 * MIB, 4096) == bytes(4096)
    with pytest.raises(StorageError):
        parent.clone_to("smaller", capacity=MIB)
    assert there.images() == ["clone", "parent"]


def test_a_snapshot_serves_until_something_changes(pool: StoragedPool, there: Pool) -> None:
    image = there.create("parent", 4 * MIB, order=20)
    image.write(0, b"x" * 2 * MIB)
    pool.refresh()
    parent = pool.volume("parent")
    numbers = iter(range(100))

    def snapshots_after(change: Callable[[], Any]) -> int:
        change()
        for _ in range(2):
            clone = parent.clone_to(f"clone-{next(numbers)}")
            assert there.image(clone.name).read(0, 4 * MIB) == image.read(0, image.size())
            clone.delete()
        return len(automatic(image))

    assert snapshots_after(lambda: None) == 1
    assert snapshots_after(lambda: None) == 1
    assert snapshots_after(lambda: image.write(3 * MIB, b"y")) == 2
    assert snapshots_after(lambda: image.write(4, b"z")) == 3
    assert snapshots_after(lambda: image.call("discard", MIB, MIB)) == 4


def test_a_snapshot_of_another_size_does_not_serve(pool: StoragedPool, there: Pool) -> None:
    parent = pool.create("parent", 16 * MIB)
    for size in (16 * MIB, 20 * MIB, 20 * MIB + 1):
        there.image("parent").resize(size)
        assert parent.clone_to(f"clone-{size}").info().capacity == size
    assert len(automatic(there.image("parent"))) == 3


@pytest.mark.parametrize("removed", [False, True])
def test_what_was_rolled_back_is_not_cloned_as_it_was_before(
    pool: StoragedPool, there: Pool, removed: bool
) -> None:
    """The maps of objects tell of no change then."""
    parent = pool.create("parent", 8 * MIB)
    image = there.image("parent")
    image.write(0, b"one")
    parent.clone_to("first")
    image.create_snap("monday")
    image.write(0, b"two")
    parent.clone_to("second")
    image.call("rollback_to_snap", "monday")
    if removed:
        image.remove_snap("monday")
    parent.clone_to("third")
    told = [there.image(name).read(0, 3) for name in ("first", "second", "third")]
    assert told == [b"one", b"two", b"one"]


def test_a_clone_of_a_clone(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("volume-0", 8 * MIB)
    written = fill(there.image("volume-0"), 8 * MIB)
    for number in (1, 2):
        volume = volume.clone_to(f"volume-{number}")
    assert there.image("volume-2").parent() is not None
    check(there.image("volume-2"), written)
    for number in (2, 1, 0):
        pool.volume(f"volume-{number}").delete()
    assert there.images() == []


def test_a_clone_while_its_parent_is_written(pool: StoragedPool, there: Pool) -> None:
    parent = pool.create("parent", 8 * MIB)
    with there.image("parent").held() as held:
        held.write(0, b"one")
        parent.clone_to("first")
        held.write(0, b"two")
        parent.clone_to("second")
    assert [there.image(name).read(0, 3) for name in ("first", "second")] == [b"one", b"two"]


def test_between_two_pools_of_one_ceph_pool(
    storage: Storage, pool: StoragedPool, ceph_open: Cluster, there: Pool
) -> None:
    other = start(storage, ceph_open, there, name="other")
    volume = pool.create("parent", 8 * MIB)
    written = fill(there.image("parent"), 8 * MIB)
    volume.clone_to("clone", pool=other, reflink=True)
    assert there.image("clone").parent() is not None
    check(there.image("clone"), written)


@pytest.mark.parametrize("features", [0, 1])
def test_images_that_can_have_no_clones_or_no_maps(
    pool: StoragedPool, there: Pool, features: int
) -> None:
    """Without layering, data are copied; without a map of objects each clone has a snapshot."""
    image = there.create("parent", 8 * MIB, features=features)
    written = fill(image, 8 * MIB)
    pool.refresh()
    parent = pool.volume("parent")
    for name in ("first", "second"):
        parent.clone_to(name)
        check(there.image(name), written)
        assert (there.image(name).parent() is not None) == bool(features)
    assert len(automatic(image)) == 2 * features
    if not features:
        with pytest.raises(StorageError, match="can have no copy-on-write clones"):
            parent.clone_to("third", reflink=True)


def test_flatten(pool: StoragedPool, there: Pool) -> None:
    image = there.create("parent", 64 * MIB, order=20)
    image.write(0, b"x" * 64 * MIB)
    written = fill(image, 64 * MIB)
    pool.refresh()
    parent = pool.volume("parent")
    clone = parent.clone_to("clone")
    told = []
    job = clone.convert(flatten=True, wait=False)
    job.subscribe(lambda progress: told.append((progress.done, progress.total)))
    job.result()
    assert told[-1][1] == 64, told  # objects
    assert there.image("clone").parent() is None
    check(there.image("clone"), written)
    parent.delete()
    check(there.image("clone"), written)
    with pytest.raises(StorageError):
        clone.convert(format="qcow2")


# Copies


def test_from_a_file(files: StoragedPool, pool: StoragedPool, there: Pool, tmp_path: Path) -> None:
    data = os.urandom(2 * MIB)
    (tmp_path / "data").write_bytes(data)
    for format in ("raw", "qcow2", "vmdk"):
        raw = files.create(f"raw-{format}", 24 * MIB, format="raw")
        raw.upload(tmp_path / "data", offset=10 * MIB)
        source = raw.clone_to(f"source-{format}", format=format)
        made = source.clone_to(f"made-{format}", pool=pool, format="raw")
        assert made.info().capacity == 24 * MIB
        image = there.image(made.name)
        assert image.read(10 * MIB, 2 * MIB) == data
        assert sum(length for _, length in image.extents()) <= 4 * MIB
    with pytest.raises(SystemFailure):
        source.clone_to("shared", pool=pool, format="raw", reflink=True)
    assert not [name for name in there.images() if ".part" in name or name == "shared"]


def test_into_a_file(files: StoragedPool, pool: StoragedPool, there: Pool, tmp_path: Path) -> None:
    volume = pool.create("volume", 40 * MIB)
    written = fill(there.image("volume"), 40 * MIB)
    for format in ("raw", "qcow2"):
        made = volume.clone_to(f"made-{format}", pool=files, format=format)
        raw = tmp_path / "raw"
        run("qemu-img", "convert", "-O", "raw", made.path, str(raw))
        with raw.open("rb") as file:
            for at, data in written.items():
                file.seek(at)
                assert file.read(len(data)) == data
        assert Path(made.path).stat().st_blocks * 512 < 20 * MIB


def test_into_another_ceph_pool(
    storage: Storage, pool: StoragedPool, ceph_open: Cluster, ceph_pools: CephPools, there: Pool
) -> None:
    elsewhere = ceph_pools(ceph_open)
    other = start(storage, ceph_open, elsewhere, name="other")
    volume = pool.create("volume", 20 * MIB)
    written = fill(there.image("volume"), 20 * MIB)
    made = volume.clone_to("made", pool=other, capacity=24 * MIB)
    assert made.info().capacity == 24 * MIB
    assert elsewhere.image("made").parent() is None
    check(elsewhere.image("made"), written)
    with pytest.raises(SystemFailure):
        volume.clone_to("shared", pool=other, reflink=True)
    assert elsewhere.images() == ["made"]


def test_an_overlay_is_refused(files: StoragedPool, pool: StoragedPool) -> None:
    source = files.create("source", MIB, format="qcow2")
    with pytest.raises(ConfigUnsupported):
        pool.clone(source, "made", format="raw", backing="keep")


class Meanwhile:
    """Does something when the first bytes of a copy are written."""

    def __init__(self, patch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
        self.begun = Event()
        self._what = what
        write = RbdHandle.pwrite

        def pwrite(handle: RbdHandle, data: Bytes, offset: int) -> None:
            if not self.begun.is_set():
                self._what()
                self.begun.set()
            write(handle, data, offset)

        patch.setattr(RbdHandle, "pwrite", pwrite)


@pytest.fixture
def source(files: StoragedPool, tmp_path: Path) -> Volume:
    """A file to copy."""
    volume = files.create("source", 32 * MIB, format="raw")
    (tmp_path / "data").write_bytes(os.urandom(32 * MIB))
    volume.upload(tmp_path / "data")
    return volume


def test_a_copy_is_invisible_until_it_is_whole(
    source: Volume, pool: StoragedPool, there: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    Meanwhile(monkeypatch, lambda: seen.append(there.images()))
    source.clone_to("made", pool=pool)
    ((part,),) = seen
    assert part.startswith(".storaged-")
    assert part.endswith(".part")
    assert there.images() == ["made"]


def test_a_cancelled_copy_leaves_nothing(
    source: Volume, pool: StoragedPool, there: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job[Volume]] = []
    known = Event()

    def cancel() -> None:
        assert known.wait(10)
        jobs[0].cancel()

    Meanwhile(monkeypatch, cancel)
    jobs.append(source.clone_to("made", pool=pool, wait=False))
    known.set()
    with pytest.raises(Cancelled):
        jobs[0].result()
    assert there.images() == []
    assert pool.names() == []


def test_a_name_that_is_taken_meanwhile(
    source: Volume, pool: StoragedPool, there: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take() -> None:
        there.create("made", MIB).write(0, b"precious")

    Meanwhile(monkeypatch, take)
    with pytest.raises(StorageError, match="made"):
        source.clone_to("made", pool=pool)
    assert there.images() == ["made"]
    assert there.image("made").read(0, 8) == b"precious"
    assert there.image("made").size() == MIB


@pytest.mark.kernel("lvm", "dm", "udev", "loop")
def test_from_and_into_a_logical_volume(
    storage: Storage, pool: StoragedPool, there: Pool, loop_device: Callable[[int], str]
) -> None:
    device = loop_device(128)
    group = storage.define_pool(
        f"<pool type='logical'><name>cephvg</name><source><device path='{device}'/>"
        "<name>cephvg</name><format type='lvm2'/></source>"
        "<target><path>/dev/cephvg</path></target></pool>"
    )
    group.build(overwrite=False)
    group.start()
    try:
        volume = pool.create("volume", 16 * MIB)
        written = fill(there.image("volume"), 16 * MIB)
        logical = volume.clone_to("logical", pool=group)
        logical.clone_to("back", pool=pool)
        check(there.image("back"), written)
        logical.delete()
    finally:
        group.stop()
        run("vgremove", "--force", "--yes", "cephvg", check=False)
