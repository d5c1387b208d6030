"""The calls on the images in volumes: one method a call.

Each returns a started `Job`, also what only looks: an image may be large, or far away.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from storaged.formats.checkreport import CheckReport
from storaged.images import Images
from storaged.imaging import ConvertOptions, HeaderChange, Inspection
from storaged.job import Job
from storaged.model import BackingStore, VolumeRecord, VolumeRef
from storaged.poolcalls import require_writable
from storaged.volumequeries import VolumeQueries
from storaged.volumes import Volumes


class ImageCalls(VolumeQueries):
    """The calls on images."""

    def volume_check(self, ref: VolumeRef, *, force: bool = False) -> Job[CheckReport]:
        """Check the tables of an image; nothing is changed."""
        return self._images(ref).check(ref.name, force=force)

    def volume_inspect(self, ref: VolumeRef) -> Job[Inspection]:
        """Tell what an image is, what it refers to and who uses it."""
        return self._images(ref).inspect(ref.name)

    def volume_rebase(
        self,
        ref: VolumeRef,
        backing: str | None,
        backing_format: str | None = None,
        *,
        force: bool = False,
    ) -> Job[None]:
        """Have an image refer to another backing file, or with None to none.

        :param force: although the new one is not there, or not sound.
        """
        require_writable(self._services)
        wanted = None if backing is None else BackingStore(backing, backing_format)
        return self._images(ref).rebase(ref.name, wanted, force=force)

    def volume_set_backing_format(
        self, ref: VolumeRef, format: str, *, force: bool = False
    ) -> Job[None]:
        """Record the format of the backing file that an image has.

        :param force: although that file is not there, or not of this format.
        """
        require_writable(self._services)
        return self._images(ref).set_backing_format(ref.name, format, force=force)

    def volume_amend(self, ref: VolumeRef, change: HeaderChange) -> Job[None]:
        """Change features of an image that stand in its header."""
        require_writable(self._services)
        return self._images(ref).amend(ref.name, change)

    def volume_convert(
        self, ref: VolumeRef, options: ConvertOptions, *, force: bool = False
    ) -> Job[None]:
        """Write an image anew in its place.

        :param force: although snapshots are lost, or overlays have its old format on record.
        """
        require_writable(self._services)
        return self._images(ref).convert(ref.name, options, force=force)

    def _images(self, ref: VolumeRef) -> Images:
        volumes = self._table.by_ref(ref.pool)
        return Images(volumes, partial(self._users, volumes))

    def _users(self, volumes: Volumes, volume: VolumeRecord, job: Job[Any]) -> tuple[str, ...]:
        """Return the volumes that are overlays of one, as ``POOL/NAME``."""
        users = self._dependants.all(volumes, volume, job)
        return tuple(f"{user.pool.name}/{user.name}" for user in users)
