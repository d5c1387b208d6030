"""What stands on a device: libvirt's overwrite rules, on images made by the real tools."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storaged.backends._signatures import Signature, check_empty, read_signature, zero_ends
from storaged.errors import OperationInvalid, PoolBuilt, ProbeFailed, StorageError
from tests.kernel.fixtures import LoopDevice

MiB = 1 << 20

#: What makes a signature, and what blkid calls it.
_MAKERS = {
    "ext2": ("mkfs.ext2", "-q", "-F"),
    "ext3": ("mkfs.ext3", "-q", "-F"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "vfat": ("mkfs.vfat",),
}

Image = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A function that gives the path of an image with a file system on it, or with nothing."""

    def make(kind: str = "") -> str:
        path = tmp_path / f"{kind or 'empty'}.img"
        with path.open("wb") as file:
            file.truncate((320 if kind == "xfs" else 128) * MiB)
        if kind:
            subprocess.run([*_MAKERS[kind], path], check=True, capture_output=True)
        return str(path)

    return make


@pytest.mark.parametrize("kind", _MAKERS)
def test_rules_for_each_format(image: Image, kind: str) -> None:
    path = image(kind)
    with pytest.raises(PoolBuilt, match=f"'{path}' already formatted using '{kind}'"):
        check_empty(path, kind)
    other = "ext4" if kind != "ext4" else "xfs"
    with pytest.raises(PoolBuilt, match=f"does not match the expected format '{other}', forced"):
        check_empty(path, other)


def test_nothing_is_free(image: Image) -> None:
    check_empty(image(), "ext4")


def test_libvirts_names_are_translated(monkeypatch: pytest.MonkeyPatch, image: Image) -> None:
    found = {"hfs+": "hfsplus", "lvm2": "LVM2_member", "vmfs": "VMFS"}
    for name, blkids in found.items():
        signature = Signature(type=blkids)
        monkeypatch.setattr(
            "storaged.backends._signatures.read_signature", lambda *_, found=signature: found
        )
        with pytest.raises(PoolBuilt, match=f"already formatted using '{re.escape(name)}'"):
            check_empty(image(), name)


def test_partition_table_is_something(image: Image) -> None:
    path = image()
    with Path(path).open("r+b") as file:  # a DOS label with one partition
        file.seek(446)
        file.write(bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") * 2)
        file.seek(510)
        file.write(b"\x55\xaa")
    assert read_signature(path, "ext4").table == "dos"
    with pytest.raises(PoolBuilt, match="forced overwrite") as refused:
        check_empty(path, "ext4")
    assert "dos" in (refused.value.advice or "")


def test_contradicting_signatures_are_no_ground_to_act_on(image: Image) -> None:
    path = image("vfat")
    with Path(path).open("r+b") as file, Path(image("ext4")).open("rb") as other:
        other.seek(1024)
        file.seek(1024)
        file.write(other.read(1024))
    with pytest.raises(ProbeFailed, match="Found additional probes to run"):
        check_empty(path, "ext4")


def test_what_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match="Failed to probe for format type 'ext4'") as refused:
        check_empty(str(tmp_path / "none"), "ext4")
    assert "No such file" in (refused.value.advice or "")


@pytest.mark.parametrize(
    ("prints", "status", "error"),
    [
        ("echo gibberish=1", 0, ProbeFailed),
        ("echo DEVNAME=/x", 0, None),
        ("kill -9 $$", 0, StorageError),
        ("echo no >&2", 4, StorageError),
    ],
)
def test_odd_answers_of_blkid(
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prints: str,
    status: int,
    error: type[StorageError] | None,
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "blkid").write_text(f"#!/bin/sh\n{prints}\nexit {status}\n")
    (tools / "blkid").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    if error is None:
        assert read_signature(image(), "ext4") == Signature()
    else:
        with pytest.raises(error):
            read_signature(image(), "ext4")


def test_without_blkid_only_force_helps(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storaged.command.find_program", lambda *_: None)
    with pytest.raises(OperationInvalid, match="forced overwrite is necessary") as refused:
        check_empty(image(), "ext4")
    assert "util-linux" in (refused.value.advice or "")


def test_ends_are_zeroed_and_the_middle_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (5 * MiB))
    zero_ends(str(path))
    data = path.read_bytes()
    assert data == bytes(MiB) + b"x" * (3 * MiB) + bytes(MiB)
    path.write_bytes(b"x" * 1000)
    zero_ends(str(path))
    assert path.read_bytes() == bytes(1000)
    path.write_bytes(b"")
    zero_ends(str(path))


@pytest.mark.kernel("loop")
def test_free_device_is_zeroed(loop_device: LoopDevice) -> None:
    device = loop_device(8)
    Path(device).write_bytes(b"x" * (8 * MiB))
    zero_ends(device)
    assert Path(device).read_bytes() == bytes(MiB) + b"x" * (6 * MiB) + bytes(MiB)


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_the_disk_of_a_machine_is_not_nothing(tmp_path: Path, format: str) -> None:
    path = tmp_path / "disk"
    argv = ["qemu-img", "create", "-q", "-f", format, str(path), "1M"]
    subprocess.run(argv, check=True)
    with pytest.raises(PoolBuilt):
        check_empty(str(path), "ext4")
