"""The header of a qcow2 image that is sound enough to follow what it refers to.

Source: the qcow2 specification.
"""

from __future__ import annotations

from typing import NamedTuple

from storaged.formats import qcow2
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.qcow2 import Header, HeaderV3Compression, Incompatible
from storaged.formats.qcow2_inspect import inspect
from storaged.formats.window import HEAD_LIMIT, Window

#: The byte of a version 3 header that has the incompatible features known today.
_FEATURES_BYTE = 79


class SoundHeader(NamedTuple):
    """A header with what the inspection says of it.

    :param info: as if the image were not marked as corrupt, which says nothing of the header.
    :param file_size: the file's length in bytes.
    :param extensions: data of the header extensions, the first of each type.
    """

    header: Header
    info: ImageInfo
    file_size: int
    extensions: dict[int, bytes]


def read_sound_header(handle: Handle) -> SoundHeader:
    """Read the header and its extensions.

    :raise FormatError: if it is no qcow2 image.
    :raise CorruptImage: if it contradicts itself or the file's size.
    :raise UnsupportedFormat: for a version or a feature that nobody here knows.
    """
    sound = examine_header(handle)
    if sound.info.state is ImageState.CORRUPT:
        raise CorruptImage("; ".join(sound.info.reasons))
    if sound.info.state is ImageState.UNSUPPORTED:
        raise UnsupportedFormat("; ".join(sound.info.reasons))
    return sound


def examine_header(handle: Handle) -> SoundHeader:
    """Read the header and its extensions, whatever state they are in.

    :raise FormatError: if it is no qcow2 image; CorruptImage if it is too short to be one,
        UnsupportedFormat for a version that nobody here knows.
    """
    size = handle.size()
    head = bytearray(handle.pread(min(HEAD_LIMIT, size), 0))
    header = qcow2.read_header(bytes(head[: HeaderV3Compression.length()]))
    if header.has(Incompatible.CORRUPT):
        head[_FEATURES_BYTE] &= 0xFF - Incompatible.CORRUPT
    window = Window(handle.pread, size, bytes(head))
    return SoundHeader(header, inspect(window), size, _extensions(window, header))


def _extensions(window: Window, header: Header) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    if not qcow2.MIN_CLUSTER_BITS <= header.fixed.cluster_bits <= qcow2.MAX_CLUSTER_BITS:
        return found
    try:
        for extension in qcow2.extensions(window.head, header.header_length, header.extensions_end):
            found.setdefault(extension.type, extension.data)
    except FormatError:
        pass  # the inspection has told of it
    return found
