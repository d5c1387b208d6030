"""Backing chains: what is followed, what never is, and the disk that comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged import imagelock
from storaged.backends import _chain
from storaged.chain import MAX_DEPTH, Chain
from storaged.concerns import Level
from storaged.errors import OperationInvalid, OperationUnsupported, SystemFailure, VolumeBusy
from storaged.formats import qcow2_create
from storaged.formats.disk import Disk
from storaged.formats.file import FileHandle
from storaged.formats.qcow2_create import CreateOptions
from tests.backends.conftest import Pool
from tests.formats import qemu

MIB = 1 << 20


def overlay(
    pool: Pool, name: str, backing: bytes, format: str | None = "qcow2", size: int = MIB
) -> Path:
    """Make a qcow2 over anything at all, without looking at it."""
    options = CreateOptions(capacity=size, backing=backing, backing_format=format)
    path = pool.path / name
    qemu.write_native(path, lambda handle: qcow2_create.create(handle, options))
    return path


def chain(pool: Pool, name: str, format: str | None = None) -> Chain:
    return pool.backend.chain(pool.look(name), format=format)


def opened(pool: Pool, name: str, format: str | None = None) -> bytes:
    with closing(pool.backend.open_disk(pool.look(name), format=format)) as disk:
        return disk.pread(disk.size(), 0)


def open_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def three(pool: Pool) -> Pool:
    """A raw image of 1 MiB with a qcow2 and another one over it, each with a piece of its own."""
    (pool.path / "base").write_bytes(b"base" * (MIB // 4))
    overlay(pool, "middle", b"base", "raw")
    overlay(pool, "top", b"./middle")
    for name, where in (("middle", 131072), ("top", 262144)):
        qemu.io(pool.path / name, f"write -P {ord(name[0])} {where} 65536")
    return pool


def test_disk_as_a_guest_sees_it(three: Pool) -> None:
    before = open_files()
    data = opened(three, "top")
    assert open_files() == before
    assert data == qemu_read(three.path / "top")
    assert data[131072] == ord("m")
    assert data[:4] == b"base"


def qemu_read(path: Path) -> bytes:
    out = path.with_name("flat")
    qemu.run("qemu-img", "convert", "-O", "raw", path, out)
    try:
        return out.read_bytes()
    finally:
        out.unlink()


def test_links(three: Pool) -> None:
    before = open_files()
    found = chain(three, "top")
    assert open_files() == before
    assert (found.complete, found.concerns, found.dangers) == (True, (), [])
    assert [(link.name, link.format) for link in found.links] == [
        (b"top", "qcow2"), (b"./middle", "qcow2"), (b"base", "raw"),
    ]  # fmt: skip
    assert [link.capacity for link in found.links] == [MIB] * 3
    base = found.links[2]
    status = (three.path / "base").stat()
    assert (base.device, base.inode, base.size) == (status.st_dev, status.st_ino, MIB)
    assert base.image is None


def test_raw_volume_is_its_file(pool: Pool) -> None:
    (pool.path / "raw").write_bytes(b"x" * 4096)
    with closing(pool.backend.open_disk(pool.look("raw"))) as disk:
        assert isinstance(disk, FileHandle)
        assert disk.fileno() is not None


def test_outside_the_pool(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "template").write_bytes(b"t" * MIB)
    overlay(pool, "top", os.fsencode(tmp_path / "template"), "raw")
    overlay(pool, "dots", b"../template", "raw")
    for name in ("top", "dots"):
        found = chain(pool, name)
        assert found.complete
        assert not found.dangers
        assert "lies outside the pool" in found.concerns[0].text
        assert opened(pool, name) == b"t" * MIB


def test_below_another_directory(pool: Pool, tmp_path: Path) -> None:
    """A relative name starts at the image that has it, not at the pool."""
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "base").write_bytes(b"b" * MIB)
    (pool.path / "base").write_bytes(b"no" * MIB)
    overlay(pool, "../srv/middle", b"base", "raw")
    overlay(pool, "top", b"../srv/middle")
    assert opened(pool, "top") == b"b" * MIB


STRANGE = {
    b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}': "a json:",
    b"nbd://127.0.0.1:1/x": "on a network",
    b"http://127.0.0.1:1/x": "on a network",
    b"rbd:pool/img:conf=/etc/passwd": "on a network",
    b"fat:/etc": "on a network",
    b"/dev/zero": "a device",
    b"/proc/self/mem": "a device",
    b"a\nb": "no name of a file",
    b"\xff\xfe": "no name of a file",
    b"../../../../../../../../dev/zero": "a device",
}


@pytest.mark.parametrize(("name", "text"), STRANGE.items(), ids=lambda value: repr(value)[:20])
def test_never_followed(
    pool: Pool, name: bytes, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay(pool, "top", name, "raw")
    record = pool.look("top")
    touched = set()
    really = os.open

    def watched(path: Any, *how: Any, **more: Any) -> int:
        touched.add(os.fsdecode(path))
        return really(path, *how, **more)

    monkeypatch.setattr(os, "open", watched)
    assert text in (record.problem or "")
    assert record.concerns[0].level is Level.DANGER
    found = chain(pool, "top")
    assert (len(found.links), found.complete) == (1, False)
    assert text in found.dangers[0]
    with pytest.raises(OperationInvalid, match="cannot be opened as a disk") as caught:
        opened(pool, "top")
    assert caught.value.code == 55
    assert touched <= {str(pool.path), "top"}


@given(st.binary(min_size=1, max_size=40), st.sampled_from(["raw", "qcow2", "vmdk", None]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_at_all(pool: Pool, name: bytes, format: str | None) -> None:
    path = overlay(pool, "top", b"x" * len(name), format)
    with path.open("r+b") as file:  # our own writer refuses some of them
        file.seek(int.from_bytes(file.read(16)[8:], "big"))
        file.write(name)
    before = open_files()
    found = chain(pool, "top")
    assert open_files() == before
    assert found.links[0].name == b"top"
    assert found.complete is (found.end is None)
    if not found.complete:
        with pytest.raises(OperationInvalid):
            opened(pool, "top")


def test_fifo(pool: Pool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (pool.path / "link").symlink_to(tmp_path / "pipe")
    os.mkfifo(pool.path / "own")
    (pool.path / "folder").mkdir()
    for name in (os.fsencode(tmp_path / "pipe"), b"own", b"link", b"folder"):
        overlay(pool, "top", name, "raw")
        found = chain(pool, "top")
        assert found.dangers, name
        with pytest.raises(OperationInvalid):
            opened(pool, "top")


def test_device_behind_a_link(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "kernel").symlink_to("/proc")
    overlay(pool, "top", os.fsencode(tmp_path / "kernel" / "version"), "raw")
    assert pool.look("top").concerns[0].level is not Level.DANGER  # its words say nothing
    assert "leads to a file of the kernel's own" in chain(pool, "top").dangers[0]


def test_link_of_somebody_else(pool: Pool, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a link to another user")
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (pool.path / "link").symlink_to(tmp_path / "secret")
    overlay(pool, "top", b"link", "raw")
    found = chain(pool, "top")
    assert found.complete
    assert "leads out of the pool" in found.concerns[0].text
    os.lchown(pool.path / "link", 12345, 12345)
    assert "link" in chain(pool, "top").dangers[0]


STRANGER = 12345
#: What leads to ``secret`` beside the pool through directories that are links.
WAYS = (b"folder/secret", b"deep/../secret", b"folder/./vms/folder/secret", b"second/secret")


@pytest.mark.parametrize("way", WAYS)
def test_links_to_directories(pool: Pool, tmp_path: Path, way: bytes) -> None:
    """The kernel takes ".." from where a link leads to, and so do we."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (tmp_path / "deep").mkdir()
    for link, goal in (("folder", ".."), ("deep", tmp_path / "deep"), ("second", "./folder/.")):
        (pool.path / link).symlink_to(goal)
    overlay(pool, "top", way, "raw")
    assert opened(pool, "top") == b"s" * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("way", WAYS)
def test_links_of_others_to_directories(pool: Pool, tmp_path: Path, way: bytes) -> None:
    """Who made a link owns what it leads to, or may not lead us there; on the way, too."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (tmp_path / "deep").mkdir()
    for link, goal in (("folder", ".."), ("deep", tmp_path / "deep"), ("second", "./folder/.")):
        (pool.path / link).symlink_to(goal)
    os.lchown(pool.path / "folder", STRANGER, STRANGER)
    os.lchown(pool.path / "deep", STRANGER, STRANGER)
    overlay(pool, "top", way, "raw")
    before = open_files()
    assert "Failed to open storage volume" in chain(pool, "top").dangers[0]
    assert open_files() == before
    for directory in (tmp_path, tmp_path / "deep"):
        os.chown(directory, STRANGER, STRANGER)
    assert opened(pool, "top") == b"s" * MIB  # what is his he may name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_links_within_links(pool: Pool, tmp_path: Path) -> None:
    """A sound link may lead through somebody else's."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "disk").symlink_to(tmp_path / "secret")
    os.lchown(tmp_path / "home" / "disk", STRANGER, STRANGER)
    (pool.path / "ours").symlink_to(tmp_path / "home" / "disk")
    overlay(pool, "top", b"ours", "raw")
    assert "Failed to open storage volume" in chain(pool, "top").dangers[0]
    with pytest.raises(SystemFailure) as caught:
        pool.backend.download(pool.look("ours"), 0, 0)
    assert caught.value.advice == (
        f"User 12345 made '{tmp_path}/home/disk' on its way as a link to a file of user root. "
        f"If that is meant: chown -h root {tmp_path}/home/disk"
    )


def test_links_without_end(pool: Pool) -> None:
    (pool.path / "one").symlink_to("two/x")
    (pool.path / "two").symlink_to("one")
    for number in range(60):
        (pool.path / f"long{number}").symlink_to(f"long{number + 1}")
    (pool.path / "long60").mkdir()
    before = open_files()
    for name in (b"one", b"two/x", b"long0/x", b"long30/x", b"top/x"):
        overlay(pool, "top", name, "raw")
        found = chain(pool, "top")
        assert not found.complete, name
        assert found.end is not None
        expected = "is not there" if name == b"long30/x" else "cannot be opened"
        assert expected in found.end.text, found.end
    assert open_files() == before


def test_format_that_is_not_recorded_is_not_probed(pool: Pool) -> None:
    qemu.create(pool.path / "base", MIB)
    overlay(pool, "top", b"base", None)
    record = pool.look("top")
    assert record.concerns[0].level is Level.NOTE
    assert "--set-backing-format" in (record.problem or "")
    found = chain(pool, "top")
    assert (len(found.links), found.complete, found.dangers) == (1, False, [])
    with pytest.raises(OperationInvalid, match="is incomplete: the format of its backing file"):
        opened(pool, "top")


def test_another_format_than_recorded(pool: Pool) -> None:
    (pool.path / "base").write_bytes(bytes(MIB))
    overlay(pool, "top", b"base", "qcow2")
    assert "is not of format qcow2: raw" in chain(pool, "top").dangers[0]


def test_recorded_as_raw_is_raw(pool: Pool) -> None:
    """What a guest writes into a raw disk never makes it another format."""
    base = qemu.create(pool.path / "base", MIB)
    overlay(pool, "top", b"base", "raw", size=base.stat().st_size)
    size = base.stat().st_size
    assert opened(pool, "top")[:size] == base.read_bytes()


def test_missing(pool: Pool) -> None:
    overlay(pool, "top", b"gone")
    overlay(pool, "far", b"/nowhere/gone")
    for name in ("top", "far"):
        found = chain(pool, name)
        assert (found.complete, found.dangers) == (False, [])
        assert found.end is not None
        assert "is not there" in found.end.text
        with pytest.raises(OperationInvalid, match="is not there"):
            opened(pool, name)


def test_loops(pool: Pool) -> None:
    overlay(pool, "self", b"self")
    overlay(pool, "a", b"b")
    overlay(pool, "b", b"a")
    os.link(pool.path / "self", pool.path / "other-name")
    for name in ("self", "a", "b", "other-name"):
        assert "is a loop" in chain(pool, name).dangers[0]
        with pytest.raises(OperationInvalid, match="is a loop"):
            opened(pool, name)


def test_depth(pool: Pool) -> None:
    (pool.path / "0").write_bytes(b"z" * 65536)
    for number in range(1, MAX_DEPTH + 1):
        format = "qcow2" if number > 1 else "raw"
        overlay(pool, str(number), str(number - 1).encode(), format, size=65536)
    assert chain(pool, str(MAX_DEPTH - 1)).complete
    assert opened(pool, str(MAX_DEPTH - 1)) == b"z" * 65536
    assert "more than 200 images" in chain(pool, str(MAX_DEPTH)).dangers[0]


def test_damage_below(pool: Pool) -> None:
    (pool.path / "base").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(56))
    overlay(pool, "top", b"base")
    found = chain(pool, "top")
    assert (len(found.links), found.complete) == (2, False)
    assert "truncated" in found.dangers[0]


def test_danger_below_a_sound_image(pool: Pool) -> None:
    overlay(pool, "base", b"nbd:unix:/run/x")
    overlay(pool, "top", b"base")
    assert pool.look("top").concerns == ()
    assert "on a network" in chain(pool, "top").dangers[0]


def test_external_data_file(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool.path
    qemu.run(
        "qemu-img", "create", "-f", "qcow2", "-o", f"data_file={path}/data", path / "abs", "1M"
    )
    record = pool.look("abs")
    assert "external file with its data is not named as a file beside it" in (record.problem or "")
    with pytest.raises(OperationInvalid):
        opened(pool, "abs")
    monkeypatch.chdir(path)  # where QEMU takes the name from
    qemu.run("qemu-img", "create", "-f", "qcow2", "-o", "data_file=more", "beside", "1M")
    qemu.run("qemu-io", "-c", "write -P 7 65536 65536", "beside")
    record = pool.look("beside")
    assert [concern.level for concern in record.concerns] == [Level.NOTE]
    data = opened(pool, "beside")
    assert (data[0], data[65536], len(data)) == (0, 7, MIB)
    (part,) = chain(pool, "beside").links[0].parts
    assert (part.name, part.inode) == (b"more", (path / "more").stat().st_ino)
    (path / "more").unlink()
    os.mkfifo(path / "more")
    with pytest.raises(OperationInvalid, match="no regular file"):
        opened(pool, "beside")


def test_vmdk_parent(pool: Pool) -> None:
    path = pool.path
    qemu.run("qemu-img", "create", "-f", "vmdk", path / "base", "1M")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 3 0 65536", path / "base")
    qemu.run("qemu-img", "create", "-f", "vmdk", "-b", "base", "-F", "vmdk", path / "top")
    with closing(pool.backend.open_disk(pool.look("top"))) as disk:
        assert isinstance(disk, Disk)
        assert disk.pread(2, 65535) == b"\3\0"
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 4 0 512", path / "base")
    if b"CID=" in (path / "base").read_bytes():
        assert "content ids differ" in chain(pool, "top").dangers[0]


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_vmdk_in_pieces(pool: Pool, kind: str) -> None:
    path = pool.path / "disk.vmdk"
    qemu.run("qemu-img", "create", "-f", "vmdk", "-o", f"subformat={kind}", path, "1M")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 5 0 512", path)
    with pytest.raises(OperationInvalid, match="a VMDK descriptor"):
        opened(pool, "disk.vmdk")  # it is listed as raw: nobody said that it is none
    assert opened(pool, "disk.vmdk", "vmdk")[:513] == b"\5" * 512 + b"\0"
    (link,) = chain(pool, "disk.vmdk", "vmdk").links
    assert len(link.parts) == 1


@pytest.mark.parametrize("extent", ["/etc/passwd", "../secret", "/dev/vda", "json:{}", "disk.vmdk"])
def test_hostile_extents(pool: Pool, extent: str) -> None:
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\n\n# Extent description\nRW 4 FLAT "{extent}" 0\n'
    )
    (pool.path / "disk.vmdk").write_text(text)
    before = open_files()
    assert chain(pool, "disk.vmdk", "vmdk").dangers
    with pytest.raises(OperationInvalid):
        opened(pool, "disk.vmdk", "vmdk")
    assert open_files() == before


def test_format_without_a_reader(pool: Pool) -> None:
    qemu.run("qemu-img", "create", "-f", "vdi", pool.path / "disk", "1M")
    assert chain(pool, "disk").complete
    with pytest.raises(OperationUnsupported, match="format vdi are not read natively"):
        opened(pool, "disk")


def test_locks_of_all_links(three: Pool, storage_daemon: Callable[..., int]) -> None:
    with closing(three.backend.open_disk(three.look("top"))):
        for name in ("top", "middle"):
            with pytest.raises(AssertionError, match="Failed to get"):
                qemu.io(three.path / name, "write 0 512")
    qemu.io(three.path / "middle", "write 0 512")
    pid = storage_daemon(three.path / "middle")
    with pytest.raises(VolumeBusy) as caught:
        opened(three, "top")
    assert f"(pid {pid})" in (caught.value.advice or "")
    assert chain(three, "top").complete  # looking needs no lock


def test_lock_ends_with_the_handle(three: Pool) -> None:
    for name in ("top", "middle"):
        opened(three, name)
        qemu.io(three.path / name, "write 0 512")
    overlay(three, "bad", b"nbd:x")
    overlay(three, "over", b"bad")
    with pytest.raises(OperationInvalid):
        opened(three, "over")
    with imagelock.hold((fd := os.open(three.path / "over", os.O_RDWR)), "over"):
        os.close(fd)


def test_budget(three: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_chain, "MAX_SECONDS", -1.0)
        found = chain(three, "top")
        assert (len(found.links), found.complete, found.dangers) == (1, False, [])
    monkeypatch.setattr(_chain, "MAX_FILES", 2)
    assert "more than 2 files" in chain(three, "top").dangers[0]


def test_another_image_by_now(three: Pool) -> None:
    record = three.look("top")
    (three.path / "top").write_bytes(bytes(MIB))
    with pytest.raises(OperationInvalid, match="is of format raw by now, not qcow2"):
        three.backend.open_disk(record)
