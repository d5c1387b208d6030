"""The part of storaged's own program that is about images: records and procedures.

Passphrases stand in `Passphrase` fields: they are sent over local sockets only, and records that
have one do not show it.

Sizes are bytes. Texts out of images may hold bytes that are no UTF-8; they come as they are.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, Final

from storaged.rpc.program import EXTENSION, Access, AnyProcedure, Procedure
from storaged.rpc.record import Nested, Record, Secretive, Void
from storaged.rpc.storage import StoragePool, StorageVol, VolRet
from storaged.rpc.xdr import (
    STRING,
    Array,
    Int,
    Maybe,
    MaybeString,
    Opaque,
    String,
    UHyper,
    UInt,
)

#: The most of anything that a report or an inspection lists.
LIST_MAX: Final = 4096
#: The longest passphrase.
SECRET_MAX: Final = 65536

Texts = Annotated[tuple[str, ...], Array(STRING, LIST_MAX)]
Passphrase = Annotated[bytes | None, Maybe(Opaque(SECRET_MAX))]


class VolCheckArgs(Record):
    """A volume."""

    vol: StorageVol


class VolCheckRet(Record):
    """What a check found."""

    format: String
    corruptions: UHyper
    leaks: UHyper
    findings: Texts
    end: UHyper
    total: UHyper
    allocated: UHyper
    compressed: UHyper


class ConcernFacts(Record):
    """What is odd: *level* is ``note`` or ``danger``."""

    level: String
    text: String


Concerns = Annotated[tuple[ConcernFacts, ...], Array(Nested(ConcernFacts), LIST_MAX)]


class LayerFacts(Record):
    """One image of a backing chain; a *capacity* of 0 is "not known"."""

    name: String
    path: MaybeString
    format: MaybeString
    capacity: UHyper
    concerns: Concerns


class HolderFacts(Record):
    """A process that has an image open."""

    pid: Int
    command: String
    writing: Int
    guest: MaybeString


class SnapshotFacts(Record):
    """An internal snapshot; *taken* in nanoseconds since the epoch."""

    id: String
    name: String
    capacity: UHyper
    taken: UHyper
    state_size: UHyper


class BitmapFacts(Record):
    """A dirty bitmap.

    :param flags: 1: it is enabled; 2: it is in use.
    """

    name: String
    granularity: UHyper
    flags: UInt


class ImageFacts(Record):
    """What a header says. Names as the image has them."""

    format: String
    capacity: UHyper
    encryption: MaybeString
    compat: MaybeString
    cluster_size: UHyper
    has_features: Int
    features: Texts
    backing: MaybeString
    backing_format: MaybeString
    data_file: MaybeString
    snapshots: UHyper
    refcount_bits: UInt
    compression: MaybeString
    subformat: MaybeString
    extents: Texts
    bitmaps: UHyper
    state: String
    reasons: Texts
    harmless: Texts


class VolInspectRet(Record):
    """What an image is, what it refers to and who uses it."""

    name: String
    path: String
    format: MaybeString
    true_format: MaybeString
    capacity: UHyper
    allocation: UHyper
    physical: UHyper
    image: Annotated[ImageFacts | None, Maybe(Nested(ImageFacts))]
    chain: Annotated[tuple[LayerFacts, ...], Array(Nested(LayerFacts), LIST_MAX)]
    concerns: Concerns
    holders: Annotated[tuple[HolderFacts, ...], Array(Nested(HolderFacts), LIST_MAX)]
    used_by: Texts
    snapshots: Annotated[tuple[SnapshotFacts, ...], Array(Nested(SnapshotFacts), LIST_MAX)]
    bitmaps: Annotated[tuple[BitmapFacts, ...], Array(Nested(BitmapFacts), LIST_MAX)]


class RebaseFlag(IntFlag):
    """How a volume is rebased."""

    #: keep the backing file that it has, and record its format only
    FORMAT_ONLY = 1


class VolRebaseArgs(Record):
    """A volume and its new backing file, if it is to have one."""

    vol: StorageVol
    backing: MaybeString
    format: MaybeString
    flags: UInt = 0


class VolAmendArgs(Record):
    """A volume and what is to change in its header; a choice is 0, 1, or 2 for "as it is"."""

    vol: StorageVol
    lazy_refcounts: UInt
    compat: MaybeString


class VolConvertArgs(Secretive):
    """A volume and what it becomes; a choice is 0, 1, or 2 for "as it is"."""

    vol: StorageVol
    format: MaybeString
    compat: MaybeString
    cluster_size: UHyper
    lazy_refcounts: UInt
    extended_l2: UInt
    compress: MaybeString
    subformat: MaybeString
    flatten: Int
    durability: MaybeString
    secret: Passphrase = None


class VolCreateArgs(Secretive):
    """As for libvirt's create, with a passphrase."""

    pool: StoragePool
    xml: String
    flags: UInt
    secret: Passphrase


class VolCloneArgs(Secretive):
    """As for libvirt's clone, with what libvirt cannot be asked for."""

    pool: StoragePool
    xml: String
    clonevol: StorageVol
    flags: UInt
    backing: String
    compress: MaybeString
    durability: MaybeString
    secret: Passphrase
    source_secret: Passphrase


class VolResizeArgs(Secretive):
    """As for libvirt's resize, with a passphrase."""

    vol: StorageVol
    capacity: UHyper
    flags: UInt
    secret: Passphrase


_R: Final = Access.READER
_P: Final = EXTENSION

VOL_CHECK: Final = Procedure(19, "storagedVolCheck", VolCheckArgs, VolCheckRet, _R, program=_P)
VOL_INSPECT: Final = Procedure(
    20, "storagedVolInspect", VolCheckArgs, VolInspectRet, _R, program=_P
)
VOL_REBASE: Final = Procedure(21, "storagedVolRebase", VolRebaseArgs, Void, program=_P)
VOL_AMEND: Final = Procedure(22, "storagedVolAmend", VolAmendArgs, Void, program=_P)
VOL_CONVERT: Final = Procedure(23, "storagedVolConvert", VolConvertArgs, Void, program=_P)
VOL_CREATE: Final = Procedure(24, "storagedVolCreate", VolCreateArgs, VolRet, program=_P)
VOL_CLONE: Final = Procedure(25, "storagedVolClone", VolCloneArgs, VolRet, program=_P)
VOL_RESIZE: Final = Procedure(26, "storagedVolResize", VolResizeArgs, Void, program=_P)

#: These procedures, by number.
PROCEDURES: Final[dict[int, AnyProcedure]] = {
    found.number: found for found in list(vars().values()) if isinstance(found, Procedure)
}
