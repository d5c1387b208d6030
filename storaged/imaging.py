"""What may be asked of the image in a volume, and what can be told of it: values, light to load.

A client needs them as much as the engine, so nothing here loads XML or touches storage. Texts out
of an image (names of files, snapshots, bitmaps) are what its maker wrote there: bytes that are no
text stand as surrogates, and whoever shows them escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from storaged.concerns import Concern as Concern
from storaged.concerns import Level as Level
from storaged.errors import InvalidArgument
from storaged.formats.image import ImageInfo
from storaged.imagelock import Holder

#: The versions of a qcow2, 2 and 3, by the names that libvirt has for them.
COMPAT_LEVELS = ("0.10", "1.1")


class Durability(StrEnum):
    """What a success of create, clone and delete promises."""

    #: the file and its name survive a loss of power
    FULL = "full"
    #: the kernel has it
    NONE = "none"


class CloneBacking(StrEnum):
    """What becomes of the backing chain of a volume that is cloned."""

    #: the clone holds all of the data and refers to no other file
    FLATTEN = "flatten"
    #: the top layer is copied; the clone refers to the same backing file
    KEEP = "keep"
    #: nothing is copied: the clone is an overlay whose backing file is the source
    LINKED = "linked"


class Compression(StrEnum):
    """How the clusters of a new image are packed."""

    ZLIB = "zlib"
    ZSTD = "zstd"


def clone_backing(word: str) -> CloneBacking:
    """Return what a word says of a clone's backing chain.

    :raise InvalidArgument: nothing that is known.
    """
    try:
        return CloneBacking(word)
    except ValueError:
        raise InvalidArgument(f"unknown way with the backing file '{word}'") from None


def compression(word: str | None) -> Compression | None:
    """Return the compression of a name.

    :raise InvalidArgument: there is none of it.
    """
    try:
        return None if word is None else Compression(word)
    except ValueError:
        raise InvalidArgument(f"unknown compression '{word}'") from None


def durability(word: str | None) -> Durability | None:
    """Return the durability of a name.

    :raise InvalidArgument: there is none of it.
    """
    try:
        return None if word is None else Durability(word)
    except ValueError:
        raise InvalidArgument(f"unknown durability '{word}'") from None


def check_compat(word: str | None) -> None:
    """Refuse what is no version of a qcow2; None is none that was asked for.

    :raise InvalidArgument: naming those that there are.
    """
    if word not in (None, *COMPAT_LEVELS):
        raise InvalidArgument(
            f"unknown qcow2 compatibility level '{word}'",
            advice=f"There are {' and '.join(COMPAT_LEVELS)}.",
        )


def check_secrets(*secrets: object) -> None:
    """Refuse a passphrase that is not given as bytes: which bytes a text means is not known.

    :raise InvalidArgument: the text says nothing of what it was.
    """
    for secret in secrets:
        if secret is not None and not isinstance(secret, bytes):
            raise InvalidArgument(
                f"a secret must be bytes, not {type(secret).__name__}",
                advice="Encode a text, as with secret.encode().",
            )


@dataclass(frozen=True, slots=True)
class CloneOptions:
    """How a clone is made, beyond what its definition says.

    :param compress: pack the data; None leaves them plain.
    :param durability: None is the engine's setting.
    :param secret: the passphrase that the clone is encrypted with.
    :param source_secret: the passphrase of the source.
    """

    backing: CloneBacking = CloneBacking.FLATTEN
    compress: Compression | None = None
    durability: Durability | None = None
    secret: bytes | None = field(default=None, repr=False)
    source_secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_secrets(self.secret, self.source_secret)


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What an image becomes when it is written anew in its place; None keeps what it has.

    :param compat: version of a qcow2, ``0.10`` or ``1.1``.
    :param cluster_size: in bytes; 0 keeps it, or is the format's default.
    :param subformat: createType of a vmdk.
    :param flatten: take in the data of the backing chain and refer to it no more. A format that
        knows no backing file is flattened anyway.
    :param secret: the passphrase of the image.
    """

    format: str | None = None
    compat: str | None = None
    cluster_size: int = 0
    lazy_refcounts: bool | None = None
    extended_l2: bool | None = None
    compress: Compression | None = None
    subformat: str | None = None
    flatten: bool = False
    durability: Durability | None = None
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_secrets(self.secret)


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """What changes in the header of a qcow2, without its data being touched; None: nothing."""

    lazy_refcounts: bool | None = None
    #: only upwards: ``1.1``
    compat: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain.

    :param name: as the image above it has it; of the first one the name of the volume.
    :param path: where it was found; None if it was not, or must not be looked for.
    :param format: None if it is not recorded, and so not known.
    :param capacity: in bytes; 0 if it is not known.
    """

    name: str
    path: str | None = None
    format: str | None = None
    capacity: int = 0
    concerns: tuple[Concern, ...] = ()


@dataclass(frozen=True, slots=True)
class InternalSnapshot:
    """A snapshot within a qcow2.

    :param taken: nanoseconds since the epoch.
    :param state_size: bytes of the machine's memory that were saved with it.
    """

    id: str
    name: str
    capacity: int = 0
    taken: int = 0
    state_size: int = 0


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """A persistent bitmap in a qcow2 of what changed since a backup.

    :param granularity: bytes that one bit stands for.
    :param enabled: whether writes are recorded in it.
    :param in_use: it was not saved properly, and says nothing any more.
    """

    name: str
    granularity: int
    enabled: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a volume's image is, and what it refers to. Sizes in bytes.

    :param format: as libvirt lists it.
    :param true_format: what the file is by its content, also where libvirt knows no word for it.
    :param image: what its header says; None if it has none.
    :param chain: the volume itself, then what it is an overlay of, down to the last that is known.
    :param concerns: about the image itself; those about its backing files are in *chain*.
    :param holders: processes that have it open, as far as they can be seen.
    :param used_by: the volumes that are overlays of it, as ``POOL/NAME``.
    """

    name: str
    path: str
    format: str | None
    true_format: str | None
    capacity: int
    allocation: int
    physical: int
    image: ImageInfo | None = None
    chain: tuple[Layer, ...] = ()
    concerns: tuple[Concern, ...] = ()
    holders: tuple[Holder, ...] = ()
    used_by: tuple[str, ...] = ()
    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[DirtyBitmap, ...] = ()

    @property
    def dangers(self) -> tuple[str, ...]:
        """Why the image must not be opened, cloned or used as a backing file; empty if it may."""
        layers = (concern for layer in self.chain for concern in layer.concerns)
        found = (
            concern.text for concern in (*self.concerns, *layers) if concern.level is Level.DANGER
        )
        return tuple(dict.fromkeys(found))
