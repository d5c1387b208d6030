"""Changing the header of a qcow2 image by one write of its first sector, which disks do not tear.

What the new header refers to is on the disk before it; what the old one referred to is left alone
until after. Everything unknown is kept: header fields, extensions, compatible features. Unknown
autoclear features are cleared, as the format demands of a writer.

Source: the qcow2 specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storaged.formats import qcow2
from storaged.formats.errors import CorruptImage, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.image import ImageState
from storaged.formats.qcow2 import (
    Extension,
    ExtensionType,
    Header,
    HeaderV2,
    HeaderV3,
    Incompatible,
)
from storaged.formats.qcow2_inspect import inspect
from storaged.formats.window import HEAD_LIMIT, Window

_END = 8


def read_sound(handle: Handle) -> Header:
    """Return the header of an image of which nothing is odd: its tables may be changed.

    :raise FormatError: if it is no qcow2 image.
    :raise CorruptImage: if the header contradicts itself or the file's size.
    :raise UnsupportedFormat: for anything else that keeps the image from being ``ok``.
    """
    header, state, reasons = _read(handle)
    if state is not ImageState.OK:
        raise UnsupportedFormat("; ".join(reasons))
    return header


def read_mendable(handle: Handle) -> Header:
    """Return the header of an image whose header may be changed, its tables being left alone.

    A reference that nobody can follow is no hindrance: it may be what is to be mended.

    :raise FormatError: as `read_sound`; UnsupportedFormat if the image was not closed cleanly.
    """
    header, state, reasons = _read(handle)
    if (
        state is ImageState.UNSUPPORTED
        or header.has(Incompatible.DIRTY)
        or header.header_length % 8
    ):
        raise UnsupportedFormat("; ".join(reasons))
    return header


def _read(handle: Handle) -> tuple[Header, ImageState, tuple[str, ...]]:
    window = Window(handle.pread, handle.size())
    header = qcow2.read_header(window.head(qcow2.HeaderV3Compression.length()))
    info = inspect(window)
    if info.state is ImageState.CORRUPT:
        raise CorruptImage("; ".join(info.reasons))
    return header, info.state, info.reasons


def read_extensions(handle: Handle, header: Header) -> list[Extension]:
    """Return the extensions, the end marker excluded.

    :raise FormatError: if they cannot be told apart.
    """
    window = Window(handle.pread, handle.size())
    return list(qcow2.extensions(window.head, header.header_length, header.extensions_end))


def read_backing_name(handle: Handle, header: Header) -> bytes:
    """Return the backing file's name, empty if there is none."""
    fixed = header.fixed
    if not fixed.backing_file_offset:
        return b""
    return handle.pread(fixed.backing_file_size, fixed.backing_file_offset)


def switch(handle: Handle, fixed: HeaderV2) -> None:
    """Replace the fixed fields of the header. It is on the disk when this returns."""
    fixed = _without_unknown_autoclear(fixed)
    sector = bytearray(handle.pread(qcow2.SECTOR, 0))
    sector[: fixed.length()] = fixed.pack()
    handle.pwrite(sector, 0)
    handle.flush()


def rewrite(
    handle: Handle, header: Header, fixed: HeaderV2, extensions: Sequence[Extension], name: bytes
) -> None:
    """Replace the fixed fields, the extensions and the backing file's name.

    The table of feature names is left out: it is for people to read, and QEMU writes it again.

    :param header: the present header.
    :param fixed: the new one, of the same or a higher version; where the name lies is filled in.
    :param extensions: all that there shall be, in their order.
    :param name: empty if there shall be no backing file.
    :raise UnsupportedFormat: if the header and the extensions do not fit in the first sector, or
        the name nowhere in the first cluster. Nothing was changed.
    """
    start = _start(handle, header, fixed)
    blob = b"".join(
        qcow2.pack_extension(*extension)
        for extension in extensions
        if extension.type != ExtensionType.FEATURE_NAMES
    ) + qcow2.pack_extension(ExtensionType.END)
    end = len(start) + len(blob)
    if end > qcow2.SECTOR:
        raise UnsupportedFormat(
            f"its header and extensions of {end} bytes do not fit in one sector of 512, and more"
            " cannot be written at once"
        )
    offset = _place_name(handle, header, end, name) if name else 0
    changed = replace(fixed, backing_file_offset=offset, backing_file_size=len(name))
    head = _without_unknown_autoclear(changed).pack() + start[fixed.length() :] + blob
    if 0 < offset < qcow2.SECTOR:
        head += name
    elif offset and (offset, name) != (
        header.fixed.backing_file_offset,
        read_backing_name(handle, header),
    ):
        handle.pwrite(name, offset)
        handle.flush()
    handle.pwrite(head.ljust(qcow2.SECTOR, b"\0"), 0)
    handle.flush()


def _start(handle: Handle, header: Header, fixed: HeaderV2) -> bytes:
    """Return what precedes the extensions: the fixed fields, and those that nobody knows.

    A new version's header has no others.
    """
    if fixed.version == header.fixed.version:
        return handle.pread(header.header_length, 0)
    return fixed.pack()


def _place_name(handle: Handle, header: Header, end: int, name: bytes) -> int:
    """Find room for the name where the old header refers to nothing.

    :param end: of the new extensions.
    """
    if end + len(name) <= qcow2.SECTOR:
        return end
    old, old_size = header.fixed.backing_file_offset, header.fixed.backing_file_size
    if old >= qcow2.SECTOR and read_backing_name(handle, header) == name:
        return old
    used = header.header_length + _END
    for extension in read_extensions(handle, header):
        used += len(qcow2.pack_extension(*extension))
    used = max(used, qcow2.SECTOR)
    if old_size and used < old + old_size and old < used + len(name):
        used = old + old_size
    offset = used + -used % 8
    if offset + len(name) > min(header.cluster_size, HEAD_LIMIT):
        raise UnsupportedFormat(
            f"the first cluster has no room for a backing file name of {len(name)} bytes beside"
            " the present one"
        )
    return offset


def _without_unknown_autoclear(fixed: HeaderV2) -> HeaderV2:
    if not isinstance(fixed, HeaderV3):
        return fixed
    known = fixed.autoclear_features & qcow2.KNOWN_AUTOCLEAR
    return replace(fixed, autoclear_features=known)
