"""rbd pools on a real Ceph cluster: definitions, options, namespaces, names, restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.errors import InternalError, InvalidArgument, NoSuchVolume, SystemFailure
from storaged.model import PoolState, VolumeType
from storaged.poolhandle import Pool as StoragedPool
from storaged.poolxml import parse_pool
from storaged.storage import Storage
from storaged.volxml import parse_volume
from tests.backends.rbdpools import IMPATIENT, backend_of, engine, opened, pool_xml, start
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool
from tests.kernel.programs import eventually, patience

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: Feature bits of images.
_LAYERING, _STRIPING, _LOCK, _MAP, _FAST_DIFF = 1, 2, 4, 8, 16
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


# Definitions


def test_its_xml_is_libvirts(tmp_path: Path, ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    options = {"rbd_default_order": "20", "client_mount_timeout": "7"}
    with opened(tmp_path, ceph_cluster, ceph_pool, options=options, allocation="default") as (
        storage,
        pool,
    ):
        text = pool.xml()
        assert parse_pool(text, validate=True) == pool.definition()
        assert pool.definition().config_options == tuple(options.items())
        children = [line.strip().partition(" ")[0] for line in text.splitlines()]
        for first, second in (("<host", "<name>"), ("<auth", "<refresh>"), ("<rbd:option", "</p")):
            places = [number for number, line in enumerate(children) if line.startswith(first)]
            assert places, text
            later = [number for number, line in enumerate(children) if line.startswith(second)]
            assert places[0] < max(later), (first, second)
        assert "<target>" not in text
        pool.stop()
        assert storage.pool("ceph").xml(inactive=True).count("<rbd:option") == 2


def test_a_volume_is_a_network_volume(pool: StoragedPool, there: Pool) -> None:
    volume = pool.create("b@c d é", MIB + 1)
    path = f"{there.name}/b@c d é"
    info = volume.info()
    assert (volume.key, volume.path) == (path, path)
    assert (info.type, info.format, info.capacity) == (VolumeType.NETWORK, "raw", MIB + 1)
    assert info.allocation == 4 * MIB  # whole objects
    told = parse_volume(volume.xml(), "rbd", validate=True)
    assert (told.name, told.key, told.path, told.type) == (volume.name, path, path, info.type)
    storage = Storage(pool._engine, "")
    assert storage.volume_by_path(path).name == storage.volume_by_key(path).name == volume.name
    slashed = pool.create("a/b", MIB)  # which the schema does not allow
    assert storage.volume_by_path(slashed.path) == slashed
    slashed.delete()
    assert there.images() == ["b@c d é"]


@pytest.mark.parametrize("several", [False, True])
def test_monitors_have_names_and_ports(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: Pool, several: bool
) -> None:
    """The second one is dead, and does not delay the start."""
    hosts = [("localhost", ceph_cluster.port)] + [("127.0.0.1", 9)] * several
    began = time.monotonic()
    with opened(tmp_path, ceph_cluster, ceph_pool, hosts=hosts) as (_, pool):
        assert time.monotonic() - began < patience(3)
        assert pool.create("volume", MIB).info().capacity == MIB
        assert pool.definition().source.hosts[0].name == "localhost"


def test_the_port_of_version_2_will_do(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    hosts = [(ceph_cluster.host, ceph_cluster.endpoint.port2)]
    with opened(tmp_path, ceph_cluster, ceph_pool, hosts=hosts) as (_, pool):
        assert pool.names() == []


def test_without_a_port_the_known_ones_are_asked(
    tmp_path: Path, ceph_known_port: Cluster, ceph_pools: CephPools
) -> None:
    there = ceph_pools(ceph_known_port)
    with opened(tmp_path, ceph_known_port, there, hosts=[("127.0.0.1", None)]) as (_, pool):
        assert pool.create("volume", MIB).name in there.images()


@pytest.mark.parametrize("brackets", [False, True])
def test_over_ipv6(
    tmp_path: Path, ceph_ipv6: Cluster, ceph_pools: CephPools, brackets: bool
) -> None:
    there = ceph_pools(ceph_ipv6)
    hosts = [("[::1]" if brackets else "::1", ceph_ipv6.port)]
    with opened(tmp_path, ceph_ipv6, there, hosts=hosts) as (_, pool):
        assert pool.create("volume", MIB).name in there.images()


def test_an_unknown_option_is_named(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    with (
        engine(tmp_path, ceph_open) as storage,
        pytest.raises(InternalError, match="failed to set RADOS option: nosuchoption"),
    ):
        start(storage, ceph_open, there, options={"nosuchoption": "1"})


def test_options_shape_new_images(
    tmp_path: Path, ceph_open: Cluster, ceph_pools: CephPools
) -> None:
    there, data = ceph_pools(ceph_open), ceph_pools(ceph_open)
    options = {
        "rbd_default_features": str(_LAYERING | _LOCK),
        "rbd_default_order": "20",
        "rbd_default_stripe_unit": str(64 * KIB),
        "rbd_default_stripe_count": "4",
        "rbd_default_data_pool": data.name,
    }
    with opened(tmp_path, ceph_open, there, options=options) as (_, pool):
        volume = pool.create("volume", 10 * MIB)
        image = there.image("volume")
        data_pool = 1 << 7
        assert image.features() == _LAYERING | _LOCK | _STRIPING | data_pool
        assert (image.query("stripe_unit"), image.query("stripe_count")) == (64 * KIB, 4)
        assert image.stat()["order"] == 20
        assert volume.info().allocation == 10 * MIB
        image.write(0, b"x" * MIB)
        assert objects_of_images(data)
        assert not objects_of_images(there)
        volume.delete()
        eventually(lambda: not objects_of_images(data), what="the data to go")


def objects_of_images(there: Pool) -> list[str]:
    """Return the names of the objects that hold images' data."""
    return [name for name in there.objects() if name.startswith("rbd_data.")]


# Namespaces


def test_a_namespace_is_a_pool_of_its_own(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    spaces = [there.create_namespace(name) for name in ("one", "two")]
    with engine(tmp_path, ceph_open) as storage:
        whole = start(storage, ceph_open, there, name="whole")
        one, two = (start(storage, ceph_open, each, name=each.namespace) for each in spaces)
        for pool in (whole, one, two):
            volume = pool.create("volume", MIB)
            source = pool.definition().source.name
            assert volume.path == volume.key == f"{source}/volume"
        one.create("more", MIB)
        assert storage.volume_by_path(f"{there.name}/one/more").pool == one
        assert (whole.names(), two.names()) == (["volume"], ["volume"])
        assert [space.images() for space in spaces] == [["more", "volume"], ["volume"]]
        copy = one.volume("volume").clone_to("copy", pool=two)
        assert spaces[1].image("copy").parent() is None
        copy.delete()
        for pool in (whole, one, two):
            for volume in pool.volumes():
                volume.delete()
            pool.stop()
    for space in spaces:
        eventually(lambda: not space.trash(), what="the trash to be empty")  # noqa: B023


def test_a_missing_namespace_is_named(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    with (
        engine(tmp_path, ceph_open) as storage,
        pytest.raises(SystemFailure, match=rf"namespace 'no' of pool '{there.name}' exist") as why,
    ):
        start(storage, ceph_open, f"{there.name}/no")
    assert "rbd namespace create" in (why.value.advice or "")


# Names, and old images


def test_images_of_the_old_format(pool: StoragedPool, there: Pool, tmp_path: Path) -> None:
    image = there.create_format_1("old", 5 * MIB)
    image.write(MIB, b"old data")
    pool.refresh()
    volume = pool.volume("old")
    assert volume.info().capacity == 5 * MIB
    volume.download(tmp_path / "back", offset=MIB, length=8)
    assert (tmp_path / "back").read_bytes() == b"old data"
    copy = volume.clone_to("copy")
    assert there.image("copy").read(MIB, 8) == b"old data"
    assert there.image("copy").parent() is None
    volume.resize(9 * MIB)
    assert image.size() == 9 * MIB
    volume.wipe()
    assert image.read(MIB, 8) == bytes(8)
    volume.delete()
    copy.delete()
    assert there.images() == []


def test_a_name_that_is_no_text_is_told_and_not_listed(pool: StoragedPool, there: Pool) -> None:
    there.create("odd\udcff", MIB)
    there.create("good", MIB)
    for number in range(120):  # their list is longer than most answers
        there.set_omap("rbd_directory", f"name_{number:080}", b"\x04\0\0\0" + b"%04d" % number)
    pool.refresh()
    assert "good" in pool.names()
    assert not any("odd" in name for name in pool.names())
    (problem,) = (each for each in pool.problems if "UTF-8" in each)
    assert problem == r"1 images have names that are no UTF-8: 'odd\udcff'"


@pytest.mark.parametrize("name", [".storaged-x-1-2.part", "new\nline"])
def test_names_that_cannot_be(pool: StoragedPool, name: str) -> None:
    with pytest.raises((InvalidArgument, InternalError)):
        pool.create(name, MIB)


def test_what_is_half_made_is_no_volume(pool: StoragedPool, there: Pool) -> None:
    there.create(".storaged-otherhost-17-3.part", MIB)
    pool.refresh()
    assert pool.names() == []
    with pytest.raises(NoSuchVolume):
        pool.volume(".storaged-otherhost-17-3.part")


# The pool's life


def test_it_is_active_after_a_restart(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    from storaged.storage import open_storage
    from tests.backends.rbdpools import set_key

    with open_storage(tmp_path) as storage:
        set_key(storage, ceph_cluster)
        pool = start(storage, ceph_cluster, ceph_pool)
        pool.create("volume", MIB)
    with open_storage(tmp_path) as storage:
        pool = storage.pool("ceph")
        assert pool.active
        assert pool.names() == ["volume"]
        pool.stop()
        assert pool.info().state is PoolState.INACTIVE
        pool.start()
        assert pool.names() == ["volume"]
        pool.stop()


def test_time_outs_are_options(tmp_path: Path, ceph_open: Cluster, there: Pool) -> None:
    with opened(tmp_path, ceph_open, there, options=IMPATIENT) as (_, pool):
        assert backend_of(pool).link.timeout < 10
        assert "client_mount_timeout" in pool_xml(ceph_open, there.name, options=IMPATIENT)
