"""The calls on pools, for an engine behind a connection."""

# ruff: noqa: D102 -- what the calls do is said once, at those of the driver

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from storaged.client.enginepeer import Peer
from storaged.client.enginevalues import read_pool, write_pool
from storaged.facts import PoolInfo, PoolRef
from storaged.filters import ALL, PoolFilter
from storaged.job import Job
from storaged.rpc import storage
from storaged.rpc.program import Procedure
from storaged.wirenames import pool_record, pool_ref

if TYPE_CHECKING:
    from storaged.model import PoolDef
    from storaged.settings import PoolPolicy

# Libvirt's flags.
_BUILD, _BUILD_OVERWRITE, _BUILD_NO_OVERWRITE = 1, 2, 4
_NO_OVERWRITE, _OVERWRITE = 4, 8
_VALIDATE = 1
_INACTIVE = 1


class RemotePools:
    """The calls on pools; `storaged.poolcalls` says what each does."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    # Queries

    def pools(self, wanted: PoolFilter = ALL) -> list[PoolRef]:
        wish = storage.ListPoolsArgs(1, int(wanted))
        return [pool_ref(found) for found in self._peer.call(storage.LIST_ALL_POOLS, wish).pools]

    def pool_infos(self, wanted: PoolFilter = ALL) -> list[PoolInfo]:
        return self._peer.pool_infos(int(wanted))

    def pool_lookup_by_name(self, name: str) -> PoolRef:
        return pool_ref(self._peer.call(storage.POOL_LOOKUP_BY_NAME, storage.Name(name)).pool)

    def pool_lookup_by_uuid(self, uuid: UUID) -> PoolRef:
        wish = storage.Uuid(uuid.bytes)
        return pool_ref(self._peer.call(storage.POOL_LOOKUP_BY_UUID, wish).pool)

    def pool_lookup_by_target_path(self, path: str) -> PoolRef:
        wish = storage.Name(path)
        return pool_ref(self._peer.call(storage.POOL_LOOKUP_BY_TARGET_PATH, wish).pool)

    def pool_state(self, ref: PoolRef) -> PoolInfo:
        return self._peer.pool_info(ref, figures=False)

    def pool_info(self, ref: PoolRef) -> PoolInfo:
        return self._peer.pool_info(ref, figures=True)

    def require_target(self, ref: PoolRef) -> None:
        self._peer.require_target(ref)

    def pool_definition(self, ref: PoolRef, *, inactive: bool = False) -> PoolDef:
        return read_pool(self.pool_xml(ref, inactive=inactive))

    def pool_xml(self, ref: PoolRef, *, inactive: bool = False) -> str:
        wish = storage.PoolFlagsArgs(pool_record(ref), _INACTIVE if inactive else 0)
        return self._peer.call(storage.POOL_GET_XML_DESC, wish).xml

    def pool_policy(self, ref: PoolRef) -> PoolPolicy:
        return self._peer.policy(ref)

    def find_sources(self, pool_type: str, spec: str | None) -> str:
        wish = storage.FindSourcesArgs(pool_type, spec)
        return self._peer.call(storage.FIND_POOL_SOURCES, wish).xml

    def pool_capabilities(self) -> str:
        return self._peer.call(storage.GET_POOL_CAPABILITIES, storage.Flags()).xml

    # Definitions

    def parse_definition(self, text: str, *, validate: bool = False) -> PoolDef:
        return read_pool(text, validate=validate)

    def pool_define(self, definition: PoolDef) -> PoolRef:
        return self.pool_define_xml(write_pool(definition))

    def pool_define_xml(self, text: str, *, validate: bool = False) -> PoolRef:
        wish = storage.XMLArgs(text, _VALIDATE if validate else 0)
        return pool_ref(self._peer.call(storage.POOL_DEFINE_XML, wish).pool)

    def pool_undefine(self, ref: PoolRef) -> None:
        self._peer.call(storage.POOL_UNDEFINE, storage.PoolArgs(pool_record(ref)))

    def pool_set_autostart(self, ref: PoolRef, *, autostart: bool) -> None:
        wish = storage.PoolAutostartArgs(pool_record(ref), int(autostart))
        self._peer.call(storage.POOL_SET_AUTOSTART, wish)

    def pool_set_policy(self, ref: PoolRef, policy: PoolPolicy) -> None:
        self._peer.set_policy(ref, policy)

    # Life

    def pool_create(
        self, definition: PoolDef, *, build: bool = False, overwrite: bool | None = None
    ) -> tuple[PoolRef, Job[None]]:
        job = self._run(write_pool(definition), definition.name, build, overwrite)
        return PoolRef(definition.name, definition.uuid), job.giving(lambda _: None)

    def pool_create_xml(
        self,
        text: str,
        *,
        build: bool = False,
        overwrite: bool | None = None,
        validate: bool = False,
    ) -> Job[PoolRef]:
        if validate:  # the call has no flag for it
            read_pool(text, validate=True)
        return self._run(text, "", build, overwrite)

    def pool_start(
        self, ref: PoolRef, *, build: bool = False, overwrite: bool | None = None
    ) -> Job[None]:
        wish = storage.PoolFlagsArgs(pool_record(ref), _start_flags(build, overwrite))
        return self._on_pool("start", ref, storage.POOL_CREATE, wish)

    def pool_build(self, ref: PoolRef, *, overwrite: bool | None = None) -> Job[None]:
        flags = 0 if overwrite is None else _OVERWRITE if overwrite else _NO_OVERWRITE
        wish = storage.PoolFlagsArgs(pool_record(ref), flags)
        return self._on_pool("build", ref, storage.POOL_BUILD, wish)

    def pool_delete(self, ref: PoolRef) -> Job[None]:
        wish = storage.PoolFlagsArgs(pool_record(ref))
        return self._on_pool("delete", ref, storage.POOL_DELETE, wish)

    def pool_stop(self, ref: PoolRef, *, force: bool = False) -> Job[None]:
        if force:
            self._peer.require_forced_stop()
        wish = storage.PoolArgs(pool_record(ref))
        return self._on_pool("stop", ref, storage.POOL_DESTROY, wish, force=force)

    def pool_refresh(self, ref: PoolRef) -> Job[None]:
        wish = storage.PoolFlagsArgs(pool_record(ref))
        return self._on_pool("refresh", ref, storage.POOL_REFRESH, wish)

    def _run(self, text: str, name: str, build: bool, overwrite: bool | None) -> Job[PoolRef]:
        wish = storage.XMLArgs(text, _start_flags(build, overwrite))
        work: Job[PoolRef] = Job("start", name)
        return self._peer.begin(
            work, storage.POOL_CREATE_XML, wish, lambda found: pool_ref(found.pool)
        )

    def _on_pool(
        self,
        kind: str,
        ref: PoolRef,
        procedure: Procedure[Any, Any],
        wish: Any,
        *,
        force: bool = False,
    ) -> Job[None]:
        work: Job[None] = Job(kind, ref.name)
        return self._peer.begin(work, procedure, wish, lambda _: None, force=force)


def _start_flags(build: bool, overwrite: bool | None) -> int:
    if overwrite is None:
        return _BUILD if build else 0
    return _BUILD_OVERWRITE if overwrite else _BUILD_NO_OVERWRITE
