"""What is made of a request for a logical volume: of which kind, how large, of what.

Source: libvirt's behaviour for plain volumes, for snapshots, and for sparse volumes without a thin
pool; what concerns thin pools is ours.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from storaged.backends._blockclone import HEADER_ROOM
from storaged.backends._lvmnames import check_name, is_building, mapped_name
from storaged.backends._lvmrecord import THIN_POOL
from storaged.backends._lvmreport import Group, LogicalVolume
from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    NameTaken,
    OperationUnsupported,
    Unsupported,
)
from storaged.model import BackingStore, VolumeDef, VolumeType

#: In what steps an old snapshot takes its space, in bytes, and of how many of them a chunk of its
#: table tells.
CHUNK: Final = 4096
_ENTRIES: Final = CHUNK // 16


class Kind(Enum):
    """The kinds of volumes that are made."""

    PLAIN = "plain"
    #: an old snapshot of nothing: what was never written reads as zeros
    SPARSE = "sparse"
    #: an old snapshot of a volume
    SNAPSHOT = "snapshot"
    THIN_POOL = "thin-pool"
    THIN = "thin"
    #: a snapshot of a thin volume, which is a thin volume
    THIN_SNAPSHOT = "thin snapshot"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be made.

    :param size: of the device, in bytes.
    :param space: what a sparse volume or an old snapshot may take of the group, in bytes.
    :param parent: the thin pool, or the volume it is a snapshot of.
    """

    kind: Kind
    name: str
    size: int
    space: int = 0
    parent: str | None = None

    @property
    def room(self) -> int:
        """How much data its space holds, in bytes, if it is an old snapshot."""
        return (self.space // CHUNK - 1) * _ENTRIES // (_ENTRIES + 1) * CHUNK

    def command(self, group: str, tag: str) -> tuple[str, ...]:
        """Return the command that makes it, marked with *tag*."""
        words = ("lvcreate", "--name", self.name, "--addtag", tag)
        size, parent = f"{self.size}b", f"{group}/{self.parent}"
        match self.kind:
            case Kind.PLAIN:
                return (*words, "-L", size, group)
            case Kind.SPARSE:
                sparse = ("--type", "snapshot", "--virtualsize", size, "-L", f"{self.space}b")
                return (*words, *sparse, group)
            case Kind.SNAPSHOT:
                return (*words, "-L", f"{self.space}b", "-s", parent)
            case Kind.THIN_POOL:
                return (*words, "--type", "thin-pool", "-L", size, group)
            case Kind.THIN:
                return (*words, "-V", size, "--thinpool", parent)
            case Kind.THIN_SNAPSHOT:
                # else it would not be activated, neither now nor at the next start
                return (*words, "--setactivationskip", "n", "-s", parent)


def settle(volume: VolumeDef, group: Group, target: str) -> VolumeDef:
    """Check a request for a volume; return it with type, path, capacity and backing store.

    The capacity is rounded up to whole extents, as LVM does; of an encrypted volume that is the
    capacity with the header.

    :raise InvalidArgument: LVM takes no such name.
    :raise NameTaken: there is a volume of that name.
    :raise StorageError: it cannot be made; the text names why.
    """
    check_name(volume.name)
    _check_free(volume.name, group, target)
    _check_format(volume)
    _check_encryption(volume)
    backing = volume.backing
    capacity = volume.capacity
    if backing is not None:
        parent = find_parent(backing.path, group, target)
        backing = BackingStore(f"{target}/{parent.name}")
        if not parent.is_thin_pool:
            capacity = _snapshot_capacity(volume, parent)
    if not capacity:
        raise Unsupported("volume capacity required for this storage pool")
    room = _header_room(volume)
    whole = whole_extents(capacity + room, group.extent) - room
    allocation = volume.allocation
    if allocation is not None and allocation >= capacity:  # all of it, not less than is rounded to
        allocation = max(allocation, whole)
    return replace(
        volume,
        type=VolumeType.BLOCK,
        path=f"{target}/{volume.name}",
        key=None,
        capacity=whole,
        allocation=allocation,
        format=THIN_POOL if volume.format == THIN_POOL else "raw",
        backing=backing,
    )


def wish(volume: VolumeDef, group: Group, *, filled: bool = False) -> Wish:
    """Return what is made for a request that `settle` has returned.

    :param filled: with so much data as is to be allocated: a sparse volume gets room for all.
    """
    room = _header_room(volume)
    size = whole_extents(volume.capacity + room, group.extent)
    space = volume.allocation or 0
    if space:
        space += room
    if volume.backing is not None:
        return _child(volume, group, size)
    if volume.format == THIN_POOL:
        return Wish(Kind.THIN_POOL, volume.name, size)
    if 0 < space < size:
        space += _table_of(space) if filled else 0
        return Wish(Kind.SPARSE, volume.name, size, whole_extents(space, group.extent))
    # Asked for nothing at all libvirt makes a snapshot that is lost with the first MiB written.
    return Wish(Kind.PLAIN, volume.name, size)


def _header_room(volume: VolumeDef) -> int:
    return HEADER_ROOM if volume.encryption is not None else 0


def _table_of(space: int) -> int:
    """Return what an old snapshot takes for its table beside so much data, in bytes."""
    return space // _ENTRIES + 2 * CHUNK


def _child(volume: VolumeDef, group: Group, size: int) -> Wish:
    """Return what is made of a volume with a backing store."""
    parent = planned_parent(volume, group)
    if parent.is_thin_pool:
        return Wish(Kind.THIN, volume.name, size, parent=parent.name)
    if parent.is_thin:
        return Wish(Kind.THIN_SNAPSHOT, volume.name, size, parent=parent.name)
    space = volume.allocation or volume.capacity
    return Wish(
        Kind.SNAPSHOT, volume.name, parent.capacity,
        whole_extents(space, group.extent), parent.name,
    )  # fmt: skip


def planned_parent(volume: VolumeDef, group: Group) -> LogicalVolume:
    """Return what a planned volume has as its backing store.

    :raise ConfigUnsupported: it has gone since.
    """
    assert volume.backing is not None  # noqa: S101 -- the caller has looked
    path = volume.backing.path
    return find_parent(path, group, path.rpartition("/")[0])


def whole_extents(size: int, extent: int) -> int:
    """Return a size rounded up to extents, in bytes."""
    return -(-size // extent) * extent if extent else size


def find_parent(path: str, group: Group, target: str) -> LogicalVolume:
    """Return the volume of the group that a path or a name means.

    :raise ConfigUnsupported: none.
    :raise OperationUnsupported: a snapshot of the old kind, which can have none itself.
    """
    name = _name_of(path, group, target)
    parent = group.volumes.get(name or "")
    if parent is None:
        raise ConfigUnsupported(
            f"backing volume '{path}' is not in volume group '{group.name}'",
            advice="A logical volume can be a snapshot of one of its own group only.",
        )
    if parent.is_snapshot:
        raise OperationUnsupported(
            f"volume '{parent.name}' is itself a snapshot: there are no snapshots of snapshots",
            advice="Volumes of a thin pool have them: make one with --backing-vol THINPOOL.",
        )
    return parent


def _name_of(path: str, group: Group, target: str) -> str | None:
    for prefix in (f"{target}/", f"{group.name}/"):
        if path.startswith(prefix) and "/" not in path[len(prefix) :]:
            return path[len(prefix) :]
    if "/" not in path:
        return path
    with suppress(OSError, ValueError):
        number = Path(path).stat().st_rdev
        node = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/name"
        mapped = Path(node).read_text().strip()
        return next(
            (name for name in group.volumes if mapped_name(group.name, name) == mapped), None
        )
    return None


def _check_free(name: str, group: Group, target: str) -> None:
    known = group.volumes.get(name)
    if known is None:
        return
    advice = None
    if known.state == "-":
        advice = f"It is not active, and so not listed: lvchange -ay {group.name}/{name}"
    if is_building(known.tags):
        advice = (
            "It is not whole, and so not listed. If nobody makes it any more:"
            f" lvremove {group.name}/{name}"
        )
    raise NameTaken(f"volume target path '{target}/{name}' already exists", advice=advice)


def _check_format(volume: VolumeDef) -> None:
    """Refuse a format that is none of a logical volume's, where somebody means it.

    An overlay is asked for with the format of a file; here that is a snapshot.
    """
    if volume.format not in (None, "raw", THIN_POOL) and volume.backing is None:
        raise ConfigUnsupported(
            f"logical volumes have no format '{volume.format}'",
            advice=f"They are raw; {THIN_POOL} makes a pool for thin volumes.",
        )
    if volume.format == THIN_POOL and volume.backing is not None:
        raise ConfigUnsupported("a thin pool has no backing volume")


def _check_encryption(volume: VolumeDef) -> None:
    encryption = volume.encryption
    if encryption is None:
        return
    if encryption.format != "luks":
        raise ConfigUnsupported(
            f"encryption format '{encryption.format}' is not supported for logical volumes",
            advice="luks is.",
        )
    if volume.format == THIN_POOL:
        raise ConfigUnsupported("a thin pool cannot be encrypted", advice="Its volumes can.")


def _snapshot_capacity(volume: VolumeDef, parent: LogicalVolume) -> int:
    """Return how long the device of a snapshot is.

    For a snapshot of the old kind libvirt takes the capacity as the space for changes.

    :raise ConfigUnsupported: it would have to be encrypted anew.
    :raise InvalidArgument: it would be smaller than a thin origin.
    """
    if volume.encryption is not None:
        raise ConfigUnsupported("a snapshot cannot be encrypted: it has the data of its origin")
    if not parent.is_thin:
        return volume.capacity or parent.capacity
    if 0 < volume.capacity < parent.capacity:
        raise InvalidArgument(
            f"a snapshot of {volume.capacity} bytes is smaller than its origin, which has"
            f" {parent.capacity}"
        )
    return max(volume.capacity, parent.capacity)
