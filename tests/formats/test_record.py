"""Every declared record: its size by the specification, and that pack undoes unpack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import (
    bochs,
    cow,
    dmg,
    luks,
    luks2,
    ploop,
    qcow,
    qcow2,
    qed,
    vdi,
    vhdx,
    vmdk,
    vpc,
)
from storaged.formats.errors import FormatError
from storaged.formats.record import U8, U16, U32, Record

SIZES = {
    qcow2.HeaderV2: 72,
    qcow2.HeaderV3: 104,
    qcow2.HeaderV3Compression: 112,
    qcow2.BitmapsExtension: 24,
    qcow2.EncryptionExtension: 16,
    qcow2.FeatureName: 48,
    qcow2.SnapshotHeader: 40,
    qcow.QcowHeader: 48,
    qed.QedHeader: 64,
    cow.CowHeader: 1048,
    vmdk.SparseExtentHeader: 79,
    vmdk.CowdHeader: 32,
    vmdk.Marker: 12,
    vdi.VdiHeader: 0x1C8,
    vpc.Footer: 85,
    vpc.DynamicHeader: 56,
    ploop.ParallelsHeader: 64,
    luks.LuksHeader: 208,
    luks.KeySlot: 48,
    luks2.Luks2Header: 512,
    vhdx.VhdxHeader: 80,
    vhdx.TableHeader: 16,
    vhdx.RegionEntry: 32,
    vhdx.MetadataHeader: 32,
    vhdx.MetadataEntry: 32,
    bochs.BochsHeader: 96,
    dmg.Trailer: 500,
}


def all_records(base: type[Record] = Record) -> list[type[Record]]:
    found = []
    for record in base.__subclasses__():
        if record.__module__.startswith("storaged."):
            found += [record, *all_records(record)]
    return found


def test_every_record_is_listed() -> None:
    assert set(all_records()) == set(SIZES)


@pytest.mark.parametrize("record", SIZES, ids=lambda record: record.__name__)
def test_size(record: type[Record]) -> None:
    assert record.length() == SIZES[record]


@pytest.mark.parametrize("record", SIZES, ids=lambda record: record.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_round_trip(record: type[Record], data: st.DataObject) -> None:
    length = record.length()
    raw = data.draw(st.binary(min_size=length, max_size=length))
    assert record.unpack(raw).pack() == raw
    assert record.unpack(b"x" + raw + b"y", 1) == record.unpack(raw)


@pytest.mark.parametrize("record", SIZES, ids=lambda record: record.__name__)
def test_short_data(record: type[Record]) -> None:
    length = record.length()
    with pytest.raises(
        FormatError, match=f"{record.__name__} is {length} bytes, only {length - 1}"
    ):
        record.unpack(bytes(length - 1))
    with pytest.raises(FormatError, match="only 0"):
        record.unpack(bytes(length), length + 5)


def test_fields_lie_where_the_specifications_say() -> None:
    header = bytearray(112)
    header[36:40] = b"\0\0\1\2"
    header[100:105] = b"\0\0\0\x70\1"
    parsed = qcow2.HeaderV3Compression.unpack(header)
    assert (parsed.l1_size, parsed.header_length, parsed.compression_type) == (0x102, 112, 1)
    sector = bytearray(512)
    sector[0x170:0x178] = (5 << 30).to_bytes(8, "little")
    sector[0x184:0x188] = (7).to_bytes(4, "little")
    assert vdi.VdiHeader.unpack(sector).disk_size == 5 << 30
    assert vdi.VdiHeader.unpack(sector).blocks_allocated == 7


def test_little_endian_and_no_hidden_padding() -> None:
    @dataclass(frozen=True)
    class Mixed(Record):
        ORDER: ClassVar[str] = "<"
        first: U8
        second: U32
        third: U16

    assert Mixed(1, 2, 3).pack() == b"\1\2\0\0\0\3\0"


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(FormatError, match=r"FeatureName\(type=256"):
        qcow2.FeatureName(256, 0, b"").pack()
