"""The header of a LUKS 1 container, checked, and the master key that a passphrase opens.

Source: the LUKS On-Disk Format Specification 1.2.3. What a header asks for is bounded before
anything is derived: iterations cost the reader, not the writer.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from storaged.formats.errors import CorruptImage, UnsupportedFormat
from storaged.formats.errors import WrongPassphrase as WrongPassphrase
from storaged.formats.handle import Handle
from storaged.formats.luks import (
    KEY_ENABLED,
    KEY_SLOTS,
    MAX_KEY_BYTES,
    MIN_PAYLOAD,
    SECTOR,
    STRIPES,
    KeySlot,
    LuksHeader,
    overlapping,
)
from storaged.formats.luks_cipher import load
from storaged.formats.luks_keys import check_hash, derive, merge, unseal

MAGIC = b"LUKS\xba\xbe"
VERSION = 1
#: Iterations that one attempt to unlock may take, over all slots: about a minute of work.
MAX_ITERATIONS = 100_000_000
DIGEST_BYTES = 20
#: Header and slots together.
LENGTH = LuksHeader.length() + KEY_SLOTS * KeySlot.length()


@dataclass(frozen=True, slots=True)
class Container:
    """What stands in front of the data. Nothing in it is secret.

    :param cipher: the names as text, ``aes``, ``xts-plain64`` and ``sha256`` for most.
    """

    header: LuksHeader
    slots: tuple[KeySlot, ...]
    cipher: str
    mode: str
    hash: str

    @property
    def payload(self) -> int:
        """Where the data begin, in bytes."""
        return self.header.payload_offset * SECTOR

    @property
    def enabled(self) -> tuple[int, ...]:
        """The numbers of the key slots in use."""
        return tuple(n for n, slot in enumerate(self.slots) if slot.active == KEY_ENABLED)


def read_container(handle: Handle) -> Container:
    """Read and check the header.

    :raise CorruptImage: it contradicts itself or the file's size.
    :raise UnsupportedFormat: it is of another version, or its hash is not to be had here.
    """
    data = handle.pread(LENGTH, 0)
    if not data.startswith(MAGIC) or len(data) < LENGTH:
        raise CorruptImage("no LUKS header, or not all of it")
    header = LuksHeader.unpack(data)
    if header.version != VERSION:
        raise UnsupportedFormat(f"LUKS version {header.version}")
    slots = tuple(
        KeySlot.unpack(data, LuksHeader.length() + number * KeySlot.length())
        for number in range(KEY_SLOTS)
    )
    names = (header.cipher_name, header.cipher_mode, header.hash_spec)
    container = Container(header, slots, *(_text(name) for name in names))
    _check(container, handle.size())
    check_hash(container.hash)
    return container


def open_key(
    handle: Handle, container: Container, passphrase: bytes, max_iterations: int = MAX_ITERATIONS
) -> tuple[int, bytearray]:
    """Return the number of the slot that *passphrase* opens, and the master key.

    :raise WrongPassphrase: it opens none.
    :raise UnsupportedFormat: trying all slots would take more than *max_iterations*; nothing was
        tried. Or the package cryptography is missing.
    """
    load()
    _check_work(container, max_iterations)
    for number in container.enabled:
        key = _try_slot(handle, container, container.slots[number], passphrase)
        if key is not None:
            return number, key
    raise WrongPassphrase("no key slot opens with this passphrase")


def digest(container: Container, key: bytearray) -> bytes:
    """Return what the header keeps to know the master key by."""
    header = container.header
    rounds = header.mk_digest_iterations
    return bytes(derive(container.hash, key, header.mk_digest_salt, rounds, DIGEST_BYTES))


def _text(field: bytes) -> str:
    name, zero, _ = field.partition(b"\0")
    if not zero or not name.isascii():
        raise CorruptImage(f"LUKS names a cipher or hash {field!r}")
    return name.decode()


def _check(container: Container, size: int) -> None:
    header = container.header
    if not 0 < header.key_bytes <= MAX_KEY_BYTES:
        raise CorruptImage(f"LUKS key of {header.key_bytes} bytes")
    if header.payload_offset < MIN_PAYLOAD or container.payload > size:
        raise CorruptImage(f"LUKS payload at sector {header.payload_offset} is not in the file")
    for number in container.enabled:
        slot = container.slots[number]
        sectors = -(-header.key_bytes * STRIPES // SECTOR)
        if slot.stripes != STRIPES:
            raise CorruptImage(f"LUKS key slot {number} has {slot.stripes} stripes, not 4000")
        if not 1 < slot.key_material_offset <= header.payload_offset - sectors:
            raise CorruptImage(f"LUKS key slot {number} at sector {slot.key_material_offset}")
    pair = overlapping(container.slots, header.key_bytes)
    if pair is not None:
        raise CorruptImage(f"LUKS key slots {pair[0]} and {pair[1]} overlap")


def _check_work(container: Container, limit: int) -> None:
    rounds = [container.header.mk_digest_iterations] * max(len(container.enabled), 1)
    rounds += [container.slots[number].iterations for number in container.enabled]
    if min(rounds) < 1:
        raise CorruptImage("LUKS asks for no iterations at all")
    if sum(rounds) > limit:
        raise UnsupportedFormat(
            f"LUKS asks for {sum(rounds)} iterations to try a passphrase, more than {limit}"
        )


def _try_slot(
    handle: Handle, container: Container, slot: KeySlot, passphrase: bytes
) -> bytearray | None:
    length = container.header.key_bytes
    size = -(-length * STRIPES // SECTOR) * SECTOR
    sealed = handle.pread(size, slot.key_material_offset * SECTOR)
    if len(sealed) < size:
        raise CorruptImage("LUKS key material reaches beyond the end of the file")
    slot_key = derive(container.hash, passphrase, slot.salt, slot.iterations, length)
    material = unseal(container.cipher, container.mode, slot_key, sealed)
    key = merge(material, length, STRIPES, container.hash)
    if hmac.compare_digest(digest(container, key), container.header.mk_digest):
        return key
    key[:] = bytes(length)
    return None
