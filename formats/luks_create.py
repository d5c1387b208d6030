"""New LUKS 1 containers, laid out as QEMU and cryptsetup do.

Source: the LUKS On-Disk Format Specification 1.2.3. Each of the eight key slots begins at a
multiple of 4 KiB behind the header; the data follow the last.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import replace

from storaged.formats.errors import FormatError
from storaged.formats.handle import Handle
from storaged.formats.luks import (
    KEY_DISABLED,
    KEY_ENABLED,
    KEY_SLOTS,
    MAX_KEY_BYTES,
    MIN_PAYLOAD,
    SECTOR,
    STRIPES,
    KeySlot,
    LuksHeader,
)
from storaged.formats.luks_cipher import sector_cipher
from storaged.formats.luks_header import DIGEST_BYTES, MAGIC, VERSION, Container, digest
from storaged.formats.luks_keys import (
    check_hash,
    check_iterations,
    choose_iterations,
    derive,
    seal,
    split,
)
from storaged.formats.luks_volume import LuksHandle

SALT_BYTES = 32
#: How long unlocking shall take on this machine, in milliseconds.
UNLOCK_TIME = 250
#: The master key is random, so that its digest needs no more than a part of a slot's iterations.
_DIGEST_SHARE = 8
_MIN_DIGEST_ITERATIONS = 1000
_MAX_SIZE = 2**63 - 1


def create(
    handle: Handle,
    capacity: int,
    passphrase: bytes,
    *,
    cipher: str = "aes",
    mode: str = "xts-plain64",
    key_bytes: int = 64,
    hash: str = "sha256",
    iterations: int | None = None,
    unlock_time: int = UNLOCK_TIME,
) -> LuksHandle:
    """Make a file a container with one passphrase, and return its data, open.

    The master key is random. The header is written last. The place of the data is sparse where
    the file can be, and reads as noise. What lay there before is not overwritten. On a device
    it can be as long as the device allows.

    :param capacity: of the data, in bytes; rounded up to whole sectors.
    :param passphrase: any bytes but none at all; not kept.
    :param iterations: of PBKDF2; None finds out how many take *unlock_time* milliseconds.
    :raise FormatError: a parameter that LUKS does not allow; nothing was written.
    :raise UnsupportedFormat: another cipher than AES, or the package cryptography is missing.
    :raise OSError: from *handle*; what there is then is no container.
    """
    _check(capacity, passphrase, iterations, hash)
    key = bytearray(os.urandom(key_bytes))
    data_cipher = sector_cipher(cipher, mode, key)
    if iterations is None:
        iterations = choose_iterations(hash, key_bytes, unlock_time)
    container = layout(cipher, mode, hash, key_bytes, iterations)
    header = container.header
    container = replace(container, header=replace(header, mk_digest=digest(container, key)))
    # Headers and key material of an older container must not outlive it.
    handle.write_zeroes(0, container.payload)
    length = -(-capacity // SECTOR) * SECTOR
    handle.truncate(container.payload + length)
    write_material(handle, container, container.slots[0], passphrase, key)
    slots = (replace(container.slots[0], active=KEY_ENABLED), *container.slots[1:])
    handle.pwrite(container.header.pack() + b"".join(slot.pack() for slot in slots), 0)
    return LuksHandle(handle, data_cipher, container.payload)


def layout(cipher: str, mode: str, hash: str, key_bytes: int, iterations: int) -> Container:
    """Return the header of a new container: no slot is in use, the digest is not there yet."""
    sectors = slot_sectors(key_bytes)
    header = LuksHeader(
        MAGIC,
        VERSION,
        cipher.encode().ljust(32, b"\0"),
        mode.encode().ljust(32, b"\0"),
        hash.encode().ljust(32, b"\0"),
        MIN_PAYLOAD + KEY_SLOTS * sectors,
        key_bytes,
        bytes(DIGEST_BYTES),
        os.urandom(SALT_BYTES),
        max(iterations // _DIGEST_SHARE, _MIN_DIGEST_ITERATIONS),
        str(uuid.uuid4()).encode().ljust(40, b"\0"),
    )
    slots = tuple(
        KeySlot(KEY_DISABLED, 0, bytes(SALT_BYTES), MIN_PAYLOAD + number * sectors, STRIPES)
        for number in range(KEY_SLOTS)
    )
    first = replace(slots[0], iterations=iterations, salt=os.urandom(SALT_BYTES))
    return Container(header, (first, *slots[1:]), cipher, mode, hash)


def slot_sectors(key_bytes: int) -> int:
    """Return how far apart the key slots lie: their material, rounded up to 4 KiB."""
    sectors = -(-key_bytes * STRIPES // SECTOR)
    return -(-sectors // MIN_PAYLOAD) * MIN_PAYLOAD


def longest_header() -> int:
    """Return where the data of a new container begin at the latest, in bytes."""
    return (MIN_PAYLOAD + KEY_SLOTS * slot_sectors(MAX_KEY_BYTES)) * SECTOR


def write_material(
    handle: Handle, container: Container, slot: KeySlot, passphrase: bytes, key: bytearray
) -> None:
    """Write the key material of a slot, from which *passphrase* gets the master key back."""
    material = split(key, STRIPES, container.hash)
    slot_key = derive(container.hash, passphrase, slot.salt, slot.iterations, len(key))
    sealed = seal(container.cipher, container.mode, slot_key, material)
    handle.pwrite(sealed, slot.key_material_offset * SECTOR)


def _check(capacity: int, passphrase: bytes, iterations: int | None, hash: str) -> None:
    if not passphrase:
        raise FormatError("LUKS needs a passphrase that is not empty")
    if not 0 <= capacity <= _MAX_SIZE - (16 << 20):
        raise FormatError(f"LUKS of {capacity} bytes")
    check_iterations(iterations)
    check_hash(hash)
