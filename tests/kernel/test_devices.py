"""The devices that kernel-bound tests run on: they do what they promise, and they go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel import devices
from tests.kernel.devices import Mapper
from tests.kernel.fixtures import Disk, LoopDevice, ScsiHosts
from tests.kernel.programs import eventually, run

MIB = 1 << 20


def read(device: str, offset: int = 0) -> bytes:
    """Read a page past the page cache."""
    file = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file, 4096, offset)
    finally:
        os.close(file)


def write(device: str, data: bytes, offset: int = 0) -> None:
    file = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(file, data, offset)
        os.fsync(file)
    finally:
        os.close(file)


@pytest.mark.kernel("loop", "ext4")
def test_a_loop_device_and_what_was_mounted_from_it(tmp_path: Path) -> None:
    image, target = tmp_path / "image", tmp_path / "target"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    with devices.attached(image) as device:
        assert devices.size_of(device) == 16 * MIB
        run("mkfs.ext4", "-q", device)
        run("mount", device, target)
        assert os.path.ismount(target)
    assert not os.path.ismount(target)
    assert str(image) not in run("losetup", "--list", "--output", "BACK-FILE")


@pytest.mark.kernel("loop", "parted")
def test_partitions_of_a_loop_device(loop_device: LoopDevice) -> None:
    device = loop_device(32, partitions=True)
    run("parted", "--script", device, "mklabel", "gpt", "mkpart", "one", "1MiB", "16MiB")
    eventually(lambda: Path(f"{device}p1").exists(), what="the partition")


@pytest.mark.kernel("disks")
@pytest.mark.parametrize("serial", ["DISK0", "DISK1", "LUN0", "LUN1"])
def test_the_disks_of_the_guest(disk: Disk, serial: str) -> None:
    device = disk(serial)
    write(device, b"left by a test")
    assert read(disk(serial))[:14] == bytes(14)


@pytest.mark.kernel("disks", "udev")
def test_a_disk_has_a_stable_name(disk: Disk, settle: Callable[[], None]) -> None:
    device = disk("DISK0")
    settle()
    assert str(Path("/dev/disk/by-id/virtio-DISK0").resolve()) == device


@pytest.mark.kernel("dm", "loop")
def test_devices_that_fail(mapper: Mapper, loop_device: LoopDevice) -> None:
    device = loop_device(16)
    with pytest.raises(OSError, match="Input/output error"):
        read(mapper.error(MIB))
    half = mapper.half(device, MIB)
    assert read(half) == bytes(4096)
    with pytest.raises(OSError, match="Input/output error"):
        read(half, MIB)


@pytest.mark.kernel("dm", "loop")
def test_a_device_whose_writes_fail(mapper: Mapper, loop_device: LoopDevice) -> None:
    device = mapper.failing_writes(loop_device(16))
    assert read(device) == bytes(4096)
    with pytest.raises(OSError, match="Input/output error"):
        write(device, bytes(4096))


@pytest.mark.kernel("dm", "loop")
def test_a_device_that_hangs_and_then_fails(mapper: Mapper, loop_device: LoopDevice) -> None:
    device = mapper.linear(loop_device(16))
    ends: list[object] = []

    def look() -> None:
        try:
            ends.append(read(device, MIB))
        except OSError as err:
            ends.append(err)

    mapper.suspend(device)
    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    reader.join(1)
    assert not ends
    mapper.break_(device)
    reader.join(20)
    assert isinstance(ends[0], OSError)


@pytest.mark.kernel("dm", "loop", "lvm")
def test_what_lies_on_a_loop_device_is_taken_down(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with devices.attached(image) as device:
        run("vgcreate", "-y", "storagedtest", device)
        run("lvcreate", "-y", "-n", "one", "-L", "8M", "storagedtest")
        assert Path("/dev/storagedtest/one").exists()
    assert "storagedtest" not in run("dmsetup", "ls")


@pytest.mark.kernel("scsi_debug")
def test_disks_made_up(scsi_hosts: ScsiHosts) -> None:
    disks = scsi_hosts(dev_size_mb=16, num_tgts=1, max_luns=2)
    assert [devices.size_of(disk) for disk in disks] == [16 * MIB, 16 * MIB]
