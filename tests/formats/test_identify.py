"""What images really are: against qemu-img, dissect.hypervisor and cryptsetup, and hostile ones."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import luks2, probe
from storaged.formats.file import FileHandle
from storaged.formats.identify import DESCRIBERS, identify
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from tests.formats import cryptsetup, qemu
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import cases, iso
from tests.formats.zoo_case import GIB, MIB, Case, patched
from tests.formats.zoo_disks import luks_image, vdi_image
from tests.formats.zoo_foreign import described_cases, dmg_image, fixed_vhd, luks2_image, vhdx_image
from tests.formats.zoo_qcow2 import sound

ZOO = described_cases()
SIZES = [MIB, 5 * MIB + 512, GIB, 10 * GIB, 2 << 40]
#: 1 MiB and what the prober looks at before.
MOST_READ = (1 << 20) + (64 << 10)


def identified(path: Path, name: str | None = None) -> ImageInfo:
    with FileHandle(os.open(path, os.O_RDONLY)) as handle:
        return identify(handle, name=name)


@pytest.mark.parametrize(
    ("format", "options", "ours", "subformat"),
    [
        ("vpc", "", "vpc", "dynamic"),
        ("vpc", "force_size=on", "vpc", "dynamic"),
        ("vhdx", "", "vhdx", "dynamic"),
        ("vhdx", "block_size=1M", "vhdx", "dynamic"),
        ("vdi", "", "vdi", "dynamic"),
        ("qed", "", "qed", None),
        ("qcow", "", "qcow", None),
        ("parallels", "", "ploop", "extended"),
        ("qcow2", "", "qcow2", None),
    ],
)
def test_agrees_with_qemu_img(
    tmp_path: Path, format: str, options: str, ours: str, subformat: str | None
) -> None:
    for number, size in enumerate(SIZES):
        if format == "vpc" and size > 2040 << 30:
            continue
        path = tmp_path / str(number)
        qemu.create(path, size, *([options] if options else []), format=format)
        seen = identified(path)
        assert (seen.format, seen.subformat, seen.state) == (ours, subformat, ImageState.OK)
        assert seen.capacity == qemu.info(path)["virtual-size"], (size, seen)


@pytest.mark.parametrize(
    ("format", "options", "ours"),
    [
        ("vpc", "subformat=fixed", "vpc"),
        ("vpc", "subformat=fixed,force_size=on", "vpc"),
        ("vhdx", "subformat=fixed", "vhdx"),
        ("vdi", "static=on", "vdi"),
    ],
)
def test_fixed_ones(tmp_path: Path, format: str, options: str, ours: str) -> None:
    path = qemu.create(tmp_path / "image", 3 * MIB, options, format=format)
    seen = identified(path)
    kind = "static" if format == "vdi" else "fixed"
    assert (seen.format, seen.subformat, seen.state) == (ours, kind, ImageState.OK)
    info = qemu.run("qemu-img", "info", "-f", format, "--output=json", path)
    assert f'"virtual-size": {seen.capacity},' in info


def test_agrees_with_dissect(tmp_path: Path) -> None:
    for format, name, options in (
        ("vdi", "vdi.VDI", ()),
        ("vpc", "vhd.VHD", ("force_size=on",)),
        ("vhdx", "vhdx.VHDX", ()),
    ):
        module, _, kind = name.partition(".")
        reader = getattr(import_module(f"dissect.hypervisor.disk.{module}"), kind)
        path = qemu.create(tmp_path / format, 100 * MIB, *options, format=format)
        with path.open("rb") as file:
            assert reader(file).size == identified(path).capacity == 100 * MIB


def test_vmdk_that_libvirt_lists_as_raw(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "d.vmdk", GIB, "subformat=monolithicFlat", format="vmdk")
    seen = identified(path)
    assert (seen.format, seen.capacity, seen.subformat) == ("vmdk", GIB, "monolithicFlat")
    assert seen.extents == (b"d-flat.vmdk",)
    assert seen.state is ImageState.OK
    path = path.rename(tmp_path / "d-flat.vmdk")
    assert identified(path, "d-flat.vmdk").state is ImageState.CORRUPT  # it names itself


@pytest.mark.slow
@cryptsetup.needed
@pytest.mark.parametrize("version", [1, 2])
def test_luks(tmp_path: Path, version: int) -> None:
    path = cryptsetup.create(tmp_path / "image", 64 * MIB, version=version)
    seen = identified(path)
    assert (seen.format, seen.subformat) == ("luks", f"luks{version}")
    dump = qemu.run("cryptsetup", "luksDump", path)
    if version == 1:
        (sectors,) = re.findall(r"Payload offset:\s+(\d+)", dump)
        payload = int(sectors) * 512
    else:
        (data,) = re.findall(r"offset: (\d+) \[bytes\]", dump)
        payload = int(data)
        assert seen.reasons == ("LUKS version 2: it is not opened here",)
        with FileHandle(os.open(path, os.O_RDONLY)) as handle:
            assert luks2.describe(handle) == seen
    assert seen.capacity == 64 * MIB - payload


def bounded(handle: MemoryHandle) -> None:
    assert sum(length for _, length in handle.reads) <= MOST_READ
    assert len(handle.reads) < 200


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_answer(case: Case) -> None:
    handle = MemoryHandle(case.data)
    begin = time.process_time()
    info = identify(handle)
    assert time.process_time() - begin < 0.5  # 50 ms on a machine that is not busy
    assert (info.format, info.state) == (case.format, case.state), info
    assert info.capacity == (len(case.data) if case.capacity is None else case.capacity)
    assert bool(info.reasons) == (info.state is not ImageState.OK)
    assert re.search(case.reason, "; ".join(info.reasons)), info.reasons
    assert all(reason.isprintable() for reason in info.reasons)
    bounded(handle)


def test_takes_little_memory() -> None:
    """Also with JSON of 256 KiB, made to take as much as it can."""
    nested = {"0": {"offset": "0", "size": "dynamic"}, "x": [{}] * 62_000}
    images = [case.data for case in ZOO] + [luks2_image(nested, area=256 << 10)]
    identify(MemoryHandle(images[0]))
    for image in images:
        handle = MemoryHandle(image)
        tracemalloc.start()
        try:
            identify(handle)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 * MIB


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_libvirts_view_stays(case: Case) -> None:
    """What libvirt lists as raw is raw for the prober, as long as the file, and doubtful."""
    info = probe.probe(MemoryHandle(case.data))
    if case.name == "p-vhd-parent":
        assert (info.format, info.backing) == ("vpc", None)
        return
    assert info.format == "raw"
    assert info.capacity == len(case.data)
    assert info.state is not ImageState.OK


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_doubts_of_the_prober_remain(case: Case) -> None:
    handle = MemoryHandle(case.data)
    before, info = probe.probe(MemoryHandle(case.data)), identify(handle)
    if before.format != "raw":
        assert info.format == before.format
        assert set(before.reasons) <= set(info.reasons)
    bounded(handle)


def test_parents_are_named() -> None:
    found = {case.name: identify(MemoryHandle(case.data)) for case in ZOO}
    assert found["p-vhdx-diff"].backing == BackingRef(b"..\\base.vhdx", "vhdx")
    assert found["p-vhdx-diff"].subformat == "differencing"
    assert found["p-vhd-parent"].backing == BackingRef(b"parent.vhd", "vpc")


@pytest.mark.parametrize(
    ("data", "format", "reason"),
    [
        (bytes(sound()) + fixed_vhd()[MIB:], "qcow2", "also vpc"),
        (bytes(sound()) + dmg_image()[4096:], "qcow2", "also dmg"),
        (vhdx_image() + fixed_vhd()[MIB:], "vhdx", "also vpc"),
        (iso(b"vhdxfile"), "iso", "also vhdx"),
        (iso(b"# Disk DescriptorFile\nversion=1\n"), "iso", "also vmdk"),
        (patched(bytearray(vdi_image()), (0, ">4s", b"COWD")), "vdi", "also vmdk"),
        (luks_image() + fixed_vhd()[MIB:], "luks", "also vpc"),
    ],
)
def test_polyglots(data: bytes, format: str, reason: str) -> None:
    info = identify(MemoryHandle(data))
    assert (info.format, info.state) == (format, ImageState.SUSPICIOUS), info
    assert reason in "; ".join(info.reasons)


def test_weak_evidence_is_none() -> None:
    """A boot sector within, and a footer whose checksum is wrong: guests write such things."""
    data = patched(sound(), (510, ">H", 0x55AA))
    assert identify(MemoryHandle(data)).state is ImageState.OK
    data = bytes(sound()) + b"conectix".ljust(512, b"\0")
    assert identify(MemoryHandle(data)).state is ImageState.OK


def test_vdi_map_beyond_the_end() -> None:
    info = identify(MemoryHandle(vdi_image((512, "<I", 5))))
    assert (info.format, info.state) == ("vdi", ImageState.CORRUPT)
    assert "block 5" in info.reasons[0]


def boot(*patches: tuple[int, str, int | bytes]) -> bytes:
    return patched(bytearray(8192), (510, ">H", 0x55AA), *patches)


FAT = ((11, "<H", 512), (13, "<B", 4), (14, "<H", 1), (16, "<B", 2), (21, "<B", 0xF8))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bytes(8192), None),
        (boot(), None),
        (boot((446, "<B", 0x80), (450, "<B", 0x83), (458, "<I", 2048)), "mbr"),
        (boot((446, "<B", 0x33), (450, "<B", 0x83), (458, "<I", 2048)), None),
        (boot((512, "<8s", b"EFI PART"), (450, "<B", 0xEE), (458, "<I", 1)), "gpt"),
        (boot((4096, "<8s", b"EFI PART")), "gpt"),
        (boot(*FAT, (17, "<H", 512), (19, "<H", 2880), (22, "<H", 9)), "fat12"),
        (boot(*FAT, (17, "<H", 512), (19, "<H", 65000), (22, "<H", 64)), "fat16"),
        (boot(*FAT, (32, "<I", 1 << 20), (36, "<I", 1024)), "fat32"),
        (boot(*FAT, (13, "<B", 3), (32, "<I", 1 << 20), (36, "<I", 1024)), None),
        (boot(*FAT), None),
    ],
)
def test_what_raw_disks_hold(data: bytes, kind: str | None) -> None:
    assert identify(MemoryHandle(data)) == ImageInfo("raw", 8192, subformat=kind)


def test_optical_media() -> None:
    image = bytearray(iso())
    assert identify(MemoryHandle(bytes(image))).subformat == "iso9660"
    image[34816:34823] = b"\0BEA01\1"
    image[36864:36871] = b"\0NSR02\1"
    assert identify(MemoryHandle(bytes(image))).subformat == "iso9660+udf"
    image[32768:34816] = b"\0BEA01\1".ljust(2048, b"\0")
    seen = identify(MemoryHandle(bytes(image)))
    assert (seen.format, seen.subformat, seen.state) == ("raw", "udf", ImageState.OK)


def test_names_that_promise_more() -> None:
    raw = MemoryHandle(bytes(4096))
    assert identify(raw, name="disk.img").state is ImageState.OK
    assert identify(raw, name="disk-flat.vmdk").state is ImageState.OK
    seen = identify(raw, name="Disk.VHDX")
    assert (seen.format, seen.state) == ("raw", ImageState.SUSPICIOUS)
    assert identify(MemoryHandle(vhdx_image()), name="d.vhdx").state is ImageState.OK


def test_a_large_header_of_luks2_is_left_to_describe() -> None:
    data = b"LUKS\xba\xbe\0\2" + (4 << 20).to_bytes(8, "big")
    handle = MemoryHandle(data.ljust(8 * MIB, b"\0"))
    info = identify(handle)
    assert (info.format, info.state, info.capacity) == ("luks", ImageState.UNSUPPORTED, 8 * MIB)
    bounded(handle)


def test_long_texts_of_luks2_are_not_parsed() -> None:
    whole = {"0": {"offset": "0", "size": "dynamic"}}
    info = luks2.describe(MemoryHandle(luks2_image(whole, area=4 * MIB)))
    assert (info.state, info.capacity) == (ImageState.UNSUPPORTED, 8 * MIB)
    data = luks2_image(whole | {"x": [{}] * 100_000}, area=4 * MIB)
    info = luks2.describe(MemoryHandle(data))
    assert info.state is ImageState.CORRUPT
    assert "JSON text of" in info.reasons[-1]


def test_every_describer_is_there() -> None:
    assert {case.format for case in ZOO} <= {*DESCRIBERS, "raw", "luks"}


DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=1234abcd
parentCID=ffffffff
createType="twoGbMaxExtentSparse"

# Extent description
RW 4192256 SPARSE "disk-s001.vmdk"
RW 2048 SPARSE "disk-s002.vmdk"

# The Disk Data Base
#DDB
ddb.adapterType = "ide"
"""
SAMPLES = [case.data for case in ZOO if case.state is ImageState.OK or "diff" in case.name]
SAMPLES += [DESCRIPTOR, iso(), vdi_image(), luks_image()] + [
    c.data for c in ZOO if c.name == "p-luks2-ok"
]
#: Where the structures of a VHDX and the others lie.
PLACES = (0, 32768, 65536, 131072, 196608, 262144, 2 * MIB, 3 * MIB, 3 * MIB + 65536)


@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(0, len(SAMPLES) - 1),
    patches=st.lists(
        st.tuples(
            st.sampled_from(PLACES),
            st.integers(0, 600),
            st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8)),
        ),
        max_size=4,
    ),
    length=st.none() | st.integers(0, 4 * MIB),
    claims=st.none() | st.integers(0, 2**63 - 1),
)
def test_damaged_images(
    number: int, patches: list[tuple[int, int, bytes]], length: int | None, claims: int | None
) -> None:
    data = bytearray(SAMPLES[number])
    for place, offset, patch in patches:
        at = min(place + offset, len(data))
        data[at : at + len(patch)] = patch
    if SAMPLES[number].startswith(b"vhdxfile"):
        for offset, size in ((1, 4096), (2, 4096), (3, 65536), (4, 65536)):
            _reseal(data, 65536 * offset, size)
    handle = MemoryHandle(bytes(data[:length]), claims=claims)
    info = identify(handle)
    bounded(handle)
    assert 0 <= info.capacity < 2**63
    assert (info.state is ImageState.OK) == (not info.reasons)
    assert all(reason.isprintable() for reason in info.reasons)


def _reseal(data: bytearray, offset: int, size: int) -> None:
    """Set right the checksum, so that the damage gets past it."""
    from tests.formats.zoo_foreign import sealed

    if len(data) >= offset + size:
        sealed(data, offset, size)
