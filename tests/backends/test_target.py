"""The target directory: made, removed, and known again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Anchored, Durability, Host, WipeAlgorithm, require
from storaged.backends._target import Anchor
from storaged.backends.dir import Dir
from storaged.errors import InternalError, OperationFailed, OperationInvalid, SystemFailure
from storaged.formats.syscalls import is_nocow
from storaged.model import Permissions, PoolDef, PoolType, VolumeDef
from tests.backends.conftest import Pool, make_pool, new_job

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this machine cannot bind mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def anchored(path: Path) -> Pool:
    """A pool that was started when its target was as it is now, and whose state was kept."""
    pool = make_pool(path)
    kept = json.loads(json.dumps(dict(pool.backend.anchor())))
    require(pool.backend, Anchored).hold(kept)
    return pool


def every_work(pool: Pool) -> list[Callable[[], Any]]:
    backend = pool.backend
    record = make_pool(pool.path).create("disk", 1)
    return [
        lambda: pool.create("new", 1),
        lambda: backend.plan_clone(VolumeDef("clone"), record),
        lambda: backend.delete(record, new_job()),
        lambda: backend.resize(record, 2, new_job()),
        lambda: backend.wipe(record, WipeAlgorithm.ZERO, new_job()),
        lambda: backend.upload(record, 0, 0),
        lambda: backend.download(record, 0, 0),
        lambda: backend.open_image(record),
    ]


# Known again


def test_unchanged(pool: Pool) -> None:
    pool = anchored(pool.path)
    pool.create("disk", 1)
    assert pool.backend.refresh({}, new_job()).problems == ()


def test_directory_made_anew_is_the_same(pool: Pool) -> None:
    pool = anchored(pool.path)
    pool.path.rmdir()
    pool.path.mkdir()
    pool.create("disk", 1)
    pool.create("disk2", 1)


@needs_root
def test_mount_is_gone(pool: Pool, tmp_path: Path) -> None:
    """Also when both lie on one file system, as with a bind mount."""
    source = tmp_path / "source"
    source.mkdir()
    with bound(source, pool.path):
        mounted = anchored(pool.path)
        mounted.create("precious", 1)
    for work in every_work(mounted):
        with pytest.raises(OperationFailed) as caught:
            work()
        assert f"target '{pool.path}' of pool 'vms' has changed: expected" in str(caught.value)
        assert "mounted on it, found" in str(caught.value)
        assert (caught.value.advice or "").startswith("Mount it again: mount ")
    found = mounted.backend.refresh({}, new_job())
    assert len(found.problems) == 1
    assert pool.names() == ["disk"]
    (pool.path / "disk").unlink()
    with bound(source, pool.path):  # mounted again, it is the same
        mounted.create("second", 1)
        assert {"precious", "second"} <= set(pool.names())


@needs_root
def test_mount_covers_the_target(pool: Pool, tmp_path: Path) -> None:
    pool = anchored(pool.path)
    source = tmp_path / "source"
    source.mkdir()
    with bound(source, pool.path), pytest.raises(OperationFailed) as caught:
        pool.create("disk", 1)
    assert (caught.value.advice or "").startswith(f"Unmount what covers it: umount {pool.path}")
    assert list(source.iterdir()) == []


def test_remount_of_the_same_file_system(loop_mount: Any) -> None:
    target = loop_mount("ext4", mebibytes=32)
    pool = anchored(target)
    device = str(pool.backend.anchor()["source"])
    pool.create("before", 1)
    # A second mount keeps the loop device, which umount would release.
    other = target.parent / "other"
    other.mkdir()
    subprocess.run(["mount", device, other], check=True)
    try:
        subprocess.run(["umount", target], check=True)
        with pytest.raises(OperationFailed):
            pool.create("lost", 1)
        subprocess.run(["mount", device, target], check=True)
    finally:
        subprocess.run(["umount", other], check=True)
    pool.create("after", 1)
    assert pool.names() == ["after", "before", "lost+found"]


def test_target_is_gone(pool: Pool) -> None:
    pool = anchored(pool.path)
    pool.path.rmdir()
    with pytest.raises(SystemFailure) as caught:
        pool.create("disk", 1)
    assert str(caught.value) == (f"cannot open directory '{pool.path}': No such file or directory")


def test_what_counts_as_the_same() -> None:
    one = Anchor(1, 2, 3, "xfs", "/dev/vdb", "/", 1)
    assert one.is_same_storage(replace(one, device=9, inode=9))
    nfs = replace(one, type="nfs4", source="nas:/vms")
    assert nfs.is_same_storage(replace(nfs, device=9, file_system=9))
    told = replace(one, uuid="aa")
    assert told.is_same_storage(replace(told, source="/dev/vdc", file_system=9))  # renamed
    assert not told.is_same_storage(replace(told, uuid="bb"))  # another one on this device
    assert told.is_same_storage(one)  # an older kernel
    assert not one.is_same_storage(replace(one, file_system=9))
    assert not told.is_same_storage(replace(told, mounted=0))
    for change in ({"source": "/dev/vdc"}, {"type": "ext4"}, {"root": "/x"}, {"mounted": 0}):
        assert not one.is_same_storage(replace(one, **change))
    assert str(one) == "xfs of /dev/vdb mounted on it"
    assert str(replace(one, root="/a", mounted=0)) == "xfs of /a of /dev/vdb below it"


def test_anchor_of_another_shape(pool: Pool) -> None:
    with pytest.raises(InternalError):
        pool.backend.hold({"device": 1})


# Built


def test_build_with_parents(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "a/b/vms")
    pool.backend.build(new_job())
    assert pool.path.stat().st_mode & 0o7777 == 0o711
    pool.backend.build(new_job())
    assert pool.backend.check()


@needs_root
def test_build_is_not_led_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may rename things in the parent does not get another directory given to him."""
    (tmp_path / "etc").mkdir()
    real = os.mkdir

    def mkdir(name: str, *args: int, **options: int) -> None:
        real(name, *args, **options)
        pool.path.rmdir()
        pool.path.symlink_to(tmp_path / "etc")

    pool = make_pool(tmp_path / "vms", permissions=Permissions(owner=12))
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(SystemFailure, match="cannot open directory"):
        pool.backend.build(new_job())
    assert (tmp_path / "etc").stat().st_uid == 0


def test_build_with_permissions(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        pool = make_pool(tmp_path / "vms", permissions=Permissions(mode=0o775))
        pool.backend.build(new_job())
    finally:
        os.umask(before)
    assert pool.path.stat().st_mode & 0o7777 == 0o775


@needs_root
def test_build_gives_an_existing_directory_only_what_was_asked(pool: Pool) -> None:
    pool.path.chmod(0o750)
    make_pool(pool.path).backend.build(new_job())
    assert pool.path.stat().st_mode & 0o7777 == 0o750
    make_pool(pool.path, permissions=Permissions(owner=12, group=34)).backend.build(new_job())
    status = pool.path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o750)
    session = Host("testhost", Durability.NONE, session=True)
    wish = Permissions(owner=0, group=0)
    make_pool(pool.path, host=session, permissions=wish).backend.build(new_job())
    assert pool.path.stat().st_uid == 12


def test_build_formats_nothing(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "vms")
    for overwrite in (True, False):
        with pytest.raises(OperationInvalid) as caught:
            pool.backend.build(new_job(), overwrite=overwrite)
        text = "No source device specified when formatting pool 'vms'"
        assert caught.value.detail == text
    assert not pool.path.exists()


def test_build_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "vms").touch()
    with pytest.raises(SystemFailure):
        make_pool(tmp_path / "vms").backend.build(new_job())


@pytest.mark.parametrize("cow", [True, False])
def test_copy_on_write_needs_btrfs(tmp_path: Path, cow: bool) -> None:
    pool = make_pool(tmp_path / "vms", cow=cow)
    with pytest.raises(SystemFailure) as caught:
        pool.backend.build(new_job())
    assert str(caught.value).startswith(f"unable to control COW flag on '{pool.path}', not btrfs")


def test_copy_on_write_on_btrfs(loop_mount: Any) -> None:
    target = loop_mount("btrfs")
    for name, cow, expected in (("a", None, True), ("b", False, True), ("c", True, False)):
        pool = make_pool(target / name, cow=cow)
        pool.backend.build(new_job())
        fd = os.open(pool.path, os.O_RDONLY)
        try:
            assert is_nocow(fd) is expected
        finally:
            os.close(fd)


def test_delete_target(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "vms")
    pool.backend.build(new_job())
    pool.create("disk", 1)
    with pytest.raises(SystemFailure) as caught:
        pool.backend.delete_target(new_job())
    assert caught.value.errno == errno.ENOTEMPTY
    assert str(caught.value) == f"failed to remove pool '{pool.path}': Directory not empty"
    assert caught.value.advice == "1 entries are left: disk"
    (pool.path / "disk").unlink()
    pool.backend.delete_target(new_job())
    assert not pool.backend.check()


@needs_root
def test_delete_of_a_mount_point(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", pool.path), pytest.raises(SystemFailure) as caught:
        pool.backend.delete_target(new_job())
    assert caught.value.errno == errno.EBUSY
    assert "is a mount point: undefine the pool instead" in (caught.value.advice or "")


def test_pool_without_target(host: Host) -> None:
    definition = PoolDef(PoolType.DIR, "vms", target="/x")
    backend = Dir(definition, host)
    assert backend.target == "/x"
    assert backend.path_of("a") == "/x/a"
