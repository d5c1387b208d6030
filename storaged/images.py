"""What is done with the images in a pool's volumes: check, inspect, rebase, amend, convert.

As for `storaged.volumes.Volumes`: what can be told at once is checked, a lease is taken, and a
started `Job` comes back. What only reads shares the volume with other readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from storaged.errors import InvalidArgument, OperationInvalid
from storaged.formats.checkreport import CheckReport
from storaged.imagebackend import ChangesHeaders, ChecksImages, InspectsImages, RewritesImages
from storaged.imaging import ConvertOptions, HeaderChange, Inspection
from storaged.job import Job
from storaged.model import BackingStore, VolumeRecord
from storaged.volumes import Volumes

T = TypeVar("T")
#: Tells who is an overlay of a volume, as ``POOL/NAME``; a cancel of the job ends a wait.
Users = Callable[[VolumeRecord, Job[Any]], tuple[str, ...]]


class Images:
    """The images of one pool.

    :param users: tells who is an overlay of a volume, in all pools.
    """

    def __init__(self, volumes: Volumes, users: Users) -> None:
        self._volumes = volumes
        self._pool = volumes.pool
        self._users = users

    def check(self, name: str, *, force: bool = False) -> Job[CheckReport]:
        """Check the tables of an image.

        :param force: also while somebody writes to it.
        """
        backend = self._pool.able(ChecksImages)
        record = self._volumes.find(name)

        def work(job: Job[CheckReport]) -> CheckReport:
            return backend.check_image(self._volumes.look_again(record), job, force=force)

        return self._reading(Job("check", self._pool.name, name), work)

    def inspect(self, name: str) -> Job[Inspection]:
        """Tell what an image is and what it refers to."""
        backend = self._pool.able(InspectsImages)
        record = self._volumes.find(name)

        def work(job: Job[Inspection]) -> Inspection:
            current = self._volumes.look_again(record)
            found = backend.inspect_image(current, job)
            return replace(found, used_by=self._users(current, job))

        return self._reading(Job("inspect", self._pool.name, name), work)

    def rebase(self, name: str, backing: BackingStore | None, *, force: bool = False) -> Job[None]:
        """Have an image refer to another backing file, or to none. Its data stay."""
        backend = self._pool.able(ChangesHeaders)
        return self._changing(
            "rebase", name, lambda now, job: backend.rebase(now, backing, job, force=force)
        )

    def set_backing_format(self, name: str, format: str, *, force: bool = False) -> Job[None]:
        """Record the format of the backing file that an image has."""
        backend = self._pool.able(ChangesHeaders)
        return self._changing(
            "rebase",
            name,
            lambda now, job: backend.set_backing_format(now, format, job, force=force),
        )

    def amend(self, name: str, change: HeaderChange) -> Job[None]:
        """Change features of an image that stand in its header.

        :raise InvalidArgument: nothing is to be changed.
        """
        backend = self._pool.able(ChangesHeaders)
        if change == HeaderChange():
            raise InvalidArgument("nothing is to be amended")
        return self._changing("amend", name, lambda now, job: backend.amend(now, change, job))

    def convert(self, name: str, options: ConvertOptions, *, force: bool = False) -> Job[None]:
        """Write an image anew in its place.

        :param force: although snapshots are lost, or overlays have its old format on record.
        """
        backend = self._pool.able(RewritesImages)

        def change(now: VolumeRecord, job: Job[None]) -> VolumeRecord:
            if not force and options.format not in (None, now.format):
                self._check_users(now, job)
            return backend.rewrite(now, options, job, force=force)

        return self._changing("convert", name, change)

    def _check_users(self, volume: VolumeRecord, job: Job[Any]) -> None:
        users = self._users(volume, job)
        if users:
            raise OperationInvalid(
                f"volume '{volume.name}' is the backing file of {len(users)} others, which have"
                f" its format '{volume.format}' on record",
                advice=f"The first is {users[0]}. Rebase them after it, with --force here.",
            )

    def _changing(
        self,
        kind: str,
        name: str,
        change: Callable[[VolumeRecord, Job[None]], VolumeRecord],
    ) -> Job[None]:
        record = self._volumes.find(name)

        def work(job: Job[None]) -> None:
            current = self._volumes.look_again(record)
            self._volumes.replaced(job, current, change(current, job))

        return self._volumes.writing(Job(kind, self._pool.name, name), work)

    def _reading(self, job: Job[T], work: Callable[[Job[T]], T]) -> Job[T]:
        name = job.volume or ""
        self._volumes.lease_read(name, job)
        return self._pool.run_job(job, work, lambda: self._pool.leases.release(name, job))
