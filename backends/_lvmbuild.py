"""Volume groups are made of devices, removed, and found."""

from __future__ import annotations

from typing import Any, Final

from storaged.backend import Builds, FindsSources, Host
from storaged.backends import _lvmtool
from storaged.backends._inuse import require_unused
from storaged.backends._lvmgroup import HoldsGroup, device_number, in_words
from storaged.backends._lvmnames import check_group_name
from storaged.errors import ConfigUnsupported, OperationFailed, StorageError
from storaged.job import Job
from storaged.model import PoolSource, SourceDevice

#: What blkid calls a physical volume.
_MEMBER: Final = "LVM2_member"
#: The format of the sources that are found.
_FORMAT: Final = "lvm2"


class BuildsGroup(HoldsGroup, Builds):
    """`build` makes physical volumes of the pool's devices, and the group of these."""

    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        """Make the group.

        One that is there on the pool's devices is left as it is where nothing is asked for. All
        that was made is undone if a step fails.

        :raise ConfigUnsupported: the pool has no devices.
        :raise PoolBuilt: a device holds something, and it is not to be overwritten.
        """
        check_group_name(self.group)
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
                if device_number(path) not in spare:
                    _signatures.check_empty(path, _MEMBER, job)
        made: list[str] = []
        try:
            for path in devices:
                _signatures.zero_ends(path)
                made.append(path)
                _lvmtool.change(("pvcreate", path), job)
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
    def find_sources(
        cls, spec: PoolSource | None, host: Host, job: Job[Any]
    ) -> tuple[PoolSource, ...]:
        """Return every volume group with the devices that are there; *spec* does not count."""
        sections, _ = _lvmtool.ask(("pvs", "-o", "pv_name,vg_name,pv_missing"), job)
        groups: dict[str, list[SourceDevice]] = {}
        for row in sections.get("pv", ()):
            name, path = row.get("vg_name"), row.get("pv_name")
            if name and path and not row.get("pv_missing"):
                groups.setdefault(name, []).append(SourceDevice(path))
        return tuple(
            PoolSource(devices=tuple(devices), name=name, format=_FORMAT)
            for name, devices in groups.items()
        )


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
    return frozenset(map(device_number, free)) - {None}
