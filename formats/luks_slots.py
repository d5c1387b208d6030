"""Passphrases of a LUKS 1 container: given and taken away, safely at every moment.

Source: the LUKS On-Disk Format Specification 1.2.3, section 4. A slot is in use from the moment
one word of the header says so, and its key material is on the disk before that.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace

from storaged.formats.errors import FormatError
from storaged.formats.handle import Handle
from storaged.formats.luks import (
    KEY_DISABLED,
    KEY_ENABLED,
    SECTOR,
    STRIPES,
    KeySlot,
    LuksHeader,
    overlapping,
)
from storaged.formats.luks_create import SALT_BYTES, UNLOCK_TIME, write_material
from storaged.formats.luks_header import Container, open_key, read_container
from storaged.formats.luks_keys import check_iterations, choose_iterations

_WORD = struct.Struct(">I")


def add_key(
    handle: Handle,
    passphrase: bytes,
    new: bytes,
    *,
    iterations: int | None = None,
    unlock_time: int = UNLOCK_TIME,
) -> int:
    """Let a container be opened with a further passphrase; return the number of its slot.

    :param passphrase: one that opens it now.
    :param iterations: of PBKDF2; None finds out how many take *unlock_time* milliseconds.
    :raise WrongPassphrase: *passphrase* does not open it.
    :raise FormatError: *new* is empty, *iterations* cannot be, or all eight slots are in use.
    :raise OSError: from *handle*. The container opens as before, perhaps with *new* as well.
    """
    if not new:
        raise FormatError("LUKS needs a passphrase that is not empty")
    check_iterations(iterations)
    container = read_container(handle)
    number = _free_slot(container)
    _, key = open_key(handle, container, passphrase)
    try:
        rounds = iterations or choose_iterations(container.hash, len(key), unlock_time)
        old = container.slots[number]
        slot = replace(old, iterations=rounds, salt=os.urandom(SALT_BYTES), stripes=STRIPES)
        write_material(handle, container, slot, new, key)
    finally:
        key[:] = bytes(len(key))
    handle.pwrite(slot.pack(), _place(number))
    handle.flush()
    handle.pwrite(_WORD.pack(KEY_ENABLED), _place(number))
    handle.flush()
    return number


def remove_key(handle: Handle, passphrase: bytes) -> int:
    """Take a passphrase away for good; return the number of its slot.

    Its key material is overwritten before the slot is given up. Copies of it that the storage
    itself keeps (snapshots, flash cells) are beyond reach.

    :raise WrongPassphrase: it does not open the container.
    :raise FormatError: it is the last one: the data would be lost.
    :raise OSError: from *handle*. The passphrase may still open the container then, or not.
    """
    container = read_container(handle)
    number, key = open_key(handle, container, passphrase)
    key[:] = bytes(len(key))
    if len(container.enabled) < 2:
        raise FormatError("this is the last passphrase of the LUKS container")
    slot = container.slots[number]
    length = -(-container.header.key_bytes * STRIPES // SECTOR) * SECTOR
    handle.pwrite(os.urandom(length), slot.key_material_offset * SECTOR)
    handle.flush()
    handle.pwrite(_WORD.pack(KEY_DISABLED), _place(number))
    handle.flush()
    return number


def _place(number: int) -> int:
    return LuksHeader.length() + number * KeySlot.length()


def _free_slot(container: Container) -> int:
    """Return a slot not in use whose place is its own, within the header."""
    header = container.header
    sectors = -(-header.key_bytes * STRIPES // SECTOR)
    for number, slot in enumerate(container.slots):
        if slot.active == KEY_ENABLED:
            continue
        used = replace(slot, active=KEY_ENABLED)
        slots = (*container.slots[:number], used, *container.slots[number + 1 :])
        inside = 1 < slot.key_material_offset <= header.payload_offset - sectors
        if inside and overlapping(slots, header.key_bytes) is None:
            return number
    raise FormatError("all key slots of the LUKS container are in use")
