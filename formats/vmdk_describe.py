"""What a VMDK is in full: also the files that a descriptor names. For opening, not for listing.

libvirt lists a file that is a descriptor alone as raw, and so does the probe. Whoever opens it, or
shows what it refers to, asks here; nothing that is named is opened.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.findings import Findings
from storaged.formats.handle import Handle
from storaged.formats.image import ImageState
from storaged.formats.vmdk import COWD_MAGIC, MAGIC, CowdHeader, examine
from storaged.formats.vmdk_descriptor import (
    FIRST_LINE,
    MAX_TEXT,
    SECTOR,
    Access,
    CreateType,
    Descriptor,
    ExtentType,
    is_plain,
    parse,
    show,
)
from storaged.formats.window import Window

#: What the files of a disk hold whose descriptor is a file of its own.
_HOLDS = {
    CreateType.TWO_GB_MAX_EXTENT_SPARSE: ExtentType.SPARSE,
    CreateType.TWO_GB_MAX_EXTENT_FLAT: ExtentType.FLAT,
    CreateType.MONOLITHIC_FLAT: ExtentType.FLAT,
    CreateType.VMFS: ExtentType.VMFS,
    CreateType.VMFS_SPARSE: ExtentType.VMFSSPARSE,
}
_FLAT = (ExtentType.FLAT, ExtentType.VMFS)


@dataclass(frozen=True, slots=True)
class ExtentFile:
    """A file that holds a part of the disk.

    :param name: a plain name, in the descriptor's own directory.
    :param length: how much of the disk it holds, in bytes.
    :param offset: of a flat one: where in the file that begins, in bytes.
    """

    name: bytes
    type: ExtentType
    length: int
    offset: int = 0

    @property
    def flat(self) -> bool:
        """Whether the file holds the bytes as they are."""
        return self.type in _FLAT


@dataclass(frozen=True, slots=True)
class VmdkDescription:
    """What a VMDK says of itself.

    :param subformat: its createType; None where no descriptor is (a part of a split disk).
    :param capacity: bytes of the disk; the file's size if that cannot be told.
    :param extents: the files that hold the disk, in order; none if it lies in the file itself.
    :param parent: the parent's name as it stands there. It is as little to be trusted as a qcow2's
        backing file; it must be a VMDK whose `cid` is this one's *parent_cid*.
    :param cid: content id; None where no descriptor is.
    """

    subformat: str | None
    capacity: int
    adapter: str | None = None
    hardware_version: str | None = None
    extents: tuple[ExtentFile, ...] = ()
    parent: bytes | None = None
    cid: int | None = None
    parent_cid: int | None = None
    state: ImageState = ImageState.OK
    reasons: tuple[str, ...] = ()


def is_descriptor(handle: Handle) -> bool:
    """Whether a file is a descriptor alone, whose data lie in other files."""
    return handle.pread(len(FIRST_LINE), 0) == FIRST_LINE


def describe(handle: Handle, *, name: bytes | None = None) -> VmdkDescription:
    """Say what a VMDK of any kind is. Bounded: a descriptor of at most 1 MiB is read.

    :param name: the file's own name, which none of its extents may have.
    :raise FormatError: if it is no VMDK at all. Whatever is wrong with one is in its state.
    """
    if is_descriptor(handle):
        return _describe_text(handle, name)
    magic = handle.pread(4, 0)
    if magic == MAGIC:
        return _describe_sparse(handle)
    if magic == COWD_MAGIC:
        return _describe_cowd(handle)
    raise FormatError("not a VMDK image: it begins with none of the format's magics")


def _describe_text(handle: Handle, own: bytes | None) -> VmdkDescription:
    findings = Findings()
    descriptor = None
    try:
        descriptor = parse(handle.pread(MAX_TEXT + 1, 0))
        _check_extents(descriptor, own)
    except UnsupportedFormat as err:
        findings.unsupported(str(err))
    except CorruptImage as err:
        findings.corrupt(str(err))
    result = VmdkDescription(None, handle.size())
    if descriptor is not None:
        files = tuple(
            ExtentFile(line.name, line.type, line.sectors * SECTOR, line.offset * SECTOR)
            for line in descriptor.extents
        )
        result = replace(_filled(result, descriptor), extents=files)
    return replace(result, state=findings.state, reasons=tuple(findings.reasons))


def _filled(description: VmdkDescription, descriptor: Descriptor) -> VmdkDescription:
    return replace(
        description,
        subformat=descriptor.create_type,
        capacity=descriptor.sectors * SECTOR,
        adapter=descriptor.adapter,
        hardware_version=descriptor.hardware_version,
        parent=descriptor.parent_hint,
        cid=descriptor.cid,
        parent_cid=descriptor.parent_cid,
    )


def _check_extents(descriptor: Descriptor, own: bytes | None) -> None:
    holds = _HOLDS.get(descriptor.create_type)
    if holds is None:
        raise CorruptImage(f"a disk of type {descriptor.create_type} has no separate descriptor")
    for line in descriptor.extents:
        if line.access is not Access.RW:
            raise UnsupportedFormat(f"an extent is {line.access}: {show(line.name)}")
        if line.type is not holds:
            kind = descriptor.create_type
            raise UnsupportedFormat(f"an extent of a {kind} disk is of type {line.type}")
        if not is_plain(line.name):
            raise CorruptImage(f"the extent's name is no plain file name: {show(line.name)}")
        if line.name == own:
            raise CorruptImage("the descriptor names itself as an extent")
    if descriptor.create_type is CreateType.MONOLITHIC_FLAT and len(descriptor.extents) != 1:
        raise CorruptImage(f"the descriptor names {len(descriptor.extents)} extents, not one")
    name, times = Counter(line.name for line in descriptor.extents).most_common(1)[0]
    if times > 1:
        raise CorruptImage(f"{times} extents have the same name: {show(name)}")
    if descriptor.parent_hint is not None and holds is ExtentType.FLAT:
        raise CorruptImage(f"a disk of type {descriptor.create_type} cannot have a parent")


def _describe_sparse(handle: Handle) -> VmdkDescription:
    info, descriptor = examine(Window(handle.pread, handle.size()))
    result = VmdkDescription(None, info.capacity)
    if descriptor is not None:
        result = replace(_filled(result, descriptor), capacity=info.capacity)
    return replace(
        result,
        parent=info.backing.name if info.backing else None,
        state=info.state,
        reasons=info.reasons,
    )


def _describe_cowd(handle: Handle) -> VmdkDescription:
    """Describe a redo log of ESX that is looked at without its descriptor."""
    findings = Findings()
    capacity = handle.size()
    try:
        header = CowdHeader.unpack(handle.pread(CowdHeader.length(), 0))
    except FormatError:
        findings.corrupt("truncated header")
    else:
        if header.version != 1:
            findings.unsupported(f"COWD version {header.version}")
        if not header.num_sectors:
            findings.corrupt("capacity is 0 sectors")
        capacity = header.num_sectors * SECTOR or capacity
    return VmdkDescription(None, capacity, state=findings.state, reasons=tuple(findings.reasons))
