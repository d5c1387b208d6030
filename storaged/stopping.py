"""How a pool is stopped: as asked, by force, and because it could not be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
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
        _settle(pool, job, pool.backend.stop(job))

    return pool.run_exclusive(job, work, lambda: _still_active(pool, job))


def stop_by_force(pool: PoolObject, scans: list[Job[None]]) -> Job[None]:
    """Stop a pool although jobs are under way in it, or its storage does not answer.

    Jobs are cancelled and get a moment to end cleanly. What is stuck then is forgotten: it changes
    nothing in the pool when it returns. A pool that is starting up is inactive afterwards, also if
    its storage could not be let go of.

    :param scans: those under way.
    :raise OperationInvalid: it is not active.
    """
    job: Job[None] = Job("stop", pool.name)
    left = pool.claim_by_force(job)
    # Fresh ones: all of the pool's own may be stuck.
    workers = Workers(pool.name, pool.services.limits)

    def work(job: Job[None]) -> None:
        _end_work([*left, *scans])
        starting = pool.phase is Phase.STARTING
        used = take_down(pool, force=True) if starting else _let_go(pool, job)
        _settle(pool, job, used, left, workers)

    return pool.run_exclusive(job, work, lambda: _still_active(pool, job), workers=workers)


def take_down(pool: PoolObject, *, force: bool = False) -> str | None:
    """Forget the live state of a pool that could not be used, and let go of its storage.

    Call it while the pool is claimed, and before it settles.

    :param force: without waiting for the storage, where that can be done.
    :returns: what could not be undone; it must not hide why the pool came down, so nothing is
        raised.
    """
    job: Job[Any] = Job("stop", pool.name)
    store = pool.services.store
    let_go = partial(_let_go, pool) if force else pool.backend.stop
    failed = []
    steps: tuple[Callable[[], object], ...] = (
        lambda: store.remove_live(pool.name),
        lambda: store.remove_anchor(pool.ref.uuid),
        *(() if pool.untouched else (lambda: let_go(job),)),
    )
    for undo in steps:
        try:
            undo()
        except StorageError as err:
            failed.append(err.message)
    return f"could not be stopped cleanly: {'; '.join(failed)}" if failed else None


def _let_go(pool: PoolObject, job: Job[Any]) -> str | None:
    """Have the storage let go of without waiting for it, where that can be done."""
    backend = pool.backend
    return backend.stop_by_force(job) if isinstance(backend, StopsByForce) else backend.stop(job)


def _end_work(left: list[Job[Any]]) -> None:
    """Cancel jobs and wait for those that hear it, within a bound."""
    for one in left:
        one.cancel()
    deadline = time.monotonic() + PATIENCE
    for one in left:
        one.wait(max(deadline - time.monotonic(), 0))


def _settle(
    pool: PoolObject,
    job: Job[None],
    used: str | None,
    left: Sequence[Job[Any]] = (),
    workers: Workers | None = None,
) -> None:
    """Make a pool inactive whose storage was let go of.

    :param used: what was left as it was because others use it, in words.
    :param left: what was under way, where it was stopped by force; what is stuck is forgotten.
    :param workers: take the place of those that may be stuck.
    """
    pool.require_claim(job)
    pool.services.store.remove_live(pool.name)
    pool.services.store.remove_anchor(pool.ref.uuid)
    with pool.lock:
        pool.require_claim(job)
        was_active = pool.phase is not Phase.STARTING
        lost = [one for one in left if not one.ended]
        if workers is not None:
            pool.forget_work(workers)
        pool.settle(Phase.INACTIVE)
        pool.problem("stop", _told(lost) or used)
        if was_active:
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
    if any(job.kind == "start" for job in lost):
        return "stopped by force while it was starting up, which may still go on for a while"
    work = [job for job in lost if job.kind != "stop"]
    if not work:
        return None
    named = ", ".join(f"{job.kind} {job.volume or ''}".rstrip() for job in work[:8])
    more = " ..." if len(work) > 8 else ""
    return f"stopped by force while its storage did not answer; what may be lost: {named}{more}"
