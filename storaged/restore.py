"""From the files of the state directories to pools: at the opening, and again on request.

Source: libvirt's behaviour at the start of its storage driver and on SIGHUP.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from storaged.backend import Remembers
from storaged.errors import StorageError
from storaged.job import Job
from storaged.model import PoolDef
from storaged.paths import printable
from storaged.pool import PoolObject
from storaged.poolstate import Phase, Services
from storaged.state import LoadedPool
from storaged.table import PoolTable


class Restore:
    """Makes the pools of an engine from its files.

    :param definitions: the lock that whoever changes the set of pools holds.
    :param patience: how long all storage that must be looked at is waited for, in seconds.
    """

    def __init__(
        self, services: Services, table: PoolTable, definitions: threading.Lock, *, patience: float
    ) -> None:
        self._services = services
        self._table = table
        self._definitions = definitions
        self._patience = patience

    def load(self) -> tuple[str, ...]:
        """Read the files of an engine that has no pools yet; return what is wrong with them.

        Storage is looked at only where nothing else can tell whether a pool is active: once a boot,
        and where an engine may have been killed in a start.
        """
        store = self._services.store
        first = store.first_since_boot()
        loaded = store.load()
        left = () if self._services.readonly else self._recover()
        looked: list[Job[None]] = []
        for found in loaded.pools:
            looked.extend(self._add(found, first=first))
        self._wait(looked)
        if first:
            store.note_boot()
        return (*loaded.problems, *left)

    def reload(self) -> tuple[str, ...]:
        """Read the files again; return what is wrong with them.

        New pools appear, inactive unless there is a live definition; definitions and autostart that
        were changed hold, for an active pool after its stop. A pool whose file is gone stays.
        """
        problems: list[str] = []
        looked: list[Job[None]] = []
        with self._definitions:
            loaded = self._services.store.load()
            for found in loaded.pools:
                try:
                    looked.extend(self._take(found))
                except StorageError as err:
                    path = self._services.store.paths.config_file(found.name)
                    problems.append(f"'{printable(path)}': {err.message}")
        self._wait(looked)
        return (*loaded.problems, *problems)

    def _recover(self) -> tuple[str, ...]:
        """Have what the killed have left on this host put right; return what could not be."""
        problems = []
        registry = self._services.registry
        for kind in registry.interrupted():
            try:
                registry.find(kind).recover()
            except StorageError as err:
                problems.append(f"what killed engines have left of type {kind}: {err.message}")
        return tuple(problems)

    def _take(self, found: LoadedPool) -> list[Job[None]]:
        """Take over what the files tell of one pool, known or new."""
        definition = found.config or found.live
        assert isinstance(definition, PoolDef)  # noqa: S101 -- one of the two is there
        pool = self._table.require_unique(definition, starting=False)
        if pool is None:
            return self._add(found, first=False)
        with pool.lock:
            if found.config is not None and not pool.removed:
                pool.autostart = found.autostart
                known = pool.snapshot.pending or pool.snapshot.definition
                if known != found.config or not pool.persistent:
                    pool.define(found.config)
                pool.publish()
        return []

    def _wait(self, looked: list[Job[None]]) -> None:
        deadline = time.monotonic() + self._patience
        for job in looked:
            job.wait(max(deadline - time.monotonic(), 0))

    def _add(self, found: LoadedPool, *, first: bool) -> list[Job[None]]:
        """Add a pool; return the look at its storage that is under way."""
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
        self._table.add(pool)
        return self._activate(pool, live=found.live is not None, first=first)

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
            if not isinstance(backend, Remembers) or self._held_anchor(pool, backend):
                return []
        elif not first and not backend.check_proves:
            return []
        job: Job[None] = Job("look", pool.name)
        with suppress(StorageError):
            pool.workers.submit(job, lambda _job: self._look_whether_active(pool, live=live))
            return [job]
        return []

    def _held_anchor(self, pool: PoolObject, backend: Remembers) -> bool:
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
        writes = not self._services.readonly
        if not live and not backend.check():
            return
        if isinstance(backend, Remembers):
            anchor = backend.anchor()
            backend.hold(anchor)
            if writes:
                store.write_anchor(pool.ref.uuid, anchor)
        if live:
            return
        if writes:
            store.write_live(pool.snapshot.definition)
        with pool.lock:
            if pool.phase is Phase.INACTIVE and not pool.removed:
                pool.settle(Phase.ACTIVE)
