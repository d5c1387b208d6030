"""The volume operations of one pool: what is checked, leased, counted and undone.

Each method checks what can be told at once, takes the leases, and returns a started `Job`. What
touches the storage runs on the pool's workers; leases are given back before the job ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from storaged import passphrases
from storaged.backend import (
    PLAIN_CLONE,
    Anchored,
    CloneBacking,
    CloneOptions,
    ClonesVolumes,
    CreatesVolumes,
    DeletesVolumes,
    HasSnapshots,
    ImageSource,
    LooksAtVolumes,
    Resizes,
    Transfers,
    WipeAlgorithm,
    Wipes,
    require,
)
from storaged.concerns import dangers
from storaged.errors import InternalError, NoSuchVolume, VolumeExists
from storaged.job import Job
from storaged.look import Looks
from storaged.making import Making, check_link, check_secret, overlay_of, unwritten
from storaged.model import VolumeDef, VolumeRecord, VolumeRef
from storaged.pool import PoolObject
from storaged.scan import Scans
from storaged.sizes import check_needless, check_size, wanted_size

T = TypeVar("T")
#: Called in a job before what others might miss is gone; what it raises keeps the volume.
Guard = Callable[[VolumeRecord, Job[None]], None]
#: How a volume is planned, and how it is made then.
Steps = tuple[Callable[[], VolumeDef], Callable[[VolumeDef], VolumeRecord]]


class Volumes:
    """The volumes of one pool."""

    def __init__(self, pool: PoolObject) -> None:
        self.pool = pool
        self.scans = Scans(pool)
        self.looks = Looks(pool)
        self._making = Making(pool)

    def ref(self, volume: VolumeRecord | VolumeDef) -> VolumeRef:
        """Return what names a volume."""
        return VolumeRef(self.pool.ref, volume.name, self.pool.key_of(volume))

    def find(self, name: str) -> VolumeRecord:
        """Return the record of a volume; one that is not known is looked for once.

        :raise OperationInvalid: the pool is not active.
        :raise NoSuchVolume: there is none, also not after a look at the storage.
        """
        self.pool.require_active()
        record = self.pool.index.get(name)
        if record is not None:
            return record
        answered = True
        backend = self.pool.backend
        if not self.pool.scanned and not isinstance(backend, Anchored):
            # Where a look is no mere system call, it may not be over in the time of one.
            self.scans.require_one()
            record = self.pool.index.get(name)
        if record is None and isinstance(backend, LooksAtVolumes):
            sight = self.looks.look(name)
            record, answered = sight.record, sight.fresh
        if record is None:
            raise self._unknown(name, answered=answered)
        return record

    def create(
        self,
        request: VolumeDef,
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
    ) -> Job[VolumeRef]:
        """Make a new volume.

        :param secret: the passphrase of one that is to be encrypted.
        :raise VolumeExists: the name is taken.
        :raise OperationInvalid: the pool is not active.
        :raise Unsupported: the pool's type makes no volumes.
        """
        pool, making = self.pool, self._making
        backend = pool.able(CreatesVolumes)
        check_secret(request, secret)
        request = making.with_policy(request)
        taken = VolumeExists(f"'{request.name}'")
        job: Job[VolumeRef] = Job("create", pool.name, request.name)

        def plan() -> VolumeDef:
            return backend.plan(request, preallocate_metadata=preallocate_metadata)

        def make(planned: VolumeDef) -> VolumeRecord:
            passphrase = passphrases.of_new(pool, planned, secret)
            return backend.create(
                planned, job, preallocate_metadata=preallocate_metadata, secret=passphrase
            )

        def work(_job: Job[VolumeRef]) -> VolumeRef:
            return self.ref(making.make(job, plan, make, taken))

        making.reserve(request, job, taken)
        return pool.run_job(job, work, making.ending(job))

    def clone(
        self,
        request: VolumeDef,
        origin: Volumes,
        source: VolumeRecord,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> Job[VolumeRef]:
        """Make a new volume from *source*, a volume of the pool of *origin*.

        :raise InternalError: the name is taken (libvirt's code for a clone).
        :raise VolumeBusy: a job changes the source.
        """
        pool, making = self.pool, self._making
        check_secret(request, options.secret)
        linked = options.backing is CloneBacking.LINKED
        if linked:
            check_link(request, options, reflink=reflink)
        request = making.with_policy(request)
        taken = InternalError(f"storage volume name '{request.name}' already in use.")
        job: Job[VolumeRef] = Job("clone", pool.name, request.name)
        if linked:
            plan, make = self._linking(request, origin, source, job, options, preallocate_metadata)
        else:
            plan, make = self._copying(
                request, origin, source, job, options, preallocate_metadata, reflink
            )

        def work(job: Job[VolumeRef]) -> VolumeRef:
            try:
                return self.ref(making.make(job, plan, make, taken))
            finally:
                origin.give_back(source.name, job)

        if origin is self and source.name == request.name:
            raise taken
        making.reserve(request, job, taken)
        try:
            origin.lease_read(source.name, job)
            # Also if it never begins, because this pool is stopped by force.
            job.on_end(lambda: origin.give_back(source.name, job))
            return pool.run_job(job, work, making.ending(job))
        except BaseException:
            origin.give_back(source.name, job)
            with pool.lock:
                pool.jobs.pop(job.id, None)
                making.ending(job)()
            raise

    def _copying(
        self,
        request: VolumeDef,
        origin: Volumes,
        source: VolumeRecord,
        job: Job[VolumeRef],
        options: CloneOptions,
        preallocate_metadata: bool,
        reflink: bool,
    ) -> Steps:
        """Return how a clone with data of its own is planned and made."""
        backend = self.pool.able(ClonesVolumes)
        giving = origin.pool.able(Transfers)

        current = source

        def plan() -> VolumeDef:
            nonlocal current, options
            current = origin.look_again(source)
            options = passphrases.of_clone(self.pool, request, origin.pool, current, options)
            seen = passphrases.as_opened(current, options)
            return backend.plan_clone(
                request, seen, preallocate_metadata=preallocate_metadata, options=options
            )

        def make(planned: VolumeDef) -> VolumeRecord:
            with closing(giving.open_image(current)) as handle:
                path = origin.pool.path_of(current)
                seen = passphrases.as_opened(current, options)
                opened = ImageSource(seen, handle, path, lambda: giving.open_disk(current))
                return backend.clone(
                    planned, opened, job, reflink=reflink,
                    preallocate_metadata=preallocate_metadata, options=options,
                )  # fmt: skip

        return plan, make

    def _linking(
        self,
        request: VolumeDef,
        origin: Volumes,
        source: VolumeRecord,
        job: Job[VolumeRef],
        options: CloneOptions,
        preallocate_metadata: bool,
    ) -> Steps:
        """Return how a clone that is an overlay of its source is planned and made."""
        backend = self.pool.able(CreatesVolumes)
        giving = origin.pool.able(Transfers)

        def plan() -> VolumeDef:
            current = origin.look_again(source)
            overlay = overlay_of(request, current, origin.pool)
            return backend.plan(overlay, preallocate_metadata=preallocate_metadata)

        def make(planned: VolumeDef) -> VolumeRecord:
            # An overlay of what a machine still writes to would soon contradict it.
            with closing(giving.open_image(source)) as handle, unwritten(handle, source.name):
                passphrase = passphrases.of_new(self.pool, planned, options.secret)
                return backend.create(
                    planned, job, secret=passphrase, durability=options.durability
                )

        return plan, make

    def delete(
        self,
        name: str,
        *,
        force: bool = False,
        snapshots: bool = False,
        check: Guard | None = None,
    ) -> Job[None]:
        """Delete a volume.

        :param snapshots: with those that it has.
        :param check: called first.
        :raise Unsupported: volumes of the pool's type have no snapshots.
        :raise VolumeBusy: a job uses it.
        """
        erase: Callable[..., None] = self.pool.able(DeletesVolumes).delete
        if snapshots:
            erase = partial(self.pool.able(HasSnapshots).delete, snapshots=True)
        record = self.find(name)

        def work(job: Job[None]) -> None:
            if check is not None:
                check(record, job)
            erase(record, job, force=force)
            with self.pool.lock:
                self.pool.require_under_way(job)
                gone = self.pool.drop(name) or record
                self.pool.use_space(-gone.allocation)

        return self.writing(Job("delete", self.pool.name, name), work)

    def resize(
        self,
        name: str,
        capacity: int,
        *,
        allocate: bool = False,
        delta: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
        check: Guard | None = None,
    ) -> Job[None]:
        """Change the capacity of a volume.

        :param capacity: the new one in bytes, or with *delta* by how much it grows (or shrinks).
        :param shrink: allow a smaller one, down to where the guest's data end.
        :param force: also below that, and although a virtual machine has the volume open.
        :param check: called first if it becomes smaller.
        :raise InvalidArgument: smaller without *shrink*, or data would be cut; a secret for what is
            not encrypted.
        """
        self.pool.require_active()
        record = self.find(name)
        job: Job[None] = Job("resize", self.pool.name, name)

        def work(job: Job[None]) -> None:
            current = self.look_again(record)
            wanted = wanted_size(current, capacity, delta=delta, shrink=shrink)
            if not dangers(current.concerns):  # those the backend refuses, whatever the size
                check_size(
                    self.pool, current, wanted,
                    allocate=allocate, shrink=shrink, force=force, job=job,
                )  # fmt: skip
                check_needless(current, secret)
            if check is not None and wanted < current.capacity:
                check(current, job)
            backend = require(self.pool.backend, Resizes)
            made = backend.resize(
                current,
                wanted,
                job,
                allocate=allocate,
                shrink=shrink,
                force=force,
                secret=passphrases.of_resized(self.pool, current, secret),
            )
            self.replaced(job, current, made)

        return self.writing(job, work)

    def wipe(
        self,
        name: str,
        algorithm: WipeAlgorithm,
        *,
        force: bool = False,
        check: Guard | None = None,
    ) -> Job[None]:
        """Overwrite what a volume holds.

        :param check: called first.
        """
        backend = self.pool.able(Wipes)
        record = self.find(name)

        def work(job: Job[None]) -> None:
            if check is not None:
                check(record, job)
            self.replaced(job, record, backend.wipe(record, algorithm, job, force=force))

        return self.writing(Job("wipe", self.pool.name, name), work)

    def lease_read(self, name: str, job: Job[Any]) -> None:
        """Let *job* read a volume, and count it as a job of the pool.

        :raise VolumeBusy: another job changes the volume.
        """
        with self.pool.lock:
            self.pool.require_active()
            self.pool.leases.read(name, job)
            self.pool.jobs[job.id] = job

    def give_back(self, name: str, job: Job[Any]) -> None:
        """End what `lease_read` began. Calling it again does nothing."""
        with self.pool.lock:
            self.pool.leases.release(name, job)
            self.pool.jobs.pop(job.id, None)

    # How a volume changes

    def writing(self, job: Job[T], work: Callable[[Job[T]], T]) -> Job[T]:
        """Have *work* done that changes the job's volume, which nobody else uses meanwhile.

        :raise VolumeBusy: another job uses it.
        """
        name = job.volume or ""
        pool = self.pool
        with pool.lock:
            pool.require_active()
            pool.leases.write(name, job)
            pool.touch(name)
            pool.jobs[job.id] = job
        return pool.run_job(job, work, lambda: pool.leases.release(name, job))

    def look_again(self, record: VolumeRecord) -> VolumeRecord:
        """Return the facts of a volume that a job has leased; for its worker.

        :raise NoSuchVolume: it has gone.
        """
        backend = self.pool.backend
        if not isinstance(backend, LooksAtVolumes):
            return record
        found = backend.look(record.name, record)
        if found is None:
            raise self._unknown(record.name, answered=True)
        return found

    def replaced(self, job: Job[Any], old: VolumeRecord, new: VolumeRecord) -> None:
        """Take the facts of a volume after *job* has worked on it; for its worker."""
        with self.pool.lock:
            self.pool.require_under_way(job)
            self.pool.put(new)
            self.pool.use_space(new.allocation - old.allocation)

    def _unknown(self, name: str, *, answered: bool) -> NoSuchVolume:
        pool = self.pool
        if answered:
            advice = f"Looked at pool '{pool.name}' just now: it has no such volume."
        else:
            advice = f"The storage of pool '{pool.name}' did not answer in time; try again."
        return NoSuchVolume(f"no storage vol with matching name '{name}'", advice=advice)
