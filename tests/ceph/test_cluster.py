"""The clusters themselves: what other tests take for granted of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ceph.admin import AdminError
from tests.ceph.cluster import Cluster, missing
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool
from tests.kernel.programs import eventually

MIB = 1 << 20


def processes_of(directory: Path) -> list[int]:
    """Return who runs with the directory in its arguments."""
    needle = os.fsencode(directory)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended while we looked
    return found


def test_images(ceph_pool: Pool) -> None:
    image = ceph_pool.create("disk", 16 * MIB, order=20, features=61)
    image.write(3 * MIB, b"data")
    assert image.read(3 * MIB - 1, 6) == b"\0data\0"
    assert image.extents() == [(3 * MIB, 4)]
    image.create_snap("first", protect=True)
    clone = ceph_pool.clone(image, "first", "clone")
    assert clone.parent() == (ceph_pool.name, "disk", "first")
    assert ceph_pool.image("disk", "first").children() == [(ceph_pool.name, "clone")]
    with pytest.raises(AdminError) as caught:
        image.unprotect_snap("first")
    assert (caught.value.kind, caught.value.errno) == ("ImageBusy", errno.EBUSY)
    clone.flatten()
    assert clone.parent() is None
    image.unprotect_snap("first")
    image.remove_snap("first")
    image.resize(MIB)
    assert (image.size(), image.snaps()) == (MIB, [])
    image.rename("other").remove()
    assert ceph_pool.images() == ["clone"]


def test_odd_images(ceph_pool: Pool) -> None:
    odd = ceph_pool.create(os.fsdecode(b"caf\xe9"), MIB)
    odd.write(0, b"x")
    ceph_pool.create_format_1("old", MIB)
    ceph_pool.create("striped", MIB, stripe_unit=65536, stripe_count=4)
    assert ceph_pool.images() == [os.fsdecode(b"caf\xe9"), "old", "striped"]
    assert ceph_pool.image("old").call("old_format")
    assert ceph_pool.image("striped").query("stripe_count") == 4
    odd.remove()
    ceph_pool.rbd("trash_move", "striped", 0)
    assert (ceph_pool.trash(), ceph_pool.images()) == (["striped"], ["old"])


def test_namespaces_and_objects(ceph_pool: Pool) -> None:
    inside = ceph_pool.create_namespace("tenant")
    inside.create("disk", MIB)
    assert (ceph_pool.namespaces(), ceph_pool.images()) == (["tenant"], [])
    inside.set_omap("rbd_directory", "more", b"\xff")
    assert inside.omap("rbd_directory")["more"] == b"\xff"
    assert "rbd_id.disk" in inside.objects()
    inside.remove("disk")


def test_watchers(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    image = ceph_pool.create("disk", MIB)
    with ceph_cluster.client() as other:
        seen = other.image(ceph_pool.name, "disk")
        with seen.held() as held:
            held.write(0, b"theirs")
            assert len(image.watchers()) == 1
            with pytest.raises(AdminError) as caught:
                image.remove()
            assert caught.value.errno == errno.EBUSY
        assert image.watchers() == []
    image.remove()


def test_users(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    ceph_pool.create("disk", MIB)
    caps = {"mon": "profile rbd", "osd": "profile rbd-read-only"}
    key = ceph_cluster.add_user("client.reader", caps)
    assert (key, len(key)) == (ceph_cluster.key("client.reader"), 40)
    assert ceph_cluster.run("rbd", "ls", ceph_pool.name, user="client.reader") == "disk\n"
    with ceph_cluster.client("client.reader") as reader, pytest.raises(AdminError) as caught:
        reader.pool(ceph_pool.name).create("mine", MIB)
    assert caught.value.errno == errno.EPERM
    ceph_cluster.remove_user("client.reader")


def test_capacity(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    ceph_pool.create("disk", 8 * MIB).write(0, b"x" * 4 * MIB)
    assert ceph_cluster.admin.stats()["kb"] == ceph_cluster.size // 1024
    eventually(lambda: ceph_pool.stats()["num_bytes"] >= 4 * MIB, what="the pool's use")


@pytest.mark.slow
def test_full_and_back(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    image = ceph_pool.create("disk", MIB)
    with ceph_cluster.full():
        assert image.read(0, 1) == b"\0"
        hasty = ceph_cluster.client(options={"rados_osd_op_timeout": "1"})
        with hasty, pytest.raises(AdminError) as caught:
            hasty.pool(ceph_pool.name).create("more", MIB)
        assert caught.value.errno == errno.ETIMEDOUT
    ceph_pool.create("most", MIB)


def test_frozen_monitor(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    with ceph_cluster.mon.frozen():
        ceph_pool.create("disk", MIB)  # the OSD is there
        with pytest.raises(AdminError) as caught:
            ceph_cluster.client(options={"client_mount_timeout": "1"})
        assert caught.value.errno == errno.ETIMEDOUT
    ceph_cluster.client().close()


def test_healed(ceph_bluestore: Cluster, ceph_pools: CephPools) -> None:
    pool = ceph_pools(ceph_bluestore)
    pool.create("disk", MIB).write(0, b"kept")
    ceph_bluestore.osd.kill()
    ceph_bluestore.mon.kill()
    ceph_bluestore.mgr.freeze()
    assert not ceph_bluestore.osd.running
    ceph_bluestore.heal()
    assert pool.image("disk").read(0, 4) == b"kept"


def test_pool_made_anew(ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    ceph_pool.create("disk", MIB)
    ceph_cluster.admin.delete_pool(ceph_pool.name)
    with pytest.raises(AdminError) as caught:
        ceph_pool.images()
    assert caught.value.errno == errno.ENOENT
    assert ceph_cluster.create_pool(ceph_pool.name).images() == []


def test_open_cluster(ceph_open: Cluster, ceph_pools: CephPools) -> None:
    pool = ceph_pools(ceph_open)
    pool.create("disk", MIB)
    assert ceph_open.run("rbd", "ls", pool.name, user="client.nobody") == "disk\n"


def test_ipv6(ceph_ipv6: Cluster, ceph_pools: CephPools) -> None:
    pool = ceph_pools(ceph_ipv6)
    pool.create("disk", MIB)
    assert ceph_ipv6.monitors.startswith("[v2:[::1]:")
    with pool.image("disk").held() as held:
        assert held.call("watchers_list")[0]["addr"].startswith("[::1]:")


def test_wrong_key_on_known_ports(ceph_known_port: Cluster, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring"
    keyring.write_text(f"[client.libvirt]\n\tkey = {ceph_known_port.key('client.admin')}\n")
    with pytest.raises(AdminError) as caught:
        ceph_known_port.client(
            "client.libvirt", {"keyring": str(keyring), "mon_host": "127.0.0.1:6789"}
        )
    assert caught.value.errno == errno.EACCES


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster to do away with."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_stop_leaves_nothing(private: Cluster) -> None:
    private.client()
    private.mon.freeze()
    assert len(processes_of(private.directory)) == 5
    private.stop()
    assert processes_of(private.directory) == []
    assert not private.directory.exists()


def test_what_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    with pytest.raises(FileExistsError):
        Cluster(tmp_path).start()
    assert (tmp_path / "letters").exists()


def test_memory_survives_an_orderly_end(private: Cluster) -> None:
    private.create_pool("vms").create("disk", MIB).write(0, b"kept")
    private.osd.terminate()
    private.heal()
    assert private.admin.image("vms", "disk").read(0, 4) == b"kept"


def test_ends_with_who_started_it(tmp_path: Path) -> None:
    why = missing()
    if why is not None:
        pytest.skip(why)
    place = tmp_path / "cluster"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ceph", place, "--pool", "vms"], stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        lines = [starter.stdout.readline().decode().split() for _ in range(4)]
        starter.send_signal(signal.SIGKILL)
    assert [line[0] for line in lines][:2] == ["monitor", "mon_host"]
    assert lines[3][1] == str(place / "ceph.conf")
    eventually(lambda: not processes_of(place), what="the daemons' end")


def test_interrupted_program_leaves_nothing(tmp_path: Path) -> None:
    why = missing()
    if why is not None:
        pytest.skip(why)
    place = tmp_path / "cluster"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ceph", place], stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        starter.send_signal(signal.SIGINT)
    assert starter.returncode == 0
    assert not place.exists()
    assert processes_of(place) == []
