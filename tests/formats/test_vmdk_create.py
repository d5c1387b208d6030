"""VMDK images of ours against qemu-img's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storaged.formats import probe, vmdk_create
from storaged.formats.errors import FormatError
from storaged.formats.vmdk import MAX_CAPACITY
from storaged.formats.vmdk_create import Parent
from storaged.formats.vmdk_describe import describe
from storaged.formats.vmdk_descriptor import Adapter
from tests.formats import qemu
from tests.formats.memory import LoggingHandle, MemoryHandle

GIB = 1 << 30


DIRECTORIES = 21 * 512


def settled(data: bytes, name: str) -> bytes:
    """Take out what differs between any two images: the content id and the name."""
    head = re.sub(rb"\nCID=[0-9a-f]+", b"\nCID=1", data[:DIRECTORIES], count=1)
    head = head.replace(f'"{name}"'.encode(), b'"NAME"', 1)
    return head.rstrip(b"\0") + data[DIRECTORIES:]


@pytest.mark.parametrize(
    ("capacity", "adapter"),
    [
        *((capacity, "ide") for capacity in (1, 1_000_000, GIB, 5 * GIB, 100 * GIB)),
        *((3 * GIB, adapter) for adapter in Adapter),
    ],
)
def test_same_bytes_as_qemu_img(tmp_path: Path, capacity: int, adapter: str) -> None:
    ours, theirs = tmp_path / "a.vmdk", tmp_path / "b.vmdk"
    qemu.write_native(
        ours,
        lambda handle: vmdk_create.create(handle, capacity, adapter=adapter, name="a.vmdk"),
    )
    qemu.create(theirs, capacity, f"adapter_type={adapter}", format="vmdk")
    assert ours.stat().st_size == theirs.stat().st_size
    assert settled(ours.read_bytes(), "a.vmdk") == settled(theirs.read_bytes(), "b.vmdk")


def test_largest(tmp_path: Path) -> None:
    path = qemu.write_native(
        tmp_path / "a.vmdk", lambda handle: vmdk_create.create(handle, MAX_CAPACITY)
    )
    assert qemu.info(path)["virtual-size"] == MAX_CAPACITY
    qemu.run("qemu-io", "-f", "vmdk", "-c", f"write {MAX_CAPACITY - 65536} 64k", path)


def test_qemu_writes_to_it(tmp_path: Path) -> None:
    path = qemu.write_native(
        tmp_path / "a.vmdk", lambda handle: vmdk_create.create(handle, 3 * GIB, cid=0xABC)
    )
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 5 2G 1M", path)
    qemu.run("qemu-img", "check", "-f", "vmdk", path)
    info = qemu.info(path)
    assert (info["format"], info["virtual-size"]) == ("vmdk", 3 * GIB)
    assert info["format-specific"]["data"]["create-type"] == "monolithicSparse"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("disk 1.vmdk", "disk 1.vmdk"),
        ('a"b', "disk.vmdk"),
        ("a\nb", "disk.vmdk"),
        ("", "disk.vmdk"),
    ],
)
def test_name_in_the_descriptor(name: str, written: str) -> None:
    handle = MemoryHandle()
    vmdk_create.create(handle, GIB, name=name)
    assert f'SPARSE "{written}"\n'.encode() in handle.data
    assert probe.probe(handle).state == "ok"


def test_old_contents_are_gone() -> None:
    handle = MemoryHandle(b"\xff" * 300_000)
    vmdk_create.create(handle, GIB, cid=1)
    fresh = MemoryHandle()
    vmdk_create.create(fresh, GIB, cid=1)
    assert handle.data == fresh.data


@pytest.mark.parametrize("capacity", [0, -1, MAX_CAPACITY + 1])
def test_capacity_out_of_range(capacity: int) -> None:
    handle = MemoryHandle()
    with pytest.raises(FormatError, match=f"not {capacity}"):
        vmdk_create.create(handle, capacity)
    assert not handle.data


def test_unknown_adapter() -> None:
    with pytest.raises(FormatError, match="adapter must be one of ide, lsilogic"):
        vmdk_create.create(MemoryHandle(), GIB, adapter="scsi")


def test_overlay_has_the_same_bytes_as_qemu_img(tmp_path: Path) -> None:
    base, ours, theirs = (tmp_path / name for name in ("base.vmdk", "a.vmdk", "b.vmdk"))
    qemu.create(base, GIB, format="vmdk")
    cid = describe(MemoryHandle(base.read_bytes())).cid
    assert cid is not None
    qemu.write_native(
        ours,
        lambda handle: vmdk_create.create(
            handle, GIB, name="a.vmdk", parent=Parent(b"base.vmdk", cid), hardware_version="6"
        ),
    )
    qemu.run(
        *("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk"),
        *("-o", "hwversion=6", theirs),
    )
    assert settled(ours.read_bytes(), "a.vmdk") == settled(theirs.read_bytes(), "b.vmdk")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 1 1M 64k", ours)
    qemu.run("qemu-img", "check", ours)


@pytest.mark.parametrize("version", ["", "0", "100", "4\n", "four"])
def test_hardware_version(version: str) -> None:
    with pytest.raises(FormatError, match="hardware version must be 1 to 99"):
        vmdk_create.create(MemoryHandle(), GIB, hardware_version=version)


@pytest.mark.parametrize("name", [b"", b'a"b', b"a\nb", b"a" * 1024])
def test_name_of_a_parent(name: bytes) -> None:
    handle = MemoryHandle()
    with pytest.raises(FormatError, match="parent's name cannot stand"):
        vmdk_create.create(handle, GIB, parent=Parent(name, 1))
    assert not handle.data


def test_header_comes_last() -> None:
    """A crash before the end leaves no image: what was there before is gone first."""
    old = MemoryHandle()
    vmdk_create.create(old, GIB)
    handle = LoggingHandle(bytes(old.data))
    vmdk_create.create(handle, GIB)
    (writes,) = handle.groups
    (zeroed, *others, header) = [(offset, data[:4]) for offset, data in writes]
    assert zeroed == (0, bytes(4))
    assert all(offset for offset, _ in others)
    assert header == (0, b"KDMV")
