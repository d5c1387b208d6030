"""Lists of persistent bitmaps: QEMU's, and directories that lie."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import qcow2
from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.qcow2_bitmaps import Bitmap, BitmapFlag, read_bitmaps
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.qcow2_content import read_only
from tests.formats.zoo_qcow2 import sound

MIB = 1 << 20
TABLE = 65536


def entry(
    name: bytes = b"b", *, offset: int = TABLE, size: int = 1, flags: int = 2, kind: int = 1,
    bits: int = 16, extra: int = 0, name_size: int | None = None,
) -> bytes:  # fmt: skip
    length = len(name) if name_size is None else name_size
    data = struct.pack(">QIIBBHI", offset, size, flags, kind, bits, length, extra)
    data += bytes(min(extra, 1024)) + name
    return data + bytes(-len(data) % 8)


def image(
    *entries: bytes, count: int | None = None, size: int | None = None, offset: int | None = None,
    consistent: bool = True,
) -> MemoryHandle:  # fmt: skip
    data = sound(MIB)
    data += bytes(-len(data) % 65536)
    directory = b"".join(entries)
    extension = qcow2.BitmapsExtension(
        len(entries) if count is None else count,
        0,
        len(directory) if size is None else size,
        len(data) if offset is None else offset,
    )
    blob = qcow2.pack_extension(qcow2.ExtensionType.BITMAPS, extension.pack())
    data[112 : 112 + len(blob) + 8] = blob + bytes(8)
    struct.pack_into(">Q", data, 88, int(consistent))
    return MemoryHandle(bytes(data) + directory)


def test_like_qemu(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", "10M")
    qemu.run("qemu-img", "bitmap", "--add", "-f", "qcow2", path, "first")
    qemu.run("qemu-img", "bitmap", "--add", "-f", "qcow2", "-g", "4k", path, "zweite ü")
    qemu.run("qemu-img", "bitmap", "--disable", "-f", "qcow2", path, "first")
    with read_only(path) as handle:
        ours = read_bitmaps(handle)
    theirs = qemu.info(path)["format-specific"]["data"]["bitmaps"]
    assert [bitmap.name for bitmap in ours] == [bitmap["name"] for bitmap in theirs]
    assert [bitmap.granularity for bitmap in ours] == [bitmap["granularity"] for bitmap in theirs]
    assert [BitmapFlag.AUTO in bitmap.flags for bitmap in ours] == [False, True]
    assert ["auto" in bitmap["flags"] for bitmap in theirs] == [False, True]
    assert all(bitmap.table_size == 1 for bitmap in ours)


def test_none() -> None:
    assert read_bitmaps(MemoryHandle(bytes(sound(MIB)))) == ()


def test_not_consistent_any_more() -> None:
    """Whoever wrote to the image without knowing bitmaps has cleared the flag."""
    assert read_bitmaps(image(entry(), consistent=False)) == ()


def test_fields() -> None:
    handle = image(entry(b"\x1b", flags=5, bits=9, size=8192), entry(b"x" * 1023, extra=24))
    first, second = read_bitmaps(handle)
    flags = BitmapFlag.IN_USE | BitmapFlag.EXTRA_DATA_COMPATIBLE
    assert first == Bitmap(r"\x1b", 512, flags, TABLE, 8192)
    assert second.name == "x" * 1023


def test_many() -> None:
    assert len(read_bitmaps(image(*[entry()] * 65535))) == 65535


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        (image(entry(kind=2)), "type 2"),
        (image(entry(flags=8)), "flags 0x8"),
        (image(entry(bits=8)), "granularity_bits 8"),
        (image(entry(bits=32)), "granularity_bits 32"),
        (image(entry(b"")), "name of 0"),
        (image(entry(b"x" * 1024)), "name of 1024"),
        (image(entry(extra=2**32 - 1)), "extra data of 4294967295"),
        (image(entry(offset=0)), "table at 0"),
        (image(entry(offset=512)), "table at 512"),
        (image(entry(offset=1 << 40)), "not there"),
        (image(entry(size=2**32 - 1)), "not there"),
        (image(entry(name_size=1000)), "bitmap directory reaches beyond its limit"),
        (image(entry(), count=2), "bitmap directory reaches beyond its limit"),
        (image(entry(), count=0), "nb_bitmaps is 0"),
        (image(entry(), count=65536), "nb_bitmaps is 65536"),
        (image(entry(), size=1 << 40), "more than 67107840"),
        (image(entry(), size=1 << 20), "not within the file"),
        (image(entry(), offset=512), "unaligned"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies(handle: MemoryHandle, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        read_bitmaps(handle)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_flipped_bytes(data: st.DataObject) -> None:
    handle = image(entry(), entry(b"name", extra=8), entry(b"third"))
    for _ in range(data.draw(st.integers(1, 4))):
        directory = st.integers(len(handle.data) - 104, len(handle.data) - 1)
        place = data.draw(directory | st.integers(72, 160))
        handle.data[place] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        assert all(bitmap.name.isprintable() for bitmap in read_bitmaps(handle))
