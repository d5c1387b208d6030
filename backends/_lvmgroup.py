"""Volume groups: what they hold, activated and deactivated.

What of a group others use, such as the host's own root file system, is none of the pool's business:
it is left active at a stop, and named.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from storaged import udev
from storaged.backend import Backend, Host
from storaged.backends import _lvmtool
from storaged.backends._lvmnames import check_group_name, is_abandoned, is_building
from storaged.backends._lvmrecord import group_problems
from storaged.backends._lvmreport import Group, LogicalVolume, report
from storaged.errors import (
    Cancelled,
    CommandFailed,
    ConfigUnsupported,
    StorageError,
    VolumeBusy,
)
from storaged.job import Job
from storaged.model import PoolDef

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
        #: by name of a volume: why it could not be activated
        self._asleep: Mapping[str, str] = {}
        #: by name of a volume that is not whole and could not be removed: its mark
        self.stuck: dict[str, str] = {}
        #: the last report and when it was asked for; replaced as a whole
        self._recent: tuple[float, Group] | None = None

    def report(self, job: Job[Any] | None = None) -> Group:
        """Return what the group holds now.

        :raise ConfigUnsupported: there is no such group.
        """
        # "-y", "--all" and "@tag" would be words for other groups, or for all of them
        check_group_name(self.group)
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
            return any(one.is_active for one in self.matched().volumes.values())
        except ConfigUnsupported:
            return False

    def start(self, job: Job[Any]) -> None:
        """Activate the volumes of the group, but for those that are to be skipped.

        What a dead process of this host left half made is removed first. Volumes that cannot be
        activated are problems of the pool, and the others are there.

        :raise ConfigUnsupported: there is no such group, or it is another.
        :raise CommandFailed: none can be activated, and no physical volume is missing.
        """
        self._asleep = {}
        group = self.matched(job)
        self.remove_abandoned(group, job)
        try:
            _lvmtool.change(("vgchange", "-aly", self.group), job, timeout=_ACTIVATING)
        except CommandFailed as err:
            group = self.report(job)
            if not (group.missing or any(one.is_active for one in group.volumes.values())):
                raise
            asleep = (one.name for one in group.volumes.values() if one.is_asleep)
            self._asleep = dict.fromkeys(asleep, _lvmtool.reason(err.stderr))
        udev.settle(job=job)

    def stop(self, job: Job[Any]) -> str | None:
        """Deactivate the volumes of the group that nobody uses, and tell the others.

        :raise CommandFailed: one that nobody uses stays active.
        """
        self.forget()
        try:
            group = self.matched(job)
        except ConfigUnsupported:
            return None  # one that is gone has nothing that is active, and another one is not ours
        active = [one for one in group.volumes.values() if one.is_active]
        used = _in_use(group)
        # a snapshot is active with its origin
        alone = (one for one in active if not (one.is_snapshot and one.origin is not None))
        idle = [one.name for one in alone if one.name not in used]
        failed = self._deactivate(idle, all_of_them=not used, job=job)
        left: list[str] = []
        if failed is not None or used:
            after = self.report(job)
            left = sorted(_in_use(after))
            idle = [name for name in idle if _is_active(after, name) and name not in left]
        if failed is not None and idle:
            raise failed
        self.forget()
        if not left:
            return None
        return f"still active, because somebody else has them in use: {in_words(left)}"

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

    def remove_abandoned(self, group: Group, job: Job[Any]) -> bool:
        """Remove what is not whole and never will be; tell whether there was any.

        That is what a process of this host had not ended when it died, and what a job of ours could
        not remove. What cannot be removed now either is a problem of the pool.
        """
        doomed = [one for one in group.volumes.values() if self._is_abandoned(one)]
        for one in doomed:
            try:
                _lvmtool.remove(self.group, one.name, one.uuid, job)
            except Cancelled:
                raise
            except StorageError:
                continue
            self.stuck.pop(one.name, None)
        if doomed:
            self.forget()
        return bool(doomed)

    def _is_abandoned(self, volume: LogicalVolume) -> bool:
        return is_abandoned(volume.tags, self.host.id) or self.stuck.get(volume.name) in volume.tags

    def group_problems(self, group: Group) -> tuple[str, ...]:
        """Return what is wrong with the group, in words."""
        found = list(group_problems(group))
        for one in group.volumes.values():
            if self._is_abandoned(one):
                found.append(
                    f"logical volume '{one.name}' is not whole, and could not be removed:"
                    f" lvremove {self.group}/{one.name}"
                )
            elif is_building(one.tags) and not is_building(one.tags, self.host.id):
                found.append(
                    f"logical volume '{one.name}' is not whole: another host makes it, or left it"
                )
            elif one.is_asleep and one.name in self._asleep:
                why = self._asleep[one.name]
                found.append(f"logical volume '{one.name}' could not be activated: {why}")
        return tuple(found)


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


def _in_use(group: Group) -> set[str]:
    """Return the names of the active volumes that cannot be deactivated.

    These are those that are open, what these lie in, and what these are snapshots of.
    """
    used: set[str] = set()
    for one in group.volumes.values():
        if not (one.is_active and one.is_open) or one.is_thin_pool:
            continue
        used.add(one.name)
        if one.pool is not None:
            used.add(one.pool)
        if one.is_snapshot and one.origin is not None:
            used.add(one.origin)
    return used


def _is_active(group: Group, name: str) -> bool:
    found = group.volumes.get(name)
    return found is not None and found.is_active


def _any_same(wanted: list[str], there: tuple[str, ...]) -> bool:
    """Tell whether two lists have a device in common, by name or by what the names lead to."""
    if set(wanted) & set(there):
        return True
    ours, theirs = ({device_number(path) for path in paths} for paths in (wanted, there))
    return bool((ours & theirs) - {None})


def device_number(path: str) -> int | None:
    """Return the number of a block device, None if there is none of the name."""
    with suppress(OSError):
        status = Path(path).stat()
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev
    return None
