"""Logical volumes on a kernel with device-mapper: what they hold, and what goes wrong with them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

import storaged
from storaged.backend import ImageSource, WipeAlgorithm
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    InvalidArgument,
    NoSpace,
    OperationInvalid,
    OperationUnsupported,
    Unsupported,
    VolumeBusy,
)
from storaged.model import BackingStore, Encryption, Permissions, VolumeDef
from tests.backends.volumegroups import (
    Lab,
    clone,
    create,
    lab,
    new_job,
    pool_of,
    read,
    volumes,
    write,
)
from tests.daemon.running import storaged_daemon
from tests.kernel.devices import Mapper
from tests.kernel.fixtures import Disk
from tests.kernel.programs import eventually, patience, run

__all__ = ["lab"]

pytestmark = pytest.mark.kernel("lvm", "loop", "dm", "thin")

MIB = 1 << 20


@pytest.mark.kernel("virsh", "disks")
def test_the_first_volume_of_a_host(disk: Disk, tmp_path: Path) -> None:
    """A group of 10 G, its file, define, start, a volume of 100 MB; lvs shows it."""
    run("vgcreate", "-y", "HostVG", disk("DISK0"))
    root = Path("/run/seed")
    try:
        with storaged_daemon(root) as daemon:
            file = root / "etc/libvirt/storage/HostVG.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "<pool type='logical'><name>HostVG</name><source><name>HostVG</name></source>"
                "<target><path>/dev/HostVG</path></target></pool>"
            )

            def virsh(*words: str) -> str:
                return run("virsh", "-q", "-c", daemon.uri(), *words, timeout=60)

            virsh("pool-define", str(file))
            virsh("pool-start", "HostVG")
            virsh("vol-create-as", "HostVG", "newlv", "100M")
            assert "newlv HostVG 104857600" in " ".join(
                run("lvs", "--units", "b", "--nosuffix", "--noheadings", "-o",
                    "lv_name,vg_name,lv_size", "HostVG").split()
            )  # fmt: skip
            info = virsh("vol-info", "newlv", "--pool", "HostVG")
            assert "100.00 MiB" in info
            assert "/dev/HostVG/newlv" in virsh("vol-list", "HostVG")
            shown = virsh("vol-dumpxml", "newlv", "--pool", "HostVG")
            assert "<volume type='block'>" in shown
            assert "<extent start='0' end='104857600'/>" in shown
            assert "HostVG" in virsh("pool-list")
            virsh("vol-delete", "newlv", "--pool", "HostVG")
            virsh("pool-destroy", "HostVG")
    finally:
        run("vgremove", "-f", "-y", "HostVG", check=False)
        shutil.rmtree(root, ignore_errors=True)


def test_a_volume_from_its_making_to_its_end(lab: Lab) -> None:
    pool = pool_of(lab)
    pool.start(new_job())
    assert not pool.check()  # nothing is active yet
    made = create(pool, "my-lv.1", 32 * MIB, permissions=Permissions(mode=0o640, owner=7, group=8))
    assert pool.check()
    shown = pool.describe(made)
    assert (shown.permissions.mode, shown.permissions.owner, shown.permissions.group) == (
        0o640, 7, 8,
    )  # fmt: skip
    assert shown.path == "/dev/vg/my-lv.1"
    sink = pool.upload(made, 0, 0)
    sink.write(b"content" * 1000)
    sink.finish()
    assert read(made, 7) == b"content"
    with pytest.raises(InvalidArgument):
        pool.resize(made, 16 * MIB, new_job())
    grown = pool.resize(made, 48 * MIB, new_job())
    assert pool.look("my-lv.1", grown) is not None
    small = pool.resize(grown, 16 * MIB, new_job(), shrink=True)
    assert read(small, 7) == b"content"
    wiped = pool.wipe(small, WipeAlgorithm.ZERO, new_job())
    assert read(wiped, 7000) == bytes(7000)
    assert pool.stop(new_job()) is None
    assert not Path("/dev/vg/my-lv.1").exists()
    assert volumes(pool) == {}
    pool.start(new_job())
    again = volumes(pool)["my-lv.1"]
    assert again.key == made.key
    with closing(pool.open_image(again)) as handle:
        assert handle.size() == 16 * MIB
    with pytest.raises(OperationInvalid, match="is not what it was"):
        pool.open_image(replace(again, key="abcdef-0"))
    pool.delete(again, new_job())
    assert lab.names("vg") == set()
    pool.delete_target(new_job())


def test_snapshots_of_the_old_kind(lab: Lab) -> None:
    pool = pool_of(lab)
    origin = create(pool, "origin", 32 * MIB)
    write(origin, b"before")
    snapshot = create(pool, "snap", 8 * MIB, backing=BackingStore("/dev/vg/origin"))
    assert (snapshot.capacity, snapshot.allocation) == (32 * MIB, 8 * MIB)
    write(origin, b"after!")
    assert read(snapshot, 6) == b"before"
    with pytest.raises(OperationUnsupported, match="no snapshots of snapshots"):
        create(pool, "third", 8 * MIB, backing=BackingStore("snap"))
    with pytest.raises(Unsupported, match="is sparse, volume wipe not supported"):
        pool.wipe(snapshot, WipeAlgorithm.ZERO, new_job())
    with pytest.raises(OperationInvalid, match="cannot be wiped: it has snapshots: snap"):
        pool.wipe(origin, WipeAlgorithm.ZERO, new_job())
    write(snapshot, os.urandom(7 * MIB))
    assert "of its space for changes are used" in (volumes(pool)["snap"].problem or "")
    with pytest.raises(OperationInvalid, match="it has snapshots: snap"):
        pool.delete(origin, new_job())
    pool.delete(origin, new_job(), force=True)
    assert lab.names("vg") == set()


def test_thin_volumes_and_their_snapshots(lab: Lab) -> None:
    pool = pool_of(lab)
    thin_pool = create(pool, "tp", 64 * MIB, format="thin-pool")
    assert thin_pool.format == "thin-pool"
    thin = create(pool, "thin", 1024 * MIB, allocation=0, backing=BackingStore("/dev/vg/tp"))
    assert (thin.capacity, thin.allocation) == (1024 * MIB, 0)
    write(thin, b"thin data")
    second = create(pool, "second", 0, backing=BackingStore("/dev/vg/thin"))
    larger = create(pool, "larger", 2048 * MIB, backing=BackingStore("second"))
    assert larger.capacity == 2048 * MIB
    assert read(larger, 9) == b"thin data"
    shared = clone(pool, "shared", second, reflink=True)
    assert read(shared, 9) == b"thin data"
    write(thin, os.urandom(60 * MIB), 8 * MIB)
    run("sync")
    seen = pool.look("tp", volumes(pool)["tp"])
    assert seen is not None
    assert "of its space for data are used" in (seen.problem or "")
    assert (seen.extra or {})["metadata_percent"]
    with pytest.raises(NoSpace, match="writing all of thin volume 'thin'"):
        pool.wipe(thin, WipeAlgorithm.ZERO, new_job())
    pool.wipe(thin, WipeAlgorithm.TRIM, new_job())
    assert read(thin, 9) == bytes(9)


def test_thin_volumes_are_started_and_deleted(lab: Lab) -> None:
    pool = pool_of(lab)
    create(pool, "tp", 64 * MIB, format="thin-pool")
    thin = create(pool, "thin", 1024 * MIB, backing=BackingStore("tp"))
    create(pool, "second", 0, backing=BackingStore("thin"))
    pool.delete(thin, new_job())
    pool.stop(new_job())
    pool.start(new_job())
    assert {"tp", "second"} == volumes(pool).keys()
    assert Path("/dev/vg/second").exists()
    with pytest.raises(OperationInvalid, match="it has thin volumes"):
        pool.delete(volumes(pool)["tp"], new_job())
    pool.delete(volumes(pool)["tp"], new_job(), force=True)
    assert lab.names("vg") == set()


def test_clones_and_encrypted_volumes(lab: Lab) -> None:
    pool = pool_of(lab)
    source = create(pool, "source", 16 * MIB)
    write(source, b"to be copied", 5 * MIB)
    copy = clone(pool, "copy", source, capacity=20 * MIB)
    assert copy.capacity == 20 * MIB
    assert read(copy, 12, 5 * MIB) == b"to be copied"
    with pytest.raises(OperationUnsupported, match="cannot share its data"):
        clone(pool, "shared", source, reflink=True)
    with pytest.raises(ConfigUnsupported, match="only a thin pool"):
        clone(pool, "odd", source, backing=BackingStore("/dev/vg/copy"))
    locked = create(pool, "locked", 16 * MIB, encryption=Encryption("luks"), secret=b"word")
    assert "LUKS" in run("blkid", "-p", "/dev/vg/locked")
    assert lab.names("vg") == {"source", "copy", "locked"}
    seen = pool.look("locked", locked)
    assert seen is not None
    assert seen.image is not None
    assert volumes(pool)["locked"].capacity >= 18 * MIB
    job = new_job("clone")
    planned = pool.plan_clone(VolumeDef("never"), source)
    with closing(pool.open_image(source)) as handle:
        job.cancel()
        image = ImageSource(source, handle, "", lambda: pool.open_disk(source))
        with pytest.raises(Cancelled):
            pool.clone(planned, image, job, reflink=False)
    assert "never" not in lab.names("vg")


def test_what_the_host_uses_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    pool = pool_of(lab)
    root = create(pool, "root", 32 * MIB)
    create(pool, "guest", 16 * MIB)
    run("mkfs.ext4", "-q", str(root.path))
    point = tmp_path / "mounted"
    point.mkdir()
    run("mount", str(root.path), str(point))
    try:
        for refused in (
            lambda: pool.delete(root, new_job(), force=True),
            lambda: pool.resize(root, 16 * MIB, new_job(), shrink=True),
            lambda: pool.wipe(root, WipeAlgorithm.ZERO, new_job()),
            lambda: pool.upload(root, 0, 0),
        ):
            with pytest.raises(VolumeBusy):
                refused()
        assert "root" in (pool.stop(new_job()) or "")
        assert Path("/dev/vg/root").exists()
        assert not Path("/dev/vg/guest").exists()
        pool.start(new_job())
        assert pool.resize(volumes(pool)["root"], 40 * MIB, new_job()).capacity == 40 * MIB
    finally:
        run("umount", str(point))
    assert pool.stop(new_job()) is None
    assert not Path("/dev/vg").exists()


def test_a_device_that_fails(lab: Lab, mapper: Mapper) -> None:
    good, bad = lab.device(128), lab.device(128)
    mapped = mapper.linear(bad)
    lab.hide(bad)
    lab.see(mapped)
    pool = lab.pool(lab.group("vg", good, mapped), good, mapped)
    lab.lvm("lvcreate", "-qq", "-y", "-n", "well", "-L", "32M", "vg", good)
    lab.lvm("lvcreate", "-qq", "-y", "-n", "ill", "-L", "32M", "vg", mapped)
    found = volumes(pool)
    source = found["well"]
    mapper.break_(mapped)
    try:
        with pytest.raises(storaged.StorageError):
            pool.wipe(found["ill"], WipeAlgorithm.ZERO, new_job())
        after = pool.refresh({}, new_job())
        assert after.volumes["well"].key == source.key
        assert after.problems
        assert read(source, 16) == bytes(16)
    finally:
        run("vgchange", "-an", "-y", "vg", check=False)


def test_a_crash_leaves_nothing_half_made(lab: Lab, tmp_path: Path) -> None:
    """The engine is killed while it fills a clone; a restart shows what is whole."""
    pool = pool_of(lab, 512)
    source = create(pool, "source", 128 * MIB)
    root = tmp_path / "root"
    xml = (
        "<pool type='logical'><name>vg</name><source><name>vg</name></source>"
        "<target><path>/dev/vg</path></target></pool>"
    )
    write(source, os.urandom(48 * MIB))
    with storaged.open(root) as storage:
        storage.define_pool(xml).start()
    script = textwrap.dedent(
        f"""
        import sys, storaged
        with storaged.open({str(root)!r}) as storage:
            pool = storage.pool("vg")
            job = pool.volume("source").clone_to("copy", wait=False)
            for progress in job:
                if progress.done:
                    print("under way", flush=True)
            print("done", flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGKILL)
    assert "copy" in lab.names("vg")
    with storaged.open(root) as storage:
        again = storage.pool("vg")
        again.refresh()
        assert again.names() == ["source"]
        eventually(lambda: lab.names("vg") == {"source"}, patience(5), "the rest to be removed")
        again.stop()


def test_the_library_makes_volumes(lab: Lab, tmp_path: Path) -> None:
    device = lab.device(256)
    xml = (
        f"<pool type='logical'><name>vg</name><source><device path='{device}'/>"
        "<name>vg</name></source><target><path>/dev/vg</path></target></pool>"
    )
    with storaged.open(tmp_path / "root") as storage:
        pool = storage.define_pool(xml)
        pool.build()
        pool.start()
        plain = pool.create("plain", "20M")  # no thin pool: all of it is taken
        assert (plain.info().capacity, plain.info().allocation) == (20 * MIB, 20 * MIB)
        pool.create("tp", "64M", format="thin-pool")
        pool.set_policy(storaged.PoolPolicy(thin_pool="tp"))
        thin = pool.create("thin", "1G")
        assert thin.info().allocation == 0
        thin.upload(BytesIO(b"x" * 4096))
        overlay = pool.create("overlay", backing=thin)
        held = BytesIO()
        assert overlay.download(held, length=4096) == 4096
        assert held.getvalue() == b"x" * 4096
        linked = pool.clone(thin, "linked", backing="linked")
        assert linked.info().capacity == 1 << 30
        assert linked.definition().backing is not None
        plain.resize("24M")
        with pytest.raises(InvalidArgument, match="can't shrink"):
            plain.resize("8M")
        plain.resize("8M", shrink=True)  # it holds nothing but zeros there
        assert plain.info().capacity == 8 * MIB
        pool.stop()
        pool.undefine()
