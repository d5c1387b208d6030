"""Volumes that are block devices: what goes in and out, what is refused, what is told."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from storaged import imagelock
from storaged.backend import Hole, Sink, Source, WipeAlgorithm
from storaged.backends._block import device_stamp, with_image
from storaged.backends._blockholder import holders
from storaged.errors import (
    ArgumentUnsupported,
    Cancelled,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    SystemFailure,
    VolumeBusy,
)
from storaged.flow import write_all
from storaged.formats import luks_create, qcow2_create, syscalls
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo
from storaged.job import Job
from storaged.model import VolumeRecord, VolumeType
from tests.backends.blocks import MIB, Devices, content, fill
from tests.backends.conftest import new_job
from tests.kernel.devices import Mapper

pytestmark = pytest.mark.kernel("loop")

LoopDevice = Callable[..., str]
SIZE = 8 * MIB


@pytest.fixture
def device(loop_device: LoopDevice) -> str:
    return loop_device(8)


@pytest.fixture
def pool(device: str) -> Devices:
    return Devices({"lun": device})


@pytest.fixture
def volume(pool: Devices) -> VolumeRecord:
    return pool.record("lun")


@pytest.fixture
def mounted(device: str, tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "mnt"
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


def received(source: Source) -> tuple[bytes, list[int]]:
    """All that a sparse source gives, and the lengths of its holes."""
    data, holes = b"", []
    with closing(source):
        while piece := source.read(1 << 20):
            if isinstance(piece, Hole):
                holes.append(piece.length)
                data += bytes(piece.length)
            else:
                assert len(piece) <= 1 << 20
                data += piece
    return data, holes


def _write_and_finish(sink: Sink, data: bytes) -> None:
    sink.write(data)
    sink.finish()


# Bytes in and out


def test_an_upload_goes_where_it_is_to_and_nowhere_else(
    pool: Devices, volume: VolumeRecord, device: str
) -> None:
    fill(device)
    sink = pool.upload(volume, 1000, 0)
    sink.write(b"abc")
    sink.write(memoryview(b"def"))
    sink.finish()
    assert content(device) == b"x" * 1000 + b"abcdef" + b"x" * (SIZE - 1006)


def test_nothing_is_written_behind_the_end(
    pool: Devices, volume: VolumeRecord, device: str
) -> None:
    sink = pool.upload(volume, SIZE - 4, 0)
    with pytest.raises(SystemFailure) as caught:
        sink.write(b"12345")
    assert caught.value.errno == errno.ENOSPC
    sink.write(b"1234")
    with pytest.raises(SystemFailure):
        sink.hole(1)
    sink.finish()
    assert content(device)[-4:] == b"1234"


def test_an_announced_length_is_the_most_that_is_taken(pool: Devices, volume: VolumeRecord) -> None:
    sink = pool.upload(volume, 0, 3)
    with pytest.raises(SystemFailure) as caught:
        sink.write(b"1234")
    assert caught.value.errno == errno.ENOSPC
    sink.abort()


@pytest.mark.parametrize("start", [MIB, MIB - 100])
@pytest.mark.parametrize("length", [2 * MIB, 2 * MIB + 7, 5, 4096])
def test_holes_of_an_upload_overwrite_what_was_there(
    pool: Devices, volume: VolumeRecord, device: str, start: int, length: int
) -> None:
    fill(device)
    sink = pool.upload(volume, start, 0)
    sink.hole(length)
    sink.write(b"end")
    sink.finish()
    expected = b"x" * start + bytes(length) + b"end"
    assert content(device) == expected + b"x" * (SIZE - len(expected))


@pytest.mark.parametrize("refused", [{"punch"}, {"punch", "zero"}])
def test_holes_where_the_device_cannot_discard(
    pool: Devices,
    volume: VolumeRecord,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: set[str],
) -> None:
    genuine = syscalls.fallocate

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        kind = "punch" if mode & syscalls.FALLOC_FL_PUNCH_HOLE else "zero"
        if kind in refused:
            raise OSError(errno.EOPNOTSUPP, "no")
        genuine(fd, mode, offset, length)

    monkeypatch.setattr(syscalls, "fallocate", fallocate)
    fill(device)
    sink = pool.upload(volume, 10, 0)
    sink.hole(3 * MIB)
    sink.finish()
    assert content(device) == b"x" * 10 + bytes(3 * MIB) + b"x" * (5 * MIB - 10)


def test_holes_where_what_was_discarded_reads_as_zeros(
    pool: Devices, volume: VolumeRecord, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a thin volume, which has no blocks there then: zeros that are written would take some.

    The kernel does not know that of it, and refuses to punch holes.
    """
    modes: list[int] = []
    written: list[int] = []

    def fallocate(_fd: int, mode: int, _offset: int, _length: int) -> None:
        modes.append(mode)
        raise OSError(errno.EOPNOTSUPP, "no")

    genuine = FileHandle.pwrite

    def pwrite(self: FileHandle, data: bytes, offset: int) -> None:
        written.append(len(data))
        genuine(self, data, offset)

    fill(device)
    monkeypatch.setattr(syscalls, "fallocate", fallocate)
    monkeypatch.setattr(FileHandle, "pwrite", pwrite)
    monkeypatch.setattr(pool, "discard_unit", lambda _volume: 256 << 10)
    sink = pool.upload(volume, MIB - 5, 0)
    sink.hole(4 * MIB)
    sink.hole(100)
    sink.finish()
    assert content(device) == b"x" * (MIB - 5) + bytes(4 * MIB + 100) + b"x" * (3 * MIB - 95)
    assert modes == []
    assert sum(written) == 5 + (256 << 10) - 5 + 100
    # a device that does not discard, though it was to: nobody promises anything
    monkeypatch.setattr(syscalls, "discard", fallocate_refused)
    fill(device)
    sink = pool.upload(volume, 0, 0)
    sink.hole(MIB)
    sink.finish()
    assert content(device)[: MIB + 1] == bytes(MIB) + b"x"


def fallocate_refused(_fd: int, _offset: int, _length: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "no")


def test_two_uploads_at_once(pool: Devices, volume: VolumeRecord, device: str) -> None:
    first, second = pool.upload(volume, 0, 0), pool.upload(volume, 10, 0)
    first.write(b"a" * 10)
    second.write(b"b" * 10)
    second.hole(MIB)  # although the other one has the device for himself
    first.finish()
    second.finish()
    assert content(device)[:21] == b"a" * 10 + b"b" * 10 + b"\0"


def test_a_download(pool: Devices, volume: VolumeRecord, device: str) -> None:
    fill(device, bytes(range(256)) * 16)
    data, holes = received(pool.download(volume, 0, 0))
    assert data == content(device)
    assert holes == []
    assert received(pool.download(volume, 5, 10))[0] == bytes(range(5, 15))
    assert received(pool.download(volume, SIZE - 3, 10))[0] == bytes([253, 254, 255])
    assert received(pool.download(volume, SIZE + 3, 10))[0] == b""


def test_a_sparse_download_finds_zeros(pool: Devices, volume: VolumeRecord, device: str) -> None:
    with Path(device).open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"data" * 25000)
        file.seek(5 * MIB + 5)
        file.write(b"z")
    data, holes = received(pool.download(volume, 0, 0, sparse=True))
    assert data == content(device)
    assert sum(holes) > 7 * MIB
    assert holes[0] == 3 * MIB
    part, _ = received(pool.download(volume, 3 * MIB - 5, 100, sparse=True))
    assert part == content(device)[3 * MIB - 5 : 3 * MIB + 95]


def test_a_sparse_download_of_nothing_but_zeros(pool: Devices, volume: VolumeRecord) -> None:
    assert received(pool.download(volume, 0, 0, sparse=True)) == (bytes(SIZE), [SIZE])
    assert received(pool.download(volume, SIZE, 0, sparse=True)) == (b"", [])


def test_a_device_that_becomes_shorter_is_no_end(
    pool: Devices, volume: VolumeRecord, device: str
) -> None:
    """What a pulled disk looks like: reads give nothing, writes have no space."""
    backing = Path(Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip())
    source, sink = pool.download(volume, 0, 0), pool.upload(volume, 0, 0)
    os.truncate(backing, MIB)
    subprocess.run(["losetup", "-c", device], check=True)
    with pytest.raises(SystemFailure) as caught:
        received(source)
    assert caught.value.errno == errno.ENODEV
    assert "byte" in (caught.value.advice or "")
    sink.write(bytes(MIB))
    more = bytes(MIB)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: sink.write(more),
        lambda: sink.hole(MIB),
        lambda: write_all(sink, [more, more]),
    )
    for attempt in attempts:
        with pytest.raises(SystemFailure) as caught:
            attempt()
        assert caught.value.errno == errno.ENODEV
    sink.abort()


def test_random_access(pool: Devices, volume: VolumeRecord, device: str) -> None:
    with closing(pool.open_image(volume, writable=True)) as handle:
        handle.pwrite(b"abc", 5)
        assert handle.size() == SIZE
        handle.flush()
    with closing(pool.open_image(volume)) as handle:
        assert handle.pread(5, 4) == b"\0abc\0"
        assert [extent.data for extent in handle.map(0, SIZE)] == [True]
        with pytest.raises(OSError, match="Bad file descriptor"):
            handle.pwrite(b"x", 0)


# Whose device it is


def test_what_is_mounted_is_not_written_to(
    pool: Devices, volume: VolumeRecord, mounted: Path
) -> None:
    for attempt in (
        lambda: pool.upload(volume, 0, 0),
        lambda: pool.open_image(volume, writable=True),
        lambda: pool.wipe(volume, WipeAlgorithm.ZERO, new_job(), force=True),
    ):
        with pytest.raises(VolumeBusy, match="'lun' is still in use") as caught:
            attempt()
        assert f"mounted at '{mounted}'" in (caught.value.advice or "")
    assert (mounted / "lost+found").is_dir()
    with closing(pool.open_image(volume)) as handle:  # reading does no harm
        assert len(handle.pread(4096, 0)) == 4096


@pytest.mark.kernel("loop", "btrfs")
def test_what_changes_meanwhile_is_not_copied(
    pool: Devices, volume: VolumeRecord, device: str, mounted: Path
) -> None:
    def refused() -> str:
        with pytest.raises(VolumeBusy) as caught:
            pool.open_disk(volume)
        return caught.value.advice or ""

    assert f"mounted at '{mounted}'" in refused()
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    pool.open_disk(volume).close()
    subprocess.run(["umount", mounted], check=True)
    # another process writes to it, without any lock
    with Path(device).open("r+b") as file:
        writer = subprocess.Popen(["sleep", "100"], stdout=file)
    with writer:
        assert f"pid {writer.pid}" in refused()
        writer.kill()
    with closing(pool.open_disk(volume)), pytest.raises(VolumeBusy):
        pool.wipe(volume, WipeAlgorithm.ZERO, new_job())
    subprocess.run(["mount", device, mounted], check=True)  # for its end


def test_btrfs_is_known_by_its_source(loop_device: LoopDevice, tmp_path: Path) -> None:
    device = loop_device(128)
    subprocess.run(["mkfs.btrfs", "-q", device], check=True)
    subprocess.run(["mount", device, tmp_path], check=True)
    try:
        assert holders(Path(device).stat().st_rdev) == (f"mounted at '{tmp_path}'",)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.kernel("loop", "parted")
def test_a_mounted_partition_holds_the_whole_disk(loop_device: LoopDevice, tmp_path: Path) -> None:
    device = loop_device(64, partitions=True)
    words = ["mklabel", "gpt", "mkpart", "one", "1MiB", "60MiB"]
    subprocess.run(["parted", "-s", device, *words], check=True)
    subprocess.run(["partprobe", device], check=True)
    subprocess.run(["mkfs.ext4", "-q", f"{device}p1"], check=True)
    subprocess.run(["mount", f"{device}p1", tmp_path], check=True)
    pool = Devices({"disk": device})
    try:
        with pytest.raises(VolumeBusy) as caught:
            pool.upload(pool.record("disk"), 0, 0)
        assert f"mounted at '{tmp_path}'" in (caught.value.advice or "")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.kernel("loop", "dm")
def test_a_part_of_another_device_is_not_written_to(
    pool: Devices, volume: VolumeRecord, device: str, mapper: Mapper
) -> None:
    upper = mapper.linear(device)
    with pytest.raises(VolumeBusy) as caught:
        pool.upload(volume, 0, 0)
    assert f"a part of '{Path(upper).name}'" in (caught.value.advice or "")


def test_a_machine_that_has_it_open(pool: Devices, volume: VolumeRecord, device: str) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        with imagelock.hold(fd, "lun"):
            for attempt in (
                lambda: pool.upload(volume, 0, 0),
                lambda: pool.wipe(volume, WipeAlgorithm.ZERO, new_job()),
            ):
                with pytest.raises(VolumeBusy):
                    attempt()
            pool.wipe(volume, WipeAlgorithm.ZERO, new_job(), force=True)
    finally:
        os.close(fd)


@contextmanager
def opened_elsewhere(path: Path | str, flags: str) -> Iterator[None]:
    """Another process has a file open, and no lock on it."""
    code = f"import os; os.open({str(path)!r}, os.O_RDWR | {flags}); print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield
        process.communicate(b"\n", timeout=30)


def test_a_machine_with_a_node_of_its_own(pool: Devices, volume: VolumeRecord, device: str) -> None:
    """libvirt gives each machine a /dev of its own, so that its locks lie on another inode."""
    node = Path(f"/dev/storaged-test-{os.getpid()}")
    os.mknod(node, stat.S_IFBLK | 0o600, Path(device).stat().st_rdev)
    try:
        with opened_elsewhere(node, "0"):
            for attempt in (
                lambda: pool.upload(volume, 0, 0),
                lambda: pool.wipe(volume, WipeAlgorithm.ZERO, new_job()),
            ):
                with pytest.raises(VolumeBusy) as caught:
                    attempt()
                assert "open by python" in (caught.value.advice or "")
            pool.wipe(volume, WipeAlgorithm.ZERO, new_job(), force=True)
    finally:
        node.unlink()


def test_who_has_it_for_himself_unseen(pool: Devices, volume: VolumeRecord, device: str) -> None:
    """A mount in another namespace, or a target that exports it, shows in no list of ours."""
    with opened_elsewhere(device, "os.O_EXCL"), pytest.raises(VolumeBusy):
        pool.upload(volume, 0, 0)


def test_a_wipe_keeps_uploads_out_and_the_other_way_round(
    pool: Devices, volume: VolumeRecord
) -> None:
    sink = pool.upload(volume, 0, 0)
    with pytest.raises(VolumeBusy):
        pool.wipe(volume, WipeAlgorithm.ZERO, new_job())
    sink.abort()
    with pool.locked_device(volume), pytest.raises(VolumeBusy):
        pool.upload(volume, 0, 0)
    pool.upload(volume, 0, 0).finish()


def test_another_device_under_its_path_is_refused(
    pool: Devices, loop_device: LoopDevice, device: str, tmp_path: Path
) -> None:
    other, link = loop_device(8), tmp_path / "link"
    link.symlink_to(device)
    pool.devices["lun"] = str(link)
    volume = pool.record("lun")
    pool.upload(volume, 0, 0).finish()
    link.unlink()
    link.symlink_to(other)
    for attempt in (lambda: pool.upload(volume, 0, 0), lambda: pool.open_image(volume)):
        with pytest.raises(OperationInvalid, match="is another device by now") as caught:
            attempt()
        assert caught.value.advice == "Look at it again: storagectl pool refresh blocks"
    looked = pool.look("lun", volume)
    assert looked is not None
    assert "another device" in (looked.problem or "")
    assert looked.stamp == volume.stamp
    link.unlink()
    link.symlink_to(device)
    back = pool.look("lun", looked)
    assert back is not None
    assert back.problem is None
    pool.upload(volume, 0, 0).finish()


def test_a_device_of_another_size_is_refused(pool: Devices, volume: VolumeRecord) -> None:
    known = replace(volume, stamp=device_stamp(Path(volume.path or "").stat().st_rdev, 5 * MIB))
    with pytest.raises(OperationInvalid, match=f"has {SIZE} bytes by now, and had {5 * MIB}"):
        pool.upload(known, 0, 0)
    looked = pool.look("lun", known)
    assert looked is not None
    pool.upload(looked, 0, 0).finish()
    unknown = replace(volume, stamp=b"")  # nothing is known: nothing is compared
    pool.upload(unknown, 0, 0).finish()


def test_a_device_that_has_gone(pool: Devices, volume: VolumeRecord) -> None:
    gone = replace(volume, path="/dev/no-such-device")
    with pytest.raises(NoSuchVolume, match="no storage vol with matching path"):
        pool.open_image(gone)
    with pytest.raises(NoSuchVolume):
        pool.wipe(gone, WipeAlgorithm.ZERO, new_job())
    with pytest.raises(NoSuchVolume):
        pool.describe(gone)
    for attempt in (lambda: pool.upload(gone, 0, 0), lambda: pool.download(gone, 0, 0)):
        with pytest.raises(SystemFailure, match="Unable to open stream for") as caught:
            attempt()
        assert caught.value.errno == errno.ENOENT
    assert pool.look("lun", gone) is None
    assert pool.look("lun", None) is None


def test_a_node_without_a_device(pool: Devices, volume: VolumeRecord, tmp_path: Path) -> None:
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(240, 77))
    gone = replace(volume, path=str(node), stamp=b"")
    with pytest.raises((NoSuchVolume, SystemFailure)):
        pool.open_image(gone)
    assert pool.look("lun", gone) is None


def test_a_file_is_no_device(pool: Devices, volume: VolumeRecord, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    for name in (path, tmp_path, Path("/dev/null")):
        with pytest.raises(OperationUnsupported, match="is no block device"):
            pool.upload(replace(volume, path=str(name)), 0, 0)
    assert path.read_bytes() == b"data"


# What is told


def test_what_the_xml_says(pool: Devices, volume: VolumeRecord, device: str) -> None:
    status = Path(device).stat()
    told = pool.describe(volume)
    assert (told.name, told.key, told.path) == ("lun", "key-lun", device)
    assert (told.capacity, told.allocation, told.physical) == (SIZE, SIZE, SIZE)
    assert told.type is VolumeType.BLOCK
    assert told.permissions.owner == status.st_uid
    assert told.permissions.mode == stat.S_IMODE(status.st_mode)
    assert told.timestamps is not None
    assert told.timestamps.mtime == status.st_mtime_ns
    assert told.encryption is None


def test_a_look_returns_what_is_known_if_nothing_changed(
    pool: Devices, volume: VolumeRecord
) -> None:
    first = pool.look("lun", volume)
    assert first is not None
    assert pool.look("lun", first) is first
    assert (first.key, first.path, first.capacity) == (volume.key, volume.path, SIZE)


def test_luks_is_seen_and_kept_in_scans(pool: Devices, volume: VolumeRecord, device: str) -> None:
    with closing(pool.open_image(volume, writable=True)) as handle:
        luks_create.create(handle, 4 * MIB, b"secret", iterations=1000)
    found = pool.look("lun", volume)
    assert found is not None
    assert isinstance(found.image, ImageInfo)
    assert found.image.encryption == "luks"
    assert (found.format, found.capacity) == ("raw", SIZE)
    told = pool.describe(found).encryption
    assert told is not None
    assert told.format == "luks"
    assert with_image(pool.record("lun"), found).image is found.image
    other = replace(found, stamp=device_stamp(1, SIZE))
    assert with_image(pool.record("lun"), other).image is None
    # where a scan cannot tell the number of the device
    bare = replace(pool.record("lun"), stamp=b"")
    assert with_image(bare, found).image is found.image
    assert with_image(replace(bare, key="another"), found).image is None
    assert with_image(replace(bare, capacity=MIB), found).image is None


def test_what_a_guest_wrote_is_no_image(pool: Devices, volume: VolumeRecord, device: str) -> None:
    with closing(pool.open_image(volume, writable=True)) as handle:
        file = FileHandle(handle.fileno() or -1, owned=False)
        qcow2_create.create(file, qcow2_create.CreateOptions(capacity=64 * MIB))
    found = pool.look("lun", volume)
    assert found is not None
    assert (found.format, found.capacity, found.image) == ("raw", SIZE, None)
    with closing(pool.open_disk(found)) as disk:
        assert disk.pread(4, 0) == b"QFI\xfb"
    with closing(pool.open_disk(found, format="qcow2")) as disk:
        assert disk.size() == 64 * MIB
        assert disk.pread(8, 0) == bytes(8)
    with pytest.raises(OperationUnsupported):
        pool.open_disk(found, format="vmdk")


def test_an_image_on_a_device_that_names_files_is_not_read(
    pool: Devices, volume: VolumeRecord
) -> None:
    options = qcow2_create.CreateOptions(capacity=MIB, backing=b"/etc/shadow", backing_format="raw")
    with closing(pool.open_image(volume, writable=True)) as handle:
        qcow2_create.create(FileHandle(handle.fileno() or -1, owned=False), options)
    with pytest.raises(OperationUnsupported, match="names other files"):
        pool.open_disk(volume, format="qcow2")


# Wiping


@pytest.mark.parametrize("algorithm", [WipeAlgorithm.ZERO, WipeAlgorithm.NNSA])
def test_a_wipe_to_zeros(
    pool: Devices, volume: VolumeRecord, device: str, algorithm: WipeAlgorithm
) -> None:
    fill(device)
    job = new_job()
    made = pool.wipe(volume, algorithm, job)
    assert made.capacity == SIZE
    assert content(device) == bytes(SIZE)
    assert job.done == job.total
    assert job.total % SIZE == 0


def test_a_wipe_with_other_patterns(pool: Devices, volume: VolumeRecord, device: str) -> None:
    fill(device)
    pool.wipe(volume, WipeAlgorithm.DOD, new_job())
    assert content(device) == b"\xff" * SIZE
    pool.wipe(volume, WipeAlgorithm.RANDOM, new_job())
    assert len(set(content(device)[:4096])) > 200


def test_a_verification_that_fails_says_where(
    pool: Devices, volume: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.backends._blockwipe._STRETCH", 3 << 20)
    genuine = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        data = genuine(fd, length, offset)
        return b"?" * length if offset >= 6 * MIB and length > 4096 else data

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(SystemFailure, match="failed to wipe volume") as caught:
        pool.wipe(volume, WipeAlgorithm.NNSA, new_job())
    assert caught.value.errno == errno.EIO
    assert caught.value.advice == f"It failed between byte {6 * MIB} and {SIZE}."


def test_a_cancelled_wipe_ends_soon(
    pool: Devices, volume: VolumeRecord, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.backends._blockwipe._STRETCH", MIB)
    fill(device)
    job: Job[None] = new_job()
    genuine = job.checkpoint

    def checkpoint(done: int | None = None, total: int | None = None) -> None:
        if (done or 0) >= 2 * MIB:
            job.cancel()
        genuine(done, total)

    monkeypatch.setattr(job, "checkpoint", checkpoint)
    with pytest.raises(Cancelled):
        pool.wipe(volume, WipeAlgorithm.ZERO, job)
    assert content(device) == bytes(2 * MIB) + b"x" * 6 * MIB


def test_trim(pool: Devices, volume: VolumeRecord, device: str) -> None:
    fill(device)
    job = new_job()
    pool.wipe(volume, WipeAlgorithm.TRIM, job)
    assert (job.done, job.total) == (SIZE, SIZE)
    assert content(device) == bytes(SIZE)  # of a loop device we know it


def test_trim_where_the_device_cannot(
    pool: Devices, volume: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(syscalls, "discard", refuse)
    with pytest.raises(ArgumentUnsupported, match="'trim' algorithm not supported"):
        pool.wipe(volume, WipeAlgorithm.TRIM, new_job())


@pytest.mark.kernel("loop", "dm")
def test_errors_of_the_disk_are_told_with_their_place(device: str, mapper: Mapper) -> None:
    bad = mapper.half(device, 4 * MIB)
    pool = Devices({"bad": bad})
    volume = pool.record("bad")
    with pytest.raises(SystemFailure) as caught:
        received(pool.download(volume, 0, 0))
    assert caught.value.errno == errno.EIO
    assert f"byte {4 * MIB} " in (caught.value.advice or "")
    with pytest.raises(SystemFailure) as caught:
        pool.wipe(volume, WipeAlgorithm.RANDOM, new_job())
    assert caught.value.errno == errno.EIO
    assert "between byte" in (caught.value.advice or "")
    sink = pool.upload(volume, 4 * MIB, 0)
    with pytest.raises(SystemFailure) as caught:
        _write_and_finish(sink, bytes(MIB))
    assert caught.value.errno == errno.EIO
