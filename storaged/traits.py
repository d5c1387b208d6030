"""The pool types and what tells them apart: one table that parser, printer and checks share.

A type that stands in no row belongs to a plug-in. It gets `generic` traits: every part of a source
is kept, none is asked for, and its volumes are files.

Source: libvirt's storage pool and volume XML formats; the order of types and formats is libvirt's,
because capabilities are listed in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType

from storaged.errors import ConfigUnsupported


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


class SourcePart(StrEnum):
    """The parts of a source that only some pool types have."""

    HOST = "host"
    DEVICE = "device"
    DIR = "dir"
    ADAPTER = "adapter"
    NAME = "name"
    INITIATOR = "initiator"


class Target(Enum):
    """What a pool type makes of ``target``."""

    #: a path must be given
    REQUIRED = "required"
    #: the path follows from the source's name; a given one does not count
    FORCED = "forced"
    #: plug-ins: kept if it is given
    OPTIONAL = "optional"
    #: nothing of it is read or printed
    NONE = "none"


#: What a volume that is a file may hold, the default first.
FILE_FORMATS = (
    *("raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop"),
    *("cow", "qcow", "qcow2", "qed", "vmdk"),
)
#: What a partition may hold, the default first.
PARTITION_FORMATS = (
    *("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended"),
)

_FILE_SYSTEMS = (
    *("auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat", "hfs+"),
    *("xfs", "ocfs2", "vmfs"),
)
_NETWORK_FILE_SYSTEMS = ("auto", "nfs", "glusterfs", "cifs")
_VOLUME_GROUPS = ("lvm2", "unknown")
_LABELS = ("unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2")

_HOST, _DEVICE, _DIR = SourcePart.HOST, SourcePart.DEVICE, SourcePart.DIR
_ADAPTER, _NAME, _INITIATOR = SourcePart.ADAPTER, SourcePart.NAME, SourcePart.INITIATOR


@dataclass(frozen=True, slots=True)
class Traits:
    """What a pool type is made of.

    :param parts: the parts of a source that are read and printed.
    :param mandatory: those of *parts* without which there is no pool.
    :param volume_type: what its volumes are, unless the backend says otherwise.
    :param source_formats: values of ``source/format``, the default first; empty: it has none.
    :param volume_formats: values of ``target/format`` of its volumes, the default first; empty: the
        element is neither read nor printed.
    :param target_prefix: where `Target.FORCED` targets lie.
    """

    type: str
    parts: frozenset[SourcePart]
    mandatory: frozenset[SourcePart]
    volume_type: VolumeType
    source_formats: tuple[str, ...] = ()
    volume_formats: tuple[str, ...] = ()
    target: Target = Target.REQUIRED
    target_prefix: str = ""
    #: the type of a plug-in: any source format is kept as it is
    generic: bool = False
    #: values of ``target/format`` that are read, but as libvirt knows none, never printed
    silent_formats: tuple[str, ...] = ()

    @property
    def has_source_format(self) -> bool:
        """Whether ``source/format`` is read."""
        return self.generic or bool(self.source_formats)

    def source_format(self, name: str | None) -> str | None:
        """Return the source format to use where *name* was given; the default for None.

        :raise ConfigUnsupported: the type has formats, and *name* is none of them.
        """
        if self.generic or not self.source_formats:
            return (name or None) if self.generic else None
        if not name:
            return self.source_formats[0]
        if name not in self.source_formats:
            raise ConfigUnsupported(
                f"unknown pool format type {name}",
                advice=f"Pools of type {self.type} know: {', '.join(self.source_formats)}.",
            )
        return name

    def volume_format(self, name: str | None) -> str | None:
        """Return the volume format to use where *name* was given; the default for None.

        None is returned for the types whose volumes have no format, but for a silent one.

        :raise ConfigUnsupported: the type has formats, and *name* is none of them.
        """
        if not self.volume_formats:
            return name if name in self.silent_formats else None
        if not name:
            return self.volume_formats[0]
        if name not in self.volume_formats:
            raise ConfigUnsupported(
                f"unknown volume format type {name}",
                advice=f"Volumes of {self.type} pools know: {', '.join(self.volume_formats)}.",
            )
        return name


def _row(
    kind: PoolType,
    volume_type: VolumeType,
    parts: tuple[SourcePart, ...] = (),
    mandatory: tuple[SourcePart, ...] = (),
    source_formats: tuple[str, ...] = (),
    volume_formats: tuple[str, ...] = (),
    target: Target = Target.REQUIRED,
    target_prefix: str = "",
    silent_formats: tuple[str, ...] = (),
) -> tuple[PoolType, Traits]:
    return kind, Traits(
        kind,
        frozenset(parts),
        frozenset(mandatory),
        volume_type,
        source_formats,
        volume_formats,
        target,
        target_prefix,
        silent_formats=silent_formats,
    )


_FILE, _BLOCK, _NETWORK = VolumeType.FILE, VolumeType.BLOCK, VolumeType.NETWORK

# fmt: off
_TABLE: Mapping[str, Traits] = MappingProxyType(dict((
    _row(PoolType.DIR, _FILE, volume_formats=FILE_FORMATS),
    _row(PoolType.FS, _FILE, (_DEVICE,), (_DEVICE,), _FILE_SYSTEMS, FILE_FORMATS),
    _row(PoolType.NETFS, _FILE, (_HOST, _DIR), (_HOST, _DIR), _NETWORK_FILE_SYSTEMS, FILE_FORMATS),
    _row(PoolType.LOGICAL, _BLOCK, (_DEVICE, _NAME), (), _VOLUME_GROUPS,
         target=Target.FORCED, target_prefix="/dev/", silent_formats=("thin-pool",)),
    _row(PoolType.DISK, _BLOCK, (_DEVICE,), (_DEVICE,), _LABELS, PARTITION_FORMATS),
    _row(PoolType.ISCSI, _BLOCK, (_HOST, _DEVICE, _INITIATOR), (_HOST,)),
    _row(PoolType.ISCSI_DIRECT, _NETWORK, (_HOST, _DEVICE, _INITIATOR), (_HOST, _INITIATOR),
         target=Target.NONE),
    _row(PoolType.SCSI, _BLOCK, (_ADAPTER,), (_ADAPTER,)),
    _row(PoolType.MPATH, _BLOCK),
    _row(PoolType.RBD, _NETWORK, (_HOST, _NAME), (_HOST,), volume_formats=FILE_FORMATS,
         target=Target.NONE),
    _row(PoolType.SHEEPDOG, _NETWORK, (_HOST, _NAME), (_HOST,), target=Target.NONE),
    _row(PoolType.GLUSTER, _NETWORK, (_HOST, _NAME, _DIR), (_HOST, _DIR),
         volume_formats=FILE_FORMATS, target=Target.NONE),
    _row(PoolType.ZFS, _BLOCK, (_NAME, _DEVICE), target=Target.FORCED, target_prefix="/dev/zvol/"),
    _row(PoolType.VSTORAGE, _FILE, (_NAME,), volume_formats=FILE_FORMATS),
)))
# fmt: on


def traits_of(kind: str) -> Traits:
    """Return the traits of a pool type; generic ones for the type of a plug-in."""
    return _TABLE.get(kind) or Traits(
        kind,
        frozenset(SourcePart),
        frozenset(),
        VolumeType.FILE,
        volume_formats=FILE_FORMATS,
        target=Target.OPTIONAL,
        generic=True,
    )
