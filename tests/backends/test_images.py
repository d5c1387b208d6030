"""Images of a directory looked into and changed: check, inspect, rebase, amend, rewrite."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Durability, Host
from storaged.concerns import Level
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    StorageError,
    SystemFailure,
    VolumeBusy,
)
from storaged.formats import convert, qcow2_create
from storaged.formats.file import FileHandle
from storaged.formats.qcow2_create import CreateOptions
from storaged.imaging import Compression, ConvertOptions, HeaderChange
from storaged.model import BackingStore, Permissions, VolumeRecord
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats.qemu import info, run

MIB = 1 << 20
#: the image locks of QEMU: whoever has it open
StorageDaemon = Callable[..., int]


def qemu_img(*words: str | Path) -> None:
    run("qemu-img", *words)


def fill(pool: Pool, name: str, *, format: str = "qcow2", backing: str | None = None) -> bytes:
    """Make an image of 2 MiB with something in its second half; return what a guest sees."""
    content = bytes(MIB) + b"storaged" * (MIB // 8)
    source = pool.path.parent / "content"
    source.write_bytes(content)
    more = [] if backing is None else ["-B", backing, "-F", "qcow2"]
    qemu_img("convert", "-f", "raw", "-O", format, *more, source, pool.path / name)
    return content


def guest_sees(pool: Pool, name: str, format: str) -> bytes:
    out = pool.path.parent / "seen"
    qemu_img("convert", "-f", format, "-O", "raw", pool.path / name, out)
    return out.read_bytes()


def check(pool: Pool, name: str, *, force: bool = False) -> Any:
    return pool.backend.check_image(pool.look(name), new_job(), force=force)


def inspect(pool: Pool, name: str) -> Any:
    return pool.backend.inspect_image(pool.look(name), new_job())


def rebase(
    pool: Pool, name: str, path: str | None, format: str | None = "qcow2", *, force: bool = False
) -> VolumeRecord:
    backing = None if path is None else BackingStore(path, format)
    return pool.backend.rebase(pool.look(name), backing, new_job(), force=force)


def rewrite(pool: Pool, name: str, *, force: bool = False, **options: Any) -> VolumeRecord:
    record = pool.look(name)
    return pool.backend.rewrite(record, ConvertOptions(**options), new_job(), force=force)


# Check


def test_a_clean_image(pool: Pool) -> None:
    fill(pool, "v")
    report = check(pool, "v")
    assert report.clean
    assert (report.format, report.total, report.allocated) == ("qcow2", 32, 16)
    assert report.end == (pool.path / "v").stat().st_size


def test_leaks_and_corruptions_are_counted(pool: Pool) -> None:
    fill(pool, "v")
    with (pool.path / "v").open("r+b") as file:  # one more cluster that nothing uses
        refcounts = int.from_bytes(os.pread(file.fileno(), 8, 48), "big")
        block = int.from_bytes(os.pread(file.fileno(), 8, refcounts), "big")
        last = (pool.path / "v").stat().st_size // 65536
        file.truncate((last + 1) * 65536)
        os.pwrite(file.fileno(), b"\0\1", block + 2 * last)
        report = check(pool, "v")
        assert (report.corruptions, report.leaks) == (0, 1)
        os.pwrite(file.fileno(), b"\0\0", block + 2 * 5)
    report = check(pool, "v")
    assert report.corruptions >= 1
    assert not report.clean
    assert report.findings


def test_a_header_beyond_repair_is_a_finding(pool: Pool) -> None:
    fill(pool, "v")
    with (pool.path / "v").open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 8, 40)  # the L1 table
    report = check(pool, "v")
    assert report.corruptions == 1
    assert len(report.findings) == 1


@pytest.mark.parametrize("format", ["raw", "iso"])
def test_what_has_no_tables(pool: Pool, format: str) -> None:
    pool.create("v", MIB, format=format)
    with pytest.raises(OperationUnsupported, match="volumes of format raw have no tables"):
        check(pool, "v")


def test_a_vmdk(pool: Pool) -> None:
    fill(pool, "v", format="vmdk")
    report = check(pool, "v")
    assert report.clean
    assert report.format == "vmdk"


def test_a_check_beside_a_writer(pool: Pool, storage_daemon: StorageDaemon) -> None:
    fill(pool, "v")
    pid = storage_daemon(pool.path / "v")
    with pytest.raises(VolumeBusy) as caught:
        check(pool, "v")
    assert str(pid) in (caught.value.advice or "")
    assert check(pool, "v", force=True).format == "qcow2"


def test_a_check_beside_a_reader(pool: Pool, storage_daemon: StorageDaemon) -> None:
    fill(pool, "v")
    storage_daemon(pool.path / "v", read_only=True)
    assert check(pool, "v").clean


# Inspect


def test_a_plain_volume(pool: Pool) -> None:
    pool.create("v", MIB)
    found = inspect(pool, "v")
    assert (found.format, found.true_format, found.image) == ("raw", "raw", None)
    assert [layer.name for layer in found.chain] == ["v"]
    assert found.holders == found.concerns == found.snapshots == found.bitmaps == ()


def test_a_chain(pool: Pool) -> None:
    fill(pool, "base")
    pool.create("top", 0, format="qcow2", backing=BackingStore("base"))
    found = inspect(pool, "top")
    assert [(layer.name, layer.format) for layer in found.chain] == [
        ("top", "qcow2"),
        ("base", "qcow2"),
    ]
    assert found.chain[1].path == str(pool.path / "base")
    assert found.dangers == ()


def test_what_is_within(pool: Pool) -> None:
    fill(pool, "v")
    qemu_img("snapshot", "-c", "before the update", pool.path / "v")
    qemu_img("bitmap", "--add", "-g", "32768", pool.path / "v", "backup-1")
    found = inspect(pool, "v")
    [snapshot] = found.snapshots
    assert (snapshot.id, snapshot.name, snapshot.capacity) == ("1", "before the update", 2 * MIB)
    assert snapshot.taken > 1_500_000_000 * 10**9
    [bitmap] = found.bitmaps
    assert (bitmap.name, bitmap.granularity, bitmap.enabled) == ("backup-1", 32768, True)


def test_what_libvirt_lists_as_raw(pool: Pool) -> None:
    qemu_img("create", "-f", "vhdx", pool.path / "v", "4M")
    found = inspect(pool, "v")
    assert (found.format, found.true_format) == ("raw", "vhdx")
    assert found.dangers


def test_a_damaged_image_is_told_of(pool: Pool) -> None:
    fill(pool, "v")
    qemu_img("snapshot", "-c", "s", pool.path / "v")
    with (pool.path / "v").open("r+b") as file:
        os.pwrite(file.fileno(), (1 << 40).to_bytes(8, "big"), 64)  # the snapshot table
        os.pwrite(file.fileno(), (1 << 40).to_bytes(8, "big"), 40)  # the L1 table
    found = inspect(pool, "v")
    assert any(concern.level is Level.DANGER for concern in found.concerns)
    texts = [concern.text for concern in found.concerns]
    assert not any(one in other for one in texts for other in texts if one != other)


def test_dangerous_references_are_told_of(pool: Pool) -> None:
    name = "json:{}"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", pool.path / "v", "1M")
    found = inspect(pool, "v")
    assert found.dangers
    assert [layer.name for layer in found.chain] == ["v"]


def test_who_has_it_open(pool: Pool, storage_daemon: StorageDaemon) -> None:
    fill(pool, "v")
    assert inspect(pool, "v").holders == ()
    pid = storage_daemon(pool.path / "v")
    [holder] = inspect(pool, "v").holders
    assert (holder.pid, holder.writing) == (pid, True)


def test_a_directory_is_told_of(pool: Pool) -> None:
    pool.create("d", format="dir")
    found = inspect(pool, "d")
    assert (found.format, found.image, found.chain) == ("dir", None, ())


# Rebase


@pytest.fixture
def overlay(pool: Pool) -> Pool:
    """A pool with the images old and new and the overlay top of old."""
    fill(pool, "old")
    fill(pool, "new")
    pool.create("top", 0, format="qcow2", backing=BackingStore(str(pool.path / "old")))
    return pool


def test_to_another_backing_file(overlay: Pool) -> None:
    record = rebase(overlay, "top", "new")
    assert record.image is not None
    assert record.image.backing is not None
    assert (record.image.backing.name, record.image.backing.format) == (b"new", "qcow2")
    found = info(overlay.path / "top")
    assert (found["backing-filename"], found["backing-filename-format"]) == ("new", "qcow2")
    qemu_img("check", overlay.path / "top")
    assert guest_sees(overlay, "top", "qcow2")[MIB:] == b"storaged" * (MIB // 8)


def test_to_none(overlay: Pool) -> None:
    record = rebase(overlay, "top", None)
    assert record.image is not None
    assert record.image.backing is None
    assert guest_sees(overlay, "top", "qcow2") == bytes(2 * MIB)


def test_what_cannot_be_a_backing_file(overlay: Pool) -> None:
    before = (overlay.path / "top").read_bytes()
    (overlay.path / "fifo").unlink(missing_ok=True)
    os.mkfifo(overlay.path / "fifo")
    with pytest.raises(SystemFailure, match="inaccessible backing store volume none"):
        rebase(overlay, "top", "none")
    with pytest.raises(ConfigUnsupported, match="not of format vmdk: qcow2"):
        rebase(overlay, "top", "new", "vmdk")
    with pytest.raises(ConfigUnsupported, match="not of format raw: qcow2"):
        rebase(overlay, "top", "new", "raw")
    with pytest.raises(SystemFailure):
        rebase(overlay, "top", "fifo", "raw")
    for name in ("nbd://host/x", "json:{}", "/dev/sda", "a\nb"):
        with pytest.raises(ConfigUnsupported, match="cannot be a backing file"):
            rebase(overlay, "top", name, "raw")
    with pytest.raises(InvalidArgument, match="format of the backing file is not given"):
        rebase(overlay, "top", "new", None)
    with pytest.raises(InvalidArgument, match="unknown format 'nonsense'"):
        rebase(overlay, "top", "new", "nonsense", force=True)
    assert (overlay.path / "top").read_bytes() == before


@pytest.mark.parametrize("below", ["fifo", "loop"])
def test_no_new_overlay_over_a_danger(pool: Pool, below: str) -> None:
    os.mkfifo(pool.path / "fifo")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2",
             pool.path / "loop", "1M")  # fmt: skip
    pool.backend.refresh({}, new_job())
    for name in ("loop", str(pool.path / "loop")):
        with pytest.raises(OperationInvalid, match=f"backing store '{name}' cannot be used: its"):
            pool.create("top", 0, format="qcow2", backing=BackingStore(name, "qcow2"))
    assert "top" not in pool.names()


def test_never_below_itself(overlay: Pool) -> None:
    with pytest.raises(InvalidArgument, match="'old' would come to lie below itself"):
        rebase(overlay, "old", str(overlay.path / "top"))
    with pytest.raises(InvalidArgument, match="'top' would come to lie below itself"):
        rebase(overlay, "top", "./top")
    (overlay.path / "hard").hardlink_to(overlay.path / "top")
    with pytest.raises(InvalidArgument, match="'top' would come to lie below itself"):
        rebase(overlay, "top", "hard")


def test_a_missing_backing_file_by_force(overlay: Pool) -> None:
    record = rebase(overlay, "top", "to-come", force=True)
    assert record.image is not None
    assert record.image.backing is not None
    assert record.image.backing.name == b"to-come"


def test_only_qcow2_is_rebased(pool: Pool) -> None:
    pool.create("r", MIB)
    with pytest.raises(OperationUnsupported, match="volumes of format raw cannot be rebased"):
        rebase(pool, "r", None)


def test_no_rebase_of_what_is_open(overlay: Pool, storage_daemon: StorageDaemon) -> None:
    storage_daemon(overlay.path / "top", read_only=True)
    before = (overlay.path / "top").read_bytes()
    for force in (False, True):
        with pytest.raises(VolumeBusy):
            rebase(overlay, "top", "new", force=force)
    assert (overlay.path / "top").read_bytes() == before


def test_the_format_of_a_backing_file(pool: Pool) -> None:
    fill(pool, "base")
    top = pool.path / "top"
    with top.open("w+b") as file:  # qemu-img makes no such images any more
        handle = FileHandle(file.fileno(), owned=False)
        qcow2_create.create(handle, CreateOptions(2 * MIB, backing=b"base"))
    assert any("not recorded" in concern.text for concern in pool.look("top").concerns)
    with pytest.raises(ConfigUnsupported, match="not of format vmdk"):
        pool.backend.set_backing_format(pool.look("top"), "vmdk", new_job())
    record = pool.backend.set_backing_format(pool.look("top"), "qcow2", new_job())
    assert record.concerns == ()
    assert info(top)["backing-filename-format"] == "qcow2"
    with pytest.raises(OperationInvalid, match="has no backing file"):
        pool.backend.set_backing_format(pool.look("base"), "qcow2", new_job())


# Amend


def amend(pool: Pool, name: str, **change: Any) -> VolumeRecord:
    return pool.backend.amend(pool.look(name), HeaderChange(**change), new_job())


def test_features_and_version(pool: Pool) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", pool.path / "v", "8M")
    with pytest.raises(StorageError):
        amend(pool, "v", lazy_refcounts=True)
    record = amend(pool, "v", compat="1.1", lazy_refcounts=True)
    assert record.image is not None
    assert (record.image.compat, record.image.features) == ("1.1", frozenset({"lazy_refcounts"}))
    record = amend(pool, "v", compat="1.1", lazy_refcounts=False)
    assert record.image is not None
    assert record.image.features == frozenset()
    qemu_img("check", pool.path / "v")


def test_what_takes_more_than_the_header(pool: Pool) -> None:
    pool.create("v", MIB, format="qcow2", compat="1.1")
    with pytest.raises(ConfigUnsupported, match="in its header alone") as caught:
        amend(pool, "v", compat="0.10")
    assert "storagectl vol convert --compat 0.10" in (caught.value.advice or "")


# Rewrite


@pytest.mark.parametrize("source", ["raw", "qcow2", "vmdk"])
@pytest.mark.parametrize("target", ["raw", "qcow2", "vmdk"])
def test_every_format(pool: Pool, source: str, target: str) -> None:
    content = fill(pool, "v", format=source)
    record = rewrite(pool, "v", format=target)
    assert (record.format, record.capacity) == (target, 2 * MIB)
    assert record == pool.look("v")
    assert guest_sees(pool, "v", target) == content
    assert record.allocation < 2 * MIB
    if target != "raw":
        assert check(pool, "v").clean
        qemu_img("check", pool.path / "v")
    assert pool.names() == ["v"]


@pytest.mark.parametrize("compress", list(Compression))
def test_compressed(pool: Pool, compress: Compression) -> None:
    content = fill(pool, "v")
    record = rewrite(pool, "v", compress=compress)
    assert record.image is not None
    assert record.image.compression == compress
    assert guest_sees(pool, "v", "qcow2") == content
    assert check(pool, "v").compressed == 16


def test_a_stream_optimized_vmdk(pool: Pool) -> None:
    content = fill(pool, "v")
    rewrite(pool, "v", format="vmdk", subformat="streamOptimized")
    for _ in range(2):  # it stays one
        assert info(pool.path / "v")["format-specific"]["data"]["create-type"] == "streamOptimized"
        assert guest_sees(pool, "v", "vmdk") == content
        rewrite(pool, "v")


def test_back_to_version_2(pool: Pool) -> None:
    pool.create("v", MIB, format="qcow2", compat="1.1", features=frozenset({"lazy_refcounts"}))
    record = rewrite(pool, "v", compat="0.10", cluster_size=4096)
    assert record.image is not None
    assert (record.image.compat, record.image.cluster_size) == (None, 4096)
    again = rewrite(pool, "v")
    assert again.image is not None
    assert (again.image.compat, again.image.cluster_size) == (None, 4096)


def test_the_chain_is_kept_or_taken_in(overlay: Pool) -> None:
    record = rewrite(overlay, "top", cluster_size=4096)
    assert record.image is not None
    assert record.image.backing is not None
    assert record.image.backing.format == "qcow2"
    assert check(overlay, "top").allocated == 0
    content = guest_sees(overlay, "top", "qcow2")
    record = rewrite(overlay, "top", flatten=True)
    assert record.image is not None
    assert record.image.backing is None
    assert guest_sees(overlay, "top", "qcow2") == content
    assert content[MIB:] == b"storaged" * (MIB // 8)


def test_the_progress_of_a_copy_of_a_chain(overlay: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the top layer takes on the disk says nothing of the data below it."""
    totals = []

    def moved(*_args: Any, total: int, **_how: Any) -> None:
        totals.append(total)

    monkeypatch.setattr(convert, "convert", moved)
    top = overlay.look("top")
    rewrite(overlay, "top", flatten=False)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "old", "-F", "qcow2", overlay.path / "top2")
    rewrite(overlay, "top2", flatten=True)
    assert totals == [top.allocation, 0]


def test_raw_has_no_chain(overlay: Pool) -> None:
    content = guest_sees(overlay, "top", "qcow2")
    assert rewrite(overlay, "top", format="raw").format == "raw"
    assert (overlay.path / "top").read_bytes() == content


def test_mode_labels_and_times_of_the_file(pool: Pool) -> None:
    pool.create("v", MIB, format="qcow2", permissions=Permissions(mode=0o640))
    path = pool.path / "v"
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    try:
        os.setxattr(path, "user.note", b"mine")
        noted = True
    except OSError:  # the file system of this machine has none
        noted = False
    before = path.stat()
    rewrite(pool, "v", cluster_size=4096)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    if noted:
        assert os.getxattr(path, "user.note") == b"mine"


def test_what_would_be_lost(pool: Pool) -> None:
    fill(pool, "v")
    qemu_img("snapshot", "-c", "s", pool.path / "v")
    with pytest.raises(OperationInvalid, match=r"has internal snapshots \(1\), which would be"):
        rewrite(pool, "v")
    record = rewrite(pool, "v", force=True)
    assert record.image is not None
    assert record.image.snapshots == 0
    qemu_img("bitmap", "--add", pool.path / "v", "b")
    with pytest.raises(OperationInvalid, match=r"has dirty bitmaps \(1\), which would be lost"):
        rewrite(pool, "v")


def test_what_does_not_go_together(pool: Pool) -> None:
    fill(pool, "v")
    before = (pool.path / "v").read_bytes()
    for options in (
        {"format": "raw", "compress": Compression.ZLIB},
        {"format": "vmdk", "cluster_size": 65536},
        {"format": "dmg"},
        {"format": "qcow2", "subformat": "streamOptimized"},
        {"format": "vmdk", "subformat": "nonsense"},
        {"compat": "0.10", "compress": Compression.ZSTD},
        {"compat": "0.10", "extended_l2": True},
        {"cluster_size": 1000},
    ):
        with pytest.raises(ConfigUnsupported):
            rewrite(pool, "v", **options)
    with pytest.raises(InvalidArgument, match="not encrypted"):
        rewrite(pool, "v", secret=b"x")
    assert (pool.path / "v").read_bytes() == before
    assert pool.names() == ["v"]


def test_other_names_and_links(pool: Pool) -> None:
    fill(pool, "v")
    (pool.path / "other").hardlink_to(pool.path / "v")
    with pytest.raises(OperationInvalid, match="has 2 names"):
        rewrite(pool, "v", format="raw")
    rewrite(pool, "v", format="raw", force=True)
    assert pool.look("other").format == "qcow2"
    (pool.path / "link").symlink_to("other")
    with pytest.raises(InvalidArgument, match="'link' is a link"):
        rewrite(pool, "link", format="raw", force=True)
    assert pool.look("other").format == "qcow2"


@pytest.mark.parametrize("read_only", [False, True])
def test_no_rewrite_of_what_is_open(
    pool: Pool, storage_daemon: StorageDaemon, read_only: bool
) -> None:
    fill(pool, "v")
    storage_daemon(pool.path / "v", read_only=read_only)
    with pytest.raises(VolumeBusy):
        rewrite(pool, "v", force=True)
    assert pool.names() == ["v"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_cancel_leaves_the_old_image(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    content = fill(pool, "v")
    pool.backend._unnamed = unnamed
    inode = (pool.path / "v").stat().st_ino
    job = new_job()

    def cancelled(*_args: Any, checkpoint: Any, **_how: Any) -> None:
        assert any(name.endswith(".part") for name in pool.names()) is not unnamed
        job.cancel()
        checkpoint(1, 2)

    monkeypatch.setattr(convert, "convert", cancelled)
    with pytest.raises(Cancelled):
        pool.backend.rewrite(pool.look("v"), ConvertOptions(format="raw"), job)
    assert pool.names() == ["v"]
    assert (pool.path / "v").stat().st_ino == inode
    assert guest_sees(pool, "v", "qcow2") == content


def test_what_others_write_meanwhile_is_not_lost(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(pool, "v")
    real = convert.convert

    def slow(*args: Any, **how: Any) -> Any:
        moved = real(*args, **how)
        os.utime(pool.path / "v", (0, 0))
        return moved

    monkeypatch.setattr(convert, "convert", slow)
    with pytest.raises(VolumeBusy, match="was changed while it was converted"):
        rewrite(pool, "v", format="raw")
    assert pool.look("v").format == "qcow2"
    monkeypatch.setattr(convert, "convert", lambda *_a, **_h: (pool.path / "v").unlink())
    with pytest.raises(StorageError):
        rewrite(pool, "v", format="raw")
    assert pool.names() == []
    with pytest.raises(NoSuchVolume):
        pool.backend.rewrite(VolumeRecord("v", MIB, 0, format="qcow2"), ConvertOptions(), new_job())


@pytest.mark.parametrize("wanted", [None, *Durability])
def test_what_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Durability | None
) -> None:
    (tmp_path / "vms").mkdir()
    pool = make_pool(tmp_path / "vms", host=Host(id="h", durability=Durability.FULL))
    fill(pool, "v")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_IFMT(os.fstat(fd).st_mode)))
    rewrite(pool, "v", format="raw", durability=wanted)
    expected = [] if wanted is Durability.NONE else [stat.S_IFREG, stat.S_IFDIR]
    assert synced == expected


def test_a_split_vmdk_is_checked_with_its_extents(pool: Pool) -> None:
    fill(pool, "v")
    split = pool.path / "split.vmdk"
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse",
             pool.path / "v", split)  # fmt: skip
    report = check(pool, "split.vmdk")
    assert report.clean
    assert report.total > 0


def test_an_extent_that_is_none(pool: Pool, tmp_path: Path) -> None:
    """A check says which of the files it is, and what is the matter with it."""
    fill(pool, "v")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse",
             pool.path / "v", pool.path / "split.vmdk")  # fmt: skip
    extent = pool.path / "split-s001.vmdk"
    whole = extent.rename(tmp_path / "elsewhere")
    named = "extent 'split-s001.vmdk' of volume 'split.vmdk'"
    with pytest.raises(SystemFailure, match=f"cannot open {named}: No such file"):
        check(pool, "split.vmdk")
    os.mkfifo(extent)
    with pytest.raises(OperationInvalid, match=f"{named} is no regular file"):
        check(pool, "split.vmdk")
    extent.unlink()
    extent.symlink_to(whole)
    assert check(pool, "split.vmdk").clean
    if os.geteuid() == 0:
        os.lchown(extent, 12345, 12345)
        with pytest.raises(OperationInvalid, match=f"{named}: Failed to open") as caught:
            check(pool, "split.vmdk")
        assert "User 12345 made it as a link" in (caught.value.advice or "")


def test_a_data_file_beside_the_image(pool: Pool) -> None:
    within = ("env", "-C", pool.path, "qemu-img")
    run(*within, "create", "-q", "-f", "qcow2", "-o", "data_file=data", "v", "2M")
    assert check(pool, "v").clean
    record = rewrite(pool, "v")
    assert record.image is not None
    assert (record.image.data_file, record.image.features) == (None, frozenset())


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_versions_that_there_are_not(pool: Pool, format: str) -> None:
    pool.create("v", MIB, format=format)
    for compat in ("7", "2"):
        with pytest.raises(InvalidArgument, match="unknown qcow2 compatibility level") as caught:
            rewrite(pool, "v", compat=compat)
        assert caught.value.advice == "There are 0.10 and 1.1."
    if format == "qcow2":
        with pytest.raises(InvalidArgument, match="level '2'"):
            amend(pool, "v", compat="2")


def test_what_an_image_cannot_become(pool: Pool) -> None:
    pool.create("v", MIB)
    with pytest.raises(ConfigUnsupported, match="'dir' cannot be filled") as caught:
        rewrite(pool, "v", format="dir")
    assert "dir" not in (caught.value.advice or "")
