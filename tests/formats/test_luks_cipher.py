"""The sector ciphers against published vectors and against the plainest way to use AES."""

from __future__ import annotations

import hashlib
import sys

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import luks_cipher
from storaged.formats.errors import UnsupportedFormat
from storaged.formats.luks_cipher import SECTOR, sector_cipher

MODES = [
    ("xts-plain64", 64), ("xts-plain64", 32), ("xts-plain", 64), ("cbc-plain64", 32),
    ("cbc-plain", 16), ("cbc-essiv:sha256", 32), ("cbc-essiv:sha256", 16),
]  # fmt: skip


def reference(mode: str, key: bytes, data: bytes, first: int) -> bytes:
    """Encrypt sector by sector, as the definitions have it."""
    chain, _, iv = mode.partition("-")
    parts = []
    for index in range(len(data) // SECTOR):
        number = first + index
        vector = (number & 0xFFFFFFFF if iv == "plain" else number).to_bytes(16, "little")
        if iv.startswith("essiv"):
            aes = algorithms.AES(hashlib.sha256(key).digest())
            vector = Cipher(aes, modes.ECB()).encryptor().update(vector)
        kind = modes.XTS(vector) if chain == "xts" else modes.CBC(vector)
        context = Cipher(algorithms.AES(key), kind).encryptor()
        parts.append(context.update(data[index * SECTOR : (index + 1) * SECTOR]))
    return b"".join(parts)


def noise(length: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(length)


@pytest.mark.parametrize(("mode", "length"), MODES)
@settings(max_examples=25, deadline=None)
@given(
    sectors=st.integers(1, 40) | st.sampled_from([511, 512, 513, 1100]),
    first=st.integers(0, 2**40) | st.integers(2**32 - 40, 2**32 + 40),
    seed=st.integers(0, 1000),
)
def test_is_the_reference(mode: str, length: int, sectors: int, first: int, seed: int) -> None:
    key, data = noise(length, seed + 1), noise(sectors * SECTOR, seed)
    cipher = sector_cipher("aes", mode, bytearray(key))
    sealed = cipher.encrypt(data, first)
    assert sealed == reference(mode, key, data, first)
    assert cipher.decrypt(sealed, first) == data
    assert cipher.decrypt(memoryview(bytearray(sealed)), first) == data


def test_xts_vector_of_ieee_1619() -> None:
    """Vector 10 of IEEE 1619: keys of the digits of e and pi, data unit 0xff, counting bytes."""
    key = bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    )
    data = bytes(range(256)) * 2
    sealed = sector_cipher("aes", "xts-plain64", bytearray(key)).encrypt(data * 20, 0xFF)
    assert sealed[:32].hex() == "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"


def test_wipe_overwrites_the_key() -> None:
    key = bytearray(noise(32))
    cipher = sector_cipher("aes", "cbc-essiv:sha256", key)
    cipher.wipe()
    assert key == bytes(32)
    assert not any(cipher._essiv or b"key")
    assert "key" not in repr(cipher)


@pytest.mark.parametrize(
    ("cipher", "mode", "length", "word"),
    [
        ("serpent", "xts-plain64", 64, "serpent"),
        ("aes", "lrw-benbi", 48, "lrw"),
        ("aes", "ecb", 32, "ecb"),
        ("aes", "xts-plain64", 48, "48 bytes"),
        ("aes", "xts-essiv:md5", 64, "essiv:md5"),
        ("aes", "xts-plain64be", 64, "plain64be"),
        ("aes", "cbc-", 32, "''"),
    ],
)
def test_what_is_not_done_is_named(cipher: str, mode: str, length: int, word: str) -> None:
    with pytest.raises(UnsupportedFormat, match=word):
        sector_cipher(cipher, mode, bytearray(length))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UnsupportedFormat, match=r"python3-cryptography"):
        sector_cipher("aes", "xts-plain64", bytearray(64))
    with pytest.raises(UnsupportedFormat, match=r"cryptography"):
        luks_cipher.load()
