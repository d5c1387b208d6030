"""Changes of a qcow2 image that its header alone allows: the backing file, features, the version.

The data are not looked at. The caller holds QEMU's locks on the image. A change is on the disk when
the call returns; a crash leaves the old header or the new one.

Source: the qcow2 specification. The rules about what goes together are QEMU's.
"""

from __future__ import annotations

from dataclasses import replace

from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import (
    Autoclear,
    Compatible,
    Extension,
    ExtensionType,
    Header,
    HeaderV3,
    HeaderV3Compression,
)
from storaged.formats.qcow2_create import check_backing
from storaged.formats.qcow2_rewrite import (
    read_backing_name,
    read_extensions,
    read_mendable,
    rewrite,
    switch,
)


def rebase(handle: Handle, backing: bytes | None, backing_format: str | None) -> None:
    """Have an image refer to another backing file, or to none, without a look at the data.

    What the guest reads changes unless the caller knows that both backing images read alike.

    :param backing: the name as it shall stand in the header; None removes the reference.
    :param backing_format: None records no format.
    :raise FormatError: for a name or a format that the header cannot hold.
    :raise UnsupportedFormat: if it does not fit beside what the header has, or with its features.
    :raise CorruptImage: if the header contradicts itself. After these three nothing was changed.
    :raise OSError: the image then has either the old or the new header.
    """
    header = read_mendable(handle)
    check_backing(backing, backing_format)
    if backing and header.autoclear & Autoclear.RAW_EXTERNAL:
        raise UnsupportedFormat("a raw data file cannot have a backing file")
    _refer(handle, header, backing or b"", backing_format if backing else None)


def set_backing_format(handle: Handle, format: str) -> None:
    """Record the format of the backing file that an image refers to already.

    :raise FormatError: if it has no backing file; else as `rebase`.
    """
    header = read_mendable(handle)
    name = read_backing_name(handle, header)
    if not name:
        raise FormatError("the image has no backing file")
    check_backing(name, format)
    _refer(handle, header, name, format)


def amend(
    handle: Handle, *, lazy_refcounts: bool | None = None, version: int | None = None
) -> None:
    """Change the features that the header alone decides. What is None stays.

    :param version: 3 for an image of version 2 without internal snapshots.
    :raise FormatError: if the two do not go together.
    :raise UnsupportedFormat: if more than the header would have to change, or the image was not
        closed cleanly.
    :raise CorruptImage: if the header contradicts itself. After these three nothing was changed.
    :raise OSError: the image then has either the old or the new header.
    """
    header = read_mendable(handle)
    fixed = header.fixed
    if version not in (None, 2, 3):
        raise FormatError(f"version must be 2 or 3, not {version}")
    if version == 2 and fixed.version == 3:
        raise UnsupportedFormat("to go back to version 2 takes more than a change of the header")
    if lazy_refcounts and 3 not in (version, fixed.version):
        raise FormatError("lazy refcounts need version 3")
    if version == 3 and fixed.version == 2:
        _upgrade(handle, header, lazy=bool(lazy_refcounts))
    elif isinstance(fixed, HeaderV3) and lazy_refcounts is not None:
        features = fixed.compatible_features & ~int(Compatible.LAZY_REFCOUNTS)
        if lazy_refcounts:
            features |= Compatible.LAZY_REFCOUNTS
        if features != fixed.compatible_features:
            switch(handle, replace(fixed, compatible_features=features))


def _refer(handle: Handle, header: Header, name: bytes, format: str | None) -> None:
    """Put the reference in, with its format first among the extensions: libvirt looks for it so."""
    extensions = [
        extension
        for extension in read_extensions(handle, header)
        if extension.type != ExtensionType.BACKING_FORMAT
    ]
    if format:
        recorded = Extension(ExtensionType.BACKING_FORMAT, format.encode("ascii"))
        extensions.insert(0, recorded)
    rewrite(handle, header, header.fixed, extensions, name)


def _upgrade(handle: Handle, header: Header, *, lazy: bool) -> None:
    """Give an image of version 2 the header of version 3."""
    if header.fixed.nb_snapshots:
        raise UnsupportedFormat("version 3 needs more of internal snapshots than version 2 records")
    fields = replace(header.fixed, version=3).__dict__
    upgraded = HeaderV3Compression(
        **fields,
        incompatible_features=0,
        compatible_features=Compatible.LAZY_REFCOUNTS if lazy else 0,
        autoclear_features=0,
        refcount_order=header.refcount_order,
        header_length=HeaderV3Compression.length(),
    )
    extensions = read_extensions(handle, header)
    rewrite(handle, header, upgraded, extensions, read_backing_name(handle, header))
