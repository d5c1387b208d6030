"""Volume groups as LVM keeps them, with and without device-mapper: all but what volumes hold."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import storaged
from storaged.backend import DeviceEvent
from storaged.backends import _lvmtool
from storaged.backends._lvmnames import building_mark
from storaged.backends.logical import Logical
from storaged.errors import (
    Cancelled,
    CommandFailed,
    ConfigUnsupported,
    InvalidArgument,
    NameTaken,
    NoSpace,
    OperationFailed,
    OperationInvalid,
    PoolBuilt,
    Timeout,
)
from storaged.job import Job
from storaged.model import PoolSource, SourceDevice, SourceExtent
from tests.backends.volumegroups import Lab, create, lab, new_job, volumes
from tests.kernel.programs import run

__all__ = ["lab"]

pytestmark = pytest.mark.kernel("lvm", "loop")

MIB = 1 << 20
EXTENT = 4 * MIB


# Groups


def test_a_group_is_built_found_and_removed(lab: Lab) -> None:
    devices = [lab.device(), lab.device()]
    pool = lab.pool("my-vg.1", *devices)
    assert not pool.check()
    with pytest.raises(ConfigUnsupported, match="cannot find logical volume group name 'my-vg"):
        pool.start(new_job())
    pool.build(new_job())
    sources = Logical.find_sources(None, pool.host, Job("find-sources"))
    expected = PoolSource(name="my-vg.1", devices=tuple(map(SourceDevice, devices)), format="lvm2")
    assert sources == (expected,)
    pool.start(new_job())
    found = pool.refresh({}, new_job())
    assert found.volumes == {}
    assert found.problems == ()
    assert found.space.capacity == found.space.available == 2 * 60 * MIB
    pool.build(new_job())  # it is there: nothing was asked for
    pool.stop(new_job())
    pool.delete_target(new_job())
    assert Logical.find_sources(None, pool.host, Job("find-sources")) == ()
    assert "LVM2_member" not in run("blkid", "-p", *devices, check=False)


@pytest.mark.parametrize("asked", [None, False])
def test_a_device_with_something_on_it_is_not_built_on(lab: Lab, asked: bool | None) -> None:
    empty, used = lab.device(), lab.device()
    run("mkfs.ext4", "-q", used)
    pool = lab.pool("vg", empty, used)
    with pytest.raises(PoolBuilt, match=used):
        pool.build(new_job(), overwrite=asked)
    assert "LVM2_member" not in run("blkid", "-p", empty, check=False)
    assert "ext4" in run("blkid", "-p", used)
    pool.build(new_job(), overwrite=True)
    assert pool.report().devices == (empty, used)


def test_a_failed_build_leaves_no_physical_volumes(lab: Lab) -> None:
    device = lab.device()
    pool = lab.pool("vg", device, "/dev/no-such-device")
    with pytest.raises(Exception, match="no-such-device"):
        pool.build(new_job(), overwrite=True)
    assert "LVM2_member" not in run("blkid", "-p", device, check=False)


def test_what_a_killed_build_left_is_built_on(lab: Lab) -> None:
    first, second = lab.device(), lab.device()
    run("pvcreate", "-y", "-qq", first)
    pool = lab.pool("vg", first, second)
    with pytest.raises(PoolBuilt, match="already formatted using 'LVM2_member'"):
        pool.build(new_job(), overwrite=False)
    pool.build(new_job())
    assert pool.report().devices == (first, second)
    other = lab.pool("other", first)
    with pytest.raises(PoolBuilt):
        other.build(new_job())


def test_a_group_of_other_devices_is_not_the_one_that_is_meant(lab: Lab) -> None:
    lab.group("vg")
    other = lab.device()
    pool = lab.pool("vg", other)
    with pytest.raises(ConfigUnsupported, match="cannot find any matching source devices"):
        pool.start(new_job())
    with pytest.raises(ConfigUnsupported, match="cannot find any matching source devices"):
        pool.build(new_job())
    assert not pool.check()


def test_a_group_may_have_a_name_that_no_volume_can(lab: Lab) -> None:
    device = lab.device()
    pool = lab.pool("snapshot_tdata", device)
    pool.build(new_job())
    assert pool.report().name == "snapshot_tdata"
    with pytest.raises(InvalidArgument, match="cannot be the name of a volume group"):
        lab.pool("-y", device).build(new_job())


def test_a_device_may_be_named_by_a_link(lab: Lab, tmp_path: Path) -> None:
    device = lab.device()
    lab.group("vg", device)
    link = tmp_path / "by-id"
    link.symlink_to(device)
    lab.pool("vg", str(link)).start(new_job())


def test_a_group_with_volumes_is_not_removed(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    create(pool, "precious", EXTENT)
    with pytest.raises(OperationFailed, match="holds 1 logical volumes") as caught:
        pool.delete_target(new_job())
    assert "precious" in (caught.value.advice or "")
    assert lab.names("vg") == {"precious"}


def test_no_devices_no_group(lab: Lab) -> None:
    with pytest.raises(ConfigUnsupported, match="no source devices"):
        lab.pool("vg").build(new_job())
    with pytest.raises(InvalidArgument, match="volume group"):
        lab.pool("v g", lab.device()).build(new_job())


def test_a_missing_device_is_named_and_the_rest_goes_on(lab: Lab) -> None:
    first, second = lab.device(), lab.device()
    pool = lab.pool(lab.group("vg", first, second), first, second)
    create(pool, "here", EXTENT)
    create(pool, "there", 59 * MIB)
    if lab.maps:
        run("vgchange", "-an", "vg")
    lab.hide(second)
    found = pool.refresh({}, new_job())
    assert len(found.problems) == 1
    assert f"(it was {second})" in found.problems[0]
    pool.start(new_job())
    listed = volumes(pool)
    assert "missing" not in (listed["here"].problem or "")
    if not lab.maps:  # else it cannot be activated
        assert "physical volumes that it lies on are missing" in (listed["there"].problem or "")


def test_events_of_its_devices_concern_a_pool(lab: Lab) -> None:
    pool = lab.pool("my-vg", "/dev/disk/by-id/x")

    def event(name: str, *links: str, **properties: str) -> DeviceEvent:
        return DeviceEvent("change", name, "/sys/x", links, properties)

    assert pool.concerns(event("/dev/dm-1", DM_NAME="my--vg-a"))
    assert not pool.concerns(event("/dev/dm-1", DM_NAME="my--vg--other-a"))
    assert pool.concerns(event("/dev/sda", "/dev/disk/by-id/x"))
    assert not pool.concerns(event("/dev/sda", ID_FS_TYPE="LVM2_member"))
    anywhere = lab.pool("vg")
    assert anywhere.concerns(event("/dev/sda", ID_FS_TYPE="LVM2_member"))
    assert not anywhere.concerns(event("/dev/sda", ID_FS_TYPE="ext4"))


# Volumes that are made


def test_a_volume_comes_and_goes(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    made = create(pool, "a.b-c", 5 * MIB)
    assert (made.capacity, made.allocation, made.path) == (8 * MIB, 8 * MIB, "/dev/vg/a.b-c")
    assert volumes(pool) == {"a.b-c": made}
    assert pool.look("a.b-c", None) is not None
    assert pool.look("other", None) is None
    assert "storaged" not in run("lvs", "-qq", "-o", "lv_tags", "vg")
    with pytest.raises(NameTaken, match=r"'/dev/vg/a.b-c' already exists"):
        create(pool, "a.b-c", EXTENT)
    grown = pool.resize(made, 9 * MIB, new_job())
    assert grown.capacity == 12 * MIB
    assert pool.resize(grown, 12 * MIB, new_job()) == grown
    with pytest.raises(OperationInvalid, match="is another one by now"):
        pool.delete(replace(grown, key="another"), new_job())
    pool.delete(grown, new_job())
    pool.delete(grown, new_job())  # gone already
    assert volumes(pool) == {}


def test_a_full_group_is_told_and_nothing_is_left(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    with pytest.raises(NoSpace, match="insufficient free space"):
        create(pool, "big", 100 * MIB)
    made = create(pool, "small", EXTENT)
    with pytest.raises(NoSpace, match="nsufficient free space"):
        pool.resize(made, 100 * MIB, new_job())
    assert lab.names("vg") == {"small"}


def test_a_cancelled_create_leaves_nothing(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    from storaged.model import VolumeDef

    planned = pool.plan(VolumeDef("x", EXTENT))
    job = new_job("create")
    job.cancel()
    with pytest.raises(Cancelled):
        pool.create(planned, job)
    assert lab.names("vg") == set()


def test_somebody_elses_volume_survives_our_failure(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    from storaged.model import VolumeDef

    planned = pool.plan(VolumeDef("x", EXTENT))
    run("lvcreate", "-qq", "-y", "-Zn", "-Wn", "-n", "x", "-L", "4M", "vg")
    with pytest.raises(CommandFailed, match="already exists"):
        pool.create(planned, new_job("create"))
    assert lab.names("vg") == {"x"}


def test_what_a_dead_process_left_is_not_listed_and_removed(lab: Lab) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    parts = building_mark(pool.host.id, 3).split("/")
    dead = "/".join([*parts[:2], str(ended.pid), *parts[3:]])
    elsewhere = dead.replace(pool.host.id, "another")
    for name, tag in (("dead", dead), ("far", elsewhere), ("ours", "/".join(parts))):
        run("lvcreate", "-qq", "-y", "-Zn", "-Wn", "--addtag", tag, "-n", name, "-L", "4M", "vg")
    seen = pool.refresh({}, new_job())
    assert seen.volumes == {}
    assert seen.problems == (
        "logical volume 'far' is not whole: another host makes it, or left it",
    )
    assert lab.names("vg") == {"far", "ours"}


def test_what_could_not_be_undone_is_told_and_tried_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has the group locked, or the device open, at the wrong moment."""
    pool = lab.pool(lab.group("vg"), *lab.devices)

    def fail(*_: object) -> None:
        raise Timeout("it is locked")

    with monkeypatch.context() as patched:
        patched.setattr(Logical, "_set_permissions", fail)
        patched.setattr(_lvmtool, "remove", fail)
        with pytest.raises(Timeout):
            create(pool, "half", EXTENT)
        assert lab.names("vg") == {"half"}
        with pytest.raises(NameTaken) as caught:
            create(pool, "half", EXTENT)
        assert "It is not whole" in (caught.value.advice or "")
        seen = pool.refresh({}, new_job())
        assert seen.volumes == {}
        assert seen.problems == (
            "logical volume 'half' is not whole, and could not be removed: lvremove vg/half",
        )
    seen = pool.refresh({}, new_job())
    assert (seen.volumes, seen.problems) == ({}, ())
    assert lab.names("vg") == set()
    create(pool, "half", EXTENT)


def test_a_lock_of_another_process_is_waited_for_and_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = lab.pool(lab.group("vg"), *lab.devices)
    monkeypatch.setattr(_lvmtool, "LOCK_PATIENCE", 0.2)
    lock = lab.directory / "lock" / "V_vg"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(Timeout, match=rf"'{lock}' is held by .* \(process {os.getpid()}\)"):
            pool.refresh({}, new_job())
    finally:
        os.close(fd)
    assert volumes(pool) == {}


# The engine over it


def test_the_engine_serves_a_group(lab: Lab, tmp_path: Path) -> None:
    device = lab.device()
    xml = (
        f"<pool type='logical'><name>vg</name><source><device path='{device}'/>"
        "<name>vg</name></source><target><path>/elsewhere</path></target></pool>"
    )
    with storaged.open(tmp_path / "root") as storage:
        pool = storage.define_pool(xml)
        pool.build()
        pool.start()
        volume = pool.create("newlv", "9 MiB")  # no thin pool: all of it is taken
        info = volume.info()
        assert (info.capacity, info.allocation, info.path) == (12 * MIB, 12 * MIB, "/dev/vg/newlv")
        assert pool.info().space.available == 48 * MIB
        text = volume.xml()
        assert "<volume type='block'>" in text
        assert f"<device path='{device}'>" in text
        assert "<extent start='0' end='12582912'/>" in text
        assert "<format" not in text
        assert storage.volume_by_key(info.ref.key).name == "newlv"
        volume.resize("16 MiB")
        made = pool.create_volume("<volume><name>x</name><capacity>1</capacity></volume>")
        assert made.info().capacity == EXTENT
    with storaged.open(tmp_path / "root") as storage:
        pool = storage.pool("vg")
        assert pool.active
        assert pool.names() == ["newlv", "x"]
        for one in pool.volumes():
            one.delete()
        pool.stop()
        pool.delete()
    assert Logical.find_sources(None, lab.pool("vg").host, Job("find-sources")) == ()


def test_what_is_known_is_told_where_lvm_takes_its_time(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = lab.device()
    lab.group("vg", device)
    run("lvcreate", "-qq", "-y", "-Zn", "-Wn", "-n", "lv", "-L", "8M", "vg")
    xml = "<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>"
    with storaged.open(tmp_path / "root") as storage:
        pool = storage.define_pool(xml)
        pool.start()
        volume = pool.volume("lv")
        monkeypatch.setattr("storaged.look.PATIENCE", 0.0)
        assert volume.definition().extents == (SourceExtent(device, 0, 8 * MIB),)


def test_a_group_that_goes_away_stops_its_pool_with_a_reason(lab: Lab, tmp_path: Path) -> None:
    lab.group("vg")
    with storaged.open(tmp_path / "root") as storage:
        pool = storage.define_pool(
            "<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>"
        )
        pool.start()
        run("vgremove", "-f", "vg")
        with pytest.raises(ConfigUnsupported, match="cannot find logical volume group name 'vg'"):
            pool.refresh()
        assert not pool.active
        assert "cannot find" in pool.info().problems[0]
