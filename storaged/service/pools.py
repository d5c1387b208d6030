"""The calls on pools."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from uuid import UUID

from storaged.errors import BadArgument, Domain, InternalError
from storaged.filters import PoolFilter
from storaged.job import Job
from storaged.model import PoolType
from storaged.rpc import storage as rpc
from storaged.rpc.errors import RPCError
from storaged.rpc.record import Void
from storaged.rpc.storage import (
    LIST_MAX,
    XML,
    Count,
    FindSourcesArgs,
    Flags,
    ListPoolsArgs,
    ListPoolsRet,
    MaxNames,
    Name,
    Names,
    PoolArgs,
    PoolAutostartArgs,
    PoolFlagsArgs,
    PoolInfoRet,
    PoolRet,
    Uuid,
    VolArgs,
    XMLArgs,
)
from storaged.service.handler import (
    Begun,
    Handlers,
    Query,
    Work,
    always,
    never,
    refuse_unknown,
)
from storaged.wirenames import pool_record, pool_ref

if TYPE_CHECKING:
    from storaged.service.session import Session

#: Flags of a start.
_WITH_BUILD: Final = 1
_WITH_OVERWRITE: Final = 2
_WITH_NO_OVERWRITE: Final = 4
_START: Final = _WITH_BUILD | _WITH_OVERWRITE | _WITH_NO_OVERWRITE
#: Flags of a build.
_NO_OVERWRITE: Final = 4
_OVERWRITE: Final = 8
#: A flag of the XML of a pool.
_INACTIVE: Final = 1
#: A flag of a definition.
_VALIDATE: Final = 1
#: What libvirt calls the functions that find the sources of a type: its messages name them.
_FINDERS: Final = MappingProxyType(
    {
        "netfs": "virStorageBackendFileSystemNetFindPoolSources",
        "logical": "virStorageBackendLogicalFindPoolSources",
        "iscsi": "virStorageBackendISCSIFindPoolSources",
    }
)

_ALL_FILTERS: Final = int(sum(PoolFilter))
#: Lists of more are built where they may take their time.
SHORT: Final = 256

#: Who looks at the flags of a build, and which ones it knows; all others take any.
_BUILDERS: Final = {
    PoolType.DIR: ("virStorageBackendFileSystemBuild", _NO_OVERWRITE | _OVERWRITE),
    PoolType.FS: ("virStorageBackendFileSystemBuild", _NO_OVERWRITE | _OVERWRITE),
    PoolType.NETFS: ("virStorageBackendFileSystemBuild", _NO_OVERWRITE | _OVERWRITE),
    PoolType.LOGICAL: ("virStorageBackendLogicalBuildPool", _NO_OVERWRITE | _OVERWRITE),
    PoolType.DISK: ("virStorageBackendDiskBuildPool", _NO_OVERWRITE | _OVERWRITE),
    PoolType.ZFS: ("virStorageBackendZFSBuildPool", 0),
}


def check_room(limit: str, maxnames: int) -> None:
    """Raise libvirt's error for a list of names that no reply could carry.

    :param limit: libvirt's name of the bound.
    """
    if maxnames < 0:
        raise RPCError("maxnames must be non-negative")
    if maxnames > LIST_MAX:
        raise RPCError(f"maxnames > {limit}")


def require_room(what: str, count: int) -> None:
    """Raise libvirt's error for a list that is longer than a reply may be.

    :param what: libvirt's name of the list.
    :raise InternalError: it is.
    """
    if count > LIST_MAX:
        raise InternalError(
            f"Too many {what} '{count}' for limit '{LIST_MAX}'",
            domain=Domain.RPC,
            advice="storagectl lists them page by page.",
        )


def _check_names(args: MaxNames) -> None:
    check_room("REMOTE_STORAGE_POOL_LIST_MAX", args.maxnames)


# Lists and look-ups


def _active_count(session: Session, _args: Void) -> Count:
    return Count(len(session.driver.pools(PoolFilter.ACTIVE)))


def _active_names(session: Session, args: MaxNames) -> Names:
    return _names(session, PoolFilter.ACTIVE, args.maxnames)


def _inactive_count(session: Session, _args: Void) -> Count:
    return Count(len(session.driver.pools(PoolFilter.INACTIVE)))


def _inactive_names(session: Session, args: MaxNames) -> Names:
    return _names(session, PoolFilter.INACTIVE, args.maxnames)


def _names(session: Session, wanted: PoolFilter, most: int) -> Names:
    return Names(tuple([ref.name for ref in session.driver.pools(wanted)[:most]]))


def _list(session: Session, args: ListPoolsArgs) -> ListPoolsRet:
    refuse_unknown(args.flags, _ALL_FILTERS, "storageConnectListAllStoragePools")
    wanted = PoolFilter(args.flags) if args.need_results else PoolFilter(0)
    found = session.driver.pools(wanted)
    require_room("storage_pools", len(found))
    kept = found if args.need_results else ()
    return ListPoolsRet(tuple([pool_record(ref) for ref in kept]), len(found))


def _few_pools(session: Session, _args: object) -> bool:
    return session.driver.known.pools() <= SHORT


def _by_name(session: Session, args: Name) -> PoolRet:
    return PoolRet(pool_record(session.driver.pool_lookup_by_name(args.name)))


def _by_uuid(session: Session, args: Uuid) -> PoolRet:
    return PoolRet(pool_record(session.driver.pool_lookup_by_uuid(UUID(bytes=args.uuid))))


def _by_volume(session: Session, args: VolArgs) -> PoolRet:
    return PoolRet(pool_record(session.driver.pool_lookup_by_name(args.vol.pool)))


def _by_target(session: Session, args: Name) -> PoolRet:
    return PoolRet(pool_record(session.driver.pool_lookup_by_target_path(args.name)))


# Facts


def _info(session: Session, args: PoolArgs) -> PoolInfoRet:
    info = session.driver.pool_info(pool_ref(args.pool))
    space = info.space
    return PoolInfoRet(int(info.state), space.capacity, space.allocation, space.available)


def _figures_known(session: Session, args: PoolArgs | PoolFlagsArgs) -> bool:
    return session.driver.known.figures(pool_ref(args.pool))


def _xml(session: Session, args: PoolFlagsArgs) -> XML:
    refuse_unknown(args.flags, _INACTIVE, "storagePoolGetXMLDesc")
    return XML(session.driver.pool_xml(pool_ref(args.pool), inactive=bool(args.flags)))


def _autostart(session: Session, args: PoolArgs) -> Count:
    return Count(int(session.driver.pool_state(pool_ref(args.pool)).autostart))


def _set_autostart(session: Session, args: PoolAutostartArgs) -> Void:
    session.driver.pool_set_autostart(pool_ref(args.pool), autostart=bool(args.autostart))
    return Void()


def _active(session: Session, args: PoolArgs) -> Count:
    return Count(int(session.driver.pool_state(pool_ref(args.pool)).active))


def _persistent(session: Session, args: PoolArgs) -> Count:
    return Count(int(session.driver.pool_state(pool_ref(args.pool)).persistent))


def _capabilities(session: Session, args: Flags) -> XML:
    refuse_unknown(args.flags, 0, "storageConnectGetStoragePoolCapabilities")
    return XML(session.driver.pool_capabilities())


def _find_sources(session: Session, args: FindSourcesArgs) -> XML:
    driver = session.driver
    if args.flags:
        driver.discovering(args.type)
        refuse_unknown(
            args.flags, 0, _FINDERS.get(args.type, "storageConnectFindStoragePoolSources")
        )
    job: Job[None] = Job("find-sources")
    session.jobs.bind(job)
    try:
        return XML(driver.find_sources(args.type, args.src_spec, job))
    finally:
        job.finish(None)


# Definitions and life


def _define(session: Session, args: XMLArgs) -> PoolRet:
    refuse_unknown(args.flags, _VALIDATE, "storagePoolDefineXML")
    driver = session.driver
    definition = driver.parse_definition(args.xml, validate=bool(args.flags & _VALIDATE))
    return PoolRet(pool_record(driver.pool_define(definition)))


def _undefine(session: Session, args: PoolArgs) -> Void:
    session.driver.pool_undefine(pool_ref(args.pool))
    return Void()


def _create(session: Session, args: XMLArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, _START, "storagePoolCreateXML")
    driver = session.driver
    definition = driver.parse_definition(args.xml)
    ref, job = driver.pool_create(
        definition, build=bool(args.flags & _WITH_BUILD), overwrite=_overwrite(args.flags)
    )
    return Begun(job, lambda _none: PoolRet(pool_record(ref)))


def _start(session: Session, args: PoolFlagsArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, _START, "storagePoolCreate")
    job = session.driver.pool_start(
        pool_ref(args.pool),
        build=bool(args.flags & _WITH_BUILD),
        overwrite=_overwrite(args.flags),
    )
    return Begun(job)


def _overwrite(flags: int) -> bool | None:
    """Return what a start's flags say of what is on the source already."""
    if flags & _WITH_OVERWRITE:
        return True
    return False if flags & _WITH_NO_OVERWRITE else None


def _build(session: Session, args: PoolFlagsArgs, _force: bool) -> Begun:
    driver, ref, flags = session.driver, pool_ref(args.pool), args.flags
    if flags:
        driver.require_inactive(ref, "build")
        _check_build(driver.pool_definition(ref).type, flags)
    overwrite = True if flags & _OVERWRITE else False if flags & _NO_OVERWRITE else None
    return Begun(driver.pool_build(ref, overwrite=overwrite))


def _check_build(pool_type: PoolType | str, flags: int) -> None:
    """Raise what libvirt's backend says of the flags of a build."""
    if pool_type not in tuple(PoolType):
        return
    function, known = _BUILDERS.get(PoolType(pool_type), ("", flags))
    refuse_unknown(flags, known, function)
    if flags & _OVERWRITE and flags & _NO_OVERWRITE:
        raise BadArgument(
            "Flags 'VIR_STORAGE_POOL_BUILD_OVERWRITE' and 'VIR_STORAGE_POOL_BUILD_NO_OVERWRITE'"
            " are mutually exclusive",
            function=function,
            argument="ctl",
        )


def _stop(session: Session, args: PoolArgs, force: bool) -> Begun:
    return Begun(session.driver.pool_stop(pool_ref(args.pool), force=force))


def _delete(session: Session, args: PoolFlagsArgs, _force: bool) -> Begun:
    driver, ref = session.driver, pool_ref(args.pool)
    if args.flags:
        driver.require_inactive(ref, "delete")
        refuse_unknown(args.flags, 0, "virStorageBackendDeleteLocal")
    return Begun(driver.pool_delete(ref))


def _refresh(session: Session, args: PoolFlagsArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, 0, "storagePoolRefresh")
    return Begun(session.driver.pool_refresh(pool_ref(args.pool)))


HANDLERS: Final[Handlers] = {
    rpc.NUM_OF_POOLS: Query(_active_count, _few_pools),
    rpc.LIST_POOLS: Query(_active_names, _few_pools, check=_check_names),
    rpc.NUM_OF_DEFINED_POOLS: Query(_inactive_count, _few_pools),
    rpc.LIST_DEFINED_POOLS: Query(_inactive_names, _few_pools, check=_check_names),
    rpc.LIST_ALL_POOLS: Query(_list, _few_pools),
    rpc.FIND_POOL_SOURCES: Query(_find_sources, never),
    rpc.GET_POOL_CAPABILITIES: Query(_capabilities, never),
    rpc.POOL_LOOKUP_BY_NAME: Query(_by_name, always),
    rpc.POOL_LOOKUP_BY_UUID: Query(_by_uuid, always),
    rpc.POOL_LOOKUP_BY_VOLUME: Query(_by_volume, always),
    rpc.POOL_LOOKUP_BY_TARGET_PATH: Query(_by_target, _few_pools),
    rpc.POOL_GET_INFO: Query(_info, _figures_known),
    rpc.POOL_GET_XML_DESC: Query(_xml, _figures_known),
    rpc.POOL_GET_AUTOSTART: Query(_autostart, always),
    rpc.POOL_SET_AUTOSTART: Query(_set_autostart, never),
    rpc.POOL_IS_ACTIVE: Query(_active, always),
    rpc.POOL_IS_PERSISTENT: Query(_persistent, always),
    rpc.POOL_DEFINE_XML: Query(_define, never),
    rpc.POOL_UNDEFINE: Query(_undefine, never),
    rpc.POOL_CREATE_XML: Work(_create, never),
    rpc.POOL_CREATE: Work(_start, always),
    rpc.POOL_BUILD: Work(_build, always),
    rpc.POOL_DESTROY: Work(_stop, always),
    rpc.POOL_DELETE: Work(_delete, always),
    rpc.POOL_REFRESH: Work(_refresh, always),
}
