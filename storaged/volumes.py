"""The volume operations of one pool: what is checked, leased, counted and undone.

Each method checks what can be told at once, takes the leases, and returns a started `Job`. What
touches the storage runs on the pool's workers; leases are given back before the job ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
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
    NoSpace,
    NoSuchVolume,
    VolumeExists,
)
from storaged.job import Job
from storaged.look import Looks
from storaged.making import Making
from storaged.model import VolumeDef, VolumeRecord, VolumeRef
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
        pool, making = self.pool, self._making
        backend = pool.able(CreatesVolumes)
        request = making.with_policy(request)
        taken = VolumeExists(f"'{request.name}'")
        job: Job[VolumeRef] = Job("create", pool.name, request.name)

        def plan() -> VolumeDef:
            return backend.plan(request, preallocate_metadata=preallocate_metadata)

        def make(planned: VolumeDef) -> VolumeRecord:
            return backend.create(planned, job, preallocate_metadata=preallocate_metadata)

        def work(_job: Job[VolumeRef]) -> VolumeRef:
            return self.ref(making.make(plan, make, request.name, taken))

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
    ) -> Job[VolumeRef]:
        """Make a new volume from *source*, a volume of the pool of *origin*.

        :raise InternalError: the name is taken (libvirt's code for a clone).
        :raise VolumeBusy: a job changes the source.
        """
        pool, making = self.pool, self._making
        backend = pool.able(ClonesVolumes)
        giving = origin.pool.able(Transfers)
        request = making.with_policy(request)
        taken = InternalError(f"storage volume name '{request.name}' already in use.")
        job: Job[VolumeRef] = Job("clone", pool.name, request.name)

        def plan() -> VolumeDef:
            return backend.plan_clone(
                request, origin.look_again(source), preallocate_metadata=preallocate_metadata
            )

        def make(planned: VolumeDef) -> VolumeRecord:
            current = origin.look_again(source)
            with closing(giving.open_image(current)) as handle:
                opened = ImageSource(current, handle, origin.pool.path_of(current))
                return backend.clone(planned, opened, job, reflink=reflink)

        def work(job: Job[VolumeRef]) -> VolumeRef:
            try:
                return self.ref(making.make(plan, make, request.name, taken))
            finally:
                origin.give_back(source.name, job)

        if origin is self and source.name == request.name:
            raise taken
        making.reserve(request, job, taken)
        try:
            origin.lease_read(source.name, job)
            return pool.run_job(job, work, making.ending(job))
        except BaseException:
            origin.give_back(source.name, job)
            with pool.lock:
                pool.jobs.pop(job.id, None)
                making.ending(job)()
            raise

    def delete(self, name: str, *, force: bool = False) -> Job[None]:
        """Delete a volume.

        :raise VolumeBusy: a job uses it.
        """
        backend = self.pool.able(DeletesVolumes)
        record = self.find(name)

        def work(job: Job[None]) -> None:
            backend.delete(record, job, force=force)
            with self.pool.lock:
                gone = self.pool.drop(name) or record
                self.pool.use_space(-gone.allocation)

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

        def work(job: Job[None]) -> None:
            current = self.look_again(record)
            wanted = capacity
            if delta:
                step = -min(capacity, current.capacity) if shrink else capacity
                wanted = current.capacity + step
            if wanted > MAX_SIZE:
                raise InvalidArgument(f"capacity {wanted} is above {MAX_SIZE} bytes")
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
            raise NoSpace(
                "Not enough space left in storage pool",
                advice=f"{format_size(available)} are left in '{self.pool.name}'.",
            )

    def _data_end(self, record: VolumeRecord) -> int:
        """Return where the last data of a raw volume end, in bytes."""
        backend = self.pool.backend
        if record.format != "raw" or not isinstance(backend, Transfers):
            return 0  # formats with a header check their own clusters
        with closing(backend.open_image(record)) as handle:
            header = handle.size() - record.capacity  # of LUKS
            extents = handle.map(0, handle.size())
            ends = (extent.offset + extent.length for extent in extents if extent.data)
            return max(max(ends, default=0) - header, 0)

    def _unknown(self, name: str, *, answered: bool) -> NoSuchVolume:
        pool = self.pool
        if answered:
            advice = f"Looked at pool '{pool.name}' just now: it has no such volume."
        else:
            advice = f"The storage of pool '{pool.name}' did not answer in time; try again."
        return NoSuchVolume(f"no storage vol with matching name '{name}'", advice=advice)
