"""Logical volumes are removed, and change their size."""

from __future__ import annotations

from typing import Any

from storaged import udev
from storaged.backend import DeletesVolumes, Resizes
from storaged.backends import _lvmtool
from storaged.backends._lvmgroup import HoldsGroup, in_words, require_idle
from storaged.backends._lvmplan import whole_extents
from storaged.backends._lvmrecord import THIN_POOL, record
from storaged.backends._lvmreport import Group, LogicalVolume
from storaged.errors import (
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
)
from storaged.job import Job
from storaged.model import VolumeRecord


class ChangesVolumes(HoldsGroup, DeletesVolumes, Resizes):
    """Volumes are removed, grow and shrink; what others need or use is not touched."""

    def delete(self, volume: VolumeRecord, job: Job[Any], *, force: bool = False) -> None:
        """Remove a volume.

        :param force: with all of its snapshots, or all volumes of a thin pool, which libvirt
            removes in any case.
        :raise OperationInvalid: it has such; the text names them. Or another volume has its name.
        :raise VolumeBusy: it, or what is lost with it, is mounted, or open otherwise; no force
            helps there.
        """
        group = self.report(job)
        found = group.volumes.get(volume.name)
        if found is None:
            return
        require_same(found, volume)
        require_unneeded(found, group, "deleted", force=force)
        for name in group.lost_with(volume.name):  # before LVM removes the idle ones among them
            if name in group.volumes:
                require_idle(group.volumes[name], group, "deleted")
        udev.settle(job=job)
        job.checkpoint()
        try:
            _lvmtool.remove(self.group, found.name, found.uuid, job)
        finally:
            self.forget()

    def resize(
        self,
        volume: VolumeRecord,
        capacity: int,
        job: Job[Any],
        *,
        allocate: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
    ) -> VolumeRecord:
        """Set the capacity, rounded up to whole extents.

        :param allocate: all of a plain volume is allocated in any case; of a thin one nothing.
        :param force: make it smaller although somebody has it open.
        :param secret: not needed: the disk in a container ends where its device does.
        :raise OperationUnsupported: a snapshot of the old kind; the space of a thin volume.
        :raise VolumeBusy: smaller, and somebody has it open.
        :raise NoSpace: the group has too little left.
        """
        group = self.report(job)
        found = group.volumes.get(volume.name)
        if found is None:
            raise NoSuchVolume(f"no storage vol with matching path '{volume.path}'")
        require_same(found, volume)
        wanted = whole_extents(capacity, group.extent)
        _check_resize(found, group, wanted, allocate=allocate, shrink=shrink)
        place = f"{self.group}/{volume.name}"
        if wanted > found.size:
            _lvmtool.change(("lvextend", "-L", f"{wanted}b", place), job)
        elif wanted < found.size:
            if not force:
                require_idle(found, group, "made smaller")
            _lvmtool.change(("lvreduce", "-f", "-L", f"{wanted}b", place), job)
        else:
            return record(found, group, self.target)
        udev.settle(job=job)
        group = self.report(job)
        found = group.volumes.get(volume.name, found)
        return record(found, group, self.target)


def require_same(found: LogicalVolume, volume: VolumeRecord) -> None:
    """Refuse work on a volume that has the name of the one that was meant, and is another.

    :raise OperationInvalid: it does not have the same key.
    """
    if volume.key not in (None, found.uuid):
        raise OperationInvalid(
            f"logical volume '{found.name}' is another one by now",
            advice="Refresh the pool, and look at it again.",
        )


def require_unneeded(found: LogicalVolume, group: Group, doing: str, *, force: bool) -> None:
    """Refuse work on a volume that would cost others their data.

    :param doing: what was to be done to it, such as ``deleted``.
    :raise OperationInvalid: naming them.
    """
    if force:
        return
    for names, what in (
        (group.snapshots_of(found.name), "snapshots"),
        (group.within(found.name), "thin volumes"),
    ):
        if names:
            raise OperationInvalid(
                f"volume '{found.name}' cannot be {doing}: it has {what}: {in_words(names)}",
                advice=f"They would be lost with it. If that is meant: --force; else delete them"
                f" one by one: storagectl vol delete {names[0]} --pool {group.name}",
            )


def _check_resize(
    found: LogicalVolume, group: Group, wanted: int, *, allocate: bool, shrink: bool
) -> None:
    """Refuse what LVM cannot do, or nobody means."""
    if not wanted:
        raise InvalidArgument("a logical volume cannot be empty")
    if found.is_snapshot:
        raise OperationUnsupported(
            f"volume '{found.name}' is a snapshot: it is as large as its origin",
            advice=f"Its space for changes grows with: lvextend -L +1G {group.name}/{found.name}",
        )
    if allocate and found.is_thin:
        raise OperationUnsupported(
            f"volume '{found.name}' is thin: its space is allocated when it is written"
        )
    if wanted < found.size:
        if not shrink:
            raise InvalidArgument(
                "Can't shrink capacity below current capacity unless shrink flag explicitly "
                "specified"
            )
        if found.is_thin_pool:
            raise OperationUnsupported(f"{THIN_POOL} '{found.name}' cannot be made smaller")
