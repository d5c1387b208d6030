"""What a pool tells of the volumes of a group: records, extents, what is wrong with one.

Source: libvirt's behaviour for capacity, allocation, key, backing store and extents. libvirt drops
thin pools and thin volumes; what is told of these is ours.
"""

from __future__ import annotations

from typing import Final

from storaged.backends._blockopen import device_stamp
from storaged.backends._lvmnames import is_building
from storaged.backends._lvmreport import Group, LogicalVolume
from storaged.model import BackingStore, SourceExtent, VolumeRecord, VolumeType

#: What a thin pool has as its format: no data of its own can be read or written.
THIN_POOL: Final = "thin-pool"
#: From so much on, in percent, one should do something about a pool or a snapshot.
FULL: Final = 80.0

_STATES: Final = {
    "s": "it is suspended: whoever reads or writes it waits",
    "I": "it is invalid: its space for changes was used up, and what it kept is lost",
    "S": "it is invalid and suspended: its space for changes was used up",
    "m": "merging it into its origin failed",
    "M": "merging it into its origin failed, and it is suspended",
    "d": "its device has no table",
    "i": "its device has a table that is not in use",
    "c": "its metadata need a check: lvconvert --repair",
    "C": "its metadata need a check, and it is suspended: lvconvert --repair",
    "X": "device-mapper does not tell its state",
}
_HEALTH: Final = {
    "partial": "physical volumes that it lies on are missing",
    "refresh needed": "a device of it was away: lvchange --refresh",
    "mismatches exist": "its copies differ: lvchange --syncaction repair",
    "failed": "its thin pool has failed",
    "out_of_data": "its thin pool has no space for data left",
    "metadata_read_only": "the metadata of its thin pool cannot be written",
}


def records(group: Group, target: str) -> dict[str, VolumeRecord]:
    """Return the volumes to list, by name.

    As in libvirt those that are not active are left out; and those that are not whole yet.
    """
    return {
        name: record(one, group, target) for name, one in group.volumes.items() if is_listed(one)
    }


def is_listed(volume: LogicalVolume) -> bool:
    """Tell whether a volume is one for others."""
    return volume.is_active and not is_building(volume.tags)


def record(volume: LogicalVolume, group: Group, target: str) -> VolumeRecord:
    """Return what the pool knows of a volume.

    :param target: the directory of the group's devices.
    """
    extra: dict[str, object] = {"extents": extents(volume, group.extent)}
    if volume.origin is not None:
        extra["backing"] = BackingStore(f"{target}/{volume.origin}")
    used = (("data_percent", volume.data), ("metadata_percent", volume.metadata))
    extra |= {key: value for key, value in used if value is not None}
    return VolumeRecord(
        name=volume.name,
        capacity=volume.capacity,
        allocation=allocation(volume),
        physical=volume.capacity,
        format=THIN_POOL if volume.is_thin_pool else "raw",
        type=VolumeType.BLOCK,
        stamp=b"" if volume.device is None else device_stamp(volume.device, volume.capacity),
        key=volume.uuid,
        path=f"{target}/{volume.name}",
        problem="; ".join(problems(volume, group)) or None,
        extra=extra,
    )


def allocation(volume: LogicalVolume) -> int:
    """Return how much space a volume takes, in bytes: of a thin one, what it has data for."""
    if volume.is_thin:
        return min(int(volume.size * (volume.data or 0) / 100), volume.size)
    return volume.size


def extents(volume: LogicalVolume, size: int) -> tuple[SourceExtent, ...]:
    """Return where a volume lies, as libvirt has it.

    Each device of a striped, mirrored or raid segment gets the length of all of the segment.

    :param size: of an extent of the group, in bytes.
    """
    found = []
    for segment in volume.segments:
        several = segment.type in ("striped", "mirror") or segment.type.startswith("raid")
        count = segment.stripes if several else 1
        for path, first in segment.devices[:count]:
            start = first * size
            found.append(SourceExtent(path, start, start + segment.size))
    return tuple(found)


def problems(volume: LogicalVolume, group: Group) -> list[str]:
    """Return what is wrong with a volume, in words."""
    found = []
    if volume.state != "a":
        found.append(_STATES.get(volume.state, f"it is in a state of its own: '{volume.state}'"))
    health = volume.health
    if not health and volume.attributes[8] == "p":
        health = "partial"
    if health and not (health == "unknown" and volume.state == "X"):
        found.append(_HEALTH.get(health, f"LVM says of it: {health}"))
    found += _fullness(volume)
    return found


def _fullness(volume: LogicalVolume) -> list[str]:
    """Return what is nearly used up, in words."""
    found = []
    if volume.is_thin_pool:
        for what, used in (("data", volume.data), ("metadata", volume.metadata)):
            if used is not None and used >= FULL:
                found.append(
                    f"{used:g} % of its space for {what} are used; when it is full, writes to its"
                    " volumes fail"
                )
    elif volume.is_snapshot and volume.data is not None and volume.data >= FULL:
        found.append(
            f"{volume.data:g} % of its space for changes are used; when it is full, it is lost"
        )
    return found


def group_problems(group: Group) -> tuple[str, ...]:
    """Return what is wrong with a group, in words."""
    missing = group.missing
    found = list(group.odd)
    if missing:
        what = "a physical volume is" if len(missing) == 1 else f"{len(missing)} devices are"
        found.insert(0, f"volume group '{group.name}': {what} missing: {', '.join(missing)}")
    return tuple(found)
