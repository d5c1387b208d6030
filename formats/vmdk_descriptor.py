"""The VMDK descriptor: the text that says what a disk is, who holds it and who its parent is.

It stands in the first sectors of a sparse extent, or is a small file of its own. Every line has to
be understood: what another program might read out of a line that is no descriptor's is unknown.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat

SECTOR = 512
#: What a descriptor begins with.
FIRST_LINE = b"# Disk DescriptorFile"
#: ``parentCID`` of a disk without a parent.
NO_PARENT = 0xFFFFFFFF
MAX_TEXT = 1 << 20
MAX_LINES = 16384
MAX_EXTENTS = 4096
#: The longest name of an extent and of a parent, in bytes.
MAX_NAME = 255
MAX_HINT = 1023
#: Sectors of one disk: an offset in it has 63 bits.
MAX_SECTORS = 2**63 // SECTOR - 1

_SECTORS_PER_TRACK = 63
_TOOLS_VERSION = "2147483647"
#: As much of a line or a name stands in a message, in bytes.
_SHOWN = 60


class CreateType(StrEnum):
    """``createType``: the kinds of disks that can be read."""

    MONOLITHIC_SPARSE = "monolithicSparse"
    STREAM_OPTIMIZED = "streamOptimized"
    TWO_GB_MAX_EXTENT_SPARSE = "twoGbMaxExtentSparse"
    MONOLITHIC_FLAT = "monolithicFlat"
    TWO_GB_MAX_EXTENT_FLAT = "twoGbMaxExtentFlat"
    #: a flat disk of ESX
    VMFS = "vmfs"
    #: a redo log of ESX
    VMFS_SPARSE = "vmfsSparse"


class Access(StrEnum):
    """What a guest may do with an extent."""

    RW = "RW"
    RDONLY = "RDONLY"
    NOACCESS = "NOACCESS"


class ExtentType(StrEnum):
    """How an extent keeps its data."""

    FLAT = "FLAT"
    SPARSE = "SPARSE"
    #: no file at all: zeros
    ZERO = "ZERO"
    VMFS = "VMFS"
    VMFSSPARSE = "VMFSSPARSE"
    #: devices of the host
    VMFSRDM = "VMFSRDM"
    VMFSRAW = "VMFSRAW"
    SESPARSE = "SESPARSE"


class Adapter(StrEnum):
    """The virtual controller that a guest of VMware gets for the disk."""

    IDE = "ide"
    LSILOGIC = "lsilogic"
    BUSLOGIC = "buslogic"
    LEGACY_ESX = "legacyESX"


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One line of the extent description.

    :param sectors: how much of the disk it holds.
    :param name: the file's name as it stands there; empty if there is none.
    :param offset: where the data begin in the file, in sectors.
    """

    access: Access
    sectors: int
    type: ExtentType
    name: bytes = b""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says.

    :param cid: content id: changes when the content does.
    :param parent_cid: the parent's content id when this disk was made, or `NO_PARENT`.
    :param parent_hint: the parent's name; None without one.
    :param adapter: ``ddb.adapterType``, None if it is not said.
    :param hardware_version: ``ddb.virtualHWVersion``, None if it is not said.
    """

    cid: int
    parent_cid: int
    create_type: CreateType
    extents: tuple[ExtentLine, ...]
    parent_hint: bytes | None = None
    adapter: str | None = None
    hardware_version: str | None = None

    @property
    def sectors(self) -> int:
        """The size of the disk in sectors."""
        return sum(extent.sectors for extent in self.extents)


_EXTENT = re.compile(
    rb"(RW|RDONLY|NOACCESS)[ \t]+(\d{1,19})[ \t]+([A-Z]{1,16})"
    rb'(?:[ \t]+"([^"]*)"(?:[ \t]+(\d{1,19}))?)?'
)
_FIELD = re.compile(rb'([A-Za-z][\w.:-]{0,127})[ \t]*=[ \t]*(?:"([^"]*)"|([^"]*))')
_HEX = re.compile(rb"[0-9A-Fa-f]{1,8}")
_VERSION = re.compile(rb"[1-4]")
_COMMENT = ord("#")
#: What a plain file name has none of.
_SPECIAL = frozenset('/\\:"')
_EXTENT_TYPES = frozenset(type.encode() for type in ExtentType)
_CREATE_TYPES = frozenset(type.encode() for type in CreateType)
#: Fields that must not be there twice: programs differ in which one they take.
_ONCE = frozenset((b"version", b"CID", b"parentCID", b"createType", b"parentFileNameHint"))


def parse(text: bytes) -> Descriptor:
    """Read a descriptor. What follows its first NUL must be NULs alone.

    :raise UnsupportedFormat: if the disk's or an extent's type is not known.
    :raise CorruptImage: if anything else is wrong; the text says where.
    """
    text = _bounded(text)
    fields: dict[bytes, bytes] = {}
    extents = []
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.strip(b" \t\r")
        if not line or line[0] == _COMMENT:
            continue
        if field := _FIELD.fullmatch(line):
            name, quoted, plain = field.groups()
            if name in _ONCE and name in fields:
                raise CorruptImage(f"line {number} of the descriptor: {name.decode()} again")
            fields[name] = plain if quoted is None else quoted
        elif extent := _EXTENT.fullmatch(line):
            extents.append(_extent(extent, number))
            if len(extents) > MAX_EXTENTS:
                raise CorruptImage(f"the descriptor names more than {MAX_EXTENTS} extents")
        else:
            raise CorruptImage(f"line {number} of the descriptor is not understood: {show(line)}")
    return _descriptor(fields, tuple(extents))


def _bounded(text: bytes) -> bytes:
    if len(text) > MAX_TEXT:
        raise CorruptImage(f"the descriptor is longer than {MAX_TEXT} bytes")
    text, _, rest = text.partition(b"\0")
    if rest.strip(b"\0"):
        raise CorruptImage("something follows the descriptor's end")
    if not text.startswith(FIRST_LINE):
        raise CorruptImage("the descriptor has no first line")
    if text.count(b"\n") > MAX_LINES:
        raise CorruptImage(f"the descriptor has more than {MAX_LINES} lines")
    return text


def _extent(match: re.Match[bytes], number: int) -> ExtentLine:
    access, sectors, type, name, offset = match.groups()
    if type not in _EXTENT_TYPES:
        raise UnsupportedFormat(f"line {number} of the descriptor: an extent of type {show(type)}")
    if not 0 < int(sectors) <= MAX_SECTORS or int(offset or 0) > MAX_SECTORS:
        raise CorruptImage(f"line {number} of the descriptor: {show(match[0])}")
    return ExtentLine(
        Access(access.decode()),
        int(sectors),
        ExtentType(type.decode()),
        name or b"",
        int(offset or 0),
    )


def _descriptor(fields: dict[bytes, bytes], extents: tuple[ExtentLine, ...]) -> Descriptor:
    if not _VERSION.fullmatch(fields.get(b"version", b"1")):
        raise UnsupportedFormat(f"descriptor version {show(fields[b'version'])}")
    kind = fields.get(b"createType", b"")
    if kind not in _CREATE_TYPES:
        raise UnsupportedFormat(f"createType is {show(kind)}")
    hint = fields.get(b"parentFileNameHint") or None
    if hint is not None and len(hint) > MAX_HINT:
        raise CorruptImage(f"parentFileNameHint is longer than {MAX_HINT} bytes")
    if not extents:
        raise CorruptImage("the descriptor names 0 extents")
    if sum(extent.sectors for extent in extents) > MAX_SECTORS:
        raise CorruptImage(f"the extents have more than {MAX_SECTORS} sectors")
    return Descriptor(
        cid=_content_id(fields, b"CID"),
        parent_cid=_content_id(fields, b"parentCID"),
        create_type=CreateType(kind.decode()),
        extents=extents,
        parent_hint=hint,
        adapter=_text(fields.get(b"ddb.adapterType")),
        hardware_version=_text(fields.get(b"ddb.virtualHWVersion")),
    )


def _content_id(fields: dict[bytes, bytes], name: bytes) -> int:
    value = fields.get(name)
    if value is None or not _HEX.fullmatch(value):
        raise CorruptImage(f"no valid {name.decode()}")
    return int(value, 16)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[:MAX_NAME].decode("ascii", "backslashreplace")


def show(value: bytes) -> str:
    """Return bytes of an image as a message can have them: escaped, quoted and not too long."""
    return ascii(value[:_SHOWN].decode("ascii", "backslashreplace"))


def is_plain(name: bytes) -> bool:
    """Whether a name of an extent is one of a file in the same directory and of nothing else.

    Control characters and what is no UTF-8 can be a name for the kernel but not for a message.
    """
    if not 0 < len(name) <= MAX_NAME or name in (b".", b".."):
        return False
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and _SPECIAL.isdisjoint(text)


def format_descriptor(descriptor: Descriptor) -> bytes:
    """Return a descriptor's text, in the order and with the words of QEMU's.

    :raise FormatError: if a name cannot stand in it.
    """
    lines = [
        FIRST_LINE,
        b"version=1",
        b"CID=%x" % descriptor.cid,
        b"parentCID=%x" % descriptor.parent_cid,
        b'createType="%s"' % descriptor.create_type.encode(),
        b"" if descriptor.parent_hint is None else _hint(descriptor.parent_hint),
        b"# Extent description",
        *map(_extent_line, descriptor.extents),
        b"",
        b"# The Disk Data Base",
        b"#DDB",
        b"",
        *_database(descriptor),
        b"",
    ]
    return b"\n".join(lines)


def _hint(name: bytes) -> bytes:
    if not 0 < len(name) <= MAX_HINT or any(byte < 32 or byte == 34 for byte in name):
        raise FormatError(f"the parent's name cannot stand in a descriptor: {show(name)}")
    return b'parentFileNameHint="%s"' % name


def _extent_line(extent: ExtentLine) -> bytes:
    if not 0 < len(extent.name) <= MAX_NAME or any(byte < 32 or byte == 34 for byte in extent.name):
        raise FormatError(f"an extent's name cannot stand in a descriptor: {show(extent.name)}")
    line = b'%s %d %s "%s"' % (
        extent.access.encode(),
        extent.sectors,
        extent.type.encode(),
        extent.name,
    )
    return line + b" %d" % extent.offset if extent.type is ExtentType.FLAT else line


def _database(descriptor: Descriptor) -> Iterator[bytes]:
    adapter = descriptor.adapter or Adapter.IDE
    heads = 16 if adapter == Adapter.IDE else 255
    for key, value in (
        ("virtualHWVersion", descriptor.hardware_version or "4"),
        ("geometry.cylinders", descriptor.sectors // (_SECTORS_PER_TRACK * heads)),
        ("geometry.heads", heads),
        ("geometry.sectors", _SECTORS_PER_TRACK),
        ("adapterType", adapter),
        ("toolsVersion", _TOOLS_VERSION),
    ):
        yield f'ddb.{key} = "{value}"'.encode()
