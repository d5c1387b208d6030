"""Volumes resized, cloned, made by policy and from XML."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from storaged.model import VolumeDef
from storaged.poolhandle import Pool
from storaged.settings import PoolPolicy
from storaged.storage import Storage
from storaged.volumehandle import Volume
from tests.doubles import PATIENCE, make_layered, refused
from tests.formats import cryptsetup
from tests.storaged.conftest import Engine, driver_of, idle


@pytest.fixture
def directory(engine: Engine, pool: Pool) -> Path:
    return engine.directory / pool.name


def test_resize(pool: Pool) -> None:
    volume = pool.create("v", 8192)
    volume.resize("16 KiB")
    volume.resize(4096, delta=True)
    assert volume.info().capacity == 20480
    volume.resize(20480)
    unasked = "Can't shrink capacity below current capacity unless shrink flag explicitly specified"
    with refused(8, f"invalid argument: {unasked}"):
        volume.resize(4096)
    volume.resize(4096, delta=True, shrink=True)
    assert volume.info().capacity == 16384
    Path(volume.path).write_bytes(b"x" * 8192)
    below = "invalid argument: can't shrink capacity below existing allocation"
    with refused(8, below):
        volume.resize(4096)
    with refused(8, below) as caught:
        volume.resize(4096, shrink=True)
    assert caught.value.advice == "The smallest safe size is 8192 bytes (8 KiB)."
    volume.resize(4096, shrink=True, force=True)
    assert Path(volume.path).stat().st_size == 4096
    zero = "capacity in virStorageVolResize cannot be zero without 'delta' or 'shrink' flags set"
    with refused(8, zero):
        volume.resize(0)
    with refused(8):
        volume.resize(2**63 - 1, delta=True)
    with refused(9, "operation failed: Not enough space left in storage pool"):
        volume.resize(1 << 60, allocate=True)
    assert volume.info().capacity == 4096


def test_delete_with_snapshots(engine: Engine) -> None:
    kind = make_layered()
    storage = engine.open(backends={"layered": kind, "double": engine.backend})
    pool = engine.pool("l", "layered", storage)
    volume = pool.create("v", 4096)
    kind.snapshots["v"] = ["one"]
    with refused(55):
        volume.delete()
    assert pool.names() == ["v"]
    volume.delete(snapshots=True)
    assert (pool.names(), idle(pool)) == ([], True)
    other = engine.pool("p", "double", storage).create("w", 4096)
    with refused(3) as caught:
        other.delete(snapshots=True)
    assert caught.value.detail == "storage pool does not support snapshots of volumes"
    assert Path(other.path).exists()


def test_a_delta_is_added_to_what_is_there_now(pool: Pool) -> None:
    volume = pool.create("v", 4096)
    os.truncate(volume.path, 1 << 20)
    volume.resize(4096, delta=True)
    assert volume.info().capacity == (1 << 20) + 4096


def test_a_clone_is_of_what_is_there_now(pool: Pool) -> None:
    volume = pool.create("v", 4096)
    Path(volume.path).write_bytes(b"y" * 65536)
    copy = volume.clone_to("copy")
    assert Path(copy.path).read_bytes() == b"y" * 65536
    assert copy.info().capacity == 65536
    Path(volume.path).unlink()
    with refused(50):
        pool.clone_volume(VolumeDef("never"), volume)
    assert idle(pool)


def test_a_clone_of_an_old_image_keeps_its_level(
    pool: Pool, storage: Storage, engine: Engine
) -> None:
    old = pool.create("old.qcow2", 1 << 20, format="qcow2", compat="0.10")
    copy = old.clone_to("copy.qcow2", pool=engine.pool("q"))
    assert copy.definition().compat in (None, "0.10")
    assert copy.pool.name == "q"


def test_crossing_clones_do_not_lock_each_other_out(pool: Pool, engine: Engine) -> None:
    other = engine.pool("q")
    a, b = pool.create("a", 65536), other.create("b", 65536)
    jobs = [
        job
        for number in range(40)
        for job in (
            a.clone_to(f"a{number}", pool=other, wait=False),
            b.clone_to(f"b{number}", pool=pool, wait=False),
        )
    ]
    for job in jobs:
        job.result(PATIENCE)
    assert (len(pool.names()), len(other.names())) == (41, 41)
    assert idle(pool)
    assert idle(other)


def test_policies_fill_what_a_request_leaves_open(pool: Pool) -> None:
    pool.set_policy(PoolPolicy(mode=0o640, owner=os.geteuid(), group=os.getegid()))
    volume = pool.create("v", 4096)
    assert stat.S_IMODE(Path(volume.path).stat().st_mode) == 0o640
    other = pool.create("w", 4096, mode=0o600)
    assert stat.S_IMODE(Path(other.path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(volume.clone_to("c").path).stat().st_mode) == 0o640
    assert pool.policy().mode == 0o640


def test_the_path_and_key_of_a_request_do_not_count(pool: Pool, directory: Path) -> None:
    request = VolumeDef("v", 4096, path="/etc/passwd", key="/etc/passwd")
    assert pool.create_volume(request).path == f"{directory}/v"


def test_a_volume_from_xml_is_allocated_in_full(pool: Pool) -> None:
    text = "<volume><name>v</name><capacity unit='KiB'>64</capacity></volume>"
    volume: Volume = pool.create_volume(text)
    assert volume.info().allocation >= 65536
    with refused(8, "invalid argument: wiping algorithm 10 not supported"):
        driver_of(pool).volume_wipe(volume.ref, 10)


def test_two_roots_in_one_directory(engine: Engine, tmp_path: Path) -> None:
    storage = engine.open()
    pool = engine.pool("p", "dir")
    other = Engine(tmp_path / "other", engine.directory, engine.backend, engine.control)
    rival = other.pool("p", "dir", other.open())
    try:
        jobs = [
            job
            for number in range(30)
            for job in (
                pool.create(f"v{number}", 4096, wait=False),
                rival.create(f"v{number}", 8192, wait=False),
            )
        ]
        codes = []
        for job in jobs:
            job.wait(PATIENCE)
            codes.append(getattr(job.error, "code", 0))
        assert codes.count(0) == 30  # each name was given to one of the two
        assert set(codes) <= {0, 55, 90}
        for found in (pool, rival):
            found.refresh()
            assert len(found.names()) == 30
        assert [info.capacity for info in pool.infos()] == [info.capacity for info in rival.infos()]
        assert storage.jobs() == []
    finally:
        other.close()


@cryptsetup.needed
def test_an_encrypted_volume_is_not_shrunk_below_its_data(pool: Pool) -> None:
    path = Path(pool.definition().target or "") / "secret"
    cryptsetup.create(path, 16 << 20)
    volume = pool.volume("secret")
    header = (16 << 20) - volume.info().capacity
    with path.open("r+b") as file:
        os.ftruncate(file.fileno(), header)  # holes instead of the zeros that were written
        os.ftruncate(file.fileno(), 16 << 20)
        file.seek(header + (4 << 20))
        file.write(b"x")
    with refused(8, "invalid argument: can't shrink capacity below existing allocation"):
        volume.resize(4 << 20, shrink=True)
    volume.resize(5 << 20, shrink=True)
    assert (path.stat().st_size, volume.info().capacity) == (header + (5 << 20), 5 << 20)
