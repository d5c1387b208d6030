"""How LUKS 1 keeps its master key: passphrase, PBKDF2, and the anti-forensic splitter.

Source: the LUKS On-Disk Format Specification 1.2.3, sections 2.4 and 4. Nothing here keeps a
passphrase, and no error tells one.
"""

from __future__ import annotations

import hashlib
import os
import time

from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.luks_cipher import SECTOR, sector_cipher

#: What a header may name as its hash; ripemd160 where the system's library still has it.
HASHES = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
#: A key derivation is timed until it took this many seconds.
_TIMED = 0.004
#: Fewer iterations are not chosen, however slow the machine seems: it may only be busy.
MIN_ITERATIONS = 100_000
#: More are not chosen, however long it may take.
MAX_CHOSEN = 20_000_000


def check_hash(name: str) -> None:
    """Check that a hash can be had.

    :raise UnsupportedFormat: it is none of LUKS's, or this machine does not have it.
    """
    if name not in HASHES or name not in hashlib.algorithms_available:
        raise UnsupportedFormat(f"LUKS with hash {name!r}")


def check_iterations(chosen: int | None) -> None:
    """Check what a caller chose; None chooses nothing.

    :raise FormatError: no header can have it, or no program would take it.
    """
    if chosen is not None and not 1000 <= chosen < 2**32:
        raise FormatError(f"LUKS with {chosen} iterations, not 1000 to 4294967295")


def derive(
    hash: str, secret: bytes | bytearray, salt: bytes, rounds: int, length: int
) -> bytearray:
    """Return *length* bytes made of a secret by PBKDF2. Other threads run meanwhile."""
    try:
        return bytearray(hashlib.pbkdf2_hmac(hash, secret, salt, rounds, length))
    except (ValueError, OverflowError) as err:
        raise UnsupportedFormat(f"LUKS with hash {hash!r} and {rounds} iterations: {err}") from None


def choose_iterations(hash: str, length: int, milliseconds: int) -> int:
    """Return how many iterations of PBKDF2 take about so long here. It takes some milliseconds."""
    rounds = 1000
    while True:
        begin = time.perf_counter()
        derive(hash, b"passphrase", bytes(32), rounds, length)
        took = time.perf_counter() - begin
        if took >= _TIMED or rounds >= MAX_CHOSEN:
            break
        rounds *= 2
    chosen = int(rounds * milliseconds / 1000 / max(took, 1e-9))
    return min(max(chosen, MIN_ITERATIONS), MAX_CHOSEN)


def split(key: bytes | bytearray, stripes: int, hash: str) -> bytes:
    """Return *key* spread over *stripes* pieces of its length, all of which it takes to get it."""
    length = len(key)
    pieces = os.urandom(length * (stripes - 1))
    last = _mix(pieces, length, hash) ^ int.from_bytes(key, "big")
    return pieces + last.to_bytes(length, "big")


def merge(material: bytes, length: int, stripes: int, hash: str) -> bytearray:
    """Return the key of *length* bytes that `split` spread."""
    end = length * (stripes - 1)
    last = int.from_bytes(material[end : end + length], "big")
    return bytearray((_mix(material[:end], length, hash) ^ last).to_bytes(length, "big"))


def seal(cipher: str, mode: str, key: bytearray, material: bytes) -> bytes:
    """Return a slot's key material encrypted; the key is overwritten."""
    sealing = sector_cipher(cipher, mode, key)
    try:
        return sealing.encrypt(material.ljust(-(-len(material) // SECTOR) * SECTOR, b"\0"), 0)
    finally:
        sealing.wipe()


def unseal(cipher: str, mode: str, key: bytearray, material: bytes) -> bytes:
    """Return a slot's key material, of whole sectors, decrypted; the key is overwritten."""
    sealing = sector_cipher(cipher, mode, key)
    try:
        return sealing.decrypt(material, 0)
    finally:
        sealing.wipe()


def _mix(pieces: bytes, length: int, hash: str) -> int:
    """Run through all pieces: take each in, then spread what there is by the hash."""
    new = getattr(hashlib, hash, None) or (lambda data: hashlib.new(hash, data))
    width = new(b"").digest_size
    spans = [
        (number.to_bytes(4, "big"), at, min(at + width, length))
        for number, at in enumerate(range(0, length, width))
    ]
    state = 0
    for start in range(0, len(pieces), length):
        mixed = int.from_bytes(pieces[start : start + length], "big") ^ state
        block = mixed.to_bytes(length, "big")
        spread = [new(number + block[at:end]).digest()[: end - at] for number, at, end in spans]
        state = int.from_bytes(b"".join(spread), "big")
    return state
