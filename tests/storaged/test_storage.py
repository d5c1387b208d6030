"""The library's face: what a program that embeds storaged does."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

import storaged
from storaged.events import Event
from storaged.model import PoolDef, VolumeDef
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import Control, refused
from tests.storaged.conftest import Engine


def test_the_first_script(tmp_path: Path) -> None:
    with storaged.open(root=tmp_path / "root", durability="none") as storage:
        pool = storage.ensure_dir_pool("t", tmp_path / "img")
        base = pool.create("base.qcow2", "1 GiB", format="qcow2")
        volume = pool.create("a.qcow2", "20G", format="qcow2", backing=base)
        assert volume.path == str(tmp_path / "img/a.qcow2")
        backing = volume.definition().backing
        assert backing is not None
        assert (backing.path, backing.format) == (base.path, "qcow2")
        assert volume.info().capacity == 20 << 30
        assert volume.pool == pool
        assert [found.name for found in pool.volumes()] == ["a.qcow2", "base.qcow2"]
    assert storage.uri.startswith("storage:///system?root=")


def test_the_engine_is_let_go_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), storaged.open(root=tmp_path):
        raise RuntimeError
    storaged.open(root=tmp_path, lock_timeout=0).close()


def test_jobs_can_be_watched_and_cancelled(pool: Pool, storage: Storage, control: Control) -> None:
    control.hold("create", lively=True)
    job = pool.create("v", 4096, wait=False)
    control.wait_for("create")
    (progress,) = storage.jobs()
    assert (progress.id, progress.kind, progress.pool, progress.volume) == (
        job.id,
        "create",
        "p",
        "v",
    )
    assert storage.job(job.id) is job
    assert isinstance(next(iter(job)), storaged.Progress)
    control.release("create")
    assert job.result() == pool.volume("v")
    assert storage.jobs() == []
    with refused(8, f"invalid argument: no job with id {job.id} is under way"):
        storage.job(job.id)


def test_handles_never_go_stale(pool: Pool) -> None:
    volume = pool.create("v", 4096)
    volume.resize(8192)
    assert volume.info().capacity == 8192
    volume.delete()
    with refused(50):
        volume.info()
    pool.create("v", 4096)
    assert volume.info().capacity == 4096


def test_handles_of_volumes(pool: Pool) -> None:
    volume = pool.create("v", 4096)
    assert volume == pool.volume("v")
    assert len({volume, pool.volume("v")}) == 1
    assert volume != "v"
    assert (repr(volume), repr(pool)) == ("<Volume p/v>", "<Pool p>")
    assert volume.key == volume.path


def test_xml_or_definitions(engine: Engine, storage: Storage) -> None:
    text = f"<pool type='dir'><name>x</name><target><path>{engine.directory}</path></target></pool>"
    pool = storage.create_pool(text)
    assert pool.definition().target == str(engine.directory)
    volume = pool.create_volume("<volume><name>v</name><capacity>4096</capacity></volume>")
    copy = pool.clone_volume("<volume><name>w</name></volume>", volume)
    assert copy.info().capacity == 4096
    assert pool.create_volume(VolumeDef("d", 4096, allocation=0)).info().allocation == 0
    with refused(27):
        storage.define_pool("<pool type='dir'><name>y</name></pool>")
    with refused(90):
        pool.create_volume("<volume><name>v</name><capacity>1</capacity></volume>")


def test_events_of_volumes_are_none(engine: Engine, storage: Storage) -> None:
    heard: list[Event] = []
    end = storage.subscribe(heard.append)
    pool = engine.pool()
    heard.clear()
    pool.create("v", 4096).clone_to("w").delete()
    assert heard == []
    pool.refresh()
    end()
    pool.stop()
    assert heard == [Event(pool.ref, None)]


def test_a_volume_without_a_size(pool: Pool) -> None:
    with refused(8, "invalid argument: a volume without a backing image needs a capacity"):
        pool.create("v")


def test_nothing_is_found_in_an_empty_engine(storage: Storage) -> None:
    assert (storage.pools(), storage.jobs(), storage.problems()) == ([], [], [])
    with refused(49):
        storage.pool("x")
    with refused(49):
        storage.pool_by_uuid(uuid4())
    with refused(49):
        storage.pool_by_target("/x")


def test_a_session_has_its_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG_HOME", "RUNTIME_DIR", "CACHE_HOME"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name.lower()))
    with storaged.open(session=True, durability="none") as storage:
        storage.define_pool(PoolDef("dir", "p", target=str(tmp_path)))
        assert storage.uri == "storage:///session"
    assert (tmp_path / "config_home/libvirt/storage/p.xml").exists()


def test_durability_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="strong"):
        storaged.open(root=tmp_path, durability="strong")
    with storaged.open(root=tmp_path, durability="full") as storage:
        storage.ensure_dir_pool("p", tmp_path / "p").create("v", 4096)
