"""How a pool is stopped: as asked, by force, and because it could not be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from storaged.backend import StopsByForce
from storaged.errors import StorageError
from storaged.events import Lifecycle
from storaged.job import Job
from storaged.pool import PoolObject
from storaged.poolstate import Phase
from storaged.worker import Workers

#: How long a forced stop lets cancelled jobs end cleanly, in seconds.
PATIENCE = 2.0


def stop(pool: PoolObject) -> Job[None]:
    """Stop a pool. A transient one is gone afterwards.

    :raise OperationInvalid: it is not active.
    :raise PoolBusy: jobs are under way in it.
    :raise OperationFailed: too many workers are stuck in its storage.
    """
    job: Job[None] = Job("stop", pool.name)
    pool.claim(job, active=True, phase=Phase.STOPPING)

    def work(job: Job[None]) -> None:
        pool.backend.stop(job)
        _settle(pool, job, None)

    return pool.run_exclusive(job, work, lambda: _still_active(pool, job))


def stop_by_force(pool: PoolObject, scans: list[Job[None]]) -> Job[None]:
    """Stop a pool although jobs are under way in it, or its storage does not answer.

    Jobs are cancelled and get a moment to end cleanly. What is stuck then is forgotten: it changes
    nothing in the pool when it returns.

    :param scans: those under way.
    :raise OperationInvalid: it is not active.
    """
    job: Job[None] = Job("stop", pool.name)
    left = [*pool.claim_by_force(job), *scans]
    # Fresh ones: all of the pool's own may be stuck.
    workers = Workers(pool.name, pool.services.limits)

    def work(job: Job[None]) -> None:
        _end_work(left)
        backend = pool.backend
        if isinstance(backend, StopsByForce):
            backend.stop_by_force(job)
        else:
            backend.stop(job)
        _settle(pool, job, workers)

    return pool.run_exclusive(job, work, lambda: _still_active(pool, job), workers=workers)


def take_down(pool: PoolObject, *, storage: bool = True) -> str | None:
    """Forget the live state of a pool that could not be used, and let go of its storage.

    Call it while the pool is claimed, and before it settles.

    :param storage: False: it was never begun to be used, so that it is somebody else's.
    :returns: what could not be undone; it must not hide why the pool came down, so nothing is
        raised.
    """
    job: Job[Any] = Job("stop", pool.name)
    store = pool.services.store
    failed = []
    steps: tuple[Callable[[], None], ...] = (
        lambda: store.remove_live(pool.name),
        lambda: store.remove_anchor(pool.ref.uuid),
        *((lambda: pool.backend.stop(job),) if storage else ()),
    )
    for undo in steps:
        try:
            undo()
        except StorageError as err:
            failed.append(err.message)
    return f"could not be stopped cleanly: {'; '.join(failed)}" if failed else None


def _end_work(left: list[Job[Any]]) -> None:
    """Cancel jobs and wait for those that hear it, within a bound."""
    for one in left:
        one.cancel()
    deadline = time.monotonic() + PATIENCE
    for one in left:
        one.wait(max(deadline - time.monotonic(), 0))


def _settle(pool: PoolObject, job: Job[None], workers: Workers | None) -> None:
    """Make a pool inactive whose storage was let go of; by force if there are new *workers*."""
    if not pool.claimed_by(job):
        raise pool.inactive()  # a forced stop has taken over
    pool.services.store.remove_live(pool.name)
    pool.services.store.remove_anchor(pool.ref.uuid)
    used = pool.backend.remains()
    with pool.lock:
        lost = [] if workers is None else pool.forget_work(workers)
        pool.settle(Phase.INACTIVE)
        pool.problem("stop", _told(lost) or used)
        pool.services.events.post(pool.ref, Lifecycle.STOPPED)
    for one in lost:
        one.fail(pool.inactive())


def _still_active(pool: PoolObject, job: Job[None]) -> None:
    with pool.lock:
        if pool.claimed_by(job) and pool.phase is Phase.STOPPING:
            pool.phase = Phase.ACTIVE
            pool.publish()


def _told(lost: list[Job[Any]]) -> str | None:
    """Say what a forced stop left behind."""
    if not lost:
        return None
    named = ", ".join(f"{job.kind} {job.volume or ''}".rstrip() for job in lost[:8])
    more = " ..." if len(lost) > 8 else ""
    return f"stopped by force while its storage did not answer; what may be lost: {named}{more}"
