"""What an image really is, also where libvirt lists it as raw.

The prober gives libvirt's view and reads little; here a VHDX, a VHD of fixed size, a Parallels
image and so on are called by their names, with the capacity that a guest sees. Still nothing is
trusted, nothing that an image names is opened, and about 1 MiB is read at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import cast

from storaged.formats import probe
from storaged.formats.boot_sector import content
from storaged.formats.errors import FormatError
from storaged.formats.findings import SEVERITY
from storaged.formats.handle import Handle
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.formats.reader import Reader
from storaged.formats.signatures import (
    TRAILER_SIZE,
    foreign_heads,
    foreign_trailers,
)
from storaged.formats.window import Window

#: Where each format's ``describe`` is, for all that tell more of themselves than to the prober.
DESCRIBERS = MappingProxyType(
    {
        "vhdx": "storaged.formats.vhdx",
        "vpc": "storaged.formats.vpc",
        "vdi": "storaged.formats.vdi",
        "iso": "storaged.formats.iso",
        "parallels": "storaged.formats.ploop",
        "bochs": "storaged.formats.bochs",
        "cloop": "storaged.formats.cloop",
        "dmg": "storaged.formats.dmg",
    }
)
#: Endings that promise a header or a footer.
_PROMISES = (".qcow2", ".qed", ".vdi", ".vhd", ".vhdx")
#: A LUKS 2 header of more than this is not read here; `storaged.formats.luks2` does.
_MAX_LUKS2 = 256 << 10
_BOOT = 4608


def identify(handle: Handle, *, name: str | None = None) -> ImageInfo:
    """Say what *handle* holds.

    Beyond the formats of `storaged.formats.probe` there are ``vhdx``, ``parallels``, ``bochs``,
    ``cloop``, ``dmg`` and ``luks``; ``vpc`` and ``vmdk`` include what libvirt lists as raw. Of raw
    data *subformat* is what they are as a disk: ``gpt``, ``mbr``, ``fat16``, ``udf`` ... or None.

    :param name: the file's name; an ending that promises more than there is makes it suspicious.
    :raise OSError: if it cannot be read. Nothing else is raised, whatever the bytes are.
    """
    window = Window(handle.pread, handle.size())
    info = probe.inspect(window)
    reader = Reader(handle)
    claimed = [other.format for other in foreign_heads(window)]
    claimed += _trailing(window, info)
    if info.format in DESCRIBERS:
        info = _merged(_described(info.format, handle, reader, name), info)
    elif info.format == "raw" and info.encryption is not None:
        info = _luks(handle, info)
    elif info.format == "raw" and claimed:
        info = _described(claimed[0], handle, reader, name)
    elif info.format == "raw":
        info = _raw(reader, info, name)
    others = [format for format in claimed if format != info.format]
    return _doubted(info, f"the file is also {', '.join(others)}") if others else info


def _trailing(window: Window, info: ImageInfo) -> Iterable[str]:
    """Return what the end of the file is beyond doubt: a magic alone may be a guest's data."""
    from storaged.formats import dmg, vpc

    proofs = {"vpc": vpc.is_footer, "dmg": dmg.is_trailer}
    data = window.tail(TRAILER_SIZE)
    for other in foreign_trailers(window):
        if other.format != info.format and proofs[other.format](data):
            yield other.format


def _described(format: str, handle: Handle, reader: Reader, name: str | None) -> ImageInfo:
    if format == "vmdk":
        return _vmdk(handle, name)
    describe = cast(Callable[[Reader], ImageInfo], import_module(DESCRIBERS[format]).describe)
    try:
        return describe(reader)
    except FormatError as err:
        return ImageInfo(format, reader.size, state=ImageState.CORRUPT, reasons=(str(err),))


def _vmdk(handle: Handle, name: str | None) -> ImageInfo:
    """Describe a VMDK whose data lie in other files, or a redo log of ESX."""
    from storaged.formats.vmdk_describe import describe

    own = name.encode(errors="surrogateescape") if name is not None else None
    try:
        found = describe(handle, name=own)
    except FormatError as err:
        return ImageInfo("vmdk", handle.size(), state=ImageState.CORRUPT, reasons=(str(err),))
    return ImageInfo(
        "vmdk",
        found.capacity,
        backing=BackingRef(found.parent, "vmdk") if found.parent else None,
        subformat=found.subformat,
        extents=tuple(extent.name for extent in found.extents),
        state=found.state,
        reasons=found.reasons,
    )


def _luks(handle: Handle, info: ImageInfo) -> ImageInfo:
    if info.encryption == "luks":
        return replace(info, format="luks", subformat="luks1")
    if int.from_bytes(handle.pread(8, 8), "big") <= _MAX_LUKS2:
        from storaged.formats import luks2

        return luks2.describe(handle)
    return replace(info, format="luks", subformat="luks2")


def _raw(reader: Reader, info: ImageInfo, name: str | None) -> ImageInfo:
    from storaged.formats import iso

    kind = content(reader.pread(_BOOT, 0))
    if kind is None and iso.is_udf(iso.identifiers(reader)):
        kind = "udf"
    if name is not None and name.lower().endswith(_PROMISES):
        info = _doubted(info, "the name ends like that of another format, the data are raw")
    return replace(info, subformat=kind)


def _merged(deeper: ImageInfo, info: ImageInfo) -> ImageInfo:
    """Return the deeper answer with what the prober found beside it."""
    state = max(info.state, deeper.state, key=SEVERITY.index)
    reasons = dict.fromkeys((*deeper.reasons, *info.reasons))
    harmless = dict.fromkeys((*deeper.harmless, *info.harmless))
    return replace(deeper, state=state, reasons=tuple(reasons), harmless=tuple(harmless))


def _doubted(info: ImageInfo, reason: str) -> ImageInfo:
    state = ImageState.SUSPICIOUS if info.state is ImageState.OK else info.state
    return replace(info, state=state, reasons=(*info.reasons, reason))
