"""What rbd pools and their images take of a real Ceph cluster, and refreshes of many images."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from storaged.poolhandle import Pool as StoragedPool
from tests.backends.rbdpools import backend_of, opened
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Image, Pool
from tests.kernel.programs import eventually, patience

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_LAYERING = 1
_MANY = 1000


@pytest.fixture
def there(ceph_open: Cluster, ceph_pools: CephPools) -> Pool:
    """A fresh Ceph pool in a cluster without cephx."""
    return ceph_pools(ceph_open)


@pytest.fixture
def pool(tmp_path: Path, ceph_open: Cluster, there: Pool) -> Iterator[StoragedPool]:
    """A pool of it, started."""
    with opened(tmp_path / "root", ceph_open, there) as (_, pool):
        yield pool


# Allocations


def used(cluster: Cluster, image: Image) -> int:
    """Return what ``rbd du`` says that an image takes, with its snapshots."""
    where = f"{image.pool.name}/{image.name}"
    told = cluster.run("rbd", "du", "--format", "json", where, user="client.admin")
    return sum(int(entry["used_size"]) for entry in json.loads(told)["images"])


@contextmanager
def counting(root: Path, cluster: Cluster, there: Pool) -> Iterator[StoragedPool]:
    """Give a pool whose allocations are counted."""
    with opened(root, cluster, there, allocation="default") as (_, pool):
        yield pool


def zoo(there: Pool) -> dict[str, Image]:
    """Make images of many kinds."""
    made = {
        "empty": there.create("empty", GIB),
        "nothing": there.create("nothing", 0),
        "full": there.create("full", 8 * MIB),
        "sparse": there.create("sparse", 100 * MIB),
        "odd": there.create("odd", 9 * MIB + 5),
        "tiny": there.create("tiny", 1),
        "small-objects": there.create("small-objects", 5 * MIB + 77, order=16),
        "striped": there.create("striped", 7 * MIB, order=20, stripe_unit=1 << 16, stripe_count=4),
        "discarded": there.create("discarded", 40 * MIB),
    }
    made["full"].write(0, b"x" * 8 * MIB)
    made["sparse"].write(50 * MIB, b"x")
    made["odd"].write(9 * MIB, b"x" * 5)
    made["tiny"].write(0, b"x")
    made["small-objects"].write(5 * MIB, b"x" * 77)
    made["striped"].write(0, b"x" * 7 * MIB)
    made["discarded"].write(0, b"x" * 12 * MIB)
    made["discarded"].call("discard", 4 * MIB, 4 * MIB)
    made["full"].create_snap("s", protect=True)
    made["cloned"] = there.clone(made["full"], "s", "cloned")
    made["cloned"].write(4 * MIB, b"y")
    return made


def test_allocations_are_those_of_rbd_du(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    images = zoo(there)
    with counting(tmp_path, ceph_open, there) as pool:
        told = {info.ref.name: info.allocation for info in pool.infos()}
        looks = {volume.name: volume.info().allocation for volume in pool.volumes()}
    assert told == looks
    images.pop("nothing")  # rbd dies of it
    assert told == {name: used(ceph_open, image) for name, image in images.items()} | {"nothing": 0}
    assert told["cloned"] == 4 * MIB
    assert told["nothing"] == told["empty"] == 0


def test_without_a_map_of_objects_it_is_the_size(
    tmp_path: Path, ceph_open: Cluster, there: Pool
) -> None:
    there.create("plain", 5 * MIB, features=_LAYERING)
    there.create("none", 0, features=_LAYERING)
    marked = there.create("marked", 5 * MIB)
    header = f"rbd_header.{marked.query('id')}"
    there.set_omap(header, "flags", struct.pack("<Q", 2))
    with counting(tmp_path, ceph_open, there) as pool:
        sizes = {info.ref.name: info.allocation for info in pool.infos()}
        assert sizes == {"plain": 8 * MIB, "none": 0, "marked": 8 * MIB}
        assert pool.volume("marked").info().allocation == 8 * MIB


def test_an_image_larger_than_most(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    image = there.create("large", 2 << 40)
    image.write(1 << 40, b"x")
    with counting(tmp_path, ceph_open, there) as pool:
        info = pool.volume("large").info()
        assert (info.capacity, info.allocation) == (2 << 40, 4 * MIB)


def test_size_0_never_ends_the_process(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    there.create("nothing", 0)
    with counting(tmp_path, ceph_open, there) as pool:
        link = backend_of(pool).link
        process = link.pid
        volume = pool.volume("nothing")
        assert volume.info().allocation == 0
        volume.download(tmp_path / "back", sparse=True)
        assert (tmp_path / "back").read_bytes() == b""
        copy = volume.clone_to("copy")
        assert copy.info().capacity == 0
        volume.resize(MIB)
        volume.resize(0, shrink=True)
        volume.wipe()
        pool.refresh()
        assert link.pid == process


# Many


@pytest.mark.slow
def test_a_thousand_images(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    number = count()

    def make(host: int) -> None:
        with ceph_open.client() as admin:
            mine = admin.pool(there.name)
            while (each := next(number)) < _MANY:
                mine.create(f"image-{each}", MIB * (each + 1))
            del host

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make, range(4)))
    with counting(tmp_path, ceph_open, there) as pool:
        pool.refresh()
        began = time.monotonic()
        pool.refresh()
        assert time.monotonic() - began < patience(5)
        sizes = {info.ref.name: info.capacity for info in pool.infos()}
        assert sizes == {f"image-{each}": MIB * (each + 1) for each in range(_MANY)}
        assert {info.allocation for info in pool.infos()} == {0}


# The figures of the pool


def test_figures_are_the_clusters(
    tmp_path: Path, ceph_open: Cluster, there: Pool, pool: StoragedPool
) -> None:
    stats = ceph_open.admin.stats()
    space = pool.info().space
    assert space.capacity == stats["kb"] * KIB
    assert abs(space.available - stats["kb_avail"] * KIB) < GIB
    pool.create("huge", 1 << 40)
    space = pool.info().space
    assert 0 < space.available <= space.capacity
    assert space.allocation < GIB
    there.image("huge").write(0, b"x" * 8 * MIB)

    def counted() -> bool:
        pool.refresh()
        return pool.info().space.allocation >= 8 * MIB

    eventually(counted, what="the cluster to count what was written")
    pool.volume("huge").delete()
    assert pool.info().space.available > 0
