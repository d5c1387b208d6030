"""The persistent dirty bitmaps of a qcow2 image: listed, not followed.

Source: the qcow2 specification, "Bitmaps"; the limits are QEMU's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import Autoclear, BitmapsExtension, ExtensionType
from storaged.formats.qcow2_directory import Directory, printable
from storaged.formats.qcow2_header import SoundHeader, read_sound_header

_ENTRY = struct.Struct(">QIIBBHI")
_MAX_BITMAPS = 65535
_MAX_DIRECTORY = 1024 * _MAX_BITMAPS
_MAX_NAME = 1023
_MAX_EXTRA = 1024
#: The type of a bitmap for dirty tracking; there is no other.
_DIRTY_TRACKING = 1
_MIN_GRANULARITY_BITS, _MAX_GRANULARITY_BITS = 9, 31


class BitmapFlag(IntFlag):
    """What the directory says of a bitmap."""

    #: it was not saved properly: what it says is of no use
    IN_USE = 1 << 0
    #: it records writes whenever the image is in use
    AUTO = 1 << 1
    #: a program that does not know its extra data may use it nevertheless
    EXTRA_DATA_COMPATIBLE = 1 << 2


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap.

    :param name: text that is safe to show, with backslash escapes for what is not.
    :param granularity: how many bytes of the disk one bit stands for.
    :param table_size: entries of its table.
    """

    name: str
    granularity: int
    flags: BitmapFlag
    table_offset: int
    table_size: int


def read_bitmaps(handle: Handle) -> tuple[Bitmap, ...]:
    """Return the bitmaps of an image in the order of their directory.

    There are none if a program wrote to the image that does not know bitmaps: it has cleared the
    flag by which they are known to be consistent.

    :raise FormatError: if it is no qcow2 image.
    :raise CorruptImage: if the header or the directory contradicts itself or the file's size.
    :raise UnsupportedFormat: for a version or a feature that nobody here knows.
    """
    sound = read_sound_header(handle)
    data = sound.extensions.get(ExtensionType.BITMAPS)
    if data is None or not sound.header.autoclear & Autoclear.BITMAPS:
        return ()
    place = _place(data, sound)
    name, length = "bitmap directory", place.bitmap_directory_size
    directory = Directory(handle, name, place.bitmap_directory_offset, length)
    return tuple(_read(directory, sound, number) for number in range(place.nb_bitmaps))


def _place(data: bytes, sound: SoundHeader) -> BitmapsExtension:
    if len(data) != BitmapsExtension.length():
        raise CorruptImage(f"bitmaps extension of {len(data)} bytes, not 24")
    place = BitmapsExtension.unpack(data)
    offset, length = place.bitmap_directory_offset, place.bitmap_directory_size
    if not 0 < place.nb_bitmaps <= _MAX_BITMAPS:
        raise CorruptImage(f"nb_bitmaps is {place.nb_bitmaps}, not 1 to 65535")
    if length > _MAX_DIRECTORY:
        raise CorruptImage(f"bitmap directory of {length} bytes, more than {_MAX_DIRECTORY}")
    if not offset or offset % sound.header.cluster_size or offset + length > sound.file_size:
        raise CorruptImage(f"bitmap directory at {offset} is unaligned or not within the file")
    return place


def _read(directory: Directory, sound: SoundHeader, number: int) -> Bitmap:
    table_offset, table_size, flags, kind, bits, name_size, extra_size = _ENTRY.unpack(
        directory.take(_ENTRY.size)
    )
    if kind != _DIRTY_TRACKING or flags & ~sum(BitmapFlag):
        raise CorruptImage(f"bitmap {number} has type {kind} and flags {flags:#x}")
    if not _MIN_GRANULARITY_BITS <= bits <= _MAX_GRANULARITY_BITS:
        raise CorruptImage(f"bitmap {number} has granularity_bits {bits}, not 9 to 31")
    if not 0 < name_size <= _MAX_NAME or extra_size > _MAX_EXTRA:
        raise CorruptImage(
            f"bitmap {number}: name of {name_size}, extra data of {extra_size} bytes"
        )
    cluster_size = sound.header.cluster_size
    beyond = table_offset + 8 * table_size > sound.file_size
    if table_offset % cluster_size or not table_offset or beyond:
        raise CorruptImage(f"bitmap {number}: table at {table_offset} is unaligned or not there")
    variable = directory.take(extra_size + name_size)
    directory.pad(_ENTRY.size + len(variable))
    name = printable(variable[extra_size:])
    return Bitmap(name, 1 << bits, BitmapFlag(flags), table_offset, table_size)
