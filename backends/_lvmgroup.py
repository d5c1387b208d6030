"""Volume groups: made, activated, deactivated, removed, found.

What of a group others use, such as the host's own root file system, is none of the pool's business:
it is left active at a stop, and named.
"""

from __future__ import annotations

import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from storaged import udev
from storaged.backend import Backend, Builds, FindsSources, Host
from storaged.backends import _lvmtool
from storaged.backends._inuse import require_unused
from storaged.backends._lvmnames import check_name, is_abandoned
from storaged.backends._lvmreport import Group, LogicalVolume, report
from storaged.errors import (
    CommandFailed,
    ConfigUnsupported,
    OperationFailed,
    OperationInvalid,
    StorageError,
    VolumeBusy,
)
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, SourceDevice

#: What blkid calls a physical volume.
_MEMBER: Final = "LVM2_member"
#: The format of the sources that are found.
_FORMAT: Final = "lvm2"
#: Activating thousands of volumes takes its time, in seconds.
_ACTIVATING: Final = 600.0
#: So many volumes go into one command.
_MANY: Final = 500
#: So many are named in a message.
_NAMED: Final = 5
#: How long one report answers looks at many volumes, in seconds.
_FRESH: Final = 1.0


class HoldsGroup(Backend):
    """The pool is a volume group: `group` is its name, `target` the directory of its devices."""

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        self.group = definition.source.name or definition.name
        self.target = definition.target or f"/dev/{self.group}"
        self._left: tuple[str, ...] = ()
        #: the last report and when it was asked for; replaced as a whole
        self._recent: tuple[float, Group] | None = None

    def report(self, job: Job[Any] | None = None) -> Group:
        """Return what the group holds now.

        :raise ConfigUnsupported: there is no such group.
        """
        # "-y", "--all" and "@tag" would be words for other groups, or for all of them
        check_name(self.group, "volume group")
        asked = time.monotonic()
        found = report(self.group, job)
        self._recent = asked, found
        return found

    def recent(self) -> Group:
        """Return what the group held a second ago at most, so that many looks cost one command."""
        recent = self._recent
        if recent is not None and time.monotonic() - recent[0] < _FRESH:
            return recent[1]
        return self.report()

    def forget(self) -> None:
        """Have the next look ask anew, because we changed something."""
        self._recent = None

    def matched(self, job: Job[Any] | None = None) -> Group:
        """Return what the group holds, if it is the one that the pool means.

        :raise ConfigUnsupported: there is none, or none of the pool's devices belongs to it; with
            libvirt's texts.
        """
        found = self.report(job)
        wanted = [device.path for device in self.definition.source.devices]
        if wanted and not found.missing and not _any_same(wanted, found.devices):
            raise ConfigUnsupported(
                f"cannot find any matching source devices for logical volume group '{self.group}'",
                advice=f"It lies on {', '.join(found.devices)}.",
            )
        return found

    def check(self) -> bool:
        """Tell whether the group is there and a volume of it is active.

        The directory of its devices alone, which libvirt looks for, may be left over.
        """
        try:
            return any(one.state not in "-h" for one in self.matched().volumes.values())
        except ConfigUnsupported:
            return False

    def start(self, job: Job[Any]) -> None:
        """Activate the volumes of the group, but for those that are to be skipped.

        What a dead process of this host left half made is removed first. With physical volumes
        missing those volumes are activated that can be.

        :raise ConfigUnsupported: there is no such group, or it is another.
        """
        self._left = ()
        group = self.matched(job)
        self.remove_abandoned(group, job)
        try:
            _lvmtool.change(("vgchange", "-aly", self.group), job, timeout=_ACTIVATING)
        except CommandFailed:
            if not group.missing:
                raise
        udev.settle(job=job)

    def stop(self, job: Job[Any]) -> None:
        """Deactivate the volumes of the group that nobody uses; `remains` tells the others.

        :raise CommandFailed: one that nobody uses stays active.
        """
        self._left = ()
        self.forget()
        try:
            group = self.matched(job)
        except ConfigUnsupported:
            return  # one that is gone has nothing that is active, and another one is not ours
        active = [one for one in group.volumes.values() if one.state not in "-h"]
        used = _in_use(group)
        # a snapshot is active with its origin
        alone = (one for one in active if not (one.is_snapshot and one.origin is not None))
        idle = [one.name for one in alone if one.name not in used]
        failed = self._deactivate(idle, all_of_them=not used, job=job)
        if failed is not None or used:
            after = self.report(job)
            self._left = tuple(sorted(_in_use(after)))
            idle = [name for name in idle if _is_active(after, name) and name not in self._left]
        if failed is not None and idle:
            raise failed
        self.forget()

    def remains(self) -> str | None:
        if not self._left:
            return None
        return f"still active, because somebody else has them in use: {in_words(self._left)}"

    def _deactivate(
        self, names: list[str], *, all_of_them: bool, job: Job[Any]
    ) -> StorageError | None:
        """Deactivate volumes; return what LVM said if it could not with all."""
        failed: StorageError | None = None
        commands: list[tuple[str, ...]] = [("vgchange", "-aln", self.group)]
        if not all_of_them:
            paths = [f"{self.group}/{name}" for name in names]
            batches = (paths[start : start + _MANY] for start in range(0, len(paths), _MANY))
            commands = [("lvchange", "-aln", *batch) for batch in batches]
        for command in commands:
            try:
                _lvmtool.change(command, job, timeout=_ACTIVATING)
            except (CommandFailed, VolumeBusy) as err:
                failed = err
        return failed

    def remove_abandoned(self, group: Group, job: Job[Any]) -> None:
        """Remove what a process of this host had not ended when it died; try, at least."""
        for one in group.volumes.values():
            if is_abandoned(one.tags, self.host.id):
                with suppress(CommandFailed, VolumeBusy):
                    _lvmtool.change(("lvremove", "-f", f"{self.group}/{one.name}"), job)
                self.forget()


class BuildsGroup(HoldsGroup, Builds):
    """`build` makes physical volumes of the pool's devices, and the group of these."""

    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        """Make the group.

        One that is there on the pool's devices is left as it is where nothing is asked for. All
        that was made is undone if a step fails.

        :raise ConfigUnsupported: the pool has no devices.
        :raise PoolBuilt: a device holds something, and it is not to be overwritten.
        """
        check_name(self.group, "volume group")
        devices = [device.path for device in self.definition.source.devices]
        if overwrite is None and self._is_built(job):
            return
        if not devices:
            raise ConfigUnsupported(
                f"pool '{self.definition.name}' has no source devices to make volume group"
                f" '{self.group}' of"
            )
        from storaged.backends import _signatures

        for path in devices:
            require_unused(path)
        if not overwrite:  # all of them, before anything is changed
            spare = _spare_devices(job) if overwrite is None else frozenset()
            for path in devices:
                if _number(path) not in spare:
                    _signatures.check_empty(path, _MEMBER, job)
        made: list[str] = []
        try:
            for path in devices:
                _signatures.zero_ends(path)
                _lvmtool.change(("pvcreate", path), job)
                made.append(path)
            _lvmtool.change(("vgcreate", self.group, *devices), job)
        except BaseException:
            _remove_devices(made)
            raise
        finally:
            self.forget()

    def _is_built(self, job: Job[Any]) -> bool:
        """Tell whether the group is there already.

        :raise ConfigUnsupported: it is, on other devices.
        """
        try:
            self.report(job)
        except ConfigUnsupported:
            return False
        self.matched(job)
        return True

    def delete_target(self, job: Job[Any]) -> None:
        """Remove the group and its physical volumes. libvirt removes the volumes with it.

        :raise OperationFailed: it holds volumes.
        :raise CommandFailed: LVM refused; all devices have been tried.
        """
        group = self.matched(job)
        if group.odd:
            raise OperationFailed(
                f"failed to remove pool '{self.target}': not all that volume group '{self.group}'"
                f" holds could be understood",
                advice=f"See for yourself what it is: lvs -a {self.group}",
            )
        if group.volumes:
            raise OperationFailed(
                f"failed to remove pool '{self.target}': volume group '{self.group}' holds"
                f" {len(group.volumes)} logical volumes",
                advice=f"They are {in_words(sorted(group.volumes))}. Delete them first.",
            )
        devices = [device.path for device in self.definition.source.devices]
        # it is not told "yes": a volume that was made since is to stop it
        _lvmtool.change(("vgremove", self.group), job, sure=False)
        self.forget()
        failed = _remove_devices(devices)
        if failed is not None:
            raise failed


class FindsGroups(FindsSources):
    """The groups of this host are the sources."""

    @classmethod
    def find_sources(cls, spec: PoolSource | None, host: Host) -> tuple[PoolSource, ...]:
        """Return every volume group with the devices that are there; *spec* does not count."""
        sections, _ = _lvmtool.ask(("pvs", "-o", "pv_name,vg_name,pv_missing"))
        groups: dict[str, list[SourceDevice]] = {}
        for row in sections.get("pv", ()):
            name, path = row.get("vg_name"), row.get("pv_name")
            if name and path and not row.get("pv_missing"):
                groups.setdefault(name, []).append(SourceDevice(path))
        return tuple(
            PoolSource(devices=tuple(devices), name=name, format=_FORMAT)
            for name, devices in groups.items()
        )


def in_words(names: tuple[str, ...] | list[str]) -> str:
    """Return the first few of some names as text."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def require_idle(volume: LogicalVolume, group: Group, doing: str) -> None:
    """Refuse work on a volume that somebody has open.

    :param doing: what was to be done to it, such as ``deleted``.
    :raise VolumeBusy: LVM says that it is open.
    """
    if volume.is_open and not group.within(volume.name):
        raise VolumeBusy(
            f"volume '{volume.name}' is in use and cannot be {doing}",
            advice=f"See who has it: fuser -vm /dev/{group.name}/{volume.name}; "
            f"lsblk /dev/{group.name}/{volume.name}",
        )


def require_volume(group: Group, name: str) -> LogicalVolume:
    """Return a volume of a group.

    :raise OperationInvalid: there is none of the name by now.
    """
    found = group.volumes.get(name)
    if found is None:
        raise OperationInvalid(f"volume group '{group.name}' has no logical volume '{name}'")
    return found


def _in_use(group: Group) -> set[str]:
    """Return the names of the active volumes that cannot be deactivated.

    These are those that are open, what these lie in, and what these are snapshots of.
    """
    used: set[str] = set()
    for one in group.volumes.values():
        if one.state in "-h" or not one.is_open or one.is_thin_pool:
            continue
        used.add(one.name)
        if one.pool is not None:
            used.add(one.pool)
        if one.is_snapshot and one.origin is not None:
            used.add(one.origin)
    return used


def _is_active(group: Group, name: str) -> bool:
    found = group.volumes.get(name)
    return found is not None and found.state not in "-h"


def _remove_devices(paths: list[str]) -> StorageError | None:
    """Undo pvcreate on each device; return the first refusal."""
    failed: StorageError | None = None
    for path in paths:
        try:
            _lvmtool.change(("pvremove", path))
        except StorageError as err:
            failed = failed or err
    return failed


def _spare_devices(job: Job[Any]) -> frozenset[int | None]:
    """Return the numbers of the physical volumes that no group has or had, so far as they tell.

    Such is what a build leaves that was killed.
    """
    sections, _ = _lvmtool.ask(("pvs", "-o", "pv_name,vg_name,pv_in_use"), job)
    rows = sections.get("pv", ())
    free = (row["pv_name"] for row in rows if not row["vg_name"] and not row["pv_in_use"])
    return frozenset(map(_number, free)) - {None}


def _any_same(wanted: list[str], there: tuple[str, ...]) -> bool:
    """Tell whether two lists have a device in common, by name or by what the names lead to."""
    if set(wanted) & set(there):
        return True
    ours, theirs = ({_number(path) for path in paths} for paths in (wanted, there))
    return bool((ours & theirs) - {None})


def _number(path: str) -> int | None:
    with suppress(OSError):
        status = Path(path).stat()
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev
    return None
