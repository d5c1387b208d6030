"""The sector ciphers of LUKS: AES in XTS or CBC mode, each sector of 512 bytes on its own.

Source: the LUKS On-Disk Format Specification 1.2.3 for the names; IEEE 1619 for XTS; dm-crypt's
documentation for plain, plain64 and essiv. The block cipher is that of the package cryptography.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from storaged.formats.errors import UnsupportedFormat
from storaged.formats.handle import Bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher

SECTOR = 512
_BLOCK = 16
_BLOCKS = SECTOR // _BLOCK
_WORDS = SECTOR // 8
#: Sectors that are worked on at a time: their numbers and masks stay in the processor's cache.
_BATCH = 512
#: Fewer sectors than this are cheaper one by one.
_FEW = 16
#: Key lengths in bytes; XTS takes two keys.
_AES_KEYS = (16, 24, 32)
_XTS_KEYS = (32, 64)


class SectorCipher(ABC):
    """Encrypts and decrypts runs of whole sectors.

    :param key: kept until `wipe`, which overwrites it.
    :param iv: how a sector's number becomes its initial vector: ``plain``, ``plain64`` or
        ``essiv:HASH``.
    """

    KEY_BYTES: ClassVar[tuple[int, ...]]

    def __init__(self, key: bytearray, iv: str) -> None:
        if len(key) not in self.KEY_BYTES:
            raise UnsupportedFormat(f"a key of {len(key)} bytes for {type(self).__name__}")
        self._key = key
        self._plain32 = iv == "plain"
        self._essiv: bytearray | None = None
        name, _, hash_name = iv.partition(":")
        if name == "essiv" and hash_name == "sha256":
            self._essiv = bytearray(hashlib.new(hash_name, key).digest())
        elif iv not in ("plain", "plain64"):
            raise UnsupportedFormat(f"initial vectors of kind {iv!r}")

    def encrypt(self, data: Bytes, first: int) -> bytes:
        """Return the sectors of *data* encrypted; *first* is the number of the first of them."""
        return self._in_batches(self._encrypt, data, first)

    def decrypt(self, data: Bytes, first: int) -> bytes:
        """Return the sectors of *data* in plain; *first* is the number of the first of them."""
        return self._in_batches(self._decrypt, data, first)

    def wipe(self) -> None:
        """Overwrite the key. The cipher is of no use afterwards."""
        for key in (self._key, self._essiv):
            if key is not None:
                key[:] = bytes(len(key))

    def _in_batches(self, work: Callable[[Bytes, int], bytes], data: Bytes, first: int) -> bytes:
        size = _BATCH * SECTOR
        if len(data) <= size:
            return work(data, first)
        with memoryview(data) as view:
            pieces = range(0, len(view), size)
            return b"".join(work(view[at : at + size], first + at // SECTOR) for at in pieces)

    def _vectors(self, first: int, count: int) -> bytes:
        """Return the initial vectors of *count* sectors, one behind the other."""
        words = array("Q", bytes(_BLOCK * count))
        if self._plain32:
            words[::2] = array("Q", [(first + index) & 0xFFFFFFFF for index in range(count)])
        else:
            words[::2] = array("Q", range(first, first + count))
        if sys.byteorder == "big":
            words.byteswap()
        if self._essiv is None:
            return words.tobytes()
        return bytes(_ecb(self._essiv).encryptor().update(words.tobytes()))

    @abstractmethod
    def _encrypt(self, data: Bytes, first: int) -> bytes: ...

    @abstractmethod
    def _decrypt(self, data: Bytes, first: int) -> bytes: ...


class Xts(SectorCipher):
    """AES-XTS.

    The package takes one tweak a call, so that long runs would cost a call for each sector. For
    those the masks are made here, for all sectors at once in integers of many 128-bit lanes, and
    the blocks go through AES in a single call.
    """

    KEY_BYTES = _XTS_KEYS
    _TOP = int.from_bytes((bytes(15) + b"\x80") * _BATCH, "little")
    _LOW = (1 << 128 * _BATCH) - 1 ^ _TOP

    def _encrypt(self, data: Bytes, first: int) -> bytes:
        return self._convert(data, first, encrypt=True)

    def _decrypt(self, data: Bytes, first: int) -> bytes:
        return self._convert(data, first, encrypt=False)

    def _convert(self, data: Bytes, first: int, *, encrypt: bool) -> bytes:
        count = len(data) // SECTOR
        vectors = self._vectors(first, count)
        if count < _FEW:
            return self._one_by_one(data, vectors, encrypt=encrypt)
        half = len(self._key) // 2
        masks = self._masks(bytes(_ecb(self._key[half:]).encryptor().update(vectors)))
        cipher = _ecb(self._key[:half])
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        masked = int.from_bytes(data, "little") ^ masks
        result = int.from_bytes(context.update(masked.to_bytes(len(data), "little")), "little")
        return (result ^ masks).to_bytes(len(data), "little")

    def _masks(self, tweaks: bytes) -> int:
        """Return the masks of all blocks: of each sector its tweak times 1, x, x^2 ... x^31.

        Times x is a shift by one bit in each lane; a bit that falls out comes back as 0x87.
        """
        length = len(tweaks)
        lanes = int.from_bytes(tweaks, "little")
        words = array("Q", bytes(length * _BLOCKS))
        for block in range(_BLOCKS):
            column = array("Q", lanes.to_bytes(length, "little"))
            words[2 * block :: _WORDS] = column[::2]
            words[2 * block + 1 :: _WORDS] = column[1::2]
            carries = (lanes & self._TOP) >> 127
            lanes = (lanes & self._LOW) << 1 ^ carries * 0x87
        return int.from_bytes(words.tobytes(), "little")

    def _one_by_one(self, data: Bytes, vectors: bytes, *, encrypt: bool) -> bytes:
        primitives = load()
        aes = primitives.algorithms.AES(self._key)
        parts = []
        for index in range(len(vectors) // _BLOCK):
            tweak = primitives.modes.XTS(vectors[index * _BLOCK : (index + 1) * _BLOCK])
            cipher = primitives.Cipher(aes, tweak)
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            parts.append(context.update(data[index * SECTOR : (index + 1) * SECTOR]))
        return b"".join(parts)


class Cbc(SectorCipher):
    """AES-CBC, as older containers have it."""

    KEY_BYTES = _AES_KEYS

    def _encrypt(self, data: Bytes, first: int) -> bytes:
        primitives = load()
        aes = primitives.algorithms.AES(self._key)
        count = len(data) // SECTOR
        vectors = self._vectors(first, count)
        parts = []
        for index in range(count):
            vector = primitives.modes.CBC(vectors[index * _BLOCK : (index + 1) * _BLOCK])
            context = primitives.Cipher(aes, vector).encryptor()
            parts.append(context.update(data[index * SECTOR : (index + 1) * SECTOR]))
        return b"".join(parts)

    def _decrypt(self, data: Bytes, first: int) -> bytes:
        """Decrypt all as one chain, then set right the first block of each sector.

        It was combined with the last block of the sector before instead of the sector's vector.
        """
        primitives = load()
        count = len(data) // SECTOR
        vectors = self._vectors(first, count)
        cipher = primitives.Cipher(
            primitives.algorithms.AES(self._key), primitives.modes.CBC(vectors[:_BLOCK])
        )
        words = array("Q", cipher.decryptor().update(data))
        sealed = array("Q", bytes(data))
        right = array("Q", vectors)
        for half in range(2):
            begins = words[half::_WORDS]
            before = array("Q", right[half : half + 1]) + sealed[_WORDS - 2 + half :: _WORDS][:-1]
            words[half::_WORDS] = _xor(_xor(begins, before), right[half::2])
        return words.tobytes()


def sector_cipher(cipher: str, mode: str, key: bytearray) -> SectorCipher:
    """Return the cipher that a header names.

    :param mode: as in the header: ``xts-plain64``, ``cbc-essiv:sha256`` ...
    :raise UnsupportedFormat: for anything but AES in XTS or CBC mode, or if the package
        cryptography is missing.
    """
    chain, _, iv = mode.partition("-")
    kinds: dict[str, type[SectorCipher]] = {"xts": Xts, "cbc": Cbc}
    if cipher != "aes" or chain not in kinds:
        raise UnsupportedFormat(f"LUKS with cipher {cipher!r} in mode {mode!r}")
    load()
    return kinds[chain](key, iv)


def load() -> Any:
    """Return the package's module of ciphers.

    :raise UnsupportedFormat: if it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import ciphers
    except ImportError as err:
        raise UnsupportedFormat(
            "LUKS needs the Python package cryptography (python3-cryptography)"
        ) from err
    return ciphers


def _ecb(key: bytearray) -> Cipher[Any]:
    primitives = load()
    aes, ecb = primitives.algorithms.AES(key), primitives.modes.ECB()
    cipher: Cipher[Any] = primitives.Cipher(aes, ecb)
    return cipher


def _xor(left: array[int], right: array[int]) -> array[int]:
    both = int.from_bytes(left.tobytes(), "little") ^ int.from_bytes(right.tobytes(), "little")
    return array("Q", both.to_bytes(8 * len(left), "little"))
