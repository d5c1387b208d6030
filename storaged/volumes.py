"""The volume operations of one pool: what is checked, leased, counted and undone.

Each method checks what can be told at once, takes the leases, and returns a started `Job`. What
touches the storage runs on the pool's workers; leases are given back before the job ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from storaged.backend import (
    ClonesVolumes,
    CreatesVolumes,
    DeletesVolumes,
    ImageSource,
    LooksAtVolumes,
    Resizes,
    Transfers,
    WipeAlgorithm,
    Wipes,
    require,
)
from storaged.errors import (
    InternalError,
    InvalidArgument,
    NoSuchVolume,
    OperationFailed,
    StorageError,
    VolumeExists,
)
from storaged.job import Job
from storaged.look import Looks
from storaged.model import Permissions, VolumeDef, VolumeRecord, VolumeRef
from storaged.pool import PoolObject
from storaged.scan import Scans
from storaged.units import MAX_SIZE, format_size

T = TypeVar("T")


class Volumes:
    """The volumes of one pool."""

    def __init__(self, pool: PoolObject) -> None:
        self.pool = pool
        self.scans = Scans(pool)
        self.looks = Looks(pool)

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
        if isinstance(self.pool.backend, LooksAtVolumes):
            sight = self.looks.look(name)
            record, answered = sight.record, sight.fresh
        elif not self.pool.scanned:
            self.scans.require_one()
            record = self.pool.index.get(name)
        if record is None:
            raise self._unknown(name, answered=answered)
        return record

    def create(self, request: VolumeDef, *, preallocate_metadata: bool = False) -> Job[VolumeRef]:
        """Make a new volume.

        :raise VolumeExists: the name is taken.
        :raise OperationInvalid: the pool is not active.
        :raise Unsupported: the pool's type makes no volumes.
        """
        pool = self.pool
        backend = pool.able(CreatesVolumes)
        request = self._with_policy(request)
        taken = VolumeExists(f"'{request.name}'")
        job: Job[VolumeRef] = Job("create", pool.name, request.name)
        self._reserve(job, taken)

        def plan() -> VolumeDef:
            return backend.plan(request, preallocate_metadata=preallocate_metadata)

        def make(planned: VolumeDef) -> VolumeRecord:
            return backend.create(planned, job, preallocate_metadata=preallocate_metadata)

        return pool.run_job(job, lambda _job: self._make(plan, make, taken, job), self._end(job))

    def clone(
        self,
        request: VolumeDef,
        origin: Volumes,
        source: VolumeRecord,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
    ) -> Job[VolumeRef]:
        """Make a new volume from *source*, a volume of the pool of *origin*.

        :raise InternalError: the name is taken (libvirt's code for a clone).
        :raise VolumeBusy: a job changes the source.
        """
        pool = self.pool
        backend = pool.able(ClonesVolumes)
        giving = origin.pool.able(Transfers)
        request = self._with_policy(request)
        taken = InternalError(f"storage volume name '{request.name}' already in use.")
        job: Job[VolumeRef] = Job("clone", pool.name, request.name)
        self._reserve(job, taken)

        def plan() -> VolumeDef:
            return backend.plan_clone(request, source, preallocate_metadata=preallocate_metadata)

        def make(planned: VolumeDef) -> VolumeRecord:
            with closing(giving.open_image(source)) as handle:
                return backend.clone(planned, ImageSource(source, handle), job, reflink=reflink)

        def work(job: Job[VolumeRef]) -> VolumeRef:
            try:
                return self._make(plan, make, taken, job)
            finally:
                origin.give_back(source.name, job)

        with self._giving_up(job, self):
            origin.lease_read(source.name, job)
        with self._giving_up(job, origin, source.name):
            return pool.run_job(job, work, self._end(job))

    def delete(self, name: str, *, force: bool = False) -> Job[None]:
        """Delete a volume.

        :raise VolumeBusy: a job uses it.
        """
        backend = self.pool.able(DeletesVolumes)
        record = self.find(name)

        def work(job: Job[None]) -> None:
            backend.delete(record, job, force=force)
            with self.pool.lock:
                self.pool.drop(name)
                self.pool.use_space(-record.allocation)

        return self._writing(Job("delete", self.pool.name, name), work)

    def resize(
        self,
        name: str,
        capacity: int,
        *,
        allocate: bool = False,
        delta: bool = False,
        shrink: bool = False,
        force: bool = False,
    ) -> Job[None]:
        """Change the capacity of a volume.

        :param capacity: the new one in bytes, or with *delta* by how much it grows (or shrinks).
        :param shrink: allow a smaller one, down to where the guest's data end.
        :param force: also below that, and although a virtual machine has the volume open.
        :raise InvalidArgument: smaller without *shrink*, or data would be cut.
        """
        self.pool.require_active()
        record = self.find(name)
        job: Job[None] = Job("resize", self.pool.name, name)
        wanted = capacity
        if delta:
            step = -min(capacity, record.capacity) if shrink else capacity
            wanted = record.capacity + step
        if wanted > MAX_SIZE:
            raise InvalidArgument(f"capacity {wanted} is above {MAX_SIZE} bytes")

        def work(job: Job[None]) -> None:
            current = self._current(record)
            self._check_size(current, wanted, allocate=allocate, shrink=shrink, force=force)
            backend = require(self.pool.backend, Resizes)
            made = backend.resize(
                current, wanted, job, allocate=allocate, shrink=shrink, force=force
            )
            self._replaced(current, made)

        return self._writing(job, work)

    def wipe(self, name: str, algorithm: WipeAlgorithm, *, force: bool = False) -> Job[None]:
        """Overwrite what a volume holds."""
        backend = self.pool.able(Wipes)
        record = self.find(name)

        def work(job: Job[None]) -> None:
            self._replaced(record, backend.wipe(record, algorithm, job, force=force))

        return self._writing(Job("wipe", self.pool.name, name), work)

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

    # How a volume comes to be

    def _with_policy(self, request: VolumeDef) -> VolumeDef:
        policy = self.pool.services.policies.load(self.pool.name)
        given = request.permissions
        filled = Permissions(
            mode=policy.mode if given.mode is None else given.mode,
            owner=policy.owner if given.owner is None else given.owner,
            group=policy.group if given.group is None else given.group,
            label=given.label,
        )
        return request if filled == given else replace(request, permissions=filled)

    def _reserve(self, job: Job[VolumeRef], taken: StorageError) -> None:
        """Take a name for a new volume, so that no second create can."""
        name = job.volume or ""
        pool = self.pool
        with pool.lock:
            pool.require_active()
            if pool.leases.writer(name) is not None:
                raise taken
            pool.leases.write(name, job)
            pool.jobs[job.id] = job
            pool.touch(name)

    def _end(self, job: Job[Any]) -> Callable[[], None]:
        return lambda: self.pool.leases.release(job.volume or "", job)

    @contextmanager
    def _giving_up(self, job: Job[Any], holder: Volumes, name: str | None = None) -> Iterator[None]:
        """Give back what *holder* has leased to *job* if it cannot be begun."""
        try:
            yield
        except BaseException:
            holder.give_back(name or job.volume or "", job)
            raise

    def _make(
        self,
        plan: Callable[[], VolumeDef],
        make: Callable[[VolumeDef], VolumeRecord],
        taken: StorageError,
        job: Job[VolumeRef],
    ) -> VolumeRef:
        """Make a volume that is listed from now on, and no more if it fails."""
        pool = self.pool
        self._require_free(job.volume or "", taken)
        planned = plan()
        announced = self._announced(planned)
        with pool.lock:
            pool.put(announced)
        try:
            made = make(planned)
        except BaseException:
            with pool.lock:
                if pool.index.get(announced.name) is announced:
                    pool.drop(announced.name)
            raise
        with pool.lock:
            pool.put(made)
            pool.use_space(made.allocation)
        return self.ref(made)

    def _require_free(self, name: str, taken: StorageError) -> None:
        """Look whether the name is taken, by what the index knows and by what it does not."""
        pool = self.pool
        backend = pool.backend
        found = known = pool.index.get(name)
        if isinstance(backend, LooksAtVolumes):
            found = backend.look(name, known)
            with pool.lock:
                if found is None:
                    pool.drop(name)
                else:
                    pool.put(found)
        if found is not None:
            taken.advice = f"It is at {pool.path_of(found)}, with {format_size(found.capacity)}."
            raise taken

    def _announced(self, planned: VolumeDef) -> VolumeRecord:
        """Return the record of a volume while it is made."""
        derived = isinstance(self.pool.backend, LooksAtVolumes) and planned.key == planned.path
        return VolumeRecord(
            name=planned.name,
            capacity=planned.capacity,
            allocation=0,
            format=planned.format,
            type=planned.type,
            key=None if derived else planned.key,
            path=None if derived else planned.path,
            permissions=planned.permissions,
        )

    # How a volume changes

    def _writing(self, job: Job[T], work: Callable[[Job[T]], T]) -> Job[T]:
        name = job.volume or ""
        pool = self.pool
        with pool.lock:
            pool.require_active()
            pool.leases.write(name, job)
            pool.touch(name)
            pool.jobs[job.id] = job
        return pool.run_job(job, work, lambda: pool.leases.release(name, job))

    def _current(self, record: VolumeRecord) -> VolumeRecord:
        backend = self.pool.backend
        if not isinstance(backend, LooksAtVolumes):
            return record
        found = backend.look(record.name, record)
        if found is None:
            raise self._unknown(record.name, answered=True)
        return found

    def _replaced(self, old: VolumeRecord, new: VolumeRecord) -> None:
        with self.pool.lock:
            self.pool.put(new)
            self.pool.use_space(new.allocation - old.allocation)

    def _check_size(
        self, record: VolumeRecord, wanted: int, *, allocate: bool, shrink: bool, force: bool
    ) -> None:
        if wanted < record.capacity:
            smallest = record.allocation if not shrink else 0 if force else self._data_end(record)
            if wanted < smallest:
                raise InvalidArgument(
                    "can't shrink capacity below existing allocation",
                    advice=f"The smallest safe size is {smallest} bytes ({format_size(smallest)}).",
                )
            if not shrink:
                raise InvalidArgument(
                    "Can't shrink capacity below current capacity unless shrink flag explicitly "
                    "specified",
                    advice="What lies beyond the new end is lost. If that is meant: --shrink",
                )
        available = self.pool.snapshot.info.space.available
        if allocate and self.pool.space_known and wanted - record.allocation > available:
            raise OperationFailed(
                "Not enough space left in storage pool",
                advice=f"{format_size(available)} are left in '{self.pool.name}'.",
            )

    def _data_end(self, record: VolumeRecord) -> int:
        """Return where the last data of a raw volume end, in bytes."""
        backend = self.pool.backend
        if record.image is not None or not isinstance(backend, Transfers):
            return 0  # formats with a header check their own clusters
        with closing(backend.open_image(record)) as handle:
            ends = [e.offset + e.length for e in handle.map(0, handle.size()) if e.data]
        return max(ends, default=0)

    def _unknown(self, name: str, *, answered: bool) -> NoSuchVolume:
        pool = self.pool
        if answered:
            advice = f"Looked at pool '{pool.name}' just now: it has no such volume."
        else:
            advice = f"The storage of pool '{pool.name}' did not answer in time; try again."
        return NoSuchVolume(f"no storage vol with matching name '{name}'", advice=advice)
