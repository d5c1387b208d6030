"""VMDK descriptors: read, written, refused."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.vmdk_descriptor import (
    MAX_EXTENTS,
    MAX_LINES,
    MAX_TEXT,
    NO_PARENT,
    Access,
    Adapter,
    CreateType,
    Descriptor,
    ExtentLine,
    ExtentType,
    format_descriptor,
    is_plain,
    parse,
)
from tests.formats import qemu
from tests.formats.vmdk_images import text

FLAT = 'RW 8 FLAT "a-flat.vmdk" 0'
SPLIT = ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")


@pytest.mark.parametrize("subformat", SPLIT)
@pytest.mark.parametrize("options", [(), ("adapter_type=lsilogic", "hwversion=13")])
def test_same_text_as_qemu_img(tmp_path: Path, subformat: str, options: tuple[str, ...]) -> None:
    path = tmp_path / "a.vmdk"
    qemu.create(path, 5 << 30, f"subformat={subformat}", *options, format="vmdk")
    theirs = path.read_bytes()
    descriptor = parse(theirs)
    assert descriptor.create_type == subformat
    assert descriptor.sectors * 512 == 5 << 30
    assert descriptor.parent_cid == NO_PARENT
    assert descriptor.hardware_version == ("13" if options else "4")
    assert format_descriptor(descriptor) == theirs


names = st.text(
    st.characters(codec="utf-8", exclude_characters='"', exclude_categories=["C", "Z"]),
    min_size=1, max_size=40,
).map(str.encode)  # fmt: skip
flat_lines = st.builds(
    ExtentLine, st.sampled_from(Access), st.integers(1, 2**40), st.just(ExtentType.FLAT), names,
    st.integers(0, 2**40),
)  # fmt: skip
other_lines = st.builds(
    ExtentLine, st.sampled_from(Access), st.integers(1, 2**40),
    st.sampled_from([type for type in ExtentType if type is not ExtentType.FLAT]), names,
)  # fmt: skip
descriptors = st.builds(
    Descriptor,
    cid=st.integers(0, 2**32 - 1),
    parent_cid=st.integers(0, 2**32 - 1),
    create_type=st.sampled_from(CreateType),
    extents=st.lists(flat_lines | other_lines, min_size=1, max_size=5).map(tuple),
    parent_hint=st.none() | names,
    adapter=st.sampled_from(Adapter),
    hardware_version=st.integers(1, 99).map(str),
)


@settings(max_examples=100, deadline=None)
@given(descriptors)
def test_round_trip(descriptor: Descriptor) -> None:
    assert parse(format_descriptor(descriptor)) == descriptor


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(text(FLAT))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        assert parse(bytes(whole)).sectors > 0


def test_what_other_programs_write() -> None:
    """Carriage returns, spaces, comments, fields that are not ours, zeros behind the end."""
    whole = text(FLAT, more='encoding="UTF-8"\nisNativeSnapshot="no"\n# a comment\n \t').replace(
        b"\n", b"\r\n"
    )
    descriptor = parse(whole + b'ddb.uuid = "60 00 C2 9a"\r\nddb.thinProvisioned = 1\r\n\0\0\0')
    assert descriptor.extents == (ExtentLine(Access.RW, 8, ExtentType.FLAT, b"a-flat.vmdk", 0),)
    assert descriptor.cid == 0x1234ABCD


@pytest.mark.parametrize(
    ("whole", "error", "reason"),
    [
        (text(), CorruptImage, "0 extents"),
        (text(FLAT, kind="custom"), UnsupportedFormat, "createType is 'custom'"),
        (text(FLAT, kind="fullDevice"), UnsupportedFormat, "createType"),
        (text(FLAT).replace(b"createType", b"created"), UnsupportedFormat, "createType is ''"),
        (text(FLAT, cid="xyz"), CorruptImage, "no valid CID"),
        (text(FLAT, cid=""), CorruptImage, "no valid CID"),
        (text(FLAT, cid="123456789"), CorruptImage, "no valid CID"),
        (text(FLAT).replace(b"parentCID=ffffffff\n", b""), CorruptImage, "no valid parentCID"),
        (text(FLAT, more="CID=1"), CorruptImage, "line 6 .* CID again"),
        (text(FLAT, more='createType="vmfs"'), CorruptImage, "createType again"),
        (text(FLAT, more="what is this"), CorruptImage, "line 6 .* not understood: 'what is"),
        (text('RW -8 FLAT "a" 0'), CorruptImage, "not understood"),
        (text('RW 0 FLAT "a" 0'), CorruptImage, "RW 0 FLAT"),
        (text(f'RW {2**63} FLAT "a" 0'), CorruptImage, "line 6"),
        (text(f'RW 8 FLAT "a" {2**60}'), CorruptImage, "line 6"),
        (text(f'RW {"9" * 5000} FLAT "a" 0'), CorruptImage, "not understood"),
        (text(*[f'RW {2**53} FLAT "a" 0'] * 2), CorruptImage, "sectors"),
        (text('RW 8 TAPE "a" 0'), UnsupportedFormat, "type 'TAPE'"),
        (text('RW 8 FLAT "a" 0 partition'), CorruptImage, "not understood"),
        (text(FLAT).replace(b"version=1", b"version=9"), UnsupportedFormat, "version '9'"),
        (text(FLAT, more=f'parentFileNameHint="{"p" * 1024}"'), CorruptImage, "longer than"),
        (text(FLAT) + b"\0CID=2\n", CorruptImage, "follows"),
        (text(FLAT)[5:], CorruptImage, "no first line"),
        (text(FLAT) + b"#" * MAX_TEXT, CorruptImage, "longer than"),
        (text(FLAT) + b"\n" * MAX_LINES, CorruptImage, "lines"),
        (text(*[FLAT] * (MAX_EXTENTS + 1)), CorruptImage, "more than 4096 extents"),
    ],
)
def test_refused(whole: bytes, error: type[FormatError], reason: str) -> None:
    begin = time.process_time()
    with pytest.raises(error, match=reason) as caught:
        parse(whole)
    assert str(caught.value).isprintable()
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (b"a-flat.vmdk", True),
        (b"..a", True),
        ("\u00e4 b.vmdk".encode(), True),
        (b"a" * 255, True),
        *((bad, False) for bad in (b"", b".", b"..", b"a/b", b"/etc/passwd", b"..\\a", b"C:a")),
        *((bad, False) for bad in (b"json:{}", b"a\0b", b"a\x1bb", b"\xff", b"a" * 256)),
        ("a\u202eb".encode(), False),
    ],
)
def test_plain_names(name: bytes, plain: bool) -> None:
    assert is_plain(name) is plain


@pytest.mark.parametrize(
    "changes", [{"parent_hint": b'a"b'}, {"parent_hint": b""}, {"parent_hint": b"a\nb"}]
)
def test_a_name_that_cannot_stand_there(changes: dict[str, bytes]) -> None:
    line = ExtentLine(Access.RW, 8, ExtentType.SPARSE, b"a")
    kind = CreateType.MONOLITHIC_SPARSE
    with pytest.raises(FormatError, match="parent's name cannot stand"):
        format_descriptor(Descriptor(1, 2, kind, (line,), parent_hint=changes["parent_hint"]))
    line = ExtentLine(Access.RW, 8, ExtentType.SPARSE, b'a"')
    with pytest.raises(FormatError, match="extent's name cannot stand"):
        format_descriptor(Descriptor(1, 2, kind, (line,)))
