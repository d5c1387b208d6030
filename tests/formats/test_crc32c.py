"""CRC-32C against published values and its plain definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.crc32c import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4, and the usual check value
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=70), zeros=st.integers(0, 300))
def test_definition(data: bytes, zeros: int) -> None:
    crc = 0xFFFFFFFF
    for byte in data + bytes(zeros):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data + bytes(zeros)) == crc ^ 0xFFFFFFFF
