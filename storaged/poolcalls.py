"""The calls on pools: one method a call of the API.

What only reads a snapshot returns at once. What touches the storage returns a started `Job`.
"""

from __future__ import annotations

import threading
from typing import Any

from storaged import capabilities, poolxml
from storaged.backend import Builds, FindsSources, require
from storaged.errors import (
    InternalError,
    InvalidArgument,
    NoSuchPool,
    OperationInvalid,
    StorageError,
    TargetChanged,
    Unsupported,
)
from storaged.events import Lifecycle
from storaged.filters import ALL, PoolFilter, passes
from storaged.job import Job
from storaged.model import PoolDef, PoolInfo, PoolRef, PoolSource, PoolType
from storaged.pool import PoolObject
from storaged.poolstate import Phase, Services
from storaged.rules import sanitise_path
from storaged.settings import PoolPolicy
from storaged.starting import begin, start
from storaged.stopping import stop, stop_by_force
from storaged.table import PoolTable


class PoolCalls:
    """The calls on pools."""

    def __init__(self, services: Services, table: PoolTable) -> None:
        self._services = services
        self._table = table
        #: serialises what changes the set of pools and their configuration files
        self._definitions = threading.Lock()

    # Queries

    def pools(self, wanted: PoolFilter = ALL) -> list[PoolRef]:
        """Return the pools that pass a filter, in no order.

        :raise InvalidArgument: unknown bits.
        """
        unknown = int(wanted) & ~int(sum(PoolFilter))
        if unknown:
            where = "storageConnectListAllStoragePools"
            raise InvalidArgument(f"unsupported flags (0x{unknown:x}) in function {where}")
        return [pool.ref for pool in self._table.all() if passes(pool, wanted)]

    def pool_lookup_by_name(self, name: str) -> PoolRef:
        """Return a pool by its name."""
        return self._table.by_name(name).pool.ref

    def pool_lookup_by_uuid(self, uuid: Any) -> PoolRef:
        """Return a pool by its `uuid.UUID`."""
        return self._table.by_uuid(uuid).pool.ref

    def pool_lookup_by_target_path(self, path: str) -> PoolRef:
        """Return the active pool whose target is *path*.

        :raise NoSuchPool: there is none; the advice names an inactive pool with this target.
        """
        cleaned = sanitise_path(path)
        inactive = None
        for pool in self._table.all():
            if pool.snapshot.definition.target == cleaned:
                if pool.active:
                    return pool.ref
                inactive = pool.name
        advice = inactive and (
            f"Pool '{inactive}' has this target but is inactive: storagectl pool start {inactive}"
        )
        clean = "" if cleaned == path else f" ({cleaned})"
        raise NoSuchPool(
            f"no storage pool with matching target path '{path}'{clean}", advice=advice
        )

    def pool_state(self, ref: PoolRef) -> PoolInfo:
        """Return what is known of a pool, without a look at its storage."""
        return self._table.by_ref(ref).pool.snapshot.info

    def pool_info(self, ref: PoolRef) -> PoolInfo:
        """Return the state and the figures of a pool; they are read if nobody has yet."""
        volumes = self._table.by_ref(ref)
        volumes.looks.measure()
        return volumes.pool.snapshot.info

    def require_target(self, ref: PoolRef) -> None:
        """Raise if the target of an active pool is not what it was at the start.

        :raise TargetChanged: it is not.
        """
        volumes = self._table.by_ref(ref)
        volumes.looks.measure(again=True)
        problem = volumes.pool.target_problem
        if problem is not None:
            raise TargetChanged(
                problem,
                advice="Mount what was there again. If the change is meant, stop and start"
                " the pool.",
            )

    def pool_definition(self, ref: PoolRef, *, inactive: bool = False) -> PoolDef:
        """Return what a pool is; with *inactive* what it will be after the next stop."""
        snapshot = self._table.by_ref(ref).pool.snapshot
        return (inactive and snapshot.pending) or snapshot.definition

    def pool_xml(self, ref: PoolRef, *, inactive: bool = False) -> str:
        """Return the XML of a pool; with *inactive* that of a pending redefinition, if any."""
        volumes = self._table.by_ref(ref)
        volumes.looks.measure()
        snapshot = volumes.pool.snapshot
        if inactive and snapshot.pending is not None:
            return poolxml.format_pool(snapshot.pending)
        return poolxml.format_pool(
            snapshot.definition, snapshot.info.space, permissions=snapshot.permissions
        )

    def find_sources(self, pool_type: str, spec: str | None, job: Job[Any] | None = None) -> str:
        """Return the sources of a type as XML.

        :param spec: a ``<source>`` document that says where to look.
        :param job: ends the search when it is cancelled.
        :raise InternalError: no such type.
        :raise Unsupported: its sources cannot be found.
        """
        backend = self.discovering(pool_type)
        where: PoolSource | None = poolxml.parse_source(pool_type, spec) if spec else None
        found = backend.find_sources(where, self._services.host, job or Job("find-sources"))
        return poolxml.format_sources(pool_type, found)

    def discovering(self, pool_type: str) -> type[FindsSources]:
        """Return what finds the sources of a type; raises as `find_sources` does."""
        registry = self._services.registry
        if pool_type not in (*PoolType, *registry.plugin_types()):
            raise InternalError(f"unknown storage pool type {pool_type}")
        backend = registry.find(pool_type)
        if not issubclass(backend, FindsSources):
            raise Unsupported(f"pool type '{pool_type}' does not support source discovery")
        return backend

    def pool_capabilities(self) -> str:
        """Return the capabilities of all pool types as XML."""
        return capabilities.pool_capabilities(self._services.registry.available())

    def driver_capabilities(self) -> str:
        """Return the capabilities of the driver as XML."""
        return capabilities.driver_capabilities(self._services.registry.available())

    # Definitions

    def parse_definition(self, text: str, *, validate: bool = False) -> PoolDef:
        """Return the definition that an XML document holds."""
        plugins = self._services.registry.plugin_types() if self._foreign(text) else ()
        return poolxml.parse_pool(text, validate=validate, plugin_types=plugins)

    def pool_define(self, definition: PoolDef) -> PoolRef:
        """Keep a definition; an active pool takes it after its stop.

        :raise PoolExists: another pool has the name, the uuid or the source.
        :raise XMLSyntaxError: the name cannot be that of a file.
        :raise SystemFailure: the configuration could not be written; nothing has changed.
        """
        self._require_changes()
        self._services.registry.find(definition.type)
        poolxml.define_rules(definition)
        with self._definitions:
            pool = self._table.require_unique(definition, starting=False)
            self._services.store.write_config(definition)
            if pool is None or not self._redefine(pool, definition):
                pool = PoolObject(definition, self._services)
                self._table.add(pool)
                self._redefine(pool, definition)
        self._services.events.deliver()
        return pool.ref

    def pool_undefine(self, ref: PoolRef) -> None:
        """Forget an inactive pool; its storage stays as it is.

        :raise OperationInvalid: it is active.
        """
        self._require_changes()
        with self._definitions:
            pool = self._table.by_ref(ref).pool
            job: Job[None] = Job("undefine", pool.name)
            pool.claim(job, active=False)
            try:
                self._services.store.remove_config(pool.name)
                pool.decide()
                with pool.lock:
                    self._table.remove(pool)
                    self._services.events.post(pool.ref, Lifecycle.UNDEFINED)
                self._services.policies.remove(pool.name)
            finally:
                pool.unclaim(job)
                self._services.events.deliver()

    def pool_set_autostart(self, ref: PoolRef, *, autostart: bool) -> None:
        """Have a persistent pool started at boot, or not.

        :raise InternalError: the pool is transient.
        """
        self._require_changes()
        with self._definitions:
            pool = self._table.by_ref(ref).pool
            if not pool.persistent:
                raise InternalError("pool has no config file")
            self._services.store.set_autostart(pool.name, autostart)
            with pool.lock:
                pool.autostart = autostart
                pool.publish()
            if not autostart:
                pool.decide()

    def pool_policy(self, ref: PoolRef) -> PoolPolicy:
        """Return the defaults for new volumes of a pool."""
        return self._services.policies.load(self._table.by_ref(ref).pool.name)

    def pool_set_policy(self, ref: PoolRef, policy: PoolPolicy) -> None:
        """Set the defaults for new volumes of a pool."""
        self._require_changes()
        with self._definitions:
            self._services.policies.save(self._table.by_ref(ref).pool.name, policy)

    # Life

    def pool_create(
        self, definition: PoolDef, *, build: bool = False, overwrite: bool | None = None
    ) -> tuple[PoolRef, Job[None]]:
        """Start a pool that is not kept, or run a kept one with another definition once.

        :raise OperationInvalid: it is active.
        :raise PoolExists: another pool has the name, the uuid or the source.
        """
        self._require_changes()
        self._services.registry.find(definition.type)
        job: Job[None] = Job("start", definition.name)
        with self._definitions:
            pool = self._table.require_unique(definition, starting=True)
            if pool is None:
                pool = PoolObject(definition, self._services)
                pool.claim(job, active=False, phase=Phase.STARTING)
                self._table.add(pool)
            else:
                pool.claim(job, active=False, phase=Phase.STARTING)
                pool.decide()
                with pool.lock:
                    pool.run_with(definition)
        return pool.ref, begin(pool, job, build=build, overwrite=overwrite)

    def pool_start(
        self, ref: PoolRef, *, build: bool = False, overwrite: bool | None = None
    ) -> Job[None]:
        """Start a pool.

        :raise OperationInvalid: it is active or starting up.
        """
        self._require_changes()
        pool = self._table.by_ref(ref).pool
        job = start(pool, build=build, overwrite=overwrite)
        pool.decide()
        return job

    def pool_build(self, ref: PoolRef, *, overwrite: bool | None = None) -> Job[None]:
        """Make the storage of an inactive pool; a type without anything to make succeeds."""
        self._require_changes()
        pool = self._table.by_ref(ref).pool
        job: Job[None] = Job("build", pool.name)
        pool.claim(job, active=False)

        def work(job: Job[None]) -> None:
            backend = pool.backend
            if isinstance(backend, Builds):
                backend.build(job, overwrite=overwrite)
            self._services.events.post(pool.ref, Lifecycle.CREATED)

        return pool.run_exclusive(job, work, lambda: None)

    def pool_delete(self, ref: PoolRef) -> Job[None]:
        """Remove the storage of an inactive pool, which must hold no volumes."""
        self._require_changes()
        pool = self._table.by_ref(ref).pool
        job: Job[None] = Job("delete", pool.name)
        pool.claim(job, active=False)
        try:
            backend = require(pool.backend, Builds)
        except StorageError:
            pool.unclaim(job)
            raise

        def work(job: Job[None]) -> None:
            backend.delete_target(job)
            self._services.events.post(pool.ref, Lifecycle.DELETED)

        return pool.run_exclusive(job, work, lambda: None)

    def pool_stop(self, ref: PoolRef, *, force: bool = False) -> Job[None]:
        """Stop a pool. A transient one is gone afterwards.

        :param force: although jobs are under way, which are cancelled, or its storage does not
            answer; also while it is starting up. What a machine has not written yet may be lost.
        :raise OperationInvalid: it is not active.
        :raise PoolBusy: jobs are under way in it.
        """
        self._require_changes()
        volumes = self._table.by_ref(ref)
        volumes.pool.decide()
        if force:
            return stop_by_force(volumes.pool, volumes.scans.under_way())
        return stop(volumes.pool)

    def pool_refresh(self, ref: PoolRef) -> Job[None]:
        """Scan a pool. Runs beside its jobs; joins a scan that waits already.

        :raise OperationInvalid: it is not active.
        """
        return self._table.by_ref(ref).scans.request()

    def _redefine(self, pool: PoolObject, definition: PoolDef) -> bool:
        """Give a pool its definition, unless it was a transient one and has just gone."""
        with pool.lock:
            if pool.removed:
                return False
            pool.define(definition)
            self._services.events.post(pool.ref, Lifecycle.DEFINED)
            return True

    def _require_changes(self) -> None:
        require_writable(self._services)

    def _foreign(self, text: str) -> bool:
        """Tell whether a document may be of a type that is not libvirt's."""
        return not any(f"'{kind}'" in text or f'"{kind}"' in text for kind in PoolType)


def require_writable(services: Services) -> None:
    """Raise unless the engine may change things.

    :raise InvalidArgument: it was opened for reading only.
    :raise OperationInvalid: it was closed, and another one may be at work.
    """
    if services.closed.is_set():
        raise OperationInvalid("the engine was closed", advice="Open another one.")
    if services.readonly:
        raise InvalidArgument(
            "this engine was opened read-only", advice="Open it without readonly=True."
        )
