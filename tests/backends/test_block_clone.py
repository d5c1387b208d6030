"""Clones from and to block devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from storaged.backend import CloneBacking, CloneOptions, Compression
from storaged.backends._blockclone import Supply
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    NoSpace,
    SystemFailure,
    Unsupported,
    VolumeBusy,
)
from storaged.formats.luks_volume import unlock
from storaged.job import Job
from storaged.model import BackingStore, Encryption, VolumeDef, VolumeRecord
from tests.backends.blocks import MIB, Devices, content, fill
from tests.backends.conftest import Pool, new_job

pytestmark = pytest.mark.kernel("loop")

LoopDevice = Callable[..., str]
SIZE = 8 * MIB
DATA = os.urandom(MIB)
SECRET = CloneOptions(secret=b"secret")


@pytest.fixture
def device(loop_device: LoopDevice) -> str:
    path = loop_device(8)
    fill(path, b"old!" * (MIB // 4))
    return path


@pytest.fixture
def blocks(device: str) -> Devices:
    return Devices({"lun": device})


def source_of(pool: Pool, kind: str, capacity: int = 4 * MIB) -> VolumeRecord:
    """A volume of a directory with some data, holes before and behind them."""
    raw = pool.create("template", capacity, format="raw")
    with closing(pool.backend.open_image(raw, writable=True)) as handle:
        handle.pwrite(DATA, 2 * MIB)
    return (
        raw if kind == "raw" else pool.clone(f"template.{kind}", pool.look("template"), format=kind)
    )


def expected(length: int = SIZE) -> bytes:
    return bytes(2 * MIB) + DATA + bytes(length - 3 * MIB)


def fill_from(
    blocks: Devices,
    pool: Pool,
    source: VolumeRecord,
    options: CloneOptions = CloneOptions(),  # noqa: B008 -- a frozen value
    job: Job[None] | None = None,
    **request: object,
) -> None:
    planned = blocks.check_clone(VolumeDef("new", **request), source, options)  # type: ignore[arg-type]
    with pool.opened(source) as image:
        blocks.fill_device(blocks.devices["lun"], planned, image, job or new_job(), options)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_the_disk_of_a_file_and_nothing_else_is_on_the_device(
    blocks: Devices, pool: Pool, device: str, kind: str
) -> None:
    job: Job[None] = new_job()
    fill_from(blocks, pool, source_of(pool, kind), job=job)
    assert content(device) == expected()
    assert job.done == job.total > 0


def test_holes_are_not_read_and_written_where_the_device_zeroes(
    blocks: Devices, pool: Pool, device: str
) -> None:
    backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    fill_from(blocks, pool, source_of(pool, "raw"))
    os.sync()
    assert Path(backing).stat().st_blocks * 512 < 3 * MIB


def test_odd_sizes(blocks: Devices, pool: Pool, device: str) -> None:
    raw = pool.create("odd", 3 * MIB + 512 + 3, format="raw")
    with closing(pool.backend.open_image(raw, writable=True)) as handle:
        handle.pwrite(b"end", 3 * MIB + 512)
    fill_from(blocks, pool, pool.look("odd"))
    assert content(device) == bytes(3 * MIB + 512) + b"end" + bytes(SIZE - 3 * MIB - 515)


def test_a_device_that_is_too_short(blocks: Devices, pool: Pool, device: str) -> None:
    with pytest.raises(SystemFailure) as caught:
        fill_from(blocks, pool, source_of(pool, "raw", SIZE + 512))
    assert caught.value.errno == errno.ENOSPC
    assert content(device)[:4] == b"old!"


def test_an_encrypted_clone(blocks: Devices, pool: Pool, device: str) -> None:
    source = source_of(pool, "qcow2")
    fill_from(blocks, pool, source, SECRET, encryption=Encryption("luks"))
    assert DATA[:512] not in content(device)
    assert b"old!" not in content(device)
    with closing(blocks.open_image(blocks.record("lun"))) as handle:
        disk = unlock(handle, b"secret")
        assert SIZE - (2 << 20) <= disk.size() < SIZE
        assert disk.pread(disk.size(), 0) == expected(disk.size())


def test_an_encrypted_device(blocks: Devices, device: str) -> None:
    volume = blocks.check_request(VolumeDef("new", 6 * MIB, encryption=Encryption("luks")))
    assert SIZE - MIB < blocks.room_for(volume) <= SIZE
    blocks.encrypt_device(device, volume, b"secret")
    found = blocks.look("lun", blocks.record("lun"))
    assert found is not None
    assert found.image is not None
    assert found.image.encryption == "luks"
    with closing(blocks.open_image(found)) as handle:
        assert unlock(handle, b"secret").size() >= 6 * MIB


def test_a_container_is_copied_as_it_is_or_unlocked(
    blocks: Devices, pool: Pool, device: str
) -> None:
    pool.create("secret", 4 * MIB, format="raw", encryption=Encryption("luks"), secret=b"abc")
    source = pool.look("secret")
    planned = blocks.check_clone(VolumeDef("new"), source)
    assert planned.capacity == source.physical
    fill_from(blocks, pool, source)
    with closing(blocks.open_image(blocks.record("lun"))) as handle:
        assert unlock(handle, b"abc").size() >= 4 * MIB
    options = CloneOptions(source_secret=b"abc")
    assert blocks.check_clone(VolumeDef("new"), source, options).capacity == 4 * MIB
    fill_from(blocks, pool, source, options)
    with pytest.raises(ConfigUnsupported, match="its passphrase is needed"):
        blocks.check_clone(VolumeDef("new", encryption=Encryption("luks")), source, SECRET)


def test_zeros_are_not_written_where_nothing_was_written_yet(
    blocks: Devices, pool: Pool, device: str
) -> None:
    """Each would take space of the thin pool that others share."""
    source = source_of(pool, "qcow2")
    planned = blocks.check_clone(VolumeDef("new"), source)
    supply = Supply("thin pool 'tp'", 64 * MIB, 65536)
    with pool.opened(source) as image:
        blocks.fill_device(device, planned, image, new_job(), supply=supply)
    old = b"old!" * (MIB // 4)  # it stands for zeros here
    assert content(device) == old * 2 + DATA + old * 5
    # the rest of a unit may hold anything, all else reads as zeros
    with pool.opened(source) as image:
        raw = replace(supply, blank=False, discards=True)
        blocks.fill_device(device, planned, image, new_job(), supply=raw)
    assert content(device) == expected()


def test_what_does_not_fit_into_the_supply(
    blocks: Devices, pool: Pool, loop_device: LoopDevice, device: str
) -> None:
    source = source_of(pool, "raw")
    planned = blocks.check_clone(VolumeDef("new"), source)
    supply = Supply("thin pool 'tp'", MIB, 65536)
    with pool.opened(source) as image:
        blocks.fill_device(device, planned, image, new_job(), supply=supply)
    fill(device, b"old!" * (MIB // 4))

    def refused(name: str, giving: Pool | Devices, record: VolumeRecord, **other: object) -> str:
        less = replace(supply, room=MIB - 1, **other)  # type: ignore[arg-type]
        request = blocks.check_clone(VolumeDef(name), record)
        with giving.opened(record) as image, pytest.raises(NoSpace) as caught:
            blocks.fill_device(device, request, image, new_job(), supply=less)
        return caught.value.detail

    assert "'new' takes at least 1 MiB, and thin pool 'tp' has" in refused("new", pool, source)
    assert "takes at least 8 MiB" in refused("new", pool, source, blank=False)
    assert content(device)[2 * MIB : 3 * MIB] == b"old!" * (MIB // 4)  # not even begun
    # a device does not tell its holes: zeros are left out, and data end where the room does
    other = blocks.devices["other"] = loop_device(8)
    with blocks.opened(blocks.record("other")) as image:
        blocks.fill_device(device, planned, image, new_job(), supply=replace(supply, room=0))
    fill(other, DATA)
    refused("new", blocks, blocks.record("other"))
    assert content(device)[MIB:] == b"old!" * (7 * MIB // 4)


def test_a_device_in_use_is_not_filled(blocks: Devices, pool: Pool, device: str) -> None:
    source = source_of(pool, "raw")
    with blocks.locked_device(blocks.record("lun")), pytest.raises(VolumeBusy):
        fill_from(blocks, pool, source)
    assert content(device)[:4] == b"old!"


def test_a_cancel(blocks: Devices, pool: Pool) -> None:
    job: Job[None] = new_job()
    job.cancel()
    with pytest.raises(Cancelled):
        fill_from(blocks, pool, source_of(pool, "raw"), job=job)


def test_data_are_not_shared(blocks: Devices, pool: Pool, device: str) -> None:
    source = source_of(pool, "raw")
    with pool.opened(source) as image, pytest.raises(SystemFailure, match="failed to clone files"):
        blocks.fill_device(device, VolumeDef("new", 4 * MIB), image, new_job(), reflink=True)


@pytest.mark.parametrize(
    ("request_", "options", "error"),
    [
        ({"format": "qcow2"}, CloneOptions(), ConfigUnsupported),
        ({"compat": "1.1"}, CloneOptions(), ConfigUnsupported),
        ({"backing": BackingStore("/x")}, CloneOptions(), Unsupported),
        ({}, CloneOptions(backing=CloneBacking.KEEP), ConfigUnsupported),
        ({}, CloneOptions(compress=Compression.ZLIB), ConfigUnsupported),
        ({"encryption": Encryption("luks")}, CloneOptions(), ConfigUnsupported),
    ],
)
def test_what_a_device_cannot_hold(
    blocks: Devices,
    request_: dict[str, object],
    options: CloneOptions,
    error: type[Exception],
) -> None:
    source = blocks.record("lun")
    with pytest.raises(error):
        blocks.check_clone(VolumeDef("new", **request_), source, options)  # type: ignore[arg-type]


# From a device to files


def clone_to_files(
    blocks: Devices, pool: Pool, source: VolumeRecord, **options: object
) -> VolumeRecord:
    how = options.pop("how", CloneOptions())
    assert isinstance(how, CloneOptions)
    planned = pool.backend.plan_clone(
        VolumeDef("copy", allocation=0, **options),  # type: ignore[arg-type]
        source,
        options=how,
    )
    with blocks.opened(source) as image:
        return pool.backend.clone(planned, image, new_job(), reflink=False, options=how)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_a_file_from_a_device(blocks: Devices, pool: Pool, device: str, kind: str) -> None:
    fill(device, bytes(MIB))
    with Path(device).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(DATA)
    made = clone_to_files(blocks, pool, blocks.record("lun"), format=kind)
    assert (made.format, made.capacity) == (kind, SIZE)
    assert made.allocation < 2 * MIB  # the zeros are left out
    with closing(pool.backend.open_disk(made)) as disk:
        assert disk.pread(SIZE, 0) == expected()


def test_what_a_guest_wrote_stays_what_it_is(
    blocks: Devices, pool: Pool, device: str, tmp_path: Path
) -> None:
    image = source_of(pool, "qcow2")
    data = (pool.path / image.name).read_bytes()
    with Path(device).open("r+b") as file:
        file.write(data)
    made = clone_to_files(blocks, pool, blocks.record("lun"), format="qcow2")
    with closing(pool.backend.open_disk(made)) as disk:
        assert disk.pread(len(data), 0) == data  # the image is in the disk, and not the disk


def test_a_file_from_an_encrypted_device(blocks: Devices, pool: Pool, device: str) -> None:
    fill_from(blocks, pool, source_of(pool, "raw"), SECRET, encryption=Encryption("luks"))
    source = blocks.look("lun", blocks.record("lun"))
    assert source is not None
    made = clone_to_files(
        blocks, pool, source, format="qcow2", how=CloneOptions(source_secret=b"secret")
    )
    with closing(pool.backend.open_disk(made)) as disk:
        assert disk.pread(3 * MIB, 0) == expected(3 * MIB)


def test_from_device_to_device(blocks: Devices, loop_device: LoopDevice, device: str) -> None:
    blocks.devices["other"] = loop_device(9)
    fill(blocks.devices["other"], b"x" * MIB)
    source = blocks.record("lun")
    volume = blocks.check_clone(VolumeDef("other"), source)
    with blocks.opened(source) as image:
        blocks.fill_device(blocks.devices["other"], volume, image, new_job())
    assert content(blocks.devices["other"]) == content(device) + bytes(MIB)
    assert replace(volume, capacity=0).format == "raw"
