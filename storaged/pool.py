"""A pool at work: who may do what in it at the same time. No policy of calls.

What touches storage runs on the pool's own `Workers`. Two kinds of work exist. *Exclusive* work
(start, stop, build, delete) is alone in the pool. *Volume jobs* run side by side, each under a
lease on its volume; while there are any, exclusive work is refused. A scan runs beside both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from storaged.errors import NoSuchPool, OperationInvalid, PoolBusy, TargetChanged
from storaged.job import Job
from storaged.lease import Leases
from storaged.poolfacts import PoolFacts
from storaged.poolstate import Phase
from storaged.worker import Workers

T = TypeVar("T")


class PoolObject(PoolFacts):
    """One pool.

    :param definition: what its configuration, or its live state, says.
    """

    # Exclusive work

    def claim(self, job: Job[Any], *, active: bool, phase: Phase | None = None) -> None:
        """Begin exclusive work. Takes the lock.

        :param active: whether the pool must be active, or must be inactive.
        :param phase: what the pool is in meanwhile; unchanged if None.
        :raise OperationInvalid: it is in the wrong state; with libvirt's text for *job*'s kind.
        :raise PoolBusy: jobs are under way, or other exclusive work.
        :raise NoSuchPool: it was a transient one and has just gone.
        """
        with self.lock:
            self.claim_locked(job, active=active, phase=phase)

    def claim_locked(self, job: Job[Any], *, active: bool, phase: Phase | None = None) -> None:
        """As `claim`, with the lock held."""
        self._require_idle(job.kind, active=active)
        self._exclusive = job
        if phase is not None:
            self.phase = phase

    def _require_idle(self, kind: str, *, active: bool) -> None:
        if self.removed:
            raise NoSuchPool(f"no storage pool with matching uuid '{self.ref.uuid}' ({self.name})")
        if self.phase is Phase.STARTING:
            raise OperationInvalid(
                f"storage pool '{self.name}' is starting up",
                advice=f"To let go of it: storagectl pool stop {self.name} --force",
            )
        if active and self.phase is Phase.INACTIVE:
            raise self.inactive()
        if not active and self.phase is not Phase.INACTIVE:
            how = "already" if kind in ("start", "build") else "still"
            raise OperationInvalid(
                f"storage pool '{self.name}' is {how} active",
                advice=None if kind == "start" else f"Stop it: storagectl pool stop {self.name}",
            )
        if busy := self.under_way():
            raise self._busy(busy)

    def _busy(self, jobs: list[Job[Any]]) -> PoolBusy:
        """Return libvirt's error for a pool with jobs; the advice names them."""
        named = "; ".join(
            f"job {job.id}: {job.kind} {job.volume or ''}".rstrip() for job in jobs[:3]
        )
        more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
        way = "Wait for the end, or cancel it."
        if self.snapshot.info.outage is not None:
            way = f"Its storage does not answer: storagectl pool stop {self.name} --force"
        return PoolBusy(
            f"pool '{self.name}' has asynchronous jobs running.",
            advice=f"It is busy with {named}{more}. {way}",
        )

    def claim_by_force(self, job: Job[Any]) -> list[Job[Any]]:
        """Begin to stop the pool whatever is under way in it. Takes the lock.

        A start or a stop that is stuck is taken over.

        :returns: what is under way.
        :raise OperationInvalid: it is not active.
        :raise NoSuchPool: it was a transient one and has just gone.
        """
        with self.lock:
            if self.removed or self.phase is Phase.INACTIVE:
                self._require_idle(job.kind, active=True)
            left = self.under_way()
            self._exclusive = job
            if self.phase is Phase.ACTIVE:
                self.phase = Phase.STOPPING
            return left

    def claimed_by(self, job: Job[Any]) -> bool:
        """Tell whether *job* still is the exclusive work: a forced stop may have taken over."""
        return self._exclusive is job

    def require_claim(self, job: Job[Any]) -> None:
        """Raise unless *job* still is the exclusive work.

        :raise OperationInvalid: a forced stop has taken over.
        """
        if not self.claimed_by(job):
            raise self.inactive()

    def forget_work(self, workers: Workers) -> None:
        """Have no more to do with what is under way; call it with the lock held.

        What returns later changes nothing in the pool.

        :param workers: take the place of those that may be stuck.
        """
        self.jobs.clear()
        self.leases = Leases()
        self.workers.close()
        self.workers = workers

    def require_inactive(self, kind: str) -> None:
        """Raise what `claim` would raise now for exclusive work that needs an inactive pool.

        :param kind: what it would do: start, build, delete ...
        """
        with self.lock:
            self._require_idle(kind, active=False)

    def unclaim(self, job: Job[Any]) -> None:
        """End exclusive work. Takes the lock."""
        with self.lock:
            if self._exclusive is job:
                self._exclusive = None

    def run_exclusive(
        self,
        job: Job[T],
        work: Callable[[Job[T]], T],
        failed: Callable[[], None],
        *,
        workers: Workers | None = None,
    ) -> Job[T]:
        """Have claimed work run on a thread and give the claim back at its end.

        :param failed: called if the work failed or could not be begun.
        :param workers: do it in place of the pool's own.
        """

        def run(job: Job[T]) -> T:
            try:
                return work(job)
            except BaseException:
                failed()
                raise
            finally:
                self.unclaim(job)
                self.services.events.deliver()

        try:
            # A stop is tried although the storage seems to be away.
            (workers or self.workers).submit(job, run, anyway=job.kind == "stop")
        except BaseException:
            failed()
            self.unclaim(job)
            raise
        self.services.feed.tell(job)
        return job

    # Volume jobs

    def run_job(
        self, job: Job[T], work: Callable[[Job[T]], T], release: Callable[[], None]
    ) -> Job[T]:
        """Have volume work run on a thread.

        The job counts as one of the pool's until its end.

        :param release: gives the leases back; called with the lock held, before the job ends.
        """

        def ended() -> None:
            with self.lock:
                self.jobs.pop(job.id, None)
                release()

        def run(job: Job[T]) -> T:
            try:
                with self.watching_target():
                    return work(job)
            finally:
                ended()

        try:
            self.workers.submit(job, run)
        except BaseException:
            ended()
            raise
        self.services.feed.tell(job)
        return job

    @contextmanager
    def watching_target(self) -> Iterator[None]:
        """Keep the pool's problem with its target in step with what work on volumes meets."""
        try:
            yield
        except TargetChanged as err:
            with self.lock:
                self.problem("target", err.message)
            raise
        if "target" in self._problems:
            with self.lock:
                self.problem("target", None)
