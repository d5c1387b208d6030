"""New logical volumes: made, filled and then let be seen, or gone.

Until it is whole a volume carries a tag that names the process that makes it. A listing leaves such
volumes out, and what a dead process of this host left is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from storaged import udev
from storaged.backend import (
    PLAIN_CLONE,
    CloneOptions,
    Durability,
    ImageSource,
)
from storaged.backends import _lvmplan, _lvmtool
from storaged.backends._blockclone import ClonesToBlock, Supply
from storaged.backends._blockopen import discard_unit_of
from storaged.backends._lvmgroup import HoldsGroup
from storaged.backends._lvmnames import building_mark
from storaged.backends._lvmplan import Kind, Wish
from storaged.backends._lvmrecord import THIN_POOL, record
from storaged.backends._lvmreport import Group
from storaged.backends._plan import require_secret
from storaged.errors import (
    ConfigUnsupported,
    OperationFailed,
    OperationUnsupported,
    StorageError,
    system_errors,
)
from storaged.job import Job
from storaged.model import BackingStore, VolumeDef, VolumeRecord

#: In what steps a thin volume takes its space at least, in bytes.
_THIN_UNIT: Final = 65536
#: libvirt's mode for a volume that asks for none.
_DEFAULT_MODE: Final = 0o600


class MakesVolumes(HoldsGroup, ClonesToBlock):
    """New volumes are logical volumes; clones of thin ones share their data."""

    def plan(self, volume: VolumeDef, *, preallocate_metadata: bool = False) -> VolumeDef:
        """See `CreatesVolumes.plan`; as in libvirt preallocation means nothing here."""
        if volume.backing is not None and volume.format != THIN_POOL:
            # an overlay is asked for as an image, and is a snapshot here
            volume = replace(volume, format="raw", compat=None, features=None, cluster_size=0)
        if volume.format != THIN_POOL:
            volume = self.check_request(volume)
        return _lvmplan.settle(volume, self.report(), self.target)

    def create(
        self,
        volume: VolumeDef,
        job: Job[Any],
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
        durability: Durability | None = None,
    ) -> VolumeRecord:
        require_secret(volume, secret)
        wish = _lvmplan.wish(volume, self.recent())
        with self._making(wish, volume, job):
            if secret is not None:
                self.encrypt_device(self._path(volume), volume, secret, durability)
        return self._made(volume)

    def plan_clone(
        self,
        volume: VolumeDef,
        source: VolumeRecord,
        *,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeDef:
        if source.format == THIN_POOL:
            raise OperationUnsupported(f"volume '{source.name}' is a thin pool: it has no data")
        # The source's format, which a clone in a directory would have, says nothing here.
        bare = replace(
            volume, format="raw", backing=None, compat=None, features=None, cluster_size=0
        )
        wanted = replace(self.check_clone(bare, source, options), backing=volume.backing)
        group = self.report()
        planned = _lvmplan.settle(wanted, group, self.target)
        if planned.backing is not None and not _lvmplan.planned_parent(planned, group).is_thin_pool:
            raise ConfigUnsupported("a clone has its own data: only a thin pool can be its backing")
        return planned

    def clone(
        self,
        volume: VolumeDef,
        source: ImageSource,
        job: Job[Any],
        *,
        reflink: bool,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeRecord:
        require_secret(volume, options.secret)
        group = self.recent()
        shared = _shareable(volume, source.record, group, options)
        if shared:
            backing = BackingStore(f"{self.target}/{source.record.name}")
            volume = replace(volume, backing=backing)
        elif reflink:
            raise OperationUnsupported(
                f"volume '{source.record.name}' cannot share its data",
                advice="Thin volumes can, with clones in their own volume group.",
            )
        wish = _lvmplan.wish(volume, group, filled=True)
        with self._making(wish, volume, job):
            if not shared:
                path = self._path(volume)
                supply = _supply(wish, group, path)
                self.fill_device(path, volume, source, job, options, supply=supply)
        return self._made(volume)

    def _path(self, volume: VolumeDef) -> str:
        return f"{self.target}/{volume.name}"

    @contextmanager
    def _making(self, wish: Wish, volume: VolumeDef, job: Job[Any]) -> Iterator[None]:
        """Make a volume and let it be filled; after the block it is whole, or gone."""
        mark = building_mark(self.host.id, job.id)
        place = f"{self.group}/{wish.name}"
        try:
            _lvmtool.change(wish.command(self.group, mark), job)
            if wish.kind is Kind.THIN_SNAPSHOT:
                self._lengthen(wish, job)
            udev.settle(job=job)
            self._set_permissions(volume)
            yield
            job.checkpoint()
            _lvmtool.change(("lvchange", "--deltag", mark, place))
        except BaseException:
            self._undo(wish.name, mark)
            raise
        finally:
            self.forget()

    def _lengthen(self, wish: Wish, job: Job[Any]) -> None:
        made = self.report(job).volumes.get(wish.name)
        if made is not None and made.size < wish.size:
            place = f"{self.group}/{wish.name}"
            _lvmtool.change(("lvextend", "-L", f"{wish.size}b", place), job)

    def _undo(self, name: str, mark: str) -> None:
        """Remove what carries our mark, and nothing that somebody else has made.

        If that fails, the next look at all volumes tries again.
        """
        self.stuck[name] = mark
        with suppress(StorageError):
            udev.settle()  # it looks at what was written just now
            made = self.report().volumes.get(name)
            if made is not None and mark in made.tags:
                _lvmtool.remove(self.group, name, made.uuid)
            self.stuck.pop(name)

    def _set_permissions(self, volume: VolumeDef) -> None:
        """Give the device owner and mode, as libvirt does; both last until it is activated anew.

        :raise SystemFailure: the kernel refused, or the device has not appeared.
        """
        if volume.format == THIN_POOL:
            return
        path, wanted = self._path(volume), volume.permissions
        owner = -1 if wanted.owner is None else wanted.owner
        group = -1 if wanted.group is None else wanted.group
        if not Path(path).exists() and not self._is_mapped(volume.name):
            return
        if (owner, group) != (-1, -1) and not self.host.session:
            with system_errors(f"cannot chown '{path}' to ({owner}, {group})"):
                os.chown(path, owner, group)
        mode = _DEFAULT_MODE if wanted.mode is None else wanted.mode
        with system_errors(f"cannot set mode of '{path}' to {mode:04o}"):
            Path(path).chmod(mode)

    def _is_mapped(self, name: str) -> bool:
        """Tell whether a volume should have a device: not where there is no device-mapper."""
        found = self.report().volumes.get(name)
        return found is None or found.state != "X"

    def _made(self, volume: VolumeDef) -> VolumeRecord:
        """Return the facts of a volume that was made just now.

        :raise OperationFailed: somebody removed it already.
        """
        group = self.report()
        made = group.volumes.get(volume.name)
        if made is None:
            raise OperationFailed(f"logical volume '{volume.name}' was removed by somebody else")
        return record(made, group, self.target)


def _supply(wish: Wish, group: Group, path: str) -> Supply | None:
    """Return what a new volume takes its space from as it is written to; None: it has all."""
    if wish.kind is Kind.SPARSE:
        return Supply("its space for changes", wish.room, _lvmplan.CHUNK)
    if wish.kind is not Kind.THIN:
        return None
    free = group.free_in(wish.parent)
    parent = group.volumes.get(wish.parent or "")
    if free is None or parent is None:
        return None
    with system_errors(f"cannot stat '{path}'"):
        unit = discard_unit_of(Path(path).stat().st_rdev)
    return Supply(
        f"thin pool '{parent.name}'", free, unit or _THIN_UNIT,
        blank=parent.is_zeroing, discards=bool(unit),
    )  # fmt: skip


def _shareable(
    volume: VolumeDef, source: VolumeRecord, group: Group, options: CloneOptions
) -> bool:
    """Tell whether a clone can be a thin snapshot of its source."""
    origin = group.volumes.get(source.name)
    if origin is None or not origin.is_thin or origin.uuid != source.key:
        return False
    if volume.encryption is not None or options.source_secret is not None:
        return False  # it has other bytes: encrypted with another key, or no longer
    return volume.backing is None or _lvmplan.planned_parent(volume, group).name == origin.pool
