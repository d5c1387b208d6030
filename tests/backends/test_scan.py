"""What a scan of a directory finds, and what it takes no notice of."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from storaged.backend import WipeAlgorithm
from storaged.backends._record import update_allocation
from storaged.errors import Cancelled, OperationUnsupported, SystemFailure
from storaged.model import VolumeType
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats import qemu


def test_raw_file(pool: Pool) -> None:
    with (pool.path / "disk").open("wb") as file:
        file.write(bytes(8192))
        file.truncate(1 << 30)
    (pool.path / "disk").chmod(0o640)
    (record,) = pool.refresh().values()
    assert (record.name, record.format, record.type) == ("disk", "raw", VolumeType.FILE)
    assert (record.capacity, record.physical, record.allocation) == (1 << 30, 1 << 30, 8192)
    assert record.permissions.mode == 0o640
    assert record.permissions.owner == os.geteuid()
    assert record.image is None
    assert record.problem is None
    assert (record.key, record.path) == (None, None)


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vpc", "qed"])
def test_capacity_is_the_headers(pool: Pool, format: str) -> None:
    qemu.create(pool.path / "disk", 3 << 30, format=format)
    record = pool.refresh()["disk"]
    assert record.format == format
    assert record.capacity == qemu.info(pool.path / "disk")["virtual-size"]
    assert record.problem is None


def test_directories(pool: Pool) -> None:
    (pool.path / "plain").mkdir()
    ploop = pool.path / "container"
    ploop.mkdir()
    (ploop / "root.hds").write_bytes(bytes(4096))
    (ploop / "DiskDescriptor.xml").touch()
    found = pool.refresh()
    assert (found["plain"].type, found["plain"].format) == (VolumeType.DIR, "dir")
    assert (found["plain"].capacity, found["plain"].allocation) == (0, 0)
    assert (found["container"].type, found["container"].format) == (VolumeType.PLOOP, "ploop")


def test_directory_with_links_in_place_of_a_ploop(pool: Pool, tmp_path: Path) -> None:
    (pool.path / "sub").mkdir()
    for name in ("root.hds", "DiskDescriptor.xml"):
        (tmp_path / name).touch()
        (pool.path / "sub" / name).symlink_to(tmp_path / name)
    assert pool.refresh()["sub"].type is VolumeType.DIR


def test_file_that_becomes_a_link_to_a_fifo(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a link leads to is looked at before it is opened: opening acts on some devices."""
    (pool.path / "disk").touch()
    os.mkfifo(pool.path / "fifo")
    real = os.open
    opened: list[tuple[str, int]] = []

    def swapping(path: str, flags: int, *args: int, **options: int) -> int:
        if path == "disk" and not opened:
            (pool.path / "disk").unlink()
            (pool.path / "disk").symlink_to("fifo")
        opened.append((path, flags))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", swapping)
    pool.backend.refresh({}, new_job())
    assert [
        one for one in opened if one[1] & (os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY) == 0
    ] == []


def test_links_are_followed(pool: Pool, tmp_path: Path) -> None:
    qemu.create(tmp_path / "outside", 1 << 20)
    (pool.path / "link").symlink_to(tmp_path / "outside")
    (pool.path / "dangling").symlink_to(tmp_path / "missing")
    (pool.path / "circle").symlink_to(pool.path / "circle")
    found = pool.refresh()
    assert list(found) == ["link"]
    assert found["link"].format == "qcow2"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has loop devices")
def test_link_to_a_block_device_is_listed_as_a_file(pool: Pool, tmp_path: Path) -> None:
    qemu.create(tmp_path / "image", 1 << 30)
    os.truncate(tmp_path / "image", 4 << 20)
    done = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "image"], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        (pool.path / "link").symlink_to(device)
        record = pool.look("link")
        assert (record.type, record.format) == (VolumeType.FILE, "qcow2")
        assert (record.capacity, record.physical) == (1 << 30, 4 << 20)
        assert pool.refresh({"link": record})["link"] is record
        # A device has no holes to make an empty image of: it is overwritten as it is.
        after = pool.backend.wipe(record, WipeAlgorithm.DOD, new_job())
        assert (after.format, after.capacity) == ("raw", 4 << 20)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize(
    "goal", ["/proc/self/mem", "/proc/version", "/proc/kmsg", "/sys/kernel/uevent_seqnum"]
)
def test_links_into_the_kernel(pool: Pool, goal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel makes up as it is read is not even opened."""
    if not Path(goal).exists():
        pytest.skip(f"this kernel has no {goal}")
    (pool.path / "link").symlink_to(goal)
    qemu.create(pool.path / "disk", 1 << 20)
    record = replace(pool.look("disk"), name="link")
    real = os.open
    opened: list[int] = []
    there = Path(goal).resolve()

    def watching(path: str, flags: int, *args: int, **options: int) -> int:
        fd = real(path, flags, *args, **options)
        if not flags & os.O_PATH and Path(f"/proc/self/fd/{fd}").readlink() == there:
            opened.append(fd)
        return fd

    monkeypatch.setattr(os, "open", watching)
    assert list(pool.refresh()) == ["disk"]
    assert pool.backend.look("link", None) is None
    for writable in (False, True):
        with pytest.raises(OperationUnsupported, match="leads to a file of the kernel's own"):
            pool.backend.open_image(record, writable=writable)
    assert opened == []


def test_what_is_no_volume_is_passed_over(pool: Pool) -> None:
    os.mkfifo(pool.path / "fifo")
    (pool.path / "link-to-fifo").symlink_to("fifo")
    (pool.path / "link-to-device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pool.path / "socket"))
    (pool.path / ".storaged-other-12-3.part").touch()
    (pool.path / "bell\a").touch()
    assert pool.refresh() == {}


def test_odd_names_are_kept(pool: Pool) -> None:
    names = [".hidden", "tab\there", "line\nbreak", "-rf", "a b&c<d>", "\N{SNOWMAN}", "x" * 255]
    names.append(os.fsdecode(b"not\xffutf8"))
    for name in names:
        (pool.path / name).touch()
    assert sorted(pool.refresh()) == sorted(names)


def test_damaged_image_is_listed_with_its_problem(pool: Pool) -> None:
    (pool.path / "stub").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))  # stops libvirt's whole pool
    (pool.path / "fine").write_bytes(b"data")
    found = pool.refresh()
    assert found["fine"].problem is None
    assert found["stub"].format == "qcow2"
    assert found["stub"].problem
    assert found["stub"].capacity == 64


def test_unreadable_file_is_listed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (pool.path / "secret").write_bytes(bytes(100))
    (pool.path / "secret").chmod(0o600)
    _refuse_open(monkeypatch, 13)
    record = pool.refresh()["secret"]
    assert record.problem == f"unreadable: owner {_me()}, mode 0600"
    assert record.capacity == 100
    monkeypatch.undo()
    again = pool.refresh({"secret": record})
    assert again["secret"].problem is None


def test_io_error_is_the_volumes_not_the_pools(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (pool.path / "bad").touch()
    _refuse_open(monkeypatch, 5)
    record = pool.refresh()["bad"]
    assert record.problem == "unreadable: Input/output error"
    assert pool.refresh({"bad": record})["bad"] is record


def test_without_descriptors_the_scan_fails(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (pool.path / "disk").touch()
    _refuse_open(monkeypatch, 24)
    with pytest.raises(SystemFailure, match="Too many open files"):
        pool.refresh()


def test_missing_target(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "gone")
    assert not pool.backend.check()
    with pytest.raises(SystemFailure) as caught:
        pool.refresh()
    expected = f"cannot open directory '{tmp_path / 'gone'}': No such file or directory"
    assert str(caught.value) == expected


def test_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    pool = make_pool(tmp_path / "file")
    assert not pool.backend.check()
    with pytest.raises(SystemFailure, match="Not a directory"):
        pool.refresh()


def test_unchanged_records_are_handed_back(pool: Pool) -> None:
    qemu.create(pool.path / "a.qcow2", 1 << 20)
    (pool.path / "b").write_bytes(bytes(10))
    (pool.path / "d").mkdir()
    first = pool.refresh()
    second = pool.refresh(first)
    assert all(second[name] is first[name] for name in first)


def test_unchanged_files_are_not_opened(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (pool.path / "b").write_bytes(bytes(10))
    first = pool.refresh()
    _refuse_open(monkeypatch, 5)
    assert pool.refresh(first)["b"] is first["b"]


def test_changes_are_seen(pool: Pool) -> None:
    for name in ("grown", "mode", "replaced", "removed"):
        (pool.path / name).write_bytes(bytes(10))
    first = pool.refresh()
    with (pool.path / "grown").open("ab") as file:
        file.write(b"more")
    (pool.path / "mode").chmod(0o644)
    (pool.path / "removed").unlink()
    qemu.create(pool.path / "new", 1 << 20)
    (pool.path / "new").replace(pool.path / "replaced")
    second = pool.refresh(first)
    assert sorted(second) == ["grown", "mode", "replaced"]
    assert second["grown"].capacity == 14
    assert second["mode"].permissions.mode == 0o644
    assert second["replaced"].format == "qcow2"


def test_allocation_changes_without_a_time(pool: Pool) -> None:
    (pool.path / "b").write_bytes(bytes(10))
    record = pool.look("b")
    status = (pool.path / "b").stat()
    late = os.stat_result(
        [*status[:10]],
        {"st_blocks": 800, "st_mtime_ns": 1, "st_ctime_ns": 1, "st_blksize": 512},
    )
    changed = update_allocation(record, late)
    assert changed.allocation == 800 * 512
    assert changed.stamp == record.stamp


def test_equal_parts_are_shared(pool: Pool) -> None:
    for name in ("a", "b"):
        qemu.create(pool.path / name, 1 << 20)
    found = pool.refresh()
    assert found["a"].permissions is found["b"].permissions
    assert found["a"].image is found["b"].image


def test_cancel(pool: Pool) -> None:
    (pool.path / "a").touch()
    job = new_job("refresh")
    job.cancel()
    with pytest.raises(Cancelled):
        pool.backend.refresh({}, job)


def test_space_and_permissions_of_the_target(pool: Pool) -> None:
    pool.path.chmod(0o750)
    found = pool.backend.refresh({}, new_job())
    facts = os.statvfs(pool.path)
    assert found.space.capacity == facts.f_blocks * facts.f_frsize
    assert found.space.allocation + found.space.available == found.space.capacity
    told = pool.backend.measure()
    assert told is not None
    assert told.permissions == found.permissions
    assert found.permissions is not None
    assert found.permissions.mode == 0o750
    assert found.problems == ()


def test_look(pool: Pool) -> None:
    qemu.create(pool.path / "a", 1 << 20)
    record = pool.look("a")
    assert record == pool.refresh()["a"]
    assert pool.backend.look("a", record) is record
    (pool.path / "a").unlink()
    assert pool.backend.look("a", record) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../vms", "a/b", "a\0b", "bell\a", "\ud800", "x" * 256]
)
def test_look_stays_in_the_directory(pool: Pool, name: str) -> None:
    assert pool.backend.look(name, None) is None


def test_no_descriptor_is_left(pool: Pool) -> None:
    for name in "abc":
        (pool.path / name).touch()
    before = _descriptors()
    pool.refresh()
    pool.look("a")
    assert _descriptors() == before


def _refuse_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refused(path: str, flags: int, *args: int, **options: int) -> int:
        if "dir_fd" in options:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refused)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _me() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
