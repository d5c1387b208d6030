"""The engine's values as the records of the protocol, and back."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from storaged.driver import Driver
from storaged.model import PoolRef, VolumeInfo, VolumeRef, VolumeType
from storaged.rpc.storage import StoragePool, StorageVol, VolInfoRet

#: The numbers of the types of volumes.
VOLUME_TYPES: Final = {
    VolumeType.FILE: 0,
    VolumeType.BLOCK: 1,
    VolumeType.DIR: 2,
    VolumeType.NETWORK: 3,
    VolumeType.NETDIR: 4,
    VolumeType.PLOOP: 5,
}


def pool_record(ref: PoolRef) -> StoragePool:
    """Return what names a pool on the wire."""
    return StoragePool(ref.name, ref.uuid.bytes)


def pool_ref(pool: StoragePool) -> PoolRef:
    """Return the pool that a client names: its uuid decides."""
    return PoolRef(pool.name, UUID(bytes=pool.uuid))


def volume_record(ref: VolumeRef) -> StorageVol:
    """Return what names a volume on the wire."""
    return StorageVol(ref.pool.name, ref.name, ref.key)


def volume_ref(driver: Driver, vol: StorageVol) -> VolumeRef:
    """Return the volume that a client names: the names of its pool and its own decide.

    :raise NoSuchPool: there is no such pool; whether there is the volume is not looked at.
    """
    return VolumeRef(driver.pool_lookup_by_name(vol.pool), vol.name, vol.key)


def volume_info(info: VolumeInfo, *, physical: bool = False) -> VolInfoRet:
    """Return the figures of a volume.

    :param physical: put what the volume takes up in the place of its allocation.
    """
    taken = info.physical if physical else info.allocation
    return VolInfoRet(VOLUME_TYPES[info.type], info.capacity, taken)
