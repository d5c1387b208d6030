"""Clones: between all formats, with and without their chains, and which way the bytes take."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import PLAIN_CLONE, CloneBacking, CloneOptions, Compression, ImageSource
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    InternalError,
    InvalidSecret,
    NameTaken,
    OperationInvalid,
    OperationUnsupported,
    SystemFailure,
    Unsupported,
    VolumeBusy,
)
from storaged.formats import convert, qcow2_create, syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Extent
from storaged.formats.qcow2_create import CreateOptions
from storaged.model import BackingStore, Encryption, VolumeDef, VolumeRecord, VolumeType
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats import qemu

MIB = 1 << 20


class Remote:
    """A source without a descriptor, as an image on a server is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self) -> int:
        return len(self._data)

    def pread(self, length: int, offset: int) -> bytes:
        return self._data[offset : offset + length]

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, data=True)

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def source(pool: Pool) -> VolumeRecord:
    """A sparse raw volume of 8 MiB with data at its start and its end."""
    with (pool.path / "source").open("wb") as file:
        file.write(b"start" * 10_000)
        file.seek(8 * MIB - 5)
        file.write(b"theend"[:5])
    return pool.look("source")


def test_sparse_stays_sparse(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source)
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()
    assert clone.capacity == 8 * MIB
    assert clone.allocation <= source.allocation
    assert (pool.path / "clone").stat().st_mode & 0o7777 == 0o600


def test_full_allocation(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source, allocation=None)
    assert clone.allocation == 8 * MIB
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()


def test_larger(pool: Pool, source: VolumeRecord) -> None:
    clone = pool.clone("clone", source, capacity=20 * MIB)
    assert clone.capacity == clone.physical == 20 * MIB
    data = (pool.path / "clone").read_bytes()
    assert data == (pool.path / "source").read_bytes() + bytes(12 * MIB)


def test_smaller_is_as_large_as_the_source(pool: Pool, source: VolumeRecord) -> None:
    assert pool.clone("clone", source, capacity=1).capacity == 8 * MIB


def test_zeros_become_holes_when_copied_by_hand(
    pool: Pool, source: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pool.path / "zeros").write_bytes(bytes(MIB) + b"x" * 4096 + bytes(MIB))

    def refuse(*_args: object) -> int:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    clone = pool.clone("clone", pool.look("zeros"))
    assert clone.allocation == 4096
    assert (pool.path / "clone").read_bytes() == (pool.path / "zeros").read_bytes()


def test_short_copies_go_on_by_hand(
    pool: Pool, source: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_args: 0)
    pool.clone("clone", source)
    assert (pool.path / "clone").read_bytes() == (pool.path / "source").read_bytes()


def test_source_without_descriptor(pool: Pool) -> None:
    data = b"abc" * MIB + bytes(MIB) + b"tail"
    record = VolumeRecord("remote", len(data), len(data), format=None)
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), record)
    source: Any = Remote(data)
    job = new_job()
    image = ImageSource(record, source, "", lambda: source)
    clone = pool.backend.clone(planned, image, job, reflink=False)
    assert (pool.path / "clone").read_bytes() == data
    assert clone.allocation <= 3 * MIB + 4096 * 2
    assert job.done == job.total == len(data)


def test_reflink_or_nothing(pool: Pool, source: VolumeRecord) -> None:
    if _can_share(pool.path):
        pytest.skip("the temporary directory is on a file system that can share")
    with pytest.raises(SystemFailure, match="failed to clone files from"):
        pool.clone("clone", source, reflink=True)
    assert pool.names() == ["source"]


def test_cancel(pool: Pool, source: VolumeRecord) -> None:
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), source)
    job = new_job()
    job.subscribe(lambda _progress: job.cancel())
    with pool.opened(source) as image, pytest.raises(Cancelled):
        pool.backend.clone(planned, image, job, reflink=False)
    assert pool.names() == ["source"]


def test_name_is_taken_meanwhile(pool: Pool, source: VolumeRecord) -> None:
    planned = pool.backend.plan_clone(VolumeDef("clone", allocation=0), source)
    (pool.path / "clone").write_text("precious")
    with pool.opened(source) as image, pytest.raises(NameTaken):
        pool.backend.clone(planned, image, new_job(), reflink=False)
    assert (pool.path / "clone").read_text() == "precious"


# Images


@pytest.mark.parametrize("capacity", [0, 64 * MIB])
def test_qcow2(pool: Pool, capacity: int) -> None:
    qemu.create(pool.path / "source", 16 * MIB)
    qemu.io(pool.path / "source", "write -P 7 1M 64k")
    record = pool.look("source")
    clone = pool.clone("clone", record, capacity=capacity)
    assert clone.capacity == max(capacity, 16 * MIB)
    assert clone.format == "qcow2"
    qemu.check(pool.path / "clone")
    qemu.io(pool.path / "clone", "read -P 7 1M 64k", "read -P 0 0 1M")


def test_vmdk(pool: Pool) -> None:
    qemu.create(pool.path / "source", 16 * MIB, format="vmdk")
    clone = pool.clone("clone", pool.look("source"))
    assert clone.format == "vmdk"
    assert qemu.info(pool.path / "clone")["virtual-size"] == 16 * MIB
    assert pool.clone("large", pool.look("source"), capacity=32 * MIB).capacity == 32 * MIB


def test_iso_is_raw_data(pool: Pool) -> None:
    (pool.path / "cd").write_bytes(bytes(32769) + b"CD001" + bytes(100_000))
    record = pool.look("cd")
    assert record.format == "iso"
    assert pool.clone("copy", record, format="raw").capacity == record.capacity


# Between formats


NATIVE = ("raw", "qcow2", "vmdk")
FOREIGN = ("vpc", "vdi", "qcow", "qed")


def same_disks(pool: Pool, first: str, second: str) -> bool:
    """Whether a guest sees the same on both; one may be longer by zeros."""
    names = [pool.look(name) for name in (first, second)]
    formats = [record.format or "raw" for record in names]
    output = qemu.run(
        "qemu-img", "compare", "-f", formats[0], "-F", formats[1],
        pool.path / first, pool.path / second,
    )  # fmt: skip
    return "identical" in output


def guest_disk(pool: Pool, name: str, format: str) -> VolumeRecord:
    """A volume of 8 MiB with some data, among them zeros that are written."""
    content = pool.path.parent / "content"
    content.write_bytes(bytes(MIB) + os.urandom(MIB) + bytes(5 * MIB) + b"end" * (MIB // 3) + b"!")
    qemu.run("qemu-img", "convert", "-f", "raw", "-O", format, content, pool.path / name)
    return pool.look(name)


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("wanted", NATIVE)
def test_every_pair_of_native_formats(pool: Pool, kind: str, wanted: str) -> None:
    source = guest_disk(pool, "source", kind)
    clone = pool.clone("clone", source, format=wanted)
    assert clone.format == wanted
    assert clone.capacity == source.capacity
    assert clone.allocation < 4 * MIB
    assert same_disks(pool, "source", "clone")
    if wanted == "qcow2":
        qemu.check(pool.path / "clone")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOREIGN)
def test_formats_that_qemu_makes(pool: Pool, kind: str) -> None:
    source = guest_disk(pool, "source", "raw")
    clone = pool.clone("clone", source, format=kind)
    assert clone.format == kind
    assert clone.allocation < 5 * MIB
    assert same_disks(pool, "source", "clone")
    back = pool.clone("back", clone, format="qcow2", capacity=10 * MIB)
    assert back.capacity == 10 * MIB
    assert same_disks(pool, "source", "back")
    assert sorted(pool.names()) == ["back", "clone", "source"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"compat": "0.10"}, {"compat": "0.10"}),
        ({"cluster_size": 4096}, {"compat": "1.1"}),
        ({"features": frozenset({"extended_l2"})}, {"extended-l2": True}),
        ({"features": frozenset({"lazy_refcounts"})}, {"lazy-refcounts": True}),
    ],
)
def test_other_options_than_the_source(
    pool: Pool, options: dict[str, Any], found: dict[str, Any]
) -> None:
    source = guest_disk(pool, "source", "qcow2")
    pool.clone("clone", source, format="qcow2", **options)
    facts = qemu.info(pool.path / "clone")
    assert facts["format-specific"]["data"].items() >= found.items()
    assert facts["cluster-size"] == options.get("cluster_size", 65536)
    assert same_disks(pool, "source", "clone")
    qemu.check(pool.path / "clone")


def test_options_of_the_source(pool: Pool) -> None:
    wanted = ("cluster_size=2M", "extended_l2=on", "lazy_refcounts=on", "refcount_bits=64")
    qemu.create(pool.path / "source", 8 * MIB, *wanted)
    pool.clone("clone", pool.look("source"))
    facts = qemu.info(pool.path / "clone")
    assert facts["cluster-size"] == 2 * MIB
    data = facts["format-specific"]["data"]
    assert (data["extended-l2"], data["lazy-refcounts"], data["refcount-bits"]) == (True, True, 64)
    qemu.create(pool.path / "old", 8 * MIB, "compat=0.10")
    pool.clone("older", pool.look("old"))
    assert qemu.info(pool.path / "older")["format-specific"]["data"]["compat"] == "0.10"


def test_what_is_not_possible(pool: Pool) -> None:
    source = guest_disk(pool, "source", "qcow2")
    for options, error, text in (
        ({"format": "dir"}, OperationUnsupported, "cannot be cloned"),
        ({"format": "dmg"}, ConfigUnsupported, "format 'dmg' cannot be created"),
        ({"format": "vmdk", "compat": "1.1"}, ConfigUnsupported, "only available with qcow2"),
        ({"encryption": Encryption("luks")}, ConfigUnsupported, "no passphrase was given"),
        ({"format": "raw", "backing": BackingStore("b", "raw")}, Unsupported, "raw volumes"),
    ):
        request: dict[str, Any] = options
        with pytest.raises(error, match=text):
            pool.clone("clone", source, **request)
    assert pool.names() == ["source"]


@pytest.mark.parametrize("method", list(Compression))
def test_compressed(pool: Pool, method: Compression) -> None:
    source = guest_disk(pool, "source", "raw")
    plain = pool.clone("plain", source, format="qcow2")
    clone = pool.clone("clone", source, format="qcow2", how=CloneOptions(compress=method))
    assert clone.allocation < plain.allocation
    assert same_disks(pool, "source", "clone")
    qemu.check(pool.path / "clone")
    assert same_disks(pool, "clone", pool.clone("unpacked", clone).name)
    with pytest.raises(ConfigUnsupported, match="only available with qcow2"):
        pool.clone("never", source, format="vmdk", how=CloneOptions(compress=method))


def test_snapshots_stay_behind(pool: Pool) -> None:
    guest_disk(pool, "source", "qcow2")
    qemu.run("qemu-img", "snapshot", "-c", "one", pool.path / "source")
    qemu.io(pool.path / "source", "write -P 9 0 1M")
    clone = pool.clone("clone", pool.look("source"))
    assert clone.image is not None
    assert clone.image.snapshots == 0
    qemu.io(pool.path / "clone", "read -P 9 0 1M")
    assert same_disks(pool, "source", "clone")


# Chains


def overlay(pool: Pool, base: str = "base", name: str = "top", backing: str = "") -> VolumeRecord:
    """An overlay that has its third MiB and leaves the rest to *base*."""
    guest_disk(pool, base, "qcow2")
    backing = backing or str(pool.path / base)
    qemu.run("qemu-img", "create", "-f", "qcow2", "-b", backing, "-F", "qcow2", pool.path / name)
    qemu.io(pool.path / name, "write -P 5 2M 1M", "write -z 3M 64k")
    return pool.look(name)


@pytest.mark.parametrize("wanted", NATIVE)
def test_a_clone_is_on_its_own(pool: Pool, wanted: str) -> None:
    source = overlay(pool)
    clone = pool.clone("clone", source, format=wanted)
    assert clone.image is None or clone.image.backing is None
    assert same_disks(pool, "top", "clone")


KEEP = CloneOptions(backing=CloneBacking.KEEP)


def test_a_clone_that_keeps_the_backing_file(pool: Pool) -> None:
    source = overlay(pool)
    clone = pool.clone("clone", source, how=KEEP)
    assert clone.image is not None
    assert clone.image.backing is not None
    assert clone.image.backing.name == os.fsencode(pool.path / "base")
    assert clone.allocation < 2 * MIB
    assert same_disks(pool, "top", "clone")
    qemu.check(pool.path / "clone")
    for kind in ("raw", "vmdk"):
        with pytest.raises(ConfigUnsupported, match="cannot keep the backing file"):
            pool.clone("never", source, format=kind, how=KEEP)


def test_a_clone_elsewhere_finds_the_backing_file(pool: Pool, tmp_path: Path) -> None:
    source = overlay(pool, backing="base")
    assert source.image is not None
    assert source.image.backing is not None
    assert source.image.backing.name == b"base"
    (tmp_path / "other").mkdir()
    other = make_pool(tmp_path / "other")
    here, there = pool.clone("clone", source, how=KEEP), None
    there = other.clone("clone", source, how=KEEP, origin=pool)
    for record, name in ((here, b"base"), (there, os.fsencode(pool.path / "base"))):
        assert record.image is not None
        assert record.image.backing is not None
        assert record.image.backing.name == name
    qemu.io(other.path / "clone", "read -P 5 2M 1M")


def test_backing_store_of_a_request(pool: Pool) -> None:
    """As libvirt has it: the same one is kept, another one is refused."""
    source = overlay(pool)
    base = str(pool.path / "base")
    with pytest.raises(InternalError, match="a different backing store cannot be specified"):
        pool.clone("clone", source, backing=BackingStore("/other", "qcow2"))
    clone = pool.clone("clone", source, backing=BackingStore(base, "qcow2"))
    assert clone.image is not None
    assert clone.image.backing is not None
    assert clone.image.backing.name == os.fsencode(base)
    assert same_disks(pool, "top", "clone")
    # A source without one: all of its content lies over the new backing file.
    guest_disk(pool, "alone", "qcow2")
    over = pool.clone("over", pool.look("alone"), backing=BackingStore(base, "qcow2"))
    assert over.image is not None
    assert over.image.backing is not None
    assert same_disks(pool, "alone", "over")


def test_unrecorded_format_of_the_backing_file(pool: Pool) -> None:
    source = overlay(pool)
    with FileHandle(os.open(pool.path / "top", os.O_RDWR)) as handle:
        options = CreateOptions(8 * MIB, backing=os.fsencode(pool.path / "base"))
        qcow2_create.create(handle, options)
    source = pool.look("top")
    with pytest.raises(ConfigUnsupported, match="format of the source's backing file"):
        pool.clone("clone", source, how=KEEP)
    with pytest.raises(OperationInvalid, match="incomplete"):
        pool.clone("clone", source)
    assert pool.names() == ["base", "top"]


def test_external_data(pool: Pool) -> None:
    qemu.create(pool.path / "outside", MIB, f"data_file={pool.path}/data")
    with pytest.raises(OperationInvalid, match=r"cannot be cloned: .* external file"):
        pool.clone("clone", pool.look("outside"))


# Encryption


SECRET = b"correct horse"
WRONG = "Invalid secret: volume 'locked': no key slot opens with this passphrase"


def test_raw_encrypted(pool: Pool) -> None:
    source = guest_disk(pool, "source", "raw")
    luks = CloneOptions(secret=SECRET)
    locked = pool.clone("locked", source, encryption=Encryption("luks"), how=luks)
    assert locked.image is not None
    assert locked.image.encryption == "luks"
    assert locked.capacity == source.capacity
    with pytest.raises(InvalidSecret, match=WRONG):
        pool.clone("wrong", locked, format="qcow2", how=CloneOptions(source_secret=b"wrong"))
    back = pool.clone("back", locked, format="qcow2", how=CloneOptions(source_secret=SECRET))
    assert same_disks(pool, "source", back.name)
    # Without a passphrase the container is copied as it is, and is nobody's data.
    for format in ("qcow2", "vmdk"):
        with pytest.raises(ConfigUnsupported, match=r"is encrypted .*: its passphrase is needed"):
            pool.clone("never", locked, format=format)
    with pytest.raises(ConfigUnsupported, match="its passphrase is needed"):
        pool.clone("never", locked, encryption=Encryption("luks"), how=luks)
    pool.clone("copy", locked)
    assert (pool.path / "copy").read_bytes() == (pool.path / "locked").read_bytes()


@pytest.mark.slow
def test_qcow2_encrypted(pool: Pool) -> None:
    source = guest_disk(pool, "source", "raw")
    luks = CloneOptions(secret=SECRET)
    locked = pool.clone("locked", source, format="qcow2", encryption=Encryption("luks"), how=luks)
    assert locked.image is not None
    assert locked.image.encryption == "luks"
    with pytest.raises(ConfigUnsupported, match="its passphrase was not given"):
        pool.clone("never", locked, format="raw")
    with pytest.raises(InvalidSecret, match=WRONG):
        pool.clone("wrong", locked, format="raw", how=CloneOptions(source_secret=b"wrong"))
    pool.clone("back", locked, format="raw", how=CloneOptions(source_secret=SECRET))
    assert same_disks(pool, "source", "back")
    assert pool.names() == ["back", "locked", "source"]


# What goes wrong


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("allocation", [0, 8 * MIB])
def test_preallocated(pool: Pool, kind: str, allocation: int) -> None:
    source = guest_disk(pool, "source", kind)
    clone = pool.clone(
        "clone", source, format="qcow2", preallocate_metadata=True, allocation=allocation
    )
    assert same_disks(pool, "source", "clone")
    qemu.check(pool.path / "clone")
    extents = qemu.mapping(pool.path / "clone")
    assert all(extent["present"] and "offset" in extent for extent in extents)
    assert (clone.allocation >= 8 * MIB) is (allocation > 0)


def test_what_is_not_preallocated(pool: Pool, source: VolumeRecord) -> None:
    image = overlay(pool)
    compressed = CloneOptions(compress=Compression.ZLIB)
    for record, wanted, how, text in (
        (source, "raw", PLAIN_CLONE, "not supported for raw volumes"),
        (image, "raw", PLAIN_CLONE, "only available with qcow2"),
        (source, "vmdk", PLAIN_CLONE, "only available with qcow2"),
        (image, "qcow2", KEEP, "conflicts with backing store"),
        (source, "qcow2", compressed, "conflicts with compression"),
    ):
        with pytest.raises(ConfigUnsupported, match=text):
            pool.clone("clone", record, format=wanted, how=how, preallocate_metadata=True)


def test_damaged_source(pool: Pool) -> None:
    (pool.path / "bad").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    with pytest.raises(OperationInvalid, match="volume 'bad' cannot be cloned"):
        pool.clone("clone", pool.look("bad"))


def test_directory_source(pool: Pool) -> None:
    (pool.path / "sub").mkdir()
    with pytest.raises(OperationUnsupported):
        pool.backend.plan_clone(VolumeDef("clone"), pool.look("sub"))


def test_ploop_source(pool: Pool) -> None:
    """A file of this format is no directory: its disk is read, but no other is made of it."""
    source = guest_disk(pool, "source", "parallels")
    assert (source.format, source.type) == ("ploop", VolumeType.FILE)
    for format in ("ploop", None):
        with pytest.raises(ConfigUnsupported, match="volumes of format 'ploop' cannot be created"):
            pool.backend.plan_clone(VolumeDef("clone", format=format), source)
    for format in ("raw", "qcow2"):
        clone = pool.clone(f"clone.{format}", source, format=format)
        assert (clone.format, clone.capacity) == (format, source.capacity)
        qemu.run("qemu-img", "compare", "-f", "parallels", "-F", format, pool.path / "source",
                 pool.path / clone.name)  # fmt: skip
    (pool.path / "source").write_bytes((pool.path / "source").read_bytes()[:40])
    with pytest.raises(OperationInvalid, match="volume 'source' cannot be cloned"):
        pool.backend.plan_clone(VolumeDef("other", format="raw"), pool.look("source"))


def test_running_source(pool: Pool, storage_daemon: Any) -> None:
    qemu.create(pool.path / "source", MIB)
    record = pool.look("source")
    storage_daemon(pool.path / "source")
    with pytest.raises(VolumeBusy):
        pool.clone("clone", record)
    assert pool.names() == ["source"]


def test_source_cannot_be_started_meanwhile(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu.create(pool.path / "source", MIB)
    seen = []

    fill = convert.convert

    def watched(*args: Any, **options: Any) -> Any:
        with pytest.raises(AssertionError, match="Failed to get"):
            qemu.io(pool.path / "source", "write 0 512")
        seen.append(qemu.run("qemu-img", "info", pool.path / "source"))
        return fill(*args, **options)

    monkeypatch.setattr(convert, "convert", watched)
    pool.clone("clone", pool.look("source"))
    assert len(seen) == 1
    qemu.io(pool.path / "source", "write 0 512")


def test_source_that_was_changed_meanwhile(pool: Pool) -> None:
    """What was checked is not what is there: it has a backing store by now."""
    qemu.create(pool.path / "source", MIB)
    record = pool.look("source")
    qemu.create(pool.path / "base", MIB)
    qemu.run(
        "qemu-img", "rebase", "-u", "-F", "qcow2", "-b", pool.path / "base", pool.path / "source"
    )
    with pytest.raises(OperationInvalid, match="was changed while it was cloned"):
        pool.clone("clone", record)
    assert pool.names() == ["base", "source"]


# Sharing, on file systems that can


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_shared_between_formats(loop_mount: Any, kind: str) -> None:
    pool = make_pool(loop_mount(kind))
    (pool.path / "raw").write_bytes(os.urandom(4 * MIB))
    before = _used(pool.path)
    image = pool.clone("qcow2", pool.look("raw"), format="qcow2", reflink=True)
    back = pool.clone("back", image, format="raw", reflink=True)
    again = pool.clone("again", image, reflink=True)
    assert _used(pool.path) - before < 2 * MIB
    assert (pool.path / "back").read_bytes() == (pool.path / "raw").read_bytes()
    assert same_disks(pool, "raw", again.name)
    assert back.capacity == again.capacity == 4 * MIB


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_shared(loop_mount: Any, kind: str) -> None:
    pool = make_pool(loop_mount(kind))
    (pool.path / "source").write_bytes(os.urandom(4 * MIB))
    for reflink in (True, False):
        free = _used(pool.path)
        pool.clone(f"clone-{reflink}", pool.look("source"), reflink=reflink)
        assert _used(pool.path) - free < 2 * MIB
        data = (pool.path / f"clone-{reflink}").read_bytes()
        assert data == (pool.path / "source").read_bytes()
    clone = pool.clone("large", pool.look("source"), capacity=8 * MIB, allocation=None)
    assert clone.allocation == clone.capacity == 8 * MIB


def test_nocow_on_btrfs(loop_mount: Any) -> None:
    pool = make_pool(loop_mount("btrfs"))

    def flag(name: str) -> bool:
        fd = os.open(pool.path / name, os.O_RDONLY)
        try:
            return syscalls.is_nocow(fd)
        finally:
            os.close(fd)

    pool.create("source", MIB, nocow=True, allocation=MIB)
    pool.create("image", MIB, nocow=True, format="qcow2")
    pool.create("plain", MIB, allocation=MIB)
    for name in ("source", "plain"):
        (pool.path / name).write_bytes(b"x" * MIB)
    assert [flag(name) for name in ("source", "image", "plain")] == [True, True, False]
    pool.clone("shared", pool.look("source"), reflink=True)  # refused if the flags differ
    assert flag("shared")
    pool.clone("copied", pool.look("plain"), nocow=True)
    assert flag("copied")
    with pytest.raises(SystemFailure):
        pool.clone("never", pool.look("plain"), nocow=True, reflink=True)


def _can_share(path: Path) -> bool:
    (path / "a").write_text("a")
    first = os.open(path / "a", os.O_RDONLY)
    second = os.open(path / "b", os.O_RDWR | os.O_CREAT)
    try:
        syscalls.ficlone(second, first)
    except OSError:
        return False
    finally:
        os.close(first)
        os.close(second)
        (path / "a").unlink()
        (path / "b").unlink()
    return True


def _used(path: Path) -> int:
    os.sync()
    facts = os.statvfs(path)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
