"""New volumes: what is refused with which words, what is made, and that nothing half made is."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Durability, Host
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    NameTaken,
    OperationInvalid,
    StorageError,
    SystemFailure,
    Unsupported,
)
from storaged.formats import luks_volume, raw
from storaged.formats.file import FileHandle
from storaged.model import BackingStore, Encryption, Permissions, VolumeDef, VolumeType
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats import qemu

GIB = 1 << 30


# Raw


def test_sparse(pool: Pool) -> None:
    record = pool.create("disk", 10 * GIB + 1)
    assert record == pool.look("disk")
    assert (record.capacity, record.allocation, record.format) == (10 * GIB + 1, 0, "raw")
    assert (pool.path / "disk").stat().st_mode & 0o7777 == 0o600


def test_without_allocation_all_of_it_is_taken(pool: Pool) -> None:
    record = pool.create("disk", 1 << 20, allocation=None)
    assert record.allocation == 1 << 20


def test_partly_allocated(pool: Pool) -> None:
    record = pool.create("disk", 1 << 20, allocation=1 << 16)
    assert (record.capacity, record.allocation) == (1 << 20, 1 << 16)


def test_empty(pool: Pool) -> None:
    assert pool.create("disk", 0).capacity == 0


def test_permissions_do_not_hang_on_the_umask(pool: Pool) -> None:
    before = os.umask(0o077)
    try:
        pool.create("disk", 1, permissions=Permissions(mode=0o666))
    finally:
        os.umask(before)
    assert (pool.path / "disk").stat().st_mode & 0o7777 == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("session", [False, True])
def test_owner(tmp_path: Path, session: bool) -> None:
    host = Host("testhost", Durability.NONE, session=session)
    pool = make_pool(tmp_path, host=host)
    pool.create("disk", 1, permissions=Permissions(owner=12, group=34))
    status = (tmp_path / "disk").stat()
    assert (status.st_uid, status.st_gid) == ((0, 0) if session else (12, 34))


# qcow2 and vmdk, judged by QEMU


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"compat": "0.10"}),
        ({"compat": "1.1"}, {"compat": "1.1"}),
        ({"features": frozenset()}, {"compat": "1.1", "lazy-refcounts": False}),
        ({"features": frozenset({"lazy_refcounts"})}, {"compat": "1.1", "lazy-refcounts": True}),
        ({"features": frozenset({"extended_l2"})}, {"compat": "1.1", "extended-l2": True}),
    ],
)
def test_qcow2(pool: Pool, options: dict[str, Any], expected: dict[str, Any]) -> None:
    record = pool.create("disk", 5 * GIB, format="qcow2", **options)
    told = qemu.info(pool.path / "disk")
    assert told["virtual-size"] == record.capacity == 5 * GIB
    facts = told["format-specific"]["data"]
    assert {key: facts[key] for key in expected} == expected
    qemu.check(pool.path / "disk")


def test_qcow2_default_follows_the_compat_level(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, host=Host("testhost", Durability.NONE, compat_level=10_002_000))
    record = pool.create("disk", GIB, format="qcow2")
    assert record.image is not None
    assert record.image.compat == "1.1"


def test_qcow2_cluster_size_and_rounding(pool: Pool) -> None:
    record = pool.create("disk", GIB + 1, format="qcow2", cluster_size=4096)
    assert record.capacity == GIB + 1024
    assert qemu.info(pool.path / "disk")["cluster-size"] == 4096


@pytest.mark.parametrize("allocation", [0, None])
def test_qcow2_preallocation(pool: Pool, allocation: int | None) -> None:
    record = pool.create(
        "disk", 8 << 20, format="qcow2", allocation=allocation, preallocate_metadata=True
    )
    qemu.check(pool.path / "disk")
    assert (record.allocation >= 8 << 20) == (allocation is None)
    assert all(part["depth"] == 0 for part in qemu.mapping(pool.path / "disk"))
    assert record.physical >= 8 << 20


def test_vmdk(pool: Pool) -> None:
    record = pool.create("disk", GIB, format="vmdk")
    told = qemu.info(pool.path / "disk")
    assert told["virtual-size"] == record.capacity == GIB
    assert told["format-specific"]["data"]["create-type"] == "monolithicSparse"


def test_directory(pool: Pool) -> None:
    record = pool.create("sub", 0, format="dir")
    assert record.type is VolumeType.DIR
    assert (pool.path / "sub").stat().st_mode & 0o7777 == 0o600


def test_plan_fills_in_what_follows(pool: Pool) -> None:
    planned = pool.backend.plan(VolumeDef("disk", 1000, format="qcow2"))
    assert planned.path == planned.key == str(pool.path / "disk")
    assert (planned.type, planned.compat, planned.capacity) == (VolumeType.FILE, "0.10", 1024)
    assert pool.names() == []


# Overlays


def test_overlay(pool: Pool) -> None:
    pool.create("base", GIB, format="qcow2")
    record = pool.create("top", 0, format="qcow2", backing=BackingStore("base", "qcow2"))
    told = qemu.info(pool.path / "top")
    assert told["virtual-size"] == record.capacity == GIB
    assert told["backing-filename"] == "base"
    assert told["backing-filename-format"] == "qcow2"


def test_format_of_own_base_is_found_and_recorded(pool: Pool) -> None:
    pool.create("base", 1 << 20)
    record = pool.create(
        "top", 1 << 21, format="qcow2", backing=BackingStore(str(pool.path / "base"))
    )
    assert record.image is not None
    assert record.image.backing is not None
    assert record.image.backing.format == "raw"
    assert record.capacity == 1 << 21


def test_given_format_is_taken_as_it_is(pool: Pool) -> None:
    """What a guest wrote into its raw disk must not make it an image."""
    qemu.create(pool.path / "base", 1 << 30)
    size = (pool.path / "base").stat().st_size
    raw_base = BackingStore("base", "raw")
    record = pool.create("top", 0, format="qcow2", backing=raw_base)
    assert record.capacity == -(-size // 512) * 512
    assert pool.create("large", GIB, format="qcow2", backing=raw_base).capacity == GIB


def test_stranger_is_not_probed(pool: Pool, tmp_path: Path) -> None:
    qemu.create(tmp_path / "base", 1 << 20)
    (pool.path / "link").symlink_to(tmp_path / "base")
    for path in (str(tmp_path / "base"), "link"):
        with pytest.raises(ConfigUnsupported, match="is not given"):
            pool.create("top", 0, format="qcow2", backing=BackingStore(path))
    outside = BackingStore(str(tmp_path / "base"), "qcow2")
    assert pool.create("top", 0, format="qcow2", backing=outside).capacity == 1 << 20


def test_base_must_be_what_it_is_said_to_be(pool: Pool) -> None:
    pool.create("base", 1 << 20, format="qcow2")
    with pytest.raises(ConfigUnsupported, match="not of format vmdk: qcow2"):
        pool.create("top", 0, format="qcow2", backing=BackingStore("base", "vmdk"))
    (pool.path / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    with pytest.raises(OperationInvalid, match="cannot be used"):
        pool.create("top", 0, format="qcow2", backing=BackingStore("bad"))


def test_base_without_a_name(pool: Pool) -> None:
    for path in ("a\0b", "\ud800"):
        with pytest.raises(InvalidArgument, match="cannot be the name of a file"):
            pool.create("top", 1, format="qcow2", backing=BackingStore(path, "raw"))


def test_base_that_cannot_be_read(pool: Pool) -> None:
    os.mkfifo(pool.path / "fifo")
    (pool.path / "sub").mkdir()
    expected = {"missing": errno.ENOENT, "fifo": errno.EINVAL, "sub": errno.EISDIR}
    for name, number in expected.items():
        with pytest.raises(SystemFailure) as caught:
            pool.create("top", 1, format="qcow2", backing=BackingStore(name, "raw"))
        text = f"inaccessible backing store volume {name}: {os.strerror(number)}"
        assert str(caught.value) == text


# What is refused

MIB = 1 << 20
LUKS = Encryption("luks")
BASE = BackingStore("base", "raw")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("a/b", OperationInvalid, "volume name 'a/b' cannot contain '/'"),
        ("..", NameTaken, "volume target path '{pool}/..' already exists"),
        (".", NameTaken, "volume target path '{pool}/.' already exists"),
        ("there", NameTaken, "volume target path '{pool}/there' already exists"),
        ("dangling", NameTaken, "volume target path '{pool}/dangling' already exists"),
        ("x" * 256, InvalidArgument, "volume name of 256 bytes is longer than 255"),
        ("\N{SNOWMAN}" * 86, InvalidArgument, "volume name of 258 bytes is longer than 255"),
        ("a\nb", InvalidArgument, r"volume name 'a\nb' contains a control character"),
        ("a\x7fb", InvalidArgument, r"volume name 'a\x7fb' contains a control character"),
        ("a\ud800b", InvalidArgument, r"volume name 'a\ud800b' cannot be the name of a file"),
        (".storaged-h-1-2.part", InvalidArgument, "is reserved"),
    ],
)
def test_names(pool: Pool, name: str, error: type[StorageError], text: str) -> None:
    (pool.path / "there").touch()
    (pool.path / "dangling").symlink_to("nowhere")
    with pytest.raises(error) as caught:
        pool.backend.plan(VolumeDef(name, 1))
    assert text.format(pool=pool.path) in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"prealloc": True}, ConfigUnsupported, "metadata preallocation is not supported for raw"),
        ({"backing": BASE}, Unsupported, "backing storage not supported for raw volumes"),
        ({"format": "dir", "backing": BASE}, Unsupported, "backing storage not supported for"),
        ({"format": "vmdk", "prealloc": True}, ConfigUnsupported, "only available with qcow2"),
        (
            {"format": "vmdk", "compat": "1.1"},
            ConfigUnsupported,
            "compatibility option only available with qcow2",
        ),
        # features bring their compat with them, which is looked at first
        (
            {"format": "vmdk", "features": frozenset({"lazy_refcounts"})},
            ConfigUnsupported,
            "compatibility option only available with qcow2",
        ),
        (
            {"format": "qcow2", "backing": BASE, "prealloc": True},
            ConfigUnsupported,
            "metadata preallocation conflicts with backing store",
        ),
        (
            {"format": "qcow2", "compat": "0.10", "features": frozenset({"lazy_refcounts"})},
            ConfigUnsupported,
            "lazy_refcounts not supported with compat level 0.10",
        ),
        (
            {"format": "qcow2", "compat": "0.10", "features": frozenset({"extended_l2"})},
            ConfigUnsupported,
            "'extended_l2' not supported with compat level 0.10",
        ),
        ({"format": "qcow2", "compat": "1.2"}, ConfigUnsupported, "level '1.2'"),
        ({"format": "qcow2", "cluster_size": 1000}, ConfigUnsupported, "power of two"),
        ({"format": "qcow2", "encryption": Encryption("qcow")}, ConfigUnsupported, "creation of"),
        ({"encryption": Encryption("qcow")}, InternalError, "Only luks encryption is supported"),
        ({"encryption": LUKS, "backing": BASE}, ConfigUnsupported, "cannot set backing store"),
        ({"format": "vmdk", "encryption": LUKS}, ConfigUnsupported, "with format vmdk"),
        ({"format": "dir", "encryption": LUKS}, ConfigUnsupported, "with format dir"),
        ({"format": "vmdk", "backing": BASE}, ConfigUnsupported, "must be of format vmdk"),
        ({"format": "vdi", "backing": BASE}, ConfigUnsupported, "not supported for vdi"),
        ({"format": "vmdk", "cluster_size": 512}, ConfigUnsupported, "cluster size only"),
        ({"format": "vmdk", "capacity": 0}, ConfigUnsupported, "capacity of a vmdk volume must"),
        ({"format": "vmdk", "capacity": 3 << 40}, ConfigUnsupported, "from 1 to"),
        ({"format": "qcow2", "features": frozenset({"data_file"})}, ConfigUnsupported, "data_file"),
        ({"format": "dmg"}, ConfigUnsupported, "volumes of format 'dmg' cannot be created"),
        ({"format": "ploop"}, ConfigUnsupported, "volumes of format 'ploop' cannot be created"),
    ],
)
def test_requests(
    pool: Pool, options: dict[str, Any], error: type[StorageError], text: str
) -> None:
    pool.create("base", 1)
    wishes = {key: value for key, value in options.items() if key != "prealloc"}
    with pytest.raises(error) as caught:
        pool.backend.plan(
            VolumeDef("disk", **{"capacity": 1 << 20, **wishes}),
            preallocate_metadata="prealloc" in options,
        )
    assert type(caught.value) is error
    assert text in str(caught.value)


def test_formats_that_nobody_makes(pool: Pool) -> None:
    with pytest.raises(ConfigUnsupported) as caught:
        pool.backend.plan(VolumeDef("disk", 1, format="bochs"))
    made = "raw, iso, qcow2, vmdk, dir, vpc, vdi, qcow, qed"
    assert caught.value.advice == f"What can be is {made}."


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vpc", "vdi", "qcow", "qed"])
def test_formats_that_qemu_makes(pool: Pool, kind: str) -> None:
    record = pool.create("disk", 8 * MIB, format=kind)
    assert (record.format, record.capacity) == (kind, 8 * MIB)
    assert qemu.info(pool.path / "disk")["format"] == kind
    assert (pool.path / "disk").stat().st_mode & 0o7777 == 0o600
    if kind in ("qcow", "qed"):
        backing = BackingStore(str(pool.path / "base"), "raw")
        (pool.path / "base").write_bytes(bytes(MIB))
        top = pool.create("top", MIB, format=kind, backing=backing)
        assert top.image is not None
        assert top.image.backing is not None
        assert top.image.backing.name == os.fsencode(pool.path / "base")


def test_encrypted(pool: Pool) -> None:
    with pytest.raises(ConfigUnsupported, match="no passphrase was given"):
        pool.create("disk", MIB, encryption=LUKS)
    assert pool.names() == []
    record = pool.create("disk", MIB, encryption=LUKS, secret=b"open sesame")
    assert (record.format, record.capacity) == ("raw", MIB)
    assert record.image is not None
    assert record.image.encryption == "luks"
    with FileHandle(os.open(pool.path / "disk", os.O_RDWR)) as handle:
        assert luks_volume.unlock(handle, b"open sesame").size() == MIB


@pytest.mark.slow
def test_encrypted_qcow2(pool: Pool) -> None:
    record = pool.create("disk", MIB, format="qcow2", encryption=LUKS, secret=b"open sesame")
    assert record.image is not None
    assert record.image.encryption == "luks"
    assert record.capacity == MIB
    assert pool.backend.resize(record, 2 * MIB, new_job()).capacity == 2 * MIB


def test_vmdk_over_another(pool: Pool) -> None:
    pool.create("base", 8 * MIB, format="vmdk")
    backing = BackingStore(str(pool.path / "base"), "vmdk")
    pool.create("top", 8 * MIB, format="vmdk", backing=backing)
    facts = qemu.info(pool.path / "top")
    assert facts["full-backing-filename"] == str(pool.path / "base")
    qemu.io(pool.path / "top", "read -P 0 0 8M", format="vmdk")


def test_nocow_needs_btrfs(pool: Pool) -> None:
    with pytest.raises(SystemFailure, match=r"unable to control COW flag on .*, not btrfs"):
        pool.create("disk", 1, nocow=True)
    pool.create("image", 1, format="qcow2", nocow=True)  # QEMU takes it as a wish too
    assert pool.names() == ["image"]


# Nothing half made


def test_somebody_was_faster(pool: Pool) -> None:
    planned = pool.backend.plan(VolumeDef("disk", 1 << 20))
    (pool.path / "disk").write_text("precious")
    with pytest.raises(NameTaken):
        pool.backend.create(planned, new_job())
    assert (pool.path / "disk").read_text() == "precious"
    assert pool.names() == ["disk"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_invisible_until_it_is_whole(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    seen = []

    def create(handle: FileHandle, *_args: Any, **_options: Any) -> None:
        handle.truncate(5)
        seen.append(pool.refresh())

    pool.backend._unnamed = unnamed
    monkeypatch.setattr(raw, "create", create)
    assert pool.create("disk", 5).capacity == 5
    assert seen == [{}]
    assert pool.names() == ["disk"]


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Cancelled("create")])
def test_nothing_is_left_of_a_failure(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, unnamed: bool, error: Exception
) -> None:
    def create(handle: FileHandle, *_args: Any, **_options: Any) -> None:
        handle.truncate(5)
        raise error

    pool.backend._unnamed = unnamed
    monkeypatch.setattr(raw, "create", create)
    expected = Cancelled if isinstance(error, Cancelled) else SystemFailure
    with pytest.raises(expected) as caught:
        pool.create("disk", 5, allocation=None)
    if expected is SystemFailure:
        path = pool.path / "disk"
        wanted = f"cannot allocate 5 bytes in file '{path}': No space left on device"
        assert str(caught.value) == wanted
    assert pool.names() == []


def test_cancel_while_it_is_filled(pool: Pool) -> None:
    job = new_job("create")
    planned = pool.backend.plan(VolumeDef("disk", 64 << 20))
    job.subscribe(lambda progress: job.cancel() if progress.done else None)
    with pytest.raises(Cancelled):
        pool.backend.create(planned, job)
    assert pool.names() == []


def test_directory_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(tmp_path, host=Host("testhost"))
    real = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            raise OSError(errno.EIO, "bad disk")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for format in ("raw", "dir"):
        with pytest.raises(SystemFailure, match="Input/output error"):
            pool.create("disk", 1, format=format)
        assert pool.names() == []


def test_full_file_system(loop_mount: Any) -> None:
    target = loop_mount("ext4", mebibytes=32)
    pool = make_pool(target)
    with pytest.raises(SystemFailure) as caught:
        pool.create("disk", 1 << 30, allocation=None)
    assert caught.value.errno == errno.ENOSPC
    assert pool.names() == ["lost+found"]
    assert pool.create("small", 1 << 20, allocation=None).allocation == 1 << 20


def test_directory_with_bad_owner_is_not_left(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(SystemFailure):
        pool.create("sub", 0, format="dir")
    assert pool.names() == []


@pytest.mark.parametrize("durability", Durability)
def test_durability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    pool = make_pool(tmp_path, host=Host("testhost", durability))
    synced: list[bool] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").is_dir())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    pool.create("disk", 1 << 20)
    assert synced == ([False, True] if durability is Durability.FULL else [])
