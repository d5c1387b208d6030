"""Scans of a pool: one at a time, joined while they wait, merged with what changed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from storaged.backend import Refresh
from storaged.errors import (
    Cancelled,
    CommandTimeout,
    MissingProgram,
    OperationInvalid,
    StorageError,
    Timeout,
)
from storaged.events import Lifecycle
from storaged.job import Job
from storaged.pool import PoolObject
from storaged.poolstate import Phase
from storaged.stopping import take_down

#: A query that needs the first scan waits while the scan shows a sign of life every so often.
PATIENCE = 5.0


@dataclass(slots=True)
class _Run:
    """The scans between a start of the pool and its stop: one that works, one that waits.

    A scan that never returns from a dead storage must not be in the way of those that come after
    a stop and a start; so each run has its own.
    """

    epoch: int
    working: Job[None] | None = None
    waiting: Job[None] | None = None


class Scans:
    """The scans of one pool."""

    def __init__(self, pool: PoolObject) -> None:
        self._pool = pool
        self._run = _Run(pool.epoch)

    def request(self, kind: str = "refresh") -> Job[None]:
        """Ask for a scan that begins after this call; join one that waits already.

        :param kind: "refresh" tells everybody when it is done, "scan" does not.

        :raise OperationInvalid: the pool is not active.
        :raise OperationFailed: too many workers of the pool are stuck.
        """
        with self._pool.lock:
            return self._request(kind)

    def _request(self, kind: str) -> Job[None]:
        """As `request`, with the pool's lock held."""
        self._pool.require_active()
        self._pool.workers.require_answering()  # to wait behind a stuck scan is no way out
        run = self._present()
        if run.waiting is not None:
            if kind == "refresh":
                run.waiting.kind = kind
            return run.waiting
        job: Job[None] = Job(kind, self._pool.name)
        if run.working is not None:
            run.waiting = job
        else:
            self._begin(run, job)
        return job

    def require_one(self) -> None:
        """Return when the pool has been scanned since its start; scan it if need be.

        :raise Timeout: the scan has shown no sign of life for `PATIENCE` seconds.
        :raise StorageError: the pool is not active, or the scan failed.
        """
        while (job := self.first()) is not None:
            while not job.wait(0.25):
                if job.silent_for() > PATIENCE:
                    raise Timeout(
                        f"pool '{self._pool.name}' has not been read yet: its storage does not "
                        f"answer since {job.silent_for():.0f} s"
                    )
            job.result()

    def first(self) -> Job[None] | None:
        """Return the scan that tells the volumes since the pool's start; it is begun if need be.

        :returns: None if the volumes are known.
        :raise StorageError: it cannot be begun.
        """
        if self._pool.scanned:
            return None
        with self._pool.lock:
            if self._pool.scanned:
                return None
            return self._present().working or self._request("scan")

    def renew(self) -> None:
        """Let no scan that hangs be in the way of those to come.

        What it finds, should it return, counts for nothing; a scan that waits behind it begins.
        """
        pool, failed = self._pool, None
        patience = pool.services.limits.answers_within
        with pool.lock:
            old = self._present()
            if old.working is None or old.working.silent_for() < patience:
                return
            self._run = _Run(pool.epoch)
            pool.touched = None
            waiting, old.waiting = old.waiting, None
            if waiting is not None:
                try:
                    self._begin(self._run, waiting)
                except StorageError as err:
                    failed = err
        if waiting is not None and failed is not None:
            waiting.fail(failed)

    def under_way(self) -> list[Job[None]]:
        """Return the scan that works and the one that waits, if there are any."""
        return [job for job in (self._run.working, self._run.waiting) if job is not None]

    def _present(self) -> _Run:
        """Return the run of the present epoch. Call it with the pool's lock held."""
        if self._run.epoch != self._pool.epoch:
            self._run = _Run(self._pool.epoch)
            self._pool.touched = None
        return self._run

    def _begin(self, run: _Run, job: Job[None]) -> None:
        pool = self._pool
        pool.touched = pool.leases.written()
        run.working = job
        try:
            pool.workers.submit(job, lambda job: self._scan(job, run))
        except StorageError:
            pool.touched = run.working = None
            raise

    def _scan(self, job: Job[None], run: _Run) -> None:
        pool = self._pool
        try:
            job.checkpoint()
            found = pool.backend.refresh(pool.index.view(), job)
            with pool.lock:
                self._take(found, run, loud=job.kind == "refresh")
        except Cancelled:
            raise
        except StorageError as err:
            self._failed(err, run.epoch, asked=job.kind == "refresh")
            raise
        finally:
            self._end(run)
            pool.services.events.deliver()

    def _take(self, found: Refresh, run: _Run, *, loud: bool) -> None:
        pool = self._pool
        if pool.epoch != run.epoch:
            raise OperationInvalid(f"storage pool '{pool.name}' is not active")
        if run is not self._run:
            return  # it hung, and a later one has been begun
        pool.index = pool.index.merged(found.volumes, pool.touched or ())
        pool.scanned = True
        if not found.problems:
            pool.problem("target", None)  # the scan has looked at it too
        pool.problem("scan", "; ".join(found.problems) or None)
        pool.measured(found.space, found.permissions)
        if loud:
            pool.made_with.clear()
        if loud and pool.phase is Phase.ACTIVE:
            pool.untold = False
            pool.services.events.post(pool.ref, None)

    def _end(self, run: _Run) -> None:
        """Begin the scan that waits, if it still can be."""
        pool = self._pool
        failed = None
        with pool.lock:
            waiting, run.working, run.waiting = run.waiting, None, None
            if run is self._run:
                pool.touched = None
            if waiting is not None:
                try:
                    pool.require_active()
                    if run.epoch != pool.epoch:
                        raise pool.inactive()
                    self._begin(run, waiting)
                except StorageError as err:
                    failed = err
        if waiting is not None and failed is not None:
            waiting.fail(failed)

    def _failed(self, err: StorageError, epoch: int, *, asked: bool) -> None:
        """Take the pool down, as libvirt does.

        But not under jobs that still work on it, not if its storage may come back by itself, not
        for what says nothing of the storage, not because of a scan that nobody asked for, and not
        where the pool is another engine's matter.
        """
        pool = self._pool
        job: Job[None] = Job("stop", pool.name)
        with pool.lock:
            if pool.epoch != epoch or pool.phase is not Phase.ACTIVE:
                return
            stays = not asked or isinstance(err, (Timeout, CommandTimeout, MissingProgram))
            others = pool.services.readonly or pool.services.closed.is_set()
            if stays or others or pool.watched or pool.under_way():
                pool.problem("scan", f"the last refresh failed: {err.message}")
                return
            pool.claim_locked(job, active=True, phase=Phase.STOPPING)
        try:
            left = take_down(pool)
            with pool.lock:
                pool.settle(Phase.INACTIVE)
                pool.problem("scan", f"stopped, because a refresh failed: {err.message}")
                pool.problem("stop", left)
                pool.services.events.post(pool.ref, Lifecycle.STOPPED)
        finally:
            pool.unclaim(job)
