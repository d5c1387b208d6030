"""Filters of pool lists."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

from storaged.traits import PoolType

if TYPE_CHECKING:
    from storaged.pool import PoolObject


class PoolFilter(IntFlag):
    """Which pools a list is to hold; the numbers are libvirt's.

    Bits of a group are alternatives; a group without a bit lets all pass.
    """

    INACTIVE = 1
    ACTIVE = 2
    PERSISTENT = 4
    TRANSIENT = 8
    AUTOSTART = 16
    NO_AUTOSTART = 32
    DIR = 64
    FS = 128
    NETFS = 256
    LOGICAL = 512
    DISK = 1024
    ISCSI = 2048
    SCSI = 4096
    MPATH = 8192
    RBD = 16384
    SHEEPDOG = 32768
    GLUSTER = 65536
    ZFS = 131072
    VSTORAGE = 262144
    ISCSI_DIRECT = 524288


#: Lets every pool pass.
ALL = PoolFilter(0)

_TYPE_BITS = {
    kind: PoolFilter[kind.name] for kind in PoolType
}  # the names of the members are the same
_ALL_TYPES = PoolFilter(sum(_TYPE_BITS.values()))


def passes(pool: PoolObject, wanted: PoolFilter) -> bool:
    """Tell whether a pool passes a filter."""
    info = pool.snapshot.info
    groups = (
        (PoolFilter.ACTIVE, PoolFilter.INACTIVE, info.active),
        (PoolFilter.PERSISTENT, PoolFilter.TRANSIENT, info.persistent),
        (PoolFilter.AUTOSTART, PoolFilter.NO_AUTOSTART, info.autostart),
    )
    for yes, no, holds in groups:
        if wanted & (yes | no) and not wanted & (yes if holds else no):
            return False
    if not wanted & _ALL_TYPES:
        return True
    kind = pool.snapshot.definition.type
    return kind in tuple(PoolType) and bool(wanted & _TYPE_BITS[PoolType(kind)])
