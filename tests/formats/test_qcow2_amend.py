"""Changes of the header alone: judged by qemu-img, and cut off after every single write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import probe, qcow2
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.image import BackingRef, ImageState
from storaged.formats.qcow2_amend import amend, rebase, set_backing_format
from storaged.formats.qcow2_check import check
from storaged.formats.qcow2_create import CreateOptions, create
from tests.formats import qemu
from tests.formats.crash import CrashHandle
from tests.formats.memory import MemoryHandle

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNKNOWN = qcow2.pack_extension(0x12345678, b"keep me")


def native(**options: object) -> MemoryHandle:
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB, **options))  # type: ignore[arg-type]
    return handle


def backing(handle: MemoryHandle) -> BackingRef | None:
    info = probe.probe(handle)
    assert info.state is ImageState.OK, info.reasons
    return info.backing


def test_rebase_as_qemu_sees_it(tmp_path: Path) -> None:
    for name, pattern in (("one", 1), ("two", 2)):
        base = qemu.create(tmp_path / name, MIB)
        qemu.io(base, f"write -P {pattern} 0 1M")
    path = tmp_path / "image"
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "one", "-F", "qcow2", path, "1M")
    qemu.io(path, "write -P 3 0 64k")
    names = ("two", 2), ("./../" + tmp_path.name + "/one", 1), (None, 0)
    for wanted, pattern in names:
        with qemu.open_native(path) as handle:
            rebase(handle, wanted.encode() if wanted else None, "qcow2" if wanted else None)
        qemu.check(path)
        info = qemu.info(path)
        assert info.get("backing-filename") == wanted
        assert info.get("backing-filename-format") == ("qcow2" if wanted else None)
        qemu.io(path, "read -P 3 0 64k", f"read -P {pattern} 64k 100k")
    qemu.io(path, "write -P 4 512k 64k")
    qemu.check(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_size", [512, 4 * KIB, 64 * KIB])
def test_any_name_after_any_other(version: int, cluster_size: int) -> None:
    handle = native(version=version, cluster_size=cluster_size)
    longest = 300 if cluster_size == 512 else 1023
    lengths = (5, longest, longest - 1, 1, 200, longest, 330 if longest > 330 else 3, longest)
    for number, length in enumerate(lengths):
        name = bytes([65 + number]) * length
        format = ("raw", "qcow2", None)[number % 3]
        rebase(handle, name, format)
        assert backing(handle) == BackingRef(name, format)
        assert check(handle).clean
    set_backing_format(handle, "vmdk")
    assert backing(handle) == BackingRef(name, "vmdk")
    rebase(handle, None, None)
    assert backing(handle) is None


def test_unknown_things_are_kept() -> None:
    handle = native(backing=b"base")
    handle.pwrite((1 << 63).to_bytes(8, "big"), 80)  # compatible
    handle.pwrite((1 << 62 | 1 << 40).to_bytes(8, "big"), 88)  # autoclear
    # A longer header than is known, with a field in it.
    rest = bytes(handle.data[112 : 512 + 64])
    handle.pwrite(b"later\0\0\0" + UNKNOWN + rest, 112)
    handle.pwrite((120).to_bytes(4, "big"), 100)
    name = 512 + 8 + len(UNKNOWN)
    handle.pwrite(name.to_bytes(8, "big"), 8)
    assert backing(handle) == BackingRef(b"base")
    rebase(handle, b"other", "raw")
    assert backing(handle) == BackingRef(b"other", "raw")
    header = qcow2.read_header(bytes(handle.data[:112]))
    assert header.compatible == 1 << 63
    assert header.autoclear == 0
    assert header.header_length == 120
    assert handle.data[112:120] == b"later\0\0\0"
    kinds = [found.type for found in extensions(handle)]
    assert kinds == [qcow2.ExtensionType.BACKING_FORMAT, 0x12345678]


def extensions(handle: MemoryHandle) -> list[qcow2.Extension]:
    header = qcow2.read_header(bytes(handle.data[:112]))
    read = lambda length: bytes(handle.data[:length])  # noqa: E731
    return list(qcow2.extensions(read, header.header_length, header.extensions_end))


def test_a_format_that_was_never_recorded_is_mended(tmp_path: Path) -> None:
    qemu.create(tmp_path / "base", MIB)
    path = qemu.write_native(
        tmp_path / "image", lambda handle: create(handle, CreateOptions(MIB, backing=b"base"))
    )
    with qemu.open_native(path) as handle:
        set_backing_format(handle, "qcow2")
    assert qemu.info(path)["backing-filename-format"] == "qcow2"
    qemu.check(path)


def test_what_is_wrong_with_the_reference_is_no_hindrance() -> None:
    handle = native(backing=b"base", backing_format="evil")
    assert probe.probe(handle).state is ImageState.SUSPICIOUS
    set_backing_format(handle, "raw")
    assert backing(handle) == BackingRef(b"base", "raw")
    twice = native(backing=b"base", backing_format="raw")
    twice.data[112:528] = (twice.data[112:128] * 2).ljust(416, b"\0")
    assert "second header extension" in probe.probe(twice).reasons[0]
    rebase(twice, b"other", "raw")
    assert backing(twice) == BackingRef(b"other", "raw")


@pytest.mark.parametrize("options", [[], ["-o", "cluster_size=512"], ["-o", "refcount_bits=16"]])
def test_upgrade(tmp_path: Path, options: list[str]) -> None:
    base = qemu.create(tmp_path / "base", MIB)
    qemu.io(base, "write -P 9 0 1M")
    path = tmp_path / "image"
    qemu.run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", *options,
        "-b", "base", "-F", "qcow2", path, "1M",
    )  # fmt: skip
    qemu.io(path, "write -P 1 0 64k")
    with qemu.open_native(path) as handle:
        amend(handle, version=3, lazy_refcounts=True)
    qemu.check(path)
    info = qemu.info(path)
    assert info["backing-filename"] == "base"
    data = info["format-specific"]["data"]
    assert (data["compat"], data["lazy-refcounts"], data["refcount-bits"]) == ("1.1", True, 16)
    qemu.io(path, "read -P 1 0 64k", "read -P 9 64k 64k", "write -z 0 64k")
    qemu.check(path)


def test_lazy_refcounts(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB)
    before = path.read_bytes()
    for wanted in (True, True, False):
        with qemu.open_native(path) as handle:
            amend(handle, lazy_refcounts=wanted)
        assert qemu.info(path)["format-specific"]["data"]["lazy-refcounts"] is wanted
        qemu.check(path)
    assert path.read_bytes() == before
    with qemu.open_native(path) as handle:
        amend(handle)
        amend(handle, version=3)
    assert path.read_bytes() == before


Change = Callable[[MemoryHandle], None]
CRASHES: list[tuple[MemoryHandle, Change]] = [
    (native(backing=b"a" * 1000, backing_format="raw"), lambda h: rebase(h, b"b" * 1000, "qcow2")),
    (native(backing=b"a" * 100, backing_format="raw"), lambda h: rebase(h, b"b" * 100, "qcow2")),
    (native(version=2, backing=b"a" * 500), lambda h: rebase(h, b"b" * 500, "qcow2")),
    (native(backing=b"a" * 900), lambda h: rebase(h, None, None)),
    (native(), lambda h: rebase(h, b"b" * 900, "raw")),
    (native(backing=b"a" * 900), lambda h: set_backing_format(h, "raw")),
    (native(cluster_size=512, backing=b"a" * 300), lambda h: rebase(h, b"b" * 350, "raw")),
    (native(version=2, backing=b"a" * 900), lambda h: amend(h, version=3)),
    (native(version=2), lambda h: amend(h, version=3, lazy_refcounts=True)),
    (native(), lambda h: amend(h, lazy_refcounts=True)),
]


@pytest.mark.parametrize(("image", "change"), CRASHES)
def test_a_crash_leaves_the_old_or_the_new_header(
    tmp_path: Path, image: MemoryHandle, change: Change
) -> None:
    log = CrashHandle(bytes(image.data))
    change(log)
    old, new = (probe.probe(MemoryHandle(data)) for data in (log.start, bytes(log.data)))
    assert old != new
    seen = []
    for state in log.states():
        info = probe.probe(MemoryHandle(state))
        assert info in (old, new)
        assert check(MemoryHandle(state)).clean
        if info not in seen:
            seen.append(info)
    assert len(seen) == 2
    path = tmp_path / "image"
    path.write_bytes(log.data)
    qemu.run("qemu-img", "info", "-f", "qcow2", path)


def mark(offset: int, value: int, width: int = 8) -> Change:
    return lambda handle: handle.pwrite(value.to_bytes(width, "big"), offset)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (mark(72, 1), UnsupportedFormat, "not closed cleanly"),
        (mark(72, 2), CorruptImage, "marked as corrupt"),
        (mark(72, 1 << 40), UnsupportedFormat, "unknown incompatible features"),
        (mark(40, 1 << 40), CorruptImage, "L1 table"),
        (mark(100, 105, 4), UnsupportedFormat, "header_length is 105"),
        (mark(0, 0, 4), FormatError, "magic"),
        (mark(4, 5, 4), UnsupportedFormat, "version 5"),
    ],
)
def test_refusals(change: Change, error: type[FormatError], text: str) -> None:
    handle = native()
    change(handle)
    before = bytes(handle.data)
    calls: list[Change] = [
        lambda handle: rebase(handle, b"base", "raw"),
        lambda handle: amend(handle, lazy_refcounts=True),
        lambda handle: set_backing_format(handle, "raw"),
    ]
    for call in calls:
        with pytest.raises(error, match=text):
            call(handle)
    assert handle.data == before


@pytest.mark.parametrize(
    ("options", "call", "error", "text"),
    [
        ({}, lambda h: rebase(h, b"x" * 1024, "raw"), FormatError, "longer than 1023"),
        ({}, lambda h: rebase(h, b"a\0b", "raw"), FormatError, "zero byte"),
        ({}, lambda h: rebase(h, b"a", "r" * 16), FormatError, "longer than 15"),
        ({}, lambda h: set_backing_format(h, "raw"), FormatError, "has no backing file"),
        ({}, lambda h: amend(h, version=4), FormatError, "must be 2 or 3, not 4"),
        ({}, lambda h: amend(h, version=2), UnsupportedFormat, "more than a change of the header"),
        ({"version": 2}, lambda h: amend(h, lazy_refcounts=True), FormatError, "need version 3"),
        ({"cluster_size": 512}, lambda h: rebase(h, b"x" * 400, None), UnsupportedFormat, "room"),
        (
            {"data_file": b"data", "data_file_raw": True},
            lambda h: rebase(h, b"base", "raw"), UnsupportedFormat, "raw data file",
        ),
        (
            {"data_file": b"d" * 400},
            lambda h: rebase(h, b"base", "raw"), UnsupportedFormat, "do not fit in one sector",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go(
    options: dict[str, object], call: Change, error: type[FormatError], text: str
) -> None:
    handle = native(**options)
    before = bytes(handle.data)
    with pytest.raises(error, match=text):
        call(handle)
    assert handle.data == before


def test_no_upgrade_with_snapshots(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", MIB, "compat=0.10")
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="snapshots"):
        amend(handle, version=3)
    with qemu.open_native(path) as handle:
        rebase(handle, b"/dev/null", "raw")
    qemu.check(path)


@settings(max_examples=100, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=5),
    name=st.binary(max_size=600),
)
def test_flipped_bytes(flips: list[tuple[int, int]], name: bytes) -> None:
    handle = native(backing=b"base", backing_format="raw")
    for place, value in flips:
        handle.data[place] = value
    before = bytes(handle.data)
    try:
        rebase(handle, name, "raw")
    except FormatError:
        assert handle.data == before
    else:
        found = probe.probe(handle).backing
        assert found == (BackingRef(name, "raw") if name else None)
