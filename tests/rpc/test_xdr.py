"""The parts that messages are made of, to the byte, and what breaks them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc.errors import RPCError
from storaged.rpc.typedparam import ParamType, Typed
from storaged.rpc.xdr import (
    HYPER,
    INT,
    STRING,
    STRING_MAX,
    UHYPER,
    UINT,
    UUID,
    Array,
    Chars,
    Double,
    Fixed,
    Maybe,
    Opaque,
    Reader,
    Text,
    Type,
)

DOUBLE = Double()


def written(kind: Type[Any], value: Any) -> bytes:
    out = bytearray(b"before")
    kind.write(out, value)
    assert out[:6] == b"before"
    return bytes(out[6:])


def read(kind: Type[Any], data: bytes) -> Any:
    """Read a value that must take all of *data*."""
    reader = Reader(data)
    found = kind.read(reader)
    assert reader.left == 0
    return found


LAYOUTS: list[tuple[Type[Any], Any, str]] = [
    (INT, -2, "fffffffe"),
    (UINT, 2**32 - 1, "ffffffff"),
    (HYPER, -1, "ffffffffffffffff"),
    (UHYPER, 10, "000000000000000a"),
    (DOUBLE, 1.5, "3ff8000000000000"),
    (STRING, "", "00000000"),
    (STRING, "abcd", "00000004 61626364"),
    (STRING, "abcde", "00000005 6162636465000000"),
    (STRING, "é", "00000002 c3a90000"),
    (STRING, "\udcff", "00000001 ff000000"),
    (UUID, bytes(range(16)), "000102030405060708090a0b0c0d0e0f"),
    (Fixed(3), b"abc", "61626300"),
    (Opaque(8), b"\0\1", "00000002 00010000"),
    (Chars(8), b"\xff\1", "00000002 000000ff 00000001"),
    (Maybe(INT), None, "00000000"),
    (Maybe(INT), 7, "00000001 00000007"),
    (Array(INT, 3), (1, 2), "00000002 00000001 00000002"),
    (Array(STRING, 3), (), "00000000"),
    (Typed(), (ParamType.INT, -1), "00000001 ffffffff"),
    (Typed(), (ParamType.ULLONG, 1), "00000004 0000000000000001"),
    (Typed(), (ParamType.DOUBLE, 1.5), "00000005 3ff8000000000000"),
    (Typed(), (ParamType.BOOLEAN, True), "00000006 00000001"),
    (Typed(), (ParamType.STRING, "x"), "00000007 00000001 78000000"),
]


@pytest.mark.parametrize(("kind", "value", "layout"), LAYOUTS)
def test_layout(kind: Type[Any], value: Any, layout: str) -> None:
    data = bytes.fromhex(layout)
    assert written(kind, value) == data
    assert read(kind, data) == value
    for length in range(len(data)):
        with pytest.raises(RPCError):
            kind.read(Reader(data[:length]))


def test_string_ends_at_nul() -> None:
    assert read(STRING, b"\0\0\0\5ab\0cd\0\0\0") == "ab"


def test_no_nul_is_written() -> None:
    """Who asks to have "a\\0b" deleted must not have "a" deleted."""
    with pytest.raises(RPCError):
        written(STRING, "a\0b")


def test_padding_may_be_anything() -> None:
    assert read(STRING, b"\0\0\0\1a\1\2\3") == "a"


@pytest.mark.parametrize("flag", ["00000001", "01000000", "ffffffff", "00000002"])
def test_any_flag_means_there(flag: str) -> None:
    assert read(Maybe(INT), bytes.fromhex(flag) + b"\0\0\0\7") == 7


def test_any_boolean_is_true() -> None:
    assert read(Typed(), b"\0\0\0\6\0\0\0\5") == (ParamType.BOOLEAN, True)


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_bytes_of_a_string_are_kept(data: bytes) -> None:
    data = data.replace(b"\0", b"")
    packed = struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)
    text = read(STRING, packed)
    assert text.encode(errors="surrogateescape") == data
    assert written(STRING, text) == packed


BOUNDS: list[tuple[Type[Any], bytes]] = [
    (STRING, struct.pack(">I", STRING_MAX + 1)),
    (Opaque(4), b"\0\0\0\5" + bytes(8)),
    (Chars(4), b"\0\0\0\5" + bytes(20)),
    (Array(INT, 2), b"\0\0\0\3" + bytes(12)),
    (Array(INT, 1 << 30), b"\x3f\xff\xff\xff" + bytes(12)),
    (STRING, b"\xff\xff\xff\xff" + bytes(12)),
    (Typed(), bytes(12)),
    (Typed(), b"\0\0\0\x08" + bytes(12)),
    (Typed(), b"\xff\xff\xff\xff" + bytes(12)),
]


@pytest.mark.parametrize(("kind", "data"), BOUNDS)
def test_bounds_of_what_comes(kind: Type[Any], data: bytes) -> None:
    with pytest.raises(RPCError) as caught:
        kind.read(Reader(data))
    assert (caught.value.code, caught.value.domain) == (39, 7)
    assert caught.value.message == "Unable to decode message payload"


UNFIT: list[tuple[Type[Any], Any]] = [
    (INT, 2**31),
    (UINT, -1),
    (HYPER, 2**63),
    (UHYPER, 2**64),
    (UHYPER, -1),
    (DOUBLE, 10**400),
    (Text(3), "abcd"),
    (Text(3), "éé"),
    (STRING, "\ud800"),
    (Opaque(3), b"abcd"),
    (Fixed(3), b"ab"),
    (Chars(1), b"ab"),
    (Array(INT, 1), (1, 2)),
    (Array(INT, 1), (2**31,)),
    (Maybe(INT), 2**31),
]


@pytest.mark.parametrize(("kind", "value"), UNFIT)
def test_bounds_of_what_is_sent(kind: Type[Any], value: Any) -> None:
    with pytest.raises(RPCError) as caught:
        written(kind, value)
    assert caught.value.message == "Unable to encode message payload"


def test_longest_string() -> None:
    text = "x" * STRING_MAX
    assert read(STRING, written(STRING, text)) == text
