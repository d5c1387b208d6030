"""Volumes of the engine as the records of the protocol, and back."""

from __future__ import annotations

from storaged.driver import Driver
from storaged.model import VolumeInfo, VolumeRef
from storaged.rpc.storage import StorageVol, VolInfoRet
from storaged.wirenames import VOLUME_NUMBERS


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
    return VolInfoRet(VOLUME_NUMBERS[info.type], info.capacity, taken)
