"""Logical units in sysfs, what they call themselves, and what is on them. Nothing of it is real."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backends._scsi import HEAD, Unit, label_of, read_unit, units_of_host, units_of_session
from storaged.backends._scsiid import Code, Kind, designators, plain, read_serial, serial_of

MAKER = b"LIO-ORG disk            "
NAA6 = bytes.fromhex("6001405a1b2c3d4e5f60718293a4b5c6")


def page(*parts: tuple[int, int, bytes], association: int = 0) -> bytes:
    """Page 0x83 with these designators: code, kind, value."""
    body = b"".join(
        bytes([code, association << 4 | kind, 0, len(value)]) + value for code, kind, value in parts
    )
    return bytes([0, 0x83]) + len(body).to_bytes(2, "big") + body


VENDOR = (Code.ASCII, Kind.VENDOR, b"  a  b ")
T10 = (Code.ASCII, Kind.T10, b"LIO-ORG disk:5a1b2c")
EUI = (Code.BINARY, Kind.EUI64, b"\x00\x01\x02\x03\x04\x05\x06\x07")
NAA5 = (Code.BINARY, Kind.NAA, bytes.fromhex("5001405a1b2c3d4e"))
NAA3 = (Code.BINARY, Kind.NAA, bytes.fromhex("3000000000000001"))
PORT = (Code.BINARY, 4, b"\0\0\0\1")


@pytest.mark.parametrize(
    ("found", "serial"),
    [
        ((T10, PORT, (Code.BINARY, Kind.NAA, NAA6), NAA5), f"3{NAA6.hex()}"),
        ((EUI, NAA5, NAA3), "35001405a1b2c3d4e"),
        ((EUI, NAA3), "33000000000000001"),
        ((T10, EUI), "20001020304050607"),
        ((VENDOR, T10), "1LIO-ORG_disk:5a1b2c"),
        ((VENDOR,), "0LIO-ORG_disk_a_b"),
        ((PORT,), None),
        ((), None),
    ],
)
def test_the_best_name_is_the_serial(
    found: tuple[tuple[int, int, bytes], ...], serial: str | None
) -> None:
    assert serial_of(page(*found), b"", MAKER) == serial
    assert serial_of(page(*reversed(found)), b"", MAKER) == serial


def test_names_of_the_port_or_the_target_do_not_count() -> None:
    of_port = page((Code.BINARY, Kind.NAA, NAA6), association=1)
    assert serial_of(of_port, b"", MAKER) is None
    assert serial_of(of_port, b"\0\x80\0\x04 X1 ", MAKER) == "SLIO-ORG_disk_X1"
    assert serial_of(b"", b"\0\x80\0\x04    ", MAKER) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_page_is_read(data: bytes) -> None:
    list(designators(bytes([0, 0x83]) + data))
    serial = serial_of(b"\0\x83" + data, b"\0\x80" + data, data)
    assert serial is None or " " not in serial


def test_a_serial_is_one_plain_word() -> None:
    assert plain(b" a\t b/c*d\xff\0rest ") == "a_b_c_d_"


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [
        (0x218, b"LVM2 001", "lvm2"),
        (0x200, b"EFI PART", "gpt"),
        (0x1FE, b"\x55\xaa", "dos"),
        (0x1FC, b"\xda\xbe", "sun"),
        (0x40, b"\x57\x45\x56\x82", "bsd"),
        (0, b"\x45\x52", "mac"),
        (0, b"\x0b\xe5\xa9\x41", "dvh"),
    ],
)
def test_a_label_is_known_by_its_magic(offset: int, magic: bytes, name: str) -> None:
    head = bytearray(HEAD)
    head[offset : offset + len(magic)] = magic
    assert label_of(bytes(head)) == name
    head[0x1FE:0x200] = b"\x55\xaa"  # a protective record of DOS comes last
    assert label_of(bytes(head)) == name
    assert label_of(bytes(head[:4])) in (name, "unknown")


def unit(directory: Path, address: str, kind: str = "0", block: str | None = "sdx") -> Path:
    """Make the part of sysfs that the kernel makes for a unit."""
    device = directory / address
    device.mkdir(parents=True)
    (device / "type").write_text(f"{kind}\n")
    (device / "state").write_text("running\n")
    (device / "vendor").write_text("LIO-ORG \n")
    (device / "model").write_text("disk            \n")
    if block is not None:
        (device / "block" / block).mkdir(parents=True)
        (device / "block" / block / "size").write_text("2048\n")
    return device


def test_units_are_read_from_sysfs(tmp_path: Path) -> None:
    session = tmp_path / "host7/session3"
    unit(session / "target7:0:1", "7:0:1:10", block="sdc")
    unit(session / "target7:0:0", "7:0:0:2", block="sdb")
    device = unit(session / "target7:0:0", "7:0:0:1", kind="5", block="sr0")
    unit(session / "target7:0:0", "7:0:0:0", kind="12", block=None)
    unit(session / "target7:0:0", "7:0:0:3", block=None)
    (session / "target7:0:0" / "power").mkdir()
    found = units_of_session(str(session))
    assert [(each.name, each.block) for each in found] == [
        ("unit:0:0:1", "sr0"),
        ("unit:0:0:2", "sdb"),
        ("unit:0:0:3", None),
        ("unit:0:1:10", "sdc"),
    ]
    assert found[0] == Unit((7, 0, 0, 1), str(device), "sr0", "running")
    assert found[0].size == 2048 * 512
    assert found[2].size is None
    assert units_of_session(str(tmp_path / "none")) == ()
    (device / "state").write_text("transport-offline\n")
    again = read_unit(str(device))
    assert again is not None
    assert not again.answers


def test_the_units_of_one_host_are_not_those_of_another(tmp_path: Path) -> None:
    devices = tmp_path / "bus/scsi/devices"
    unit(devices, "1:0:0:0")
    unit(devices, "11:0:0:0")
    unit(devices, "1:0:0:1", kind="13")
    (devices / "host1").mkdir()
    assert [each.address for each in units_of_host(1, str(tmp_path))] == [(1, 0, 0, 0)]


def test_a_serial_is_read_without_asking_the_unit(tmp_path: Path) -> None:
    device = unit(tmp_path, "1:0:0:0")
    assert read_serial(str(device)) is None
    (device / "vpd_pg83").write_bytes(page(VENDOR, T10))
    assert read_serial(str(device)) == "1LIO-ORG_disk:5a1b2c"
    old = bytearray(page(VENDOR))
    old[6] = 1
    (device / "vpd_pg83").write_bytes(old)
    assert read_serial(str(device)) is None
