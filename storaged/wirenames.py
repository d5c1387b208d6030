"""The names of pools and volumes as the wire protocol has them, for both of its ends."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from storaged.facts import PoolRef, VolumeRef
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.traits import VolumeType

#: In the order of libvirt's numbers.
VOLUME_TYPES: Final = tuple(VolumeType)
#: libvirt's numbers of the types of volumes.
VOLUME_NUMBERS: Final = {kind: number for number, kind in enumerate(VOLUME_TYPES)}


def pool_record(ref: PoolRef) -> StoragePool:
    """Return what names a pool on the wire."""
    return StoragePool(ref.name, ref.uuid.bytes)


def pool_ref(pool: StoragePool) -> PoolRef:
    """Return the pool that a record names: its uuid decides."""
    return PoolRef(pool.name, UUID(bytes=pool.uuid))


def volume_record(ref: VolumeRef) -> StorageVol:
    """Return what names a volume on the wire."""
    return StorageVol(ref.pool.name, ref.name, ref.key)
