"""What a probe says of an image: one value for all formats."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ImageState(StrEnum):
    """How far an image may be trusted."""

    OK = "ok"
    #: readable, but something is odd; listed, not written to natively
    SUSPICIOUS = "suspicious"
    #: contradicts itself or its file's size; listed, deleted, downloaded, nothing else
    CORRUPT = "corrupt"
    #: a version or a feature that nobody here knows
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class BackingRef:
    """The name of a backing image as the header has it: raw bytes, never followed by a probe."""

    name: bytes
    #: the recorded format; None where the header records none
    format: str | None = None


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a header says. Nothing of it is trusted for opening anything.

    :param format: libvirt's name of the format: raw, qcow2, vmdk, vpc, vdi, iso ...
    :param capacity: the virtual size in bytes.
    :param encryption: ``luks``, ``luks2`` or ``qcow`` (the old AES of qcow and qcow2); None: plain.
    :param compat: qcow2 version 3 is ``1.1``, version 2 is None as libvirt prints none.
    :param features: None for everything but qcow2 version 3.
    :param data_file: name of an external data file, None if there is none.
    :param reasons: why *state* is not ok, one sentence each.
    :param harmless: those of *reasons* that say nothing against reading the image.
    """

    format: str
    capacity: int
    encryption: str | None = None
    compat: str | None = None
    cluster_size: int = 0
    features: frozenset[str] | None = None
    backing: BackingRef | None = None
    data_file: bytes | None = None
    #: internal snapshots of a qcow2
    snapshots: int = 0
    #: width of the refcounts of a qcow2
    refcount_bits: int = 16
    #: how compressed clusters are packed: ``zlib`` or ``zstd``
    compression: str | None = None
    #: createType of a vmdk, or how else one format comes in several shapes (``fixed``, ``dynamic``)
    subformat: str | None = None
    #: other files that hold the data: the names of a vmdk's extents
    extents: tuple[bytes, ...] = ()
    #: persistent dirty bitmaps of a qcow2
    bitmaps: int = 0
    state: ImageState = ImageState.OK
    reasons: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
