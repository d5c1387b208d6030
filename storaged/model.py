"""The values that everything else passes around: definitions, facts, enums. No I/O, no policy.

A `PoolDef` or `VolumeDef` that exists is valid: the constructors check the rules that do not need
the outside world, in libvirt's order and with its texts. Sizes are ints of bytes.

Source: libvirt's storage pool and volume XML formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from uuid import UUID

from storaged.formats.image import ImageInfo


class PoolType(StrEnum):
    """The pool types in libvirt's order, which capabilities and checks follow."""

    DIR = "dir"
    FS = "fs"
    NETFS = "netfs"
    LOGICAL = "logical"
    DISK = "disk"
    ISCSI = "iscsi"
    ISCSI_DIRECT = "iscsi-direct"
    SCSI = "scsi"
    MPATH = "mpath"
    RBD = "rbd"
    SHEEPDOG = "sheepdog"
    GLUSTER = "gluster"
    ZFS = "zfs"
    VSTORAGE = "vstorage"


class PoolState(IntEnum):
    """What clients are told of a pool; the numbers stand on the wire."""

    INACTIVE = 0
    BUILDING = 1
    RUNNING = 2
    DEGRADED = 3
    #: active, but its storage does not answer
    INACCESSIBLE = 4


class VolumeType(StrEnum):
    """What kind of thing a volume is."""

    FILE = "file"
    BLOCK = "block"
    DIR = "dir"
    NETWORK = "network"
    NETDIR = "netdir"
    PLOOP = "ploop"

    @property
    def number(self) -> int:
        """Libvirt's number of the type, as it stands on the wire."""
        return tuple(VolumeType).index(self)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Owner, group, mode and label of a target; None is "unset": not printed, not applied."""

    mode: int | None = None
    owner: int | None = None
    group: int | None = None
    label: str | None = None

    def __bool__(self) -> bool:
        return self != UNSET_PERMISSIONS


UNSET_PERMISSIONS = Permissions()


@dataclass(frozen=True, slots=True)
class SourceHost:
    """A server; port 0 is "not given"."""

    name: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class FreeExtent:
    """A free stretch of a disk, in bytes; *end* is exclusive. Printed, never read."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SourceDevice:
    """A device a pool is made of."""

    path: str
    part_separator: bool | None = None
    free_extents: tuple[FreeExtent, ...] = ()


@dataclass(frozen=True, slots=True)
class PCIAddress:
    """Where the parent of a SCSI host sits."""

    domain: int = 0
    bus: int = 0
    slot: int = 0
    function: int = 0


@dataclass(frozen=True, slots=True)
class ScsiHostAdapter:
    """A SCSI host: by *name*, or by *parent* address and *unique_id*."""

    name: str | None = None
    parent: PCIAddress | None = None
    unique_id: int | None = None


@dataclass(frozen=True, slots=True)
class FcHostAdapter:
    """A virtual fibre channel host."""

    wwnn: str
    wwpn: str
    parent: str | None = None
    parent_wwnn: str | None = None
    parent_wwpn: str | None = None
    parent_fabric_wwn: str | None = None
    managed: bool | None = None


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Names a secret of libvirt's secret driver: by *uuid* or by *usage*, never both."""

    uuid: UUID | None = None
    usage: str | None = None
    #: the attribute ``type`` as it was given; kept and printed
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    """How a pool proves itself to its source: *type* is ``chap`` or ``ceph``."""

    type: str
    username: str
    secret: SecretRef


@dataclass(frozen=True, slots=True)
class PoolSource:
    """Where the storage of a pool comes from. Which parts count depends on the pool's type."""

    hosts: tuple[SourceHost, ...] = ()
    devices: tuple[SourceDevice, ...] = ()
    dir: str | None = None
    adapter: ScsiHostAdapter | FcHostAdapter | None = None
    name: str | None = None
    initiator: str | None = None
    #: the source format, such as ``nfs``; None is the default of the type
    format: str | None = None
    auth: Auth | None = None
    protocol: str | None = None
    vendor: str | None = None
    product: str | None = None


@dataclass(frozen=True, slots=True)
class PoolDef:
    """What a pool is, as its XML says.

    :raise XMLError: a part is missing or malformed (the order of the checks is libvirt's).
    :raise Unsupported: copy-on-write control on a type without it.
    :raise ConfigUnsupported: an unknown format or refresh allocation, a missing initiator.
    """

    type: PoolType
    name: str = ""
    #: made at random if none is given
    uuid: UUID = None  # type: ignore[assignment]
    source: PoolSource = PoolSource()
    #: None for the network types; forced for logical and zfs
    target: str | None = None
    permissions: Permissions = UNSET_PERMISSIONS
    #: ``features/cow``
    cow: bool | None = None
    #: ``refresh/volume@allocation``: "default" or "capacity"
    refresh_allocation: str | None = None
    #: ``fs:mount_opts``
    mount_options: tuple[str, ...] = ()
    #: ``rbd:config_opts``
    config_options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Space:
    """How full a pool is, in bytes."""

    capacity: int = 0
    allocation: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True)
class Cipher:
    """The cipher of a LUKS volume; *size* in bits."""

    name: str
    size: int
    mode: str | None = None
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class IVGen:
    """The generator of initial vectors of a LUKS volume."""

    name: str
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Encryption:
    """How a volume is encrypted: *format* is default, qcow, luks or luks2."""

    format: str
    secrets: tuple[SecretRef, ...] = ()
    cipher: Cipher | None = None
    ivgen: IVGen | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Times of a file in nanoseconds since the epoch; None where unknown."""

    atime: int
    mtime: int
    ctime: int
    btime: int | None = None


@dataclass(frozen=True, slots=True)
class BackingStore:
    """What a volume is an overlay of. *path* as the image or the XML names it."""

    path: str
    format: str | None = None
    permissions: Permissions = UNSET_PERMISSIONS
    timestamps: Timestamps | None = None


@dataclass(frozen=True, slots=True)
class SourceExtent:
    """A stretch of a device that a volume lies on, in bytes; *end* is exclusive."""

    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class VolumeDef:
    """What a volume is, as its XML says: asked for in a create, or found and printed.

    :raise XMLError: a part is missing or malformed.
    :raise ConfigUnsupported: an unknown format, type or feature.
    """

    name: str
    capacity: int = 0
    #: bytes to have on disk; None is "not said", which libvirt takes for all of *capacity*
    allocation: int | None = None
    format: str | None = None
    type: VolumeType = VolumeType.FILE
    key: str | None = None
    path: str | None = None
    #: 0 is "unknown" and not printed
    physical: int = 0
    permissions: Permissions = UNSET_PERMISSIONS
    timestamps: Timestamps | None = None
    encryption: Encryption | None = None
    #: qcow2: "0.10" is version 2, "1.1" version 3
    compat: str | None = None
    #: in bytes; 0 is "not given"
    cluster_size: int = 0
    #: None: no such element; else some of lazy_refcounts, extended_l2, data_file
    features: frozenset[str] | None = None
    #: asked for "no copy on write"; read, never printed
    nocow: bool = False
    backing: BackingStore | None = None
    extents: tuple[SourceExtent, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What a pool knows of one volume: small, immutable, shared with every reader.

    *key* and *path* are None where they are the pool's target path, a slash and the name (the file
    pools), so that 100,000 volumes do not carry 100,000 paths.
    """

    name: str
    capacity: int
    allocation: int
    physical: int = 0
    format: str | None = None
    type: VolumeType = VolumeType.FILE
    #: device, inode, size, mtime and ctime packed to 40 bytes; b"" where there is no file
    stamp: bytes = b""
    permissions: Permissions = UNSET_PERMISSIONS
    #: what the image's header says; None for raw
    image: ImageInfo | None = None
    key: str | None = None
    path: str | None = None
    #: what is wrong with this volume, for people; None if nothing is
    problem: str | None = None
    #: what only some types know (extents, origin, sparse), by field name of `VolumeDef`
    extra: Mapping[str, object] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PoolRef:
    """Names a pool. The uuid decides; the name is for people."""

    name: str
    uuid: UUID


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """Names a volume: its pool and its name; the key goes with it for clients that ask."""

    pool: PoolRef
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """The state of a pool at one moment: one immutable snapshot."""

    ref: PoolRef
    state: PoolState
    persistent: bool
    autostart: bool
    space: Space
    #: what is wrong with this pool, for people
    problems: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the pool is started."""
        return self.state is not PoolState.INACTIVE


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """The figures of a volume at one moment, in bytes."""

    ref: VolumeRef
    type: VolumeType
    capacity: int
    allocation: int
    physical: int
    format: str | None
    path: str
    problem: str | None = None
    #: being created or cloned just now
    building: bool = False
