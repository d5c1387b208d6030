"""Fresh looks: one volume, one look at the storage, a bounded wait.

So nobody needs a refresh to see what another tool made, grew or removed. A look that takes too long
goes on by itself; the query answers with the last known facts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from storaged import passphrases
from storaged.backend import Figures, LooksAtVolumes
from storaged.errors import OperationFailed, OperationInvalid, StorageError
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord
from storaged.pool import PoolObject
from storaged.poolstate import LOOK_PATIENCE as PATIENCE


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look found.

    :param record: the facts, fresh or last known; None if there is no such volume.
    :param fresh: whether the storage answered in time.
    """

    record: VolumeRecord | None
    fresh: bool


class Looks:
    """The looks at the volumes of one pool; never two at one volume."""

    def __init__(self, pool: PoolObject) -> None:
        self._pool = pool
        self._epoch = pool.epoch
        self._under_way: dict[str, Job[VolumeRecord | None]] = {}
        self._described: dict[str, tuple[VolumeRecord, Job[VolumeDef]]] = {}
        self._space: Job[None] | None = None

    def look(self, name: str) -> Sight:
        """Look at one volume.

        A volume that a job changes is not looked at: its record is what the job says.

        :raise StorageError: what the backend said of the volume.
        """
        begun = self.begin(name)
        if isinstance(begun, Sight):
            return begun
        if not begun.wait(PATIENCE):
            return self.last_known(name)
        return Sight(begun.result(), fresh=True)

    def last_known(self, name: str) -> Sight:
        """Return what was known of a volume before the look that takes too long."""
        return Sight(self._pool.index.get(name), fresh=False)

    def begin(self, name: str) -> Sight | Job[VolumeRecord | None]:
        """Begin a look and return its job, or what can be told at once."""
        pool = self._pool
        if not isinstance(pool.backend, LooksAtVolumes):
            return Sight(pool.index.get(name), fresh=True)
        with pool.lock:
            known = pool.index.get(name)
            if pool.leases.writer(name) is not None:
                return Sight(known, fresh=True)
            if self._slow():
                return Sight(known, fresh=False)
            job = self._under_way.get(name)
            if job is None:
                job = Job("look", pool.name, name)
                try:
                    pool.workers.submit(job, partial(self._work, pool.epoch))
                except OperationFailed:
                    return Sight(known, fresh=False)
                self._under_way[name] = job
            return job

    def describe(self, record: VolumeRecord) -> VolumeDef | None:
        """Return all there is to say of a volume; None if the storage does not answer in time."""
        job = self.begin_describing(record)
        return job.result() if job is not None and job.wait(PATIENCE) else None

    def begin_describing(self, record: VolumeRecord) -> Job[VolumeDef] | None:
        """Begin to read all there is to say of a volume; None if that cannot be done now."""
        pool = self._pool
        backend = pool.backend
        if not isinstance(backend, LooksAtVolumes):
            return None
        with pool.lock:
            if self._slow():
                return None
            known, job = self._described.get(record.name, (None, None))
            if job is None or known is not record:
                job = Job("look", pool.name, record.name)
                try:
                    pool.workers.submit(job, lambda job: self._describe(backend, record, job))
                except OperationFailed:
                    return None
                self._described[record.name] = (record, job)
        return job

    def measure(self, *, again: bool = False) -> None:
        """Read the figures of the pool if they are not known, waiting no longer than a look.

        :param again: also if they are known.
        """
        pool = self._pool
        if not pool.active or (pool.space_known and not again):
            return
        with pool.lock:
            job = self._space
            if job is not None and not job.ended:
                return  # somebody has waited for it already
            epoch = pool.epoch
            job = self._space = Job("look", pool.name)
            try:
                pool.workers.submit(job, lambda _job: self._measure(epoch))
            except OperationFailed:
                return
        job.wait(PATIENCE)

    def _slow(self) -> bool:
        """Tell whether an earlier look is overdue: then nobody else waits for this storage.

        Call it with the pool's lock held.
        """
        if self._epoch != self._pool.epoch:  # what hung before a stop says nothing of what is now
            self._epoch, self._under_way, self._described = self._pool.epoch, {}, {}
        if not self._under_way and not self._described:
            return False
        jobs: list[Job[Any]] = [*self._under_way.values()]
        jobs += [job for _, job in self._described.values()]
        return any(job.silent_for() > 4 * PATIENCE for job in jobs)

    def _work(self, epoch: int, job: Job[VolumeRecord | None]) -> VolumeRecord | None:
        pool, name = self._pool, job.volume or ""
        backend = pool.backend
        assert isinstance(backend, LooksAtVolumes)  # noqa: S101 -- `look` has tested it
        known = pool.index.get(name)
        try:
            found = backend.look(name, known)
        except BaseException:
            with pool.lock:
                self._forget(name, job)
            raise
        with pool.lock:
            self._forget(name, job)
            if pool.epoch != epoch:
                raise OperationInvalid(f"storage pool '{pool.name}' is not active")
            current = pool.index.get(name)
            if current is not known or pool.leases.writer(name) is not None:
                return current
            if found is not None and found is not known:
                pool.untold = True
                pool.put(found)
            elif found is None and known is not None and known.problem != VANISHED:
                pool.put(replace(known, problem=VANISHED, stamp=b""))
        return found

    def _forget(self, name: str, job: Job[Any]) -> None:
        if self._under_way.get(name) is job:
            del self._under_way[name]

    def _describe(
        self, backend: LooksAtVolumes, record: VolumeRecord, job: Job[VolumeDef]
    ) -> VolumeDef:
        try:
            return passphrases.describe(self._pool, backend.describe(record))
        finally:
            with self._pool.lock:
                if self._described.get(record.name, (None, None))[1] is job:
                    del self._described[record.name]

    def _measure(self, epoch: int) -> None:
        pool, problem = self._pool, None
        figures: Figures | None = None
        try:
            figures = pool.backend.measure()
        except StorageError as err:
            problem = f"its figures cannot be read: {err.message}"
        with pool.lock:
            if pool.epoch == epoch:
                pool.problem("space", problem)
                if figures is not None:
                    pool.problem("target", figures.problem)
                    if figures.problem is None:
                        pool.measured(figures.space, figures.permissions)


#: The problem of a volume that was there at the last scan and is not any more.
VANISHED = "it is gone: removed by somebody else since the last refresh"
