"""What a volume group holds, asked of LVM in one command, as values.

A row that makes no sense costs that row alone: what is wrong with it is told in words.

Source: lvs(8), vgs(8) and pvs(8) for the fields, "lv_attr" for its characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from storaged.backends import _lvmtool
from storaged.errors import CommandFailed, ConfigUnsupported
from storaged.job import Job

_GROUP_FIELDS: Final = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_missing_pv_count"
_DEVICE_FIELDS: Final = "pv_name,pv_uuid,pv_missing"
_VOLUME_FIELDS: Final = (
    "lv_uuid,lv_name,lv_attr,lv_size,origin,origin_size,pool_lv,lv_tags,"
    "data_percent,metadata_percent,lv_health_status,lv_kernel_major,lv_kernel_minor"
)
_SEGMENT_FIELDS: Final = "lv_uuid,segtype,stripes,seg_size,devices"

#: One command for all: the group, its devices, its volumes and their segments.
_FIELDS: Final = (
    *("--configreport", "vg", "-o", _GROUP_FIELDS),
    *("--configreport", "pv", "-o", _DEVICE_FIELDS),
    *("--configreport", "lv", "-o", _VOLUME_FIELDS),
    # the report has this section in any case: as few rows of it as can be
    *("--configreport", "pvseg", "-o", "pvseg_start", "-S", "pvseg_start=0"),
    *("--configreport", "seg", "-o", _SEGMENT_FIELDS),
)

_DEVICE: Final = re.compile(r"(.+?)\((\d+)\)(?:,|$)")
_NOT_FOUND: Final = re.compile(r'Volume group ".*" not found')
#: A device that is not there has no name; where it was last is only said in a warning.
_LAST_SEEN: Final = re.compile(r"missing PV (\S+) \(last written to (.+?)\)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a volume.

    :param size: in bytes, of all of it.
    :param devices: what it lies on and the first extent there; parts of the group may be named.
    """

    type: str
    stripes: int
    size: int
    devices: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A volume of the group; sizes in bytes.

    :param attributes: the ten characters of ``lv_attr``.
    :param origin: the volume it is a snapshot of; None where there is none to be seen.
    :param origin_size: the capacity of a snapshot of the old kind, and of a volume that has one.
    :param pool: the thin pool it lies in.
    :param data: how full it is, in percent; None where that is not said.
    :param health: LVM's word for what is wrong with it, empty if nothing is.
    :param device: the number of its device, as in ``st_rdev``; None if LVM does not tell it. Of
        an origin and of a thin pool it tells another's.
    """

    name: str
    uuid: str
    attributes: str
    size: int
    origin: str | None = None
    origin_size: int | None = None
    pool: str | None = None
    tags: tuple[str, ...] = ()
    data: float | None = None
    metadata: float | None = None
    health: str = ""
    device: int | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def kind(self) -> str:
        """The type of volume: ``t`` thin pool, ``V`` thin volume, ``s`` snapshot, ``-`` plain."""
        return self.attributes[0]

    @property
    def is_thin_pool(self) -> bool:
        """Whether it is a thin pool: others take their space from it."""
        return self.kind == "t"

    @property
    def is_thin(self) -> bool:
        """Whether it lies in a thin pool."""
        return self.kind == "V" and self.pool is not None

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot of the old kind, which keeps the blocks that changed."""
        return self.kind in "sS"

    @property
    def state(self) -> str:
        """The character of its state: ``a`` active, ``-`` not, ``X`` unknown, others are odd."""
        return self.attributes[4]

    @property
    def is_active(self) -> bool:
        """Whether there is a device for it."""
        return self.state not in "-h"

    @property
    def is_asleep(self) -> bool:
        """Whether it is not active, though it is to be when its group is."""
        return self.state == "-" and self.attributes[9:] != "k"

    @property
    def is_open(self) -> bool:
        """Whether somebody has its device open."""
        return self.attributes[5] == "o"

    @property
    def is_zeroing(self) -> bool:
        """Whether a thin pool gives out its blocks as zeros: else with what others left in them."""
        return self.attributes[7] == "z"

    @property
    def capacity(self) -> int:
        """Return how long its device is, in bytes."""
        if self.is_snapshot and self.origin_size:
            return self.origin_size
        return self.size


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group at one moment; sizes in bytes.

    :param devices: the names of its physical volumes, without those that are missing.
    :param missing: the physical volumes that are not there, in words.
    :param volumes: all but those that LVM keeps for itself, by name.
    :param odd: what could not be understood, in words.
    """

    name: str
    uuid: str
    size: int
    free: int
    extent: int
    devices: tuple[str, ...]
    missing: tuple[str, ...]
    volumes: Mapping[str, LogicalVolume]
    odd: tuple[str, ...] = ()

    def snapshots_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the volumes that are lost with a volume.

        Those are its old snapshots, and thin volumes of which it is the external origin; a thin
        snapshot of a thin volume of the same pool stands for itself.
        """
        origin = self.volumes.get(name)
        pool = None if origin is None else origin.pool
        return tuple(
            one.name
            for one in self.volumes.values()
            if one.origin == name and (one.is_snapshot or one.pool != pool)
        )

    def within(self, name: str) -> tuple[str, ...]:
        """Return the names of the volumes of a thin pool."""
        return tuple(one.name for one in self.volumes.values() if one.pool == name)

    def lost_with(self, name: str) -> tuple[str, ...]:
        """Return the names of all volumes that are lost with a volume, and its own."""
        lost = [name]
        for one in lost:
            hanging = (*self.snapshots_of(one), *self.within(one))
            lost += (each for each in hanging if each not in lost)
        return tuple(lost)

    def free_in(self, pool: str | None) -> int | None:
        """Return how many bytes of data a thin pool has room for, None if that is not said."""
        found = self.volumes.get(pool or "")
        if found is None or found.data is None:
            return None
        return int(found.size * (100 - found.data) / 100)


def report(group: str, job: Job[Any] | None = None) -> Group:
    """Return what a group holds.

    :raise ConfigUnsupported: there is no such group; with libvirt's text.
    :raise StorageError: LVM cannot tell.
    """
    try:
        sections, output = _lvmtool.ask(("fullreport", *_FIELDS, group), job)
    except CommandFailed as err:
        if _NOT_FOUND.search(err.stderr):
            raise unknown_group(group) from err
        raise
    rows = sections.get("vg") or ()
    if not rows:
        raise unknown_group(group)
    found = parse(rows[0], sections, output.stderr)
    if output.status:
        found = replace(found, odd=(*found.odd, f"LVM says: {_lvmtool.reason(output.stderr)}"))
    return found


def unknown_group(group: str) -> ConfigUnsupported:
    """Return libvirt's error for a group that is not there."""
    return ConfigUnsupported(
        f"cannot find logical volume group name '{group}'",
        advice="See what there is with: vgs. A new one is made by: storagectl pool build.",
    )


def parse(head: Mapping[str, str], sections: Mapping[str, Any], warnings: str) -> Group:
    """Return a group.

    :param head: the row of the group.
    :param sections: ``pv``, ``lv`` and ``seg`` of a full report.
    :param warnings: what LVM said beside it.
    """
    odd: list[str] = []
    segments = _segments(sections.get("seg") or (), odd)
    volumes: dict[str, LogicalVolume] = {}
    for row in sections.get("lv") or ():
        try:
            one = _volume(row, tuple(segments.get(row["lv_uuid"], ())))
        except (KeyError, ValueError, TypeError, AttributeError) as err:
            odd.append(f"logical volume {_named(row)} is not understood: {err!r}")
        else:
            volumes[one.name] = one
    devices = [row for row in sections.get("pv") or () if isinstance(row, dict)]
    return Group(
        name=head.get("vg_name", ""),
        uuid=head.get("vg_uuid", ""),
        size=_number(head.get("vg_size"), "the size of the group", odd),
        free=_number(head.get("vg_free"), "the free space of the group", odd),
        extent=_number(head.get("vg_extent_size"), "the extent size of the group", odd),
        devices=tuple(row.get("pv_name", "") for row in devices if not row.get("pv_missing")),
        missing=tuple(_missing(devices, warnings)),
        volumes=volumes,
        odd=tuple(odd),
    )


def _volume(row: Mapping[str, str], segments: tuple[Segment, ...]) -> LogicalVolume:
    name, attributes = row["lv_name"], row["lv_attr"]
    if not name or len(attributes) < 9 or not row["lv_uuid"]:
        raise ValueError(f"no name, key or attributes: {attributes!r}")
    origin, size = row.get("origin", ""), row.get("origin_size", "")
    return LogicalVolume(
        name=name,
        uuid=row["lv_uuid"],
        attributes=attributes,
        size=int(row["lv_size"]),
        # one in brackets is LVM's own, as of a snapshot without an origin
        origin=None if not origin or origin.startswith("[") else origin,
        origin_size=int(size) if size else None,
        pool=row.get("pool_lv") or None,
        tags=tuple(filter(None, row.get("lv_tags", "").split(","))),
        data=_percent(row.get("data_percent")),
        metadata=_percent(row.get("metadata_percent")),
        health=row.get("lv_health_status", ""),
        device=_device(row) if attributes[0] not in "oOtT" else None,
        segments=segments,
    )


def _segments(rows: Iterable[Mapping[str, str]], odd: list[str]) -> dict[str, list[Segment]]:
    """Return the segments of all volumes by the key of the volume."""
    found: dict[str, list[Segment]] = {}
    for row in rows:
        try:
            one = Segment(
                type=row["segtype"],
                stripes=int(row["stripes"]),
                size=int(row["seg_size"]),
                devices=tuple(
                    (path, int(extent)) for path, extent in _DEVICE.findall(row["devices"])
                ),
            )
            found.setdefault(row["lv_uuid"], []).append(one)
        except (KeyError, ValueError, TypeError, AttributeError) as err:
            odd.append(f"a segment of logical volume {_named(row)} is not understood: {err!r}")
    return found


def _named(row: object) -> str:
    if not isinstance(row, dict):
        return repr(row)[:40]
    return repr(str(row.get("lv_name") or row.get("lv_uuid") or "without a name"))


def _number(text: str | None, what: str, odd: list[str]) -> int:
    try:
        return int(text or "")
    except ValueError:
        odd.append(f"{what} is not told: {text!r}")
        return 0


def _device(row: Mapping[str, str]) -> int | None:
    major, minor = row.get("lv_kernel_major", ""), row.get("lv_kernel_minor", "")
    if major.isdecimal() and minor.isdecimal():
        return os.makedev(int(major), int(minor))
    return None


def _percent(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _missing(devices: Iterable[Mapping[str, str]], warnings: str) -> Iterable[str]:
    """Yield what is known of the physical volumes that are not there."""
    last_seen = dict(_LAST_SEEN.findall(warnings))
    for row in devices:
        if row.get("pv_missing"):
            uuid = row.get("pv_uuid", "")
            was = last_seen.get(uuid)
            yield f"{uuid} (it was {was})" if was else uuid
