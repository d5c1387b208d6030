"""The internal snapshots of a qcow2 image: listed, with all that reading one of them takes.

Source: the qcow2 specification, "Snapshots"; the limits are QEMU's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import SnapshotHeader
from storaged.formats.qcow2_directory import Directory, printable
from storaged.formats.qcow2_header import read_sound_header

_MAX_TABLE = 64 << 20
_MAX_EXTRA = 1024
#: As much of an id and of a name as QEMU's own lists show, in bytes.
_MAX_ID = 127
_MAX_NAME = 255
_EXTRA = struct.Struct(">QQQ")
_VM_STATE_END, _DISK_SIZE_END, _ICOUNT_END = 8, 16, 24
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An internal snapshot.

    :param id: unique within the image, by which QEMU finds it first. Like *name* it is text that is
        safe to show, with backslash escapes for what is not.
    :param created: nanoseconds since the epoch.
    :param vm_clock: how long the guest had run, in nanoseconds.
    :param vm_state_size: bytes of the guest's memory that are kept with it.
    :param disk_size: the virtual size at that time; None where it is not recorded (version 2).
    :param icount: executed instructions; None where they are not recorded or were not counted.
    """

    id: str
    name: str
    created: int
    vm_clock: int
    vm_state_size: int
    disk_size: int | None
    l1_table_offset: int
    l1_size: int
    icount: int | None = None


def read_snapshots(handle: Handle) -> tuple[Snapshot, ...]:
    """Return the snapshots of an image in the order of its table.

    Where their L1 tables lie is checked when one of them is read.

    :raise FormatError: if it is no qcow2 image.
    :raise CorruptImage: if the header or the table contradicts itself or the file's size.
    :raise UnsupportedFormat: for a version or a feature that nobody here knows.
    """
    fixed = read_sound_header(handle).header.fixed
    table = Directory(handle, "snapshot table", fixed.snapshots_offset, _MAX_TABLE)
    layout = SnapshotHeader.layout()
    return tuple(_read(table, layout, number) for number in range(fixed.nb_snapshots))


def _read(table: Directory, layout: struct.Struct, number: int) -> Snapshot:
    l1_table_offset, l1_size, id_size, name_size, seconds, nanoseconds, clock, state, extra_size = (
        layout.unpack(table.take(layout.size))
    )
    if extra_size > _MAX_EXTRA:
        raise CorruptImage(f"snapshot {number} has {extra_size} bytes of extra data, at most 1024")
    variable = table.take(extra_size + id_size + name_size)
    table.pad(layout.size + len(variable))
    wide_state, disk_size, icount = _EXTRA.unpack(variable[: min(extra_size, 24)].ljust(24, b"\0"))
    names = extra_size + id_size
    return Snapshot(
        id=printable(variable[extra_size:names][:_MAX_ID]),
        name=printable(variable[names:][:_MAX_NAME]),
        created=seconds * _NANOSECONDS + nanoseconds,
        vm_clock=clock,
        vm_state_size=wide_state if extra_size >= _VM_STATE_END else state,
        disk_size=disk_size if extra_size >= _DISK_SIZE_END else None,
        l1_table_offset=l1_table_offset,
        l1_size=l1_size,
        icount=icount if extra_size >= _ICOUNT_END and icount != _NOT_COUNTED else None,
    )


#: QEMU's icount of a guest that does not count.
_NOT_COUNTED = 2**64 - 1
