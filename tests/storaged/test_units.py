"""Sizes: text to bytes and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.errors import InvalidArgument, Overflow
from storaged.units import MAX_SIZE, factor, format_size, parse_size, scaled


@pytest.mark.parametrize(
    ("unit", "bytes_"),
    [
        ("", 1), ("B", 1), ("byte", 1), ("Bytes", 1),
        ("k", 1024), ("KiB", 1024), ("kib", 1024), ("KB", 1000),
        ("M", 1024**2), ("MB", 10**6), ("g", 1024**3), ("GB", 10**9),
        ("T", 1024**4), ("tb", 10**12), ("P", 1024**5), ("PB", 10**15),
        ("E", 1024**6), ("eib", 1024**6), ("EB", 10**18),
    ],
)  # fmt: skip
def test_units(unit: str, bytes_: int) -> None:
    assert factor(unit) == bytes_


@pytest.mark.parametrize("unit", ["x", "kk", "KiBi", "ki", "Z", "bits", "bb"])
def test_unknown_units(unit: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^invalid argument: unknown suffix '{unit}'$"):
        factor(unit)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096), (0, 0), ("0", 0), ("512", 512), ("20G", 20 << 30), ("20 GiB", 20 << 30),
        (" 1.5 K ", 1536), ("1.5 TB", 1_500_000_000_000), ("0.1", 1), ("1.0001k", 1025),
        (str(MAX_SIZE), MAX_SIZE), ("7.99999999999999999 E", MAX_SIZE),
        ("0" * 300 + "7", 7), ("1." + "0" * 300, 1),
    ],
)  # fmt: skip
def test_parse(text: str | int, size: int) -> None:
    if size == MAX_SIZE and isinstance(text, str) and "E" in text:
        assert parse_size(text) <= MAX_SIZE
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", " ", "G", "-1", "1e3", "0x10", "1,5G", "1.G", "1 2", "٣x"])
def test_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_negative_number() -> None:
    with pytest.raises(InvalidArgument, match="must not be negative"):
        parse_size(-1)


@pytest.mark.parametrize(
    "size", [MAX_SIZE + 1, "8E", "9223372036854775808", "7.9999999999999999999E"]
)
def test_too_large(size: int | str) -> None:
    with pytest.raises(Overflow, match="numerical overflow: value too large"):
        parse_size(size)


@pytest.mark.parametrize("text", ["9" * 5000, "1." + "9" * 5000, "9" * 400 + "E"])
def test_hostile_numbers_are_refused_and_do_not_crash(text: str) -> None:
    with pytest.raises((InvalidArgument, Overflow)):
        parse_size(text)


def test_scaled_has_a_limit() -> None:
    assert scaled(1, "k", 1024) == 1024
    with pytest.raises(Overflow):
        scaled(1, "k", 1023)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"),
        (1536, "1.50 KiB"), (20 << 30, "20 GiB"), (100 << 30, "100 GiB"), (1 << 62, "4 EiB"),
        ((1 << 20) - 1, "1024 KiB"), (-2048, "-2 KiB"), (MAX_SIZE, "8 EiB"),
    ],
)  # fmt: skip
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 60))
def test_what_is_printed_can_be_read(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006)
