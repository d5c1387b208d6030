"""Scans of a pool: one at a time, joined while they wait, merged with what changed meanwhile."""

from __future__ import annotations

from typing import Any

from storaged.backend import Refresh
from storaged.errors import Cancelled, OperationInvalid, StorageError, Timeout
from storaged.events import Lifecycle
from storaged.job import Job
from storaged.pool import Phase, PoolObject

#: A query that needs the first scan waits while the scan shows a sign of life every so often.
PATIENCE = 5.0


class Scans:
    """The scans of one pool."""

    def __init__(self, pool: PoolObject) -> None:
        self._pool = pool
        self._running: Job[None] | None = None
        self._waiting: Job[None] | None = None

    def request(self, kind: str = "refresh") -> Job[None]:
        """Ask for a scan that begins after this call; join one that waits already.

        :param kind: "refresh" tells everybody when it is done, "scan" does not.

        :raise OperationInvalid: the pool is not active.
        :raise OperationFailed: too many workers of the pool are stuck.
        """
        with self._pool.lock:
            self._pool.require_active()
            if self._waiting is not None:
                return self._waiting
            job: Job[None] = Job(kind, self._pool.name)
            if self._running is not None:
                self._waiting = job
            else:
                self._begin(job)
            return job

    def require_one(self) -> None:
        """Return when the pool has been scanned since its start; scan it if need be.

        :raise Timeout: the scan has shown no sign of life for `PATIENCE` seconds.
        :raise StorageError: the pool is not active, or the scan failed.
        """
        while not self._pool.scanned:
            with self._pool.lock:
                job = self._running
            job = job or self.request("scan")
            while not job.wait(0.25):
                if job.silent_for() > PATIENCE:
                    raise Timeout(
                        f"pool '{self._pool.name}' has not been read yet: its storage does not "
                        f"answer since {job.silent_for():.0f} s"
                    )
            job.result()

    def _begin(self, job: Job[None]) -> None:
        pool = self._pool
        epoch = pool.epoch
        pool.touched = pool.leases.written()
        self._running = job
        try:
            pool.workers.submit(job, lambda job: self._scan(job, epoch))
        except StorageError:
            pool.touched = self._running = None
            raise

    def _scan(self, job: Job[None], epoch: int) -> None:
        pool = self._pool
        try:
            found = pool.backend.refresh(pool.index.view(), job)
            with pool.lock:
                self._take(found, epoch, loud=job.kind == "refresh")
        except Cancelled:
            raise
        except StorageError as err:
            self._failed(err, epoch)
            raise
        finally:
            self._end()
            pool.services.events.deliver()

    def _take(self, found: Refresh, epoch: int, *, loud: bool) -> None:
        pool = self._pool
        if pool.epoch != epoch:
            raise OperationInvalid(f"storage pool '{pool.name}' is not active")
        pool.index = pool.index.merged(found.volumes, pool.touched or ())
        pool.scanned = True
        pool.problem("scan", "; ".join(found.problems) or None)
        pool.measured(found.space, found.permissions)
        if loud and pool.phase is Phase.ACTIVE:
            pool.services.events.post(pool.ref, None)

    def _end(self) -> None:
        with self._pool.lock:
            self._pool.touched = self._running = None
            waiting, self._waiting = self._waiting, None
            if waiting is None:
                return
            try:
                self._pool.require_active()
                self._begin(waiting)
            except StorageError as err:
                waiting.fail(err)

    def _failed(self, err: StorageError, epoch: int) -> None:
        """Take the pool down, as libvirt does; but not under jobs that still work on it."""
        pool = self._pool
        with pool.lock:
            if pool.epoch != epoch or pool.phase is not Phase.ACTIVE:
                return
            if pool.jobs or pool.services.readonly:
                pool.problem("scan", f"the last refresh failed: {err.message}")
                return
            pool.settle(Phase.INACTIVE)
            pool.problem("scan", f"stopped, because a refresh failed: {err.message}")
            pool.services.events.post(pool.ref, Lifecycle.STOPPED)
        take_down(pool)


def take_down(pool: PoolObject) -> None:
    """Forget the live state of a pool that could not be used, and let go of its storage.

    What goes wrong here must not hide why the pool came down: it becomes a problem of the pool.
    """
    job: Job[Any] = Job("stop", pool.name)
    failed = []
    try:
        pool.services.store.remove_live(pool.name)
    except StorageError as err:
        failed.append(err.message)
    try:
        pool.backend.stop(job)
    except StorageError as err:
        failed.append(err.message)
    if failed:
        with pool.lock:
            pool.problem("stop", f"could not be stopped cleanly: {'; '.join(failed)}")
