"""Pools of type netfs against a real NFS server: versions, root_squash, a server that goes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Host, ImageSource, WipeAlgorithm
from storaged.backends.netfs import Netfs
from storaged.errors import CommandFailed, StorageError, TargetChanged
from storaged.imaging import ConvertOptions
from storaged.job import Job
from storaged.model import (
    BackingStore,
    Permissions,
    PoolDef,
    PoolSource,
    SourceHost,
    VolumeDef,
    VolumeRecord,
)
from tests.kernel.nfs import NfsServer
from tests.kernel.programs import patience, run

pytestmark = pytest.mark.kernel("nfs", "nfsd")

UID, GID = 12345, 23456
OWNER = Permissions(mode=0o600, owner=UID, group=GID)
#: An error in seconds rather than a wait without end, where a test takes the server away.
SOFT = ("soft", "timeo=10", "retrans=1", "noac")


def new_job() -> Job[Any]:
    return Job("test", "nfs")


class Pool:
    """A netfs pool on an export, which the server may call by another path."""

    def __init__(self, export: Path, target: Path, *, path: str = "", **options: Any) -> None:
        source = PoolSource(
            hosts=(SourceHost("127.0.0.1"),),
            dir=path or str(export),
            format="nfs",
            protocol=options.pop("version", "3"),
        )
        self.export = export
        self.target = target
        definition = PoolDef("netfs", "nfs", source=source, target=str(target), **options)
        self.backend = Netfs(definition, Host(id="testhost"))

    def start(self) -> None:
        self.backend.build(new_job())
        self.backend.start(new_job())
        self.backend.hold(self.backend.anchor())

    def create(self, name: str, capacity: int = 1 << 20, **options: Any) -> VolumeRecord:
        options.setdefault("permissions", OWNER)
        options.setdefault("allocation", 0)
        planned = self.backend.plan(VolumeDef(name, capacity, **options))
        return self.backend.create(planned, new_job())

    def volumes(self, known: dict[str, VolumeRecord] | None = None) -> dict[str, VolumeRecord]:
        return self.backend.refresh(known or {}, new_job()).volumes

    def clone(self, name: str, source: VolumeRecord, format: str) -> VolumeRecord:
        request = VolumeDef(name, 0, format=format, permissions=OWNER, allocation=0)
        planned = self.backend.plan_clone(request, source)
        with closing(self.backend.open_image(source)) as handle:
            image = ImageSource(
                source, handle, f"{self.target}/{source.name}",
                lambda: self.backend.open_disk(source),
            )  # fmt: skip
            return self.backend.clone(planned, image, new_job(), reflink=False)


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(nfs_server: NfsServer, unmounted: Path) -> Iterator[MakePool]:
    """A function that exports a directory and gives a started pool of it."""
    pools: list[Pool] = []

    def make(export: str = "rw,root_squash", mode: int = 0o755, **options: Any) -> Pool:
        directory = unmounted / f"export{len(pools)}"
        directory.mkdir()
        os.chown(directory, UID, GID)
        directory.chmod(mode)
        version4 = options.get("version", "3").startswith("4")
        path = nfs_server.export(directory, export, version4=version4)
        pools.append(Pool(directory, unmounted / f"target{len(pools)}", path=path, **options))
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        pool.backend.stop_by_force(new_job())


@contextmanager
def stopped(server: NfsServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.resume()


def owner_of(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


def test_life_of_a_volume_whose_owner_alone_may_touch_it(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(PermissionError):  # root is nobody there
        (pool.target / "mine").touch()
    made = pool.create("disk", 1 << 20)
    assert made.problem is None
    assert owner_of(pool.export / "disk") == (UID, GID, 0o600)
    with pytest.raises(PermissionError):
        (pool.target / "disk").read_bytes()

    sink = pool.backend.upload(made, 0, 0)
    sink.write(b"guest" * 1000)
    sink.finish()
    assert (pool.export / "disk").read_bytes()[:5] == b"guest"
    with closing(pool.backend.open_image(made)) as handle:
        assert handle.pread(5, 0) == b"guest"

    copy = pool.clone("copy", pool.volumes()["disk"], "qcow2")
    assert copy.format == "qcow2"
    assert owner_of(pool.export / "copy") == (UID, GID, 0o600)
    volumes = pool.volumes()
    assert sorted(volumes) == ["copy", "disk"]
    assert [volume.problem for volume in volumes.values()] == [None, None]
    with closing(pool.backend.open_disk(volumes["copy"])) as disk:
        assert disk.pread(5, 0) == b"guest"
    assert pool.volumes(volumes)["copy"] is volumes["copy"]

    grown = pool.backend.resize(volumes["disk"], 4 << 20, new_job())
    assert grown.capacity == 4 << 20
    wiped = pool.backend.wipe(grown, WipeAlgorithm.ZERO, new_job())
    assert not any((pool.export / "disk").read_bytes()[:5000])
    described = pool.backend.describe(wiped)
    assert (described.permissions.owner, described.permissions.mode) == (UID, 0o600)

    for name in ("disk", "copy"):
        pool.backend.delete(pool.volumes()[name], new_job())
    assert list(pool.export.iterdir()) == []


def test_overlay_directory_and_conversion_of_the_owner(make_pool: MakePool) -> None:
    pool = make_pool()
    base = pool.create("base", 1 << 20, format="qcow2")
    backing = BackingStore(f"{pool.target}/base", "qcow2")
    top = pool.create("top", 1 << 20, format="qcow2", backing=backing)
    assert top.image is not None
    assert top.image.backing is not None
    assert pool.backend.chain(top).end is None
    assert pool.backend.describe(top).backing is not None
    converted = pool.backend.rewrite(base, ConvertOptions(format="raw"), new_job())
    assert converted.format == "raw"
    assert owner_of(pool.export / "base") == (UID, GID, 0o600)
    folder = pool.create("folder", 0, format="dir", permissions=Permissions(0o700, UID, GID))
    assert owner_of(pool.export / "folder") == (UID, GID, 0o700)
    pool.backend.delete(folder, new_job())
    assert sorted(p.name for p in pool.export.iterdir()) == ["base", "top"]


@pytest.mark.parametrize("version", ["4", "4.2"])
def test_version_4(make_pool: MakePool, version: str) -> None:
    pool = make_pool(version=version)
    kind, options = run("findmnt", "-n", "-o", "FSTYPE,OPTIONS", str(pool.target)).split()
    assert kind == "nfs4"
    assert f"vers={version}" in options
    assert pool.backend.check()
    made = pool.create("disk")
    sink = pool.backend.upload(made, 0, 0)
    sink.write(b"guest" * 1000)
    sink.finish()
    assert (pool.export / "disk").read_bytes()[:5] == b"guest"
    assert owner_of(pool.export / "disk") == (UID, GID, 0o600)
    (found,) = pool.volumes().values()
    assert (found.name, found.problem) == ("disk", None)
    pool.backend.watch()
    pool.backend.delete(found, new_job())
    assert list(pool.export.iterdir()) == []
    pool.backend.stop(new_job())
    assert not pool.backend.check()


def test_who_owns_nothing_makes_files_as_the_directory_s_owner(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.create("disk", permissions=Permissions())
    assert owner_of(pool.export / "disk") == (UID, GID, 0o600)


def test_directory_that_only_its_owner_may_enter(make_pool: MakePool) -> None:
    pool = make_pool(mode=0o700)
    with pytest.raises(PermissionError):
        list(pool.target.iterdir())
    made = pool.create("disk")
    assert made.problem is None
    assert list(pool.volumes()) == ["disk"]
    assert pool.backend.look("disk", None) is not None
    assert pool.backend.look("none", None) is None
    assert pool.backend.describe(made).permissions.owner == UID
    with pytest.raises(StorageError, match="already exists"):
        pool.create("disk")
    pool.backend.delete(made, new_job())
    assert list(pool.export.iterdir()) == []


def test_somebody_elses_file_is_read_as_he_may(make_pool: MakePool) -> None:
    pool = make_pool()
    foreign = pool.export / "foreign"
    foreign.write_bytes(b"x" * 4096)
    os.chown(foreign, 777, 777)
    foreign.chmod(0o600)
    roots = pool.export / "roots"
    roots.write_bytes(b"secret")
    roots.chmod(0o600)
    volumes = pool.volumes()
    assert volumes["foreign"].problem is None
    assert "owner root" in (volumes["roots"].problem or "")
    with pytest.raises(StorageError, match="Permission denied"):
        pool.backend.open_image(volumes["roots"])


def test_where_root_is_root_nothing_is_asked_of_deputies(make_pool: MakePool) -> None:
    pool = make_pool("rw,no_root_squash")
    (pool.target / "mine").touch()
    made = pool.create("disk", permissions=OWNER)
    assert owner_of(pool.export / "disk") == (UID, GID, 0o600)
    pool.backend.delete(made, new_job())


def test_crashed_create_is_cleared_away_as_its_owner(make_pool: MakePool) -> None:
    pool = make_pool()
    part = pool.export / ".storaged-testhost-99999-1.part"
    part.touch()
    os.chown(part, UID, GID)
    part.chmod(0o600)
    pool.backend.start(new_job())
    assert not part.exists()


def test_start_stop_and_what_is_told_of_failures(
    make_pool: MakePool, nfs_server: NfsServer, unmounted: Path
) -> None:
    pool = make_pool()
    assert pool.backend.check()
    pool.backend.start(new_job())  # twice is no error
    (pool.export / "x").touch()
    (pool.export / "x").chmod(0o644)
    with (pool.target / "x").open() as held:
        with pytest.raises(CommandFailed) as busy:
            pool.backend.stop(new_job())
        assert f"process {os.getpid()}" in (busy.value.advice or "")
        assert held.name in (busy.value.advice or "")
    pool.backend.stop(new_job())
    pool.backend.stop(new_job())
    assert not pool.backend.check()
    with pytest.raises(StorageError):
        Pool(unmounted / "nothing", unmounted / "t2").start()
    nfs_server.unexport(pool.export)
    with pytest.raises(CommandFailed) as refused:
        pool.backend.start(new_job())
    assert refused.value.advice


def test_pool_on_a_directory_of_an_export(make_pool: MakePool) -> None:
    """A target that lies on NFS itself is made, and removed, by whom it is to belong to."""
    outer = make_pool()
    target = outer.target / "inner"
    permissions = Permissions(mode=0o750, owner=UID, group=GID)
    inner = Pool(outer.export, target, permissions=permissions).backend
    inner.build(new_job())
    assert owner_of(outer.export / "inner") == (UID, GID, 0o750)
    inner.delete_target(new_job())
    assert list(outer.export.iterdir()) == []


def test_exports_are_found(make_pool: MakePool) -> None:
    pool = make_pool()
    spec = PoolSource(hosts=(SourceHost("127.0.0.1"),))
    found = Netfs.find_sources(spec, Host(id="testhost"), Job("find-sources"))
    assert str(pool.export) in [source.dir for source in found]


@pytest.mark.kernel("dummy")
def test_server_that_is_silent(black_hole: str, unmounted: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("storaged.backends._exports._TIMEOUT", 3.0)
    spec = PoolSource(hosts=(SourceHost(black_hole),))
    with pytest.raises(StorageError, match="no storage pools were found"):
        Netfs.find_sources(spec, Host(id="testhost"), Job("find-sources"))
    monkeypatch.setattr(Netfs, "mount_timeout", 3.0)
    source = PoolSource(hosts=spec.hosts, dir="/x", format="nfs")
    backend = Netfs(PoolDef("netfs", "n", source=source, target=str(unmounted)), Host(id="h"))
    with pytest.raises(CommandFailed):
        backend.start(new_job())


def test_lost_mount_is_noticed(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.backend.watch()
    run("umount", str(pool.target))
    with pytest.raises(TargetChanged):
        pool.backend.watch()
    with pytest.raises(TargetChanged):
        pool.create("disk")


def test_server_that_stops_under_load(make_pool: MakePool, nfs_server: NfsServer) -> None:
    pool = make_pool(mount_options=SOFT)
    pool.create("disk")
    stop, errors = threading.Event(), []

    def load() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                pool.backend.delete(pool.create(f"load{number}"), new_job())
            except StorageError as err:
                errors.append(err)

    worker = threading.Thread(target=load, daemon=True)
    worker.start()
    try:
        with stopped(nfs_server):
            with pytest.raises(StorageError):
                pool.backend.watch()
            with pytest.raises(StorageError):
                pool.create("other")
        pool.backend.watch()
    finally:
        stop.set()
        worker.join(patience(20))
    assert not worker.is_alive()
    assert "disk" in pool.volumes()


def test_forced_stop_of_a_hard_mount_whose_server_is_dead(
    make_pool: MakePool, nfs_server: NfsServer
) -> None:
    pool = make_pool()
    pool.create("disk")
    with stopped(nfs_server):
        pool.backend.stop_by_force(new_job())
        assert not pool.backend.check()
    pool.start()
    assert "disk" in pool.volumes()
