"""The driver: one engine over one state directory, with a method for each call of the API.

It is free of any protocol: the library, the command line and a daemon call the same methods. Calls
that only read return at once; calls that touch storage for long return a started `Job`.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from storaged.backend import Anchored, Durability, Host
from storaged.driverlock import DriverLock, EngineKind, HeldLock
from storaged.errors import InvalidArgument, StorageError
from storaged.events import Events
from storaged.job import Job
from storaged.model import PoolDef
from storaged.paths import Paths
from storaged.pool import PoolObject
from storaged.poolcalls import PoolCalls
from storaged.poolstate import Phase, Services
from storaged.registry import Registry
from storaged.settings import PolicyStore
from storaged.state import LoadedPool, StateStore
from storaged.table import PoolTable
from storaged.volumecalls import VolumeCalls
from storaged.worker import Limits

#: How long an opening waits for all storage that it must look at, in seconds.
OPEN_PATIENCE = 2.0
#: How long a close waits for jobs that it cancelled, in seconds.
CLOSE_PATIENCE = 5.0


class Driver(PoolCalls, VolumeCalls):
    """An open engine. `close` it, or use it as a context manager.

    :param held: the lock on the state directory; None for an engine that only reads.
    """

    def __init__(self, services: Services, held: HeldLock | None) -> None:
        table = PoolTable()
        PoolCalls.__init__(self, services, table)
        VolumeCalls.__init__(self, services, table)
        self._held = held
        self._problems: tuple[str, ...] = ()
        self.closed = False

    @property
    def readonly(self) -> bool:
        """Whether the engine was opened for reading only."""
        return self._services.readonly

    @property
    def events(self) -> Events:
        """Where to subscribe to events."""
        return self._services.events

    def problems(self) -> tuple[str, ...]:
        """Return which files of the state directories could not be used, and why."""
        return self._problems

    def jobs(self) -> list[Job[Any]]:
        """Return the jobs under way on pools and volumes, the oldest first."""
        found = {job.id: job for pool in self._table.all() for job in pool.under_way()}
        return [found[number] for number in sorted(found)]

    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id.

        :raise InvalidArgument: there is none.
        """
        for job in self.jobs():
            if job.id == number:
                return job
        raise InvalidArgument(f"no job with id {number} is under way")

    def autostart(self) -> None:
        """Start the pools that are to be started at boot, once a boot. What fails is a problem.

        Storage that shows no sign of life for `OPEN_PATIENCE` is not waited for.
        """
        if not self._services.store.needs_autostart():
            return
        self._services.store.mark_autostarted()
        started: list[tuple[PoolObject, Job[None]]] = []
        for pool in self._table.all():
            if pool.autostart and pool.phase is Phase.INACTIVE:
                with suppress(StorageError):
                    started.append((pool, self.pool_start(pool.ref)))
        for pool, job in started:
            job.on_end(partial(_note_autostart, pool, job))
        for _, job in started:
            while not job.wait(0.05) and job.silent_for() < OPEN_PATIENCE:
                pass

    def close(self) -> None:
        """Cancel what is under way, wait for it within a bound, and let other engines in.

        Pools stay active. Calling it again does nothing.
        """
        if self.closed:
            return
        self.closed = True
        self._services.closed.set()
        scans = [job for volumes in self._table.volumes() for job in volumes.scans.under_way()]
        under_way: list[Job[Any]] = [*self.jobs(), *scans]
        for job in under_way:
            job.cancel()
        deadline = time.monotonic() + CLOSE_PATIENCE
        for job in under_way:
            job.wait(max(deadline - time.monotonic(), 0))
        # What did not end in time must not write into what is another engine's from now on.
        self._services.store.readonly = True
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Opening

    def load(self) -> None:
        """Read the state directories.

        Storage is looked at only where nothing else can tell whether a pool is active: once a boot,
        and then within `OPEN_PATIENCE`.
        """
        store = self._services.store
        first = store.first_since_boot()
        loaded = store.load()
        self._problems = loaded.problems
        looked: list[Job[None]] = []
        for found in loaded.pools:
            pool = self._loaded(found)
            self._table.add(pool)
            looked.extend(self._activate(pool, live=found.live is not None, first=first))
        deadline = time.monotonic() + OPEN_PATIENCE
        for job in looked:
            job.wait(max(deadline - time.monotonic(), 0))
        if first:
            store.note_boot()

    def _loaded(self, found: LoadedPool) -> PoolObject:
        definition = found.live or found.config
        assert isinstance(definition, PoolDef)  # noqa: S101 -- one of the two is there
        pool = PoolObject(definition, self._services)
        with pool.lock:
            pool.persistent = found.config is not None
            pool.autostart = found.autostart
            wrong = self._services.policies.problems(pool.name)
            pool.problem("policy", "; ".join(wrong) or None)
            if found.live is not None:
                pool.phase = Phase.ACTIVE
                if found.config is not None and found.config != found.live:
                    pool.define(found.config)
            pool.publish()
        return pool

    def _activate(self, pool: PoolObject, *, live: bool, first: bool) -> list[Job[None]]:
        """Make a loaded pool active if it is; return the look at the storage this takes."""
        try:
            backend = pool.backend
        except StorageError:
            pool.phase = Phase.INACTIVE  # nobody can serve it; its files stay as they are
            with pool.lock:
                pool.publish()
            return []
        if live:
            if not isinstance(backend, Anchored) or self._held_anchor(pool, backend):
                return []
        elif not first:
            return []
        job: Job[None] = Job("look", pool.name)
        with suppress(StorageError):
            pool.workers.submit(job, lambda _job: self._look_whether_active(pool, live=live))
            return [job]
        return []

    def _held_anchor(self, pool: PoolObject, backend: Anchored) -> bool:
        """Have a backend hold what was kept of its target; tell whether there was anything."""
        try:
            anchor = self._services.store.read_anchor(pool.ref.uuid)
            if anchor is not None:
                backend.hold(anchor)
        except StorageError as err:
            with pool.lock:
                pool.problem("anchor", f"taken as it is now, because {err.message}")
            return False
        return anchor is not None

    def _look_whether_active(self, pool: PoolObject, *, live: bool) -> None:
        backend, store = pool.backend, self._services.store
        if not live and not backend.check():
            return
        if isinstance(backend, Anchored):
            anchor = backend.anchor()
            backend.hold(anchor)
            if not self.readonly:
                store.write_anchor(pool.ref.uuid, anchor)
        if live:
            return
        if not self.readonly:
            store.write_live(pool.snapshot.definition)
        with pool.lock:
            if pool.phase is Phase.INACTIVE and not pool.removed:
                pool.settle(Phase.ACTIVE)


def _note_autostart(pool: PoolObject, job: Job[None]) -> None:
    if job.error is not None:
        why = job.error.message if isinstance(job.error, StorageError) else repr(job.error)
        with pool.lock:
            pool.problem("autostart", f"autostart failed: {why}")


def open_driver(
    paths: Paths,
    *,
    readonly: bool = False,
    autostart: bool = False,
    lock_timeout: float = 30.0,
    durability: Durability = Durability.FULL,
    registry: Registry | None = None,
    limits: Limits | None = None,
    kind: EngineKind = EngineKind.EMBEDDED,
    socket: str | None = None,
) -> Driver:
    """Open the engine over *paths*.

    :param readonly: change nothing, and take no lock: works beside another engine.
    :param lock_timeout: how long to wait for another embedded engine, in seconds.
    :raise ResourceBusy: a daemon holds the state directory, or an embedded engine did for too long.
    :raise SystemFailure: the state directories cannot be made or read.
    """
    held = None
    if not readonly:
        held = DriverLock(paths).acquire(timeout=lock_timeout, kind=kind, socket=socket)
    try:
        services = Services(
            # who only reads makes no files, and so needs no name for them
            host=Host("" if readonly else _host_id(paths), durability, session=paths.is_session),
            store=StateStore(paths, readonly=readonly),
            events=Events(),
            registry=registry or Registry(),
            policies=PolicyStore(paths, readonly=readonly),
            limits=limits or Limits(),
            readonly=readonly,
        )
        driver = Driver(services, held)
        driver.load()
        if autostart and not readonly:
            driver.autostart()
    except BaseException:
        if held is not None:
            held.release()
        raise
    return driver


def _host_id(paths: Paths) -> str:
    """Return 12 hexadecimal digits that name this host and this state directory.

    They tell apart the files of all that work in one directory, over NFS or below another root.
    """
    import hashlib  # slow, and not needed by those who only read

    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    name = f"{machine or os.uname().nodename}\0{paths.state}"
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
