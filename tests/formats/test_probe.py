"""The prober against qemu-img's images, against noise, and its own promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storaged.formats import probe
from storaged.formats.file import FileHandle
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.formats.qcow2_create import CreateOptions, create
from storaged.formats.signatures import FOREIGN, PREFIXES, SIGNATURES
from storaged.formats.window import HEAD_LIMIT, TAIL_LIMIT, Window
from tests.formats import cryptsetup, qemu
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import cases

GIB = 1 << 30
SAMPLES = [case.data[:66000] for case in cases() if case.state is ImageState.OK]


def probed(path: Path) -> ImageInfo:
    with FileHandle(os.open(path, os.O_RDONLY)) as handle:
        return probe.probe(handle)


MADE_BY_QEMU = [
    ("qcow2", "", "qcow2"),
    ("qcow2", "compat=0.10", "qcow2"),
    ("qcow2", "cluster_size=512", "qcow2"),
    ("qcow2", "cluster_size=2M,refcount_bits=1", "qcow2"),
    ("qcow2", "lazy_refcounts=on,extended_l2=on", "qcow2"),
    ("qcow2", "compression_type=zstd", "qcow2"),
    ("qcow2", "preallocation=metadata", "qcow2"),
    ("qcow", "", "qcow"),
    ("qed", "", "qed"),
    ("vdi", "", "vdi"),
    ("vdi", "static=on", "vdi"),
    ("vpc", "", "vpc"),
    ("vmdk", "", "vmdk"),
    ("vmdk", "zeroed_grain=on,compat6=on", "vmdk"),
    ("vmdk", "subformat=streamOptimized", "vmdk"),
    ("parallels", "", "ploop"),
    ("raw", "", "raw"),
]


@pytest.mark.parametrize(("theirs", "options", "ours"), MADE_BY_QEMU)
def test_agrees_with_qemu_img(tmp_path: Path, theirs: str, options: str, ours: str) -> None:
    path = qemu.create(tmp_path / "image", GIB, *([options] if options else []), format=theirs)
    info, seen = qemu.info(path), probed(path)
    assert (seen.format, seen.state, seen.reasons) == (ours, ImageState.OK, ())
    assert seen.capacity == info["virtual-size"]
    if ours in ("qcow2", "qed", "qcow", "vmdk"):
        assert seen.cluster_size == info["cluster-size"]
    if ours == "qcow2":
        specific = info["format-specific"]["data"]
        assert (seen.compat or "0.10") == specific["compat"]
        named = {"lazy_refcounts": "lazy-refcounts", "extended_l2": "extended-l2"}
        expected = {ours for ours, theirs in named.items() if specific.get(theirs)}
        assert (seen.features or frozenset()) == expected
        assert (seen.features is None) == (seen.compat is None)


@pytest.mark.parametrize(
    ("format", "recorded"), [("qcow2", "raw"), ("qcow", None), ("qed", "raw"), ("vmdk", "vmdk")]
)
def test_backing_files(tmp_path: Path, format: str, recorded: str | None) -> None:
    base_format = "vmdk" if format == "vmdk" else "raw"
    base = qemu.create(tmp_path / "base", GIB, format=base_format)
    path = tmp_path / "image"
    qemu.run("qemu-img", "create", "-q", "-f", format, "-b", base, "-F", base_format, path)
    base.unlink()  # nobody looks
    assert probed(path).backing == BackingRef(os.fsencode(base), recorded)
    assert probed(path).state is ImageState.OK


def test_what_qemu_makes_and_libvirt_calls_raw(tmp_path: Path) -> None:
    for format, options, word in (
        ("vhdx", (), "VHDX"),
        ("vpc", ("subformat=fixed",), "fixed VHD"),
        ("vmdk", ("subformat=monolithicFlat",), "descriptor"),
        ("vmdk", ("subformat=twoGbMaxExtentSparse",), "descriptor"),
    ):
        path = qemu.create(tmp_path / f"{format}.img", GIB, *options, format=format)
        seen = probed(path)
        assert (seen.format, seen.state) == ("raw", ImageState.SUSPICIOUS)
        assert word in seen.reasons[0]
    extent = probed(tmp_path / "vmdk-s001.img")
    assert (extent.format, extent.state, extent.capacity) == ("vmdk", ImageState.OK, GIB)


@pytest.mark.slow
@cryptsetup.needed
@pytest.mark.parametrize("version", [1, 2])
def test_luks(tmp_path: Path, version: int) -> None:
    seen = probed(cryptsetup.create(tmp_path / "image", 64 << 20, version=version))
    assert seen.format == "raw"
    if version == 1:
        assert (seen.encryption, seen.state) == ("luks", ImageState.OK)
        assert seen.capacity < 64 << 20  # the header is not part of the disk
    else:
        assert (seen.encryption, seen.state) == ("luks2", ImageState.UNSUPPORTED)


@pytest.mark.slow
def test_luks_in_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "image"
    command = [
        "qemu-img", "create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", str(path), "64M",
    ]  # fmt: skip
    for _ in range(8):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0:
            break
        # It times a key derivation, which on a busy virtual machine can fail.
        assert "accurate CPU usage" in made.stderr
    else:
        pytest.skip("qemu-img cannot measure CPU time on this machine")
    seen = probed(path)
    assert (seen.encryption, seen.capacity) == ("luks", 64 << 20)
    assert (seen.format, seen.state) == ("qcow2", ImageState.OK)


def test_snapshots_and_bitmaps(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB)
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    qemu.run("qemu-img", "snapshot", "-c", "two", path)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    seen = probed(path)
    assert (seen.snapshots, seen.state) == (2, ImageState.OK)


def test_data_file(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB, f"data_file={tmp_path}/data")
    seen = probed(path)
    assert seen.features == frozenset({"data_file"})
    assert seen.data_file == os.fsencode(tmp_path / "data")
    assert seen.state is ImageState.SUSPICIOUS


def bounded(handle: MemoryHandle) -> None:
    for offset, length in handle.reads:
        head = offset + length <= HEAD_LIMIT
        assert head or (offset >= handle.size() - TAIL_LIMIT and length <= TAIL_LIMIT)
    assert len(handle.reads) < 8


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=4096), claims=st.none() | st.integers(0, 2**63 - 1))
@example(data=b"", claims=None)
def test_noise(data: bytes, claims: int | None) -> None:
    """The size may even be a lie: the file shrank between fstat and read."""
    handle = MemoryHandle(data, claims=claims)
    info = probe.probe(handle)
    assert info.capacity >= 0
    bounded(handle)


@settings(max_examples=400, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    patches=st.lists(
        st.tuples(
            st.integers(0, 120) | st.integers(0, 1100) | st.integers(0, HEAD_LIMIT),
            st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8)),
        ),
        max_size=6,
    ),
    length=st.none() | st.integers(0, 66000),
    claims=st.none() | st.integers(0, 2**63 - 1),
)
def test_mutated_and_truncated_headers(
    sample: bytes, patches: list[tuple[int, bytes]], length: int | None, claims: int | None
) -> None:
    data = bytearray(sample)
    for offset, patch in patches:
        data[offset : offset + len(patch)] = patch
    handle = MemoryHandle(bytes(data[:length]), claims=claims)
    info = probe.probe(handle)
    bounded(handle)
    assert 0 <= info.capacity < 2**63
    assert (info.state is ImageState.OK) == (not info.reasons)
    assert all(reason.isprintable() for reason in info.reasons)


@settings(max_examples=150, deadline=None)
@given(
    magic=st.sampled_from(sorted({*SIGNATURES, *FOREIGN}, key=str)), rest=st.binary(max_size=2048)
)
def test_magic_and_noise(magic: object, rest: bytes) -> None:
    offset = getattr(magic, "offset", 0)
    data = bytes(offset) + magic.magic + rest  # type: ignore[attr-defined]
    handle = MemoryHandle(data)
    probe.probe(handle)
    bounded(handle)


def test_every_inspector_is_there() -> None:
    assert set(probe.INSPECTORS) == {signature.format for signature in SIGNATURES} | {"luks"}
    for name in probe.INSPECTORS:
        window = Window(MemoryHandle(b"x").pread, 1)
        assert probe._inspect(name, window).state in (ImageState.CORRUPT, ImageState.UNSUPPORTED)


def test_prefixes_cover_every_signature() -> None:
    for case in cases():
        if case.format != "raw" and case.data[:3] not in PREFIXES:
            assert case.format in ("iso", "vdi")


def test_the_scan_reads_little_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu.write_native(tmp_path / "image", lambda handle: create(handle, CreateOptions(GIB)))
    size = path.stat().st_size
    reads: list[tuple[int, int]] = []
    pread = os.pread

    def watched(fd: int, length: int, offset: int) -> bytes:
        reads.append((length, offset))
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", watched)
    prober = probe.Prober()
    with FileHandle(os.open(path, os.O_RDONLY)) as handle:
        fd = handle.fileno()
        assert fd is not None
        first = prober.probe_fd(fd, size)
        assert prober.probe_fd(fd, size) is first
        assert reads == [(512, 0), (5, 32769)] * 2
        # Longer is as good, shorter is looked at again.
        assert prober.probe_fd(fd, size + 1) is first
        cut = prober.probe_fd(fd, size - 1)
    assert cut is not None
    assert cut.state is ImageState.CORRUPT


def test_overlays_with_equal_first_sectors_differ(tmp_path: Path) -> None:
    """The name lies behind the first 512 bytes: memory must not mix them up."""
    prober = probe.Prober()
    names = [b"base-%03d" % number for number in range(5)]
    for name in names:
        options = CreateOptions(GIB, backing=name, backing_format="qcow2")
        path = tmp_path / name.decode()
        qemu.write_native(path, lambda handle, options=options: create(handle, options))  # type: ignore[misc]
    heads = {(tmp_path / name.decode()).read_bytes()[:512] for name in names}
    assert len(heads) == 1
    for name in names * 2:
        path = tmp_path / name.decode()
        with FileHandle(os.open(path, os.O_RDONLY)) as handle:
            fd = handle.fileno()
            assert fd is not None
            info = prober.probe_fd(fd, handle.size())
        assert info is not None
        assert info.backing == BackingRef(name, "qcow2")


def test_memory_is_bounded(tmp_path: Path) -> None:
    prober = probe.Prober()
    path = tmp_path / "image"
    for number in range(1100):
        options = CreateOptions(512 * (number + 1), cluster_size=512)
        path.unlink(missing_ok=True)
        qemu.write_native(path, lambda handle, options=options: create(handle, options))  # type: ignore[misc]
        with FileHandle(os.open(path, os.O_RDONLY)) as handle:
            fd = handle.fileno()
            assert fd is not None
            info = prober.probe_fd(fd, handle.size())
        assert info is not None
        assert info.capacity == options.capacity
    assert len(prober._known) <= 1024


def test_errors_of_the_device_pass() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            probe.probe_fd(fd, 4096)
    finally:
        os.close(fd)


def test_the_prober_loads_little() -> None:
    """A scan of raw files pays for no format and for no ctypes."""
    program = (
        "import sys; before = set(sys.modules); import storaged.formats.probe;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split()
    assert "ctypes" not in loaded
    assert not {"storaged.formats.qcow2", "storaged.formats.vmdk"} & set(loaded)
