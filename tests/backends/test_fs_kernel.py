"""Pools of type fs on real file systems: mounting, building, and what stands in the way."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Durability, Host
from storaged.backends._mkfs import make_file_system
from storaged.backends._openfiles import holders
from storaged.backends.fs import Fs
from storaged.errors import (
    Cancelled,
    CommandFailed,
    ConfigUnsupported,
    InvalidArgument,
    OperationFailed,
    OperationInvalid,
    PoolBuilt,
    StorageError,
    SystemFailure,
    TargetChanged,
)
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, SourceDevice, VolumeDef, VolumeRecord
from tests.kernel.fixtures import LoopDevice
from tests.kernel.programs import eventually, run

pytestmark = pytest.mark.kernel("loop")

FORMATS = [
    pytest.param("ext2"),
    pytest.param("ext3"),
    pytest.param("ext4", marks=pytest.mark.kernel("ext4")),
    pytest.param("xfs", marks=pytest.mark.kernel("xfs")),
    pytest.param("vfat", marks=pytest.mark.kernel("vfat")),
]


def new_job() -> Job[Any]:
    return Job("test", "vms")


MakePool = Callable[..., Fs]


@pytest.fixture
def make_pool(unmounted: Path) -> MakePool:
    """A function: ``make_pool(device, "ext4")`` gives the backend of a pool of type fs."""

    def make(device: str, format: str = "ext4", **options: Any) -> Fs:
        source = PoolSource(devices=(SourceDevice(device),), format=format)
        options.setdefault("target", str(unmounted / "target"))
        definition = PoolDef("fs", "vms", source=source, **options)
        return Fs(definition, Host(id="testhost", durability=Durability.NONE))

    return make


def started(backend: Fs) -> Fs:
    backend.start(new_job())
    backend.hold(backend.anchor())
    return backend


def create(backend: Fs, name: str, capacity: int = 1 << 20, allocation: int = 0) -> VolumeRecord:
    planned = backend.plan(VolumeDef(name, capacity, allocation=allocation))
    return backend.create(planned, new_job())


@pytest.fixture
def image(tmp_path: Path) -> str:
    """An image file of 320 MiB that holds nothing."""
    path = tmp_path / "fs.img"
    with path.open("wb") as file:
        file.truncate(320 << 20)
    return str(path)


def uuid_of(device: str) -> str:
    return run("blkid", "-s", "UUID", "-o", "value", device).strip()


def test_mount_command_is_libvirts(make_pool: MakePool) -> None:
    backend = make_pool("/dev/sdb1", "auto", mount_options=("noatime", "data=journal"), target="/t")
    assert backend.mount_command() == [
        "mount", "-o", "nodev,nosuid,noexec,noatime,data=journal", "-t", "auto", "/dev/sdb1", "/t",
    ]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_life_of_a_pool(make_pool: MakePool, loop_device: LoopDevice, format: str) -> None:
    device = loop_device(320)
    backend = make_pool(device, format)
    backend.build(new_job(), overwrite=False)
    assert not backend.check()
    started(backend)
    backend.start(new_job())
    assert backend.check()
    create(backend, "disk")
    found = backend.refresh({}, new_job())
    assert "disk" in found.volumes
    assert found.problems == ()
    assert found.space.capacity > 200 << 20
    backend.watch()
    with pytest.raises(OperationInvalid, match=f"cannot remove .*: {format} of {device}"):
        backend.delete_target(new_job())
    with pytest.raises(OperationInvalid, match="is in use: mounted on"):
        backend.build(new_job(), overwrite=True)
    backend.stop(new_job())
    backend.stop(new_job())
    assert not backend.check()
    with pytest.raises(PoolBuilt, match=f"already formatted using '{format}'"):
        backend.build(new_job(), overwrite=False)
    started(make_pool(device, "auto"))
    assert "disk" in backend.refresh({}, new_job()).volumes
    backend.stop(new_job())
    backend.build(new_job(), overwrite=True)
    started(backend)
    assert "disk" not in backend.refresh({}, new_job()).volumes
    backend.stop(new_job())
    backend.delete_target(new_job())
    assert not Path(backend.target).exists()


@pytest.mark.kernel("btrfs")
def test_btrfs_is_mounted_by_auto_and_by_uuid(make_pool: MakePool, loop_device: LoopDevice) -> None:
    device = loop_device(256)
    run("mkfs.btrfs", "-q", device)
    backend = make_pool(device, "auto")
    backend.build(new_job())
    started(backend)
    create(backend, "disk")
    assert make_pool(f"UUID={uuid_of(device)}", "auto").check()
    backend.stop(new_job())


def test_device_by_uuid_and_label(make_pool: MakePool, loop_device: LoopDevice) -> None:
    device = loop_device(64)
    run("mkfs.ext4", "-q", "-L", "my images", device)
    by_uuid, by_label = make_pool(f"UUID={uuid_of(device)}"), make_pool("LABEL=my images")
    by_uuid.build(new_job())
    with pytest.raises(PoolBuilt):
        by_uuid.build(new_job(), overwrite=False)
    started(by_uuid)
    assert by_label.check()
    assert make_pool(device).check()
    assert not make_pool("LABEL=other").check()
    by_label.stop(new_job())
    assert not by_uuid.check()
    with pytest.raises(OperationFailed, match="no device has LABEL=other"):
        make_pool("LABEL=other").build(new_job(), overwrite=True)
    with pytest.raises(CommandFailed, match="LABEL=other") as failed:
        make_pool("LABEL=other").start(new_job())
    assert "lsblk" in (failed.value.advice or "")
    by_label.build(new_job(), overwrite=True)  # has the label, and another UUID
    started(by_label).stop(new_job())
    with pytest.raises(CommandFailed, match="UUID="):
        by_uuid.start(new_job())


@pytest.mark.kernel("parted")
def test_device_by_the_name_of_its_partition(
    make_pool: MakePool, loop_device: LoopDevice, settle: Callable[[], None]
) -> None:
    device = loop_device(64, partitions=True)
    run("parted", "-s", device, "mklabel", "gpt", "mkpart", '"my part"', "1MiB", "100%")
    settle()
    number = run("blkid", "-p", "-s", "PART_ENTRY_UUID", "-o", "value", f"{device}p1").strip()
    by_label, by_uuid = make_pool("PARTLABEL=my part"), make_pool(f"PARTUUID={number}")
    by_label.build(new_job(), overwrite=False)
    by_label.build(new_job(), overwrite=True)
    started(by_uuid)
    assert by_label.check()
    with pytest.raises(OperationInvalid, match=r"in use: mounted on .*"):
        make_file_system(device, "ext4", new_job(), overwrite=True)
    by_label.stop(new_job())
    assert not by_uuid.check()


def test_image_file_is_mounted_by_a_loop_device(make_pool: MakePool, image: str) -> None:
    backend = make_pool(image)
    backend.build(new_job(), overwrite=False)
    started(backend)
    assert make_pool(image).check()  # also without the memory of a start
    with pytest.raises(OperationInvalid, match="attached to /dev/loop"):
        backend.build(new_job(), overwrite=True)
    backend.stop(new_job())
    eventually(lambda: image not in run("losetup", "--all"), what="the loop device to go")


def test_mount_point_may_be_a_link(make_pool: MakePool, image: str, unmounted: Path) -> None:
    (unmounted / "real").mkdir()
    (unmounted / "target").symlink_to("real")
    backend = make_pool(image)
    backend.build(new_job(), overwrite=True)
    started(backend)
    assert backend.check()
    create(backend, "disk")
    assert (unmounted / "real" / "disk").exists()
    backend.watch()
    backend.stop(new_job())
    assert not (unmounted / "real" / "disk").exists()


def test_missing_mount_point_and_one_that_holds_files(make_pool: MakePool, image: str) -> None:
    backend = make_pool(image)
    run("mkfs.ext4", "-q", image)
    with pytest.raises(CommandFailed, match="mount point does not exist") as failed:
        backend.start(new_job())
    assert failed.value.advice == "The mount point is missing: storagectl pool build vms"
    backend.build(new_job())
    Path(backend.target, "old").touch()
    started(backend)
    (problem,) = backend.refresh({}, new_job()).problems
    assert "hides 1 entry" in problem
    backend.stop(new_job())
    with pytest.raises(SystemFailure, match="failed to remove pool"):
        backend.delete_target(new_job())


def test_nothing_foreign_is_covered_or_unmounted(make_pool: MakePool, image: str) -> None:
    backend = make_pool(image)
    backend.build(new_job(), overwrite=True)
    run("mount", "-t", "tmpfs", "theirs", backend.target)
    with pytest.raises(OperationInvalid, match=r"something else is mounted .*: tmpfs of theirs"):
        backend.start(new_job())
    assert "tmpfs of theirs is mounted on" in (backend.stop(new_job()) or "")
    assert run("findmnt", "-n", "-o", "SOURCE", backend.target).strip() == "theirs"
    run("umount", backend.target)

    started(backend)
    run("mount", "-t", "tmpfs", "cover", backend.target)
    assert not backend.check()
    with pytest.raises(TargetChanged):
        create(backend, "disk")
    with pytest.raises(TargetChanged):
        backend.watch()
    for act in (backend.start, backend.stop):
        with pytest.raises(OperationInvalid, match="tmpfs of cover"):
            act(new_job())
    run("umount", backend.target)
    assert backend.check()

    run("mount", "--bind", backend.target, backend.target)  # twice upon itself
    backend.stop(new_job())
    assert not backend.check()


def test_covered_way_to_the_target(make_pool: MakePool, image: str, unmounted: Path) -> None:
    backend = make_pool(image, target=str(unmounted / "way" / "target"))
    backend.build(new_job(), overwrite=True)
    started(backend)
    run("mount", "-t", "tmpfs", "cover", str(unmounted / "way"))
    (unmounted / "way" / "target").mkdir()
    assert not backend.check()
    with pytest.raises(OperationInvalid, match="lies below another mount"):
        backend.stop(new_job())
    run("umount", str(unmounted / "way"))
    backend.stop(new_job())


def test_busy_file_system_is_named_and_let_go_by_force(
    make_pool: MakePool, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_pool(image)
    backend.build(new_job(), overwrite=True)
    started(backend)
    monkeypatch.setattr("storaged.backends._mount._LOOKS_END", 0.2)
    with Path(backend.target, "busy").open("w") as file:
        with pytest.raises(CommandFailed, match="target is busy") as failed:
            backend.stop(new_job())
        advice = failed.value.advice or ""
        assert f"process {os.getpid()}" in advice
        assert "storagectl pool stop --force vms" in advice
        assert backend.check()
        backend.stop_by_force(new_job())
        assert not backend.check()
        file.write("still here")
    backend.stop_by_force(new_job())


def test_stop_waits_for_our_own_looks_and_for_nobody_elses(
    make_pool: MakePool, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.backends._mount._LOOKS_END", 60.0)
    backend = make_pool(image)
    backend.build(new_job(), overwrite=True)
    started(backend)
    looking = threading.Event()

    def look() -> None:
        with backend.opened_target():
            looking.set()
            time.sleep(0.4)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    backend.stop(new_job())
    thread.join()
    assert not backend.check()

    started(backend)
    # no child of ours, as its parent has ended
    shell = f"cd {backend.target}; sleep 600 >/dev/null 2>&1 & echo $!"
    other = int(run("sh", "-c", shell))
    try:
        with pytest.raises(CommandFailed, match="is busy") as failed:
            backend.stop(new_job())
        assert f"process {other} (sleep)" in (failed.value.advice or "")
    finally:
        os.kill(other, signal.SIGKILL)
    eventually(lambda: not holders(backend.target), what="the end of the other")
    looking.clear()
    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    job = new_job()
    job.cancel()
    with pytest.raises(Cancelled):
        backend.stop(job)
    thread.join()
    backend.stop(new_job())


def test_more_mounts_than_can_be_is_no_end(
    make_pool: MakePool, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_pool(image)
    backend.build(new_job(), overwrite=True)
    monkeypatch.setattr("storaged.backends._mount._MAX_STACK", 2)
    for stop in (backend.stop, backend.stop_by_force):
        started(backend)
        for _ in range(2):
            run("mount", "--bind", backend.target, backend.target)
        with pytest.raises(OperationInvalid, match="2 mounts or more"):
            stop(new_job())
        assert backend.check()
        stop(new_job())
        assert not backend.check()


def test_renamed_device_is_still_there(
    make_pool: MakePool, loop_device: LoopDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lvrename and multipath do under a mount; what counts is whether the kernel has it."""
    node, device = tmp_path / "node", loop_device(32)
    os.mknod(node, stat.S_IFBLK | 0o600, Path(device).stat().st_rdev)
    backend = make_pool(str(node))
    backend.build(new_job(), overwrite=True)
    started(backend)
    node.rename(tmp_path / "renamed")
    backend.watch()
    monkeypatch.setattr("storaged.backends.fs._DEVICES", tmp_path)
    with pytest.raises(SystemFailure, match="of a mounted file system has gone"):
        backend.watch()
    backend.stop(new_job())


@pytest.mark.kernel("btrfs")
def test_renamed_device_of_a_btrfs(
    make_pool: MakePool, loop_device: LoopDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a number of its own, and perhaps several devices."""
    node, device = tmp_path / "node", loop_device(128)
    os.mknod(node, stat.S_IFBLK | 0o600, Path(device).stat().st_rdev)
    run("mkfs.btrfs", "-q", device)
    backend = make_pool(str(node), "auto")
    backend.build(new_job())
    started(backend)
    node.rename(tmp_path / "renamed")
    backend.watch()
    devices = tmp_path / uuid_of(device) / "devices"
    devices.mkdir(parents=True)
    (devices / "sdb").symlink_to("gone")
    monkeypatch.setattr("storaged.backends.fs._BTRFS", tmp_path)
    with pytest.raises(SystemFailure, match="of a mounted file system has gone"):
        backend.watch()
    backend.stop(new_job())


def test_source_is_checked_first(make_pool: MakePool) -> None:
    backend = make_pool("/dev/a")
    two = PoolSource(devices=(SourceDevice("/dev/a"), SourceDevice("/dev/b")))
    with pytest.raises(ConfigUnsupported, match="expected exactly 1 device for the storage pool"):
        Fs(PoolDef("fs", "x", source=two, target="/t"), backend.host).start(new_job())
    with pytest.raises(InvalidArgument, match="begins with a dash"):
        make_pool("--bind").start(new_job())
    with pytest.raises(InvalidArgument, match="is not absolute"):
        make_pool("/dev/a", target="relative").start(new_job())


def test_full_file_system(make_pool: MakePool, loop_device: LoopDevice) -> None:
    backend = make_pool(loop_device(32))
    backend.build(new_job(), overwrite=True)
    started(backend)
    before = set(Path(backend.target).iterdir())
    with pytest.raises(SystemFailure) as failed:
        create(backend, "big", 64 << 20, allocation=64 << 20)
    assert failed.value.errno == errno.ENOSPC
    assert set(Path(backend.target).iterdir()) == before
    create(backend, "small")
    backend.stop(new_job())


def test_read_only_file_system_is_told(make_pool: MakePool, loop_device: LoopDevice) -> None:
    backend = make_pool(loop_device(64))
    backend.build(new_job(), overwrite=True)
    started(backend)
    run("mount", "-o", "remount,ro", backend.target)
    (problem,) = backend.refresh({}, new_job()).problems
    assert "is read-only" in problem
    with pytest.raises(SystemFailure) as failed:
        create(backend, "disk")
    assert failed.value.errno == errno.EROFS
    backend.stop(new_job())
    asked = make_pool(backend.mount_source(), mount_options=("ro",))
    started(asked)
    assert asked.refresh({}, new_job()).problems == ()
    asked.stop(new_job())


@pytest.mark.kernel("iso9660")
def test_medium_that_is_read_only(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "cd").mkdir()
    (tmp_path / "cd" / "boot.img").write_bytes(b"x" * 4096)
    image = str(tmp_path / "cd.iso")
    run("genisoimage", "-quiet", "-R", "-o", image, str(tmp_path / "cd"))
    backend = make_pool(image, "iso9660")
    backend.build(new_job())
    started(backend)
    found = backend.refresh({}, new_job())
    assert list(found.volumes) == ["boot.img"]
    assert found.problems == ()
    with pytest.raises(SystemFailure) as failed:
        create(backend, "disk")
    assert failed.value.errno == errno.EROFS
    backend.stop(new_job())


@pytest.mark.kernel("dm", "xfs")
def test_disk_that_fails_under_a_pool(
    make_pool: MakePool, loop_device: LoopDevice, mapper: Any
) -> None:
    device = mapper.linear(loop_device(320))
    backend = make_pool(device, "xfs")
    backend.build(new_job(), overwrite=True)
    started(backend)
    create(backend, "disk")
    run("sync")
    mapper.break_(device)
    request = VolumeDef("lost", 1 << 20, allocation=1 << 20)
    with pytest.raises(StorageError):
        backend.create(backend.plan(request), new_job(), durability=Durability.FULL)
    # the file system gives up when it cannot write its journal, and answers from memory till then
    run("sync", "--file-system", backend.target, check=False)
    with pytest.raises(StorageError):
        backend.watch()
    backend.stop_by_force(new_job())
    assert not backend.check()


@pytest.mark.kernel("dm", "ext4")
def test_disk_whose_writes_fail_under_a_pool(
    make_pool: MakePool, loop_device: LoopDevice, mapper: Any
) -> None:
    below = loop_device(64)
    device = mapper.linear(below)
    backend = make_pool(device)
    backend.build(new_job(), overwrite=True)
    started(backend)
    create(backend, "disk")
    run("sync", "--file-system", backend.target)
    before = set(Path(backend.target).iterdir())
    mapper.fail_writes(device)
    request = VolumeDef("lost", 1 << 20, allocation=1 << 20)
    with pytest.raises(StorageError):
        backend.create(backend.plan(request), new_job(), durability=Durability.FULL)
    assert set(Path(backend.target).iterdir()) == before
    backend.stop(new_job())
    assert not backend.check()
    mapper.remove(device)
    again = started(make_pool(below))
    assert set(Path(again.target).iterdir()) == before
    create(again, "other")
    again.stop(new_job())


@pytest.mark.kernel("dm")
def test_build_on_a_device_that_fails(make_pool: MakePool, mapper: Any) -> None:
    backend = make_pool(mapper.error(64 << 20))
    with pytest.raises(StorageError, match="Failed to probe for format type 'ext4'"):
        backend.build(new_job(), overwrite=False)
    with pytest.raises(OperationFailed, match="Failed to make filesystem"):
        backend.build(new_job(), overwrite=True)


@pytest.mark.kernel("scsi_debug")
def test_disk_that_is_pulled(make_pool: MakePool, scsi_hosts: Any) -> None:
    (device, *_) = scsi_hosts(dev_size_mb=32, max_luns=1)
    backend = make_pool(device)
    backend.build(new_job(), overwrite=True)
    started(backend)
    backend.watch()
    Path(f"/sys/block/{Path(device).name}/device/delete").write_text("1")
    with pytest.raises(StorageError):
        backend.watch()
    backend.stop_by_force(new_job())
    assert not backend.check()
    with pytest.raises(CommandFailed):
        backend.start(new_job())
