"""What a VMDK refers to: what is told of sound ones, and what of those that lie."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from storaged.formats import probe, vmdk_create
from storaged.formats.errors import FormatError
from storaged.formats.image import ImageState
from storaged.formats.vmdk_create import Parent
from storaged.formats.vmdk_describe import VmdkDescription, describe
from storaged.formats.vmdk_descriptor import ExtentType
from storaged.formats.vmdk_read import VmdkDisk
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.vmdk_images import cowd, open_file
from tests.formats.zoo_vmdk import DescriptorFile, descriptor_files

GIB = 1 << 30
OK, SUSPICIOUS, CORRUPT, UNSUPPORTED = ImageState


def described(path: Path) -> VmdkDescription:
    with open_file(path) as handle:
        return describe(handle, name=path.name.encode())


def test_a_split_disk(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "a.vmdk", 5 * GIB, "subformat=twoGbMaxExtentSparse",
                       "adapter_type=buslogic", format="vmdk")  # fmt: skip
    seen = described(path)
    assert (seen.state, seen.subformat, seen.capacity) == (OK, "twoGbMaxExtentSparse", 5 * GIB)
    assert (seen.adapter, seen.hardware_version) == ("buslogic", "4")
    assert [(extent.name, extent.length, extent.flat) for extent in seen.extents] == [
        (b"a-s001.vmdk", 2 * GIB, False),
        (b"a-s002.vmdk", 2 * GIB, False),
        (b"a-s003.vmdk", GIB, False),
    ]
    part = described(tmp_path / "a-s002.vmdk")
    assert (part.state, part.subformat, part.capacity, part.extents) == (OK, None, 2 * GIB, ())


def test_a_flat_disk(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "a.vmdk", GIB, "subformat=monolithicFlat", format="vmdk")
    (extent,) = described(path).extents
    assert (extent.name, extent.type, extent.flat) == (b"a-flat.vmdk", ExtentType.FLAT, True)
    info = probe.probe(MemoryHandle(path.read_bytes()))
    assert (info.format, info.state) == ("raw", SUSPICIOUS)  # as libvirt lists it


def test_an_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    qemu.create(base, GIB, format="vmdk")
    qemu.run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", top)
    below, above = described(base), described(top)
    assert below.parent is None
    assert above.parent == str(base).encode()
    assert above.parent_cid == below.cid
    assert (above.extents, above.state) == ((), OK)
    with open_file(top) as handle:
        info = probe.probe(handle)
    assert (info.subformat, info.extents) == ("monolithicSparse", ())
    assert info.backing is not None
    assert info.backing.name == above.parent


def test_what_no_vmdk_is() -> None:
    with pytest.raises(FormatError, match="not a VMDK image"):
        describe(MemoryHandle(b"QFI\xfb" + bytes(1000)))


@pytest.mark.parametrize("size", [0, 3, 4, 40, 78])
def test_a_stump(size: int) -> None:
    handle = MemoryHandle()
    vmdk_create.create(handle, GIB)
    if size < 4:
        with pytest.raises(FormatError, match="not a VMDK"):
            describe(MemoryHandle(bytes(handle.data[:size])))
    else:
        assert describe(MemoryHandle(bytes(handle.data[:size]))).state is CORRUPT


def test_a_redo_log() -> None:
    seen = describe(MemoryHandle(cowd([b"a" * 4096, None])))
    assert (seen.state, seen.capacity, seen.cid) == (OK, 8192, None)
    assert describe(MemoryHandle(b"COWD")).state is CORRUPT


FILES = descriptor_files()


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_descriptor_file(case: DescriptorFile) -> None:
    """The verdict is there before anything that it names could be opened."""
    handle = MemoryHandle(case.data)
    begin = time.process_time()
    seen = describe(handle, name=b"own.vmdk")
    assert time.process_time() - begin < 0.5
    assert seen.state is case.state
    assert case.reason in "; ".join(seen.reasons)
    assert all(reason.isprintable() for reason in seen.reasons)
    listed = probe.probe(MemoryHandle(case.data))
    assert (listed.format, listed.state) == ("raw", SUSPICIOUS)
    if case.state is not OK and case.name != "self":
        with pytest.raises(FormatError):
            VmdkDisk(handle, extents=[MemoryHandle()] * len(seen.extents))


def test_an_embedded_descriptor_that_programs_read_differently() -> None:
    handle = MemoryHandle()
    vmdk_create.create(handle, GIB, parent=Parent(b"base.vmdk", 7))
    data = bytes(handle.data).replace(b"#DDB", b'#parentFileNameHint="x"', 1)
    assert describe(MemoryHandle(data)).state is OK  # the first one counts for both
    data = bytes(handle.data).replace(b"\nversion=1", b'\n#parentFileNameHint="x"', 1)
    seen = describe(MemoryHandle(data))
    assert seen.state is SUSPICIOUS
    assert "programs differ" in "; ".join(seen.reasons)
