"""Pool type logical: the logical volumes of an LVM volume group.

libvirt's behaviour, but for what it does badly: an odd volume never stops the pool, thin pools and
thin volumes are there, volumes can be resized, what others use is left alone, and nothing half made
is seen. All is asked of LVM in one command a refresh.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from storaged.backend import (
    Descriptor,
    DeviceEvent,
    Plugged,
    Refresh,
    WipeAlgorithm,
)
from storaged.backends._block import BlockVolumes, with_image
from storaged.backends._blockopen import discard_unit_of
from storaged.backends._lvmbuild import BuildsGroup, FindsGroups
from storaged.backends._lvmchange import ChangesVolumes, require_unneeded
from storaged.backends._lvmmake import MakesVolumes
from storaged.backends._lvmnames import is_mapped
from storaged.backends._lvmrecord import THIN_POOL, is_listed, record, records
from storaged.backends._lvmreport import Group, LogicalVolume
from storaged.errors import NoSpace, NoSuchVolume, OperationUnsupported, Unsupported
from storaged.job import Job
from storaged.model import Space, VolumeDef, VolumeRecord
from storaged.units import format_size

_SOURCE_FORMATS: Final = ("lvm2", "unknown")
#: What udev calls a physical volume.
_MEMBER: Final = "LVM2_member"


class Logical(
    MakesVolumes,
    ChangesVolumes,
    BuildsGroup,
    FindsGroups,
    BlockVolumes,
    Plugged,
):
    """A volume group; `start` activates its volumes."""

    descriptor: ClassVar[Descriptor] = Descriptor("logical", source_formats=_SOURCE_FORMATS)

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        group = self.report(job)
        if self.remove_abandoned(group, job):
            group = self.report(job)
        found = {
            name: with_image(one, known.get(name))
            for name, one in records(group, self.target).items()
        }
        space = Space(group.size, group.size - group.free, group.free)
        return Refresh(found, space, problems=self.group_problems(group))

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        if known is not None and not _fills_up(known):
            seen = self.look_at_device(known)
            if seen is not None and seen.capacity == known.capacity:
                return seen
        group = self.recent()
        found = group.volumes.get(name)
        if found is None or not is_listed(found):
            return None
        fresh = with_image(record(found, group, self.target), known)
        return self.look_at_device(fresh) or fresh

    def describe(self, record: VolumeRecord) -> VolumeDef:
        """See `LooksAtVolumes.describe`; a thin pool in use has no device that could be asked."""
        try:
            return super().describe(record)
        except NoSuchVolume:
            if record.name not in self.recent().volumes:
                raise
        extra: dict[str, Any] = dict(record.extra or {})
        return VolumeDef(
            name=record.name,
            capacity=record.capacity,
            allocation=record.allocation,
            physical=record.physical,
            format=record.format,
            type=record.type,
            key=record.key,
            path=record.path,
            backing=extra.get("backing"),
            extents=extra.get("extents", ()),
        )

    def is_same(self, volume: VolumeRecord, rdev: int) -> bool:
        """See `OpensDevices.is_same`: device-mapper knows the key of the volume."""
        path = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/dm/uuid")
        with suppress(OSError):
            return path.read_text().strip().endswith((volume.key or "").replace("-", ""))
        return False

    def discard_unit(self, volume: VolumeRecord) -> int:
        """See `OpensDevices.discard_unit`: a thin volume has no blocks where it was discarded."""
        found = self.recent().volumes.get(volume.name)
        if found is None or not found.is_thin:
            return 0
        with suppress(OSError):
            return discard_unit_of(Path(self.device_path(volume)).stat().st_rdev)
        return 0

    def allocation_of(self, known: VolumeRecord, size: int) -> int:
        """See `LooksAtDevices.allocation_of`: snapshots and thin volumes take less."""
        return known.allocation if size == known.capacity else size

    def open_device(
        self,
        volume: VolumeRecord,
        *,
        writable: bool = False,
        shared: bool = False,
        force: bool = False,
    ) -> int:
        """See `OpensDevices.open_device`.

        :raise OperationUnsupported: it is a thin pool, which holds the blocks of its volumes.
        """
        if volume.format == THIN_POOL:
            raise OperationUnsupported(
                f"volume '{volume.name}' is a thin pool: its bytes cannot be accessed"
            )
        return super().open_device(volume, writable=writable, shared=shared, force=force)

    def wipe(
        self,
        volume: VolumeRecord,
        algorithm: WipeAlgorithm,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        """Overwrite a volume.

        :raise Unsupported: it is a snapshot, or sparse; libvirt's text.
        :raise OperationInvalid: it has snapshots, into which all that it holds would be copied.
        :raise NoSpace: its thin pool has no space for a volume that is written in full.
        """
        group = self.report(job)
        found = group.volumes.get(volume.name)
        if found is not None:
            if found.is_snapshot:
                raise Unsupported(
                    f"logical volume '{volume.path}' is sparse, volume wipe not supported"
                )
            require_unneeded(found, group, "wiped", force=force)
            if found.is_thin and algorithm is not WipeAlgorithm.TRIM:
                _require_room(found, group)
        self.forget()
        return super().wipe(volume, algorithm, job, force=force)

    def concerns(self, event: DeviceEvent) -> bool:
        """Tell whether a device is a volume of the group, or one of its physical volumes."""
        name = event.properties.get("DM_NAME", "")
        if name:
            return is_mapped(name, self.group)
        ours = {device.path for device in self.definition.source.devices}
        if ours & {event.name, *event.links}:
            return True
        return not ours and event.properties.get("ID_FS_TYPE") == _MEMBER


def _fills_up(volume: VolumeRecord) -> bool:
    """Tell whether LVM has to be asked how full a volume is."""
    return volume.format == THIN_POOL or "data_percent" in (volume.extra or ())


def _require_room(volume: LogicalVolume, group: Group) -> None:
    """Refuse to write a thin volume in full where its pool cannot hold that."""
    free = group.free_in(volume.pool)
    if free is None or volume.data is None:
        return
    wanted = int(volume.size * (100 - volume.data) / 100)
    if wanted > free:
        raise NoSpace(
            f"Not enough space left in storage pool: writing all of thin volume '{volume.name}'"
            f" takes {format_size(wanted)}, and thin pool '{volume.pool}' has {format_size(free)}",
            advice="Discarding takes none: --algorithm trim.",
        )
