"""How a pool is started: as asked, and with the host."""

from __future__ import annotations

from storaged.backend import Backend, Builds, Remembers
from storaged.errors import StorageError
from storaged.events import Lifecycle
from storaged.job import Job
from storaged.pool import PoolObject
from storaged.poolstate import Phase
from storaged.stopping import take_down


def start(pool: PoolObject, *, build: bool = False, overwrite: bool | None = None) -> Job[None]:
    """Start a pool.

    :param build: make its storage first; so it is with *overwrite*, see `Builds.build`.
    :raise OperationInvalid: it is active or starting up.
    :raise PoolBusy: other exclusive work is under way in it.
    """
    _ = pool.backend  # raises before anything is touched if nobody brings its type
    job: Job[None] = Job("start", pool.name)
    pool.claim(job, active=False, phase=Phase.STARTING)
    return begin(pool, job, build=build, overwrite=overwrite)


def begin(pool: PoolObject, job: Job[None], *, build: bool, overwrite: bool | None) -> Job[None]:
    """As `start`, for a pool that *job* has claimed. A transient one is gone if that fails."""
    pool.untouched = True

    def work(job: Job[None]) -> None:
        backend = pool.backend
        if (build or overwrite is not None) and isinstance(backend, Builds):
            backend.build(job, overwrite=overwrite)
        with pool.lock:
            pool.require_claim(job)
            pool.untouched = False
        try:
            _bring_up(pool, backend, job)
        except BaseException:
            if not pool.claimed_by(job):
                _undo(pool, backend)
            raise

    def failed() -> None:
        if not pool.claimed_by(job):
            return  # a forced stop sees to all
        left = take_down(pool)
        with pool.lock:
            if pool.claimed_by(job):
                pool.settle(Phase.INACTIVE)
                pool.problem("stop", left)

    return pool.run_exclusive(job, work, failed)


def _bring_up(pool: PoolObject, backend: Backend, job: Job[None]) -> None:
    store = pool.services.store
    backend.start(job)
    if isinstance(backend, Remembers):
        anchor = backend.anchor()
        pool.require_claim(job)
        store.write_anchor(pool.ref.uuid, anchor)
        backend.hold(anchor)
    pool.require_claim(job)
    store.write_live(pool.snapshot.definition)
    found = backend.refresh({}, job)
    with pool.lock:
        pool.require_claim(job)
        pool.settle(Phase.ACTIVE)
        pool.index = pool.index.merged(found.volumes, ())
        pool.scanned = True
        pool.problem("scan", "; ".join(found.problems) or None)
        pool.measured(found.space, found.permissions)
        pool.services.events.post(pool.ref, Lifecycle.STARTED)


def _undo(pool: PoolObject, backend: Backend) -> None:
    """Let go of what was brought up after a forced stop, unless the pool is used again already."""
    job: Job[None] = Job("stop", pool.name)
    try:
        pool.claim(job, active=False)
    except StorageError:
        return
    try:
        problem = backend.stop(job)
    except StorageError as err:
        problem = f"could not be stopped cleanly: {err.message}"
    finally:
        pool.unclaim(job)
    with pool.lock:
        if pool.phase is Phase.INACTIVE:
            pool.problem("stop", problem)
