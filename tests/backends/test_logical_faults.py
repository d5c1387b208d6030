"""What goes wrong below logical volumes, and who else uses them, on a kernel with device-mapper."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import storaged
from storaged.backend import WipeAlgorithm
from storaged.errors import StorageError, VolumeBusy
from storaged.model import BackingStore, SourceExtent
from tests.backends.volumegroups import (
    DURABLE,
    MIB,
    Lab,
    clone,
    create,
    lab,
    new_job,
    pool_of,
    read,
    upload,
    volumes,
    write,
)
from tests.kernel.devices import Mapper
from tests.kernel.programs import eventually, patience, run

__all__ = ["lab"]

pytestmark = pytest.mark.kernel("lvm", "loop", "dm", "thin")


def lvcreate(*words: str) -> None:
    run("lvcreate", "-qq", "-y", "-Zn", "-Wn", *words)


def test_volumes_of_every_kind_as_libvirt_shows_them(lab: Lab) -> None:
    one, two = lab.device(), lab.device()
    pool = lab.pool(lab.group("vg", one, two), one, two)
    lvcreate("-n", "striped", "-i", "2", "-L", "8M", "vg")
    lvcreate("-n", "mirror", "--type", "mirror", "-m1", "--mirrorlog", "core", "--nosync",
             "-L", "8M", "vg")  # fmt: skip
    lvcreate("-n", "raid", "--type", "raid1", "-m1", "--nosync", "-L", "8M", "vg")
    found = volumes(pool)
    assert found.keys() == {"striped", "mirror", "raid"}
    assert {one.capacity for one in found.values()} == {8 * MIB}
    assert {one.problem for one in found.values()} == {None}
    extents = {name: (record.extra or {})["extents"] for name, record in found.items()}
    assert extents["striped"] == (SourceExtent(one, 0, 8 * MIB), SourceExtent(two, 0, 8 * MIB))
    assert extents["mirror"] == (
        SourceExtent("mirror_mimage_0", 0, 8 * MIB), SourceExtent("mirror_mimage_1", 0, 8 * MIB),
    )  # fmt: skip
    assert extents["raid"] == (
        SourceExtent("raid_rimage_0", 0, 8 * MIB), SourceExtent("raid_rimage_1", 0, 8 * MIB),
    )  # fmt: skip
    write(found["raid"], b"data", 7 * MIB)
    pool.stop(new_job())
    assert not Path("/dev/vg").exists()
    pool.start(new_job())
    assert read(found["raid"], 4, 7 * MIB) == b"data"
    pool.delete(found["raid"], new_job())
    assert lab.names("vg") == {"striped", "mirror"}


def test_writes_that_fail_leave_nothing_half_made(lab: Lab, mapper: Mapper) -> None:
    """dm-flakey below a group: it can be read, and no write succeeds."""
    device = lab.device(128)
    lab.group("vg", device)
    lvcreate("-n", "there", "-L", "16M", "vg")
    run("vgchange", "-qq", "-an", "vg")
    lab.hide(device)
    failing = mapper.failing_writes(device)
    lab.see(failing)
    pool = lab.pool("vg", failing, host=DURABLE)
    pool.start(new_job())
    before = volumes(pool)
    there = before["there"]
    assert read(there, 16) is not None
    refusals: tuple[Callable[[], object], ...] = (
        lambda: create(pool, "new", 8 * MIB),
        lambda: clone(pool, "new", there),
        lambda: create(pool, "new", 4 * MIB, backing=BackingStore("there")),
        lambda: pool.resize(there, 32 * MIB, new_job()),
        lambda: pool.wipe(there, WipeAlgorithm.ZERO, new_job()),
    )
    for refused in refusals:
        with pytest.raises(StorageError):
            refused()
        assert volumes(pool) == before
    with pytest.raises(StorageError, match="cannot write to stream"):
        upload(pool, there, os.urandom(MIB))
    assert lab.names("vg") == {"there"}
    pool.stop(new_job())
    assert not Path("/dev/vg/there").exists()


@pytest.mark.kernel("scsi_debug")
def test_a_disk_that_is_pulled_out_of_a_group(
    lab: Lab, scsi_hosts: Callable[..., list[str]]
) -> None:
    good, bad = lab.device(), scsi_hosts(dev_size_mb=64)[0]
    lab.see(bad)
    pool = lab.pool(lab.group("vg", good, bad), good, bad)
    lvcreate("-n", "well", "-L", "8M", "vg", good)
    lvcreate("-n", "ill", "-L", "8M", "vg", bad)
    before = volumes(pool)
    Path(f"/sys/block/{Path(bad).name}/device/delete").write_text("1")
    eventually(lambda: not Path(bad).exists(), patience(5), "the disk to be gone")
    seen = pool.refresh(before, new_job())
    assert any("a physical volume is missing" in problem for problem in seen.problems)
    assert "missing" in (seen.volumes["ill"].problem or "")
    assert seen.volumes["well"].problem is None
    write(seen.volumes["well"], b"still here")
    with pytest.raises(StorageError):
        pool.wipe(seen.volumes["ill"], WipeAlgorithm.ZERO, new_job())
    with pytest.raises(StorageError):
        create(pool, "new", 4 * MIB)
    pool.stop(new_job())
    assert not Path("/dev/vg/well").exists()
    pool.start(new_job())  # with what is there
    found = pool.refresh({}, new_job())
    assert read(found.volumes["well"], 10) == b"still here"
    assert "ill" not in found.volumes
    assert any("'ill' could not be activated" in problem for problem in found.problems)


def test_a_stop_leaves_what_hangs_together_with_what_is_used(lab: Lab, tmp_path: Path) -> None:
    pool = pool_of(lab)
    create(pool, "tp", 64 * MIB, format="thin-pool")
    root = create(pool, "root", 32 * MIB, backing=BackingStore("tp"))
    create(pool, "idle", 32 * MIB, backing=BackingStore("tp"))
    create(pool, "plain", 8 * MIB)
    create(pool, "snap", 4 * MIB, backing=BackingStore("plain"))
    run("mkfs.ext4", "-q", "-E", "nodiscard", str(root.path))
    point = tmp_path / "mounted"
    point.mkdir()
    run("mount", str(root.path), str(point))
    try:
        with pytest.raises(VolumeBusy, match="'root' is in use"):  # before the idle one is lost
            pool.delete(volumes(pool)["tp"], new_job(), force=True)
        with pytest.raises(VolumeBusy):  # it would be torn
            pool.open_disk(volumes(pool)["root"])
        assert "still active" in (pool.stop(new_job()) or "")
        left = {path.name for path in Path("/dev/vg").iterdir()}
        assert left == {"root"}
        assert volumes(pool).keys() == {"tp", "root"}
    finally:
        run("umount", str(point))
    assert pool.stop(new_job()) is None
    assert not Path("/dev/vg").exists()
    pool.start(new_job())
    assert volumes(pool).keys() == {"tp", "root", "idle", "plain", "snap"}


@pytest.mark.kernel("udev")
def test_what_others_make_is_noticed(lab: Lab, tmp_path: Path) -> None:
    lab.group("vg")
    xml = "<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>"
    with storaged.open(tmp_path / "root", watch=True) as storage:
        pool = storage.define_pool(xml)
        pool.start()
        assert pool.names() == []
        lvcreate("-n", "theirs", "-L", "4M", "vg")
        eventually(lambda: pool.names() == ["theirs"], patience(10), "the volume to be seen")
        run("lvremove", "-qq", "-f", "vg/theirs")
        eventually(lambda: pool.names() == [], patience(10), "the volume to be gone")
        pool.stop()
