"""The calls on volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storaged.errors import BadArgument, InvalidArgument
from storaged.model import VolumeRef
from storaged.rpc import storage as rpc
from storaged.rpc.storage import (
    XML,
    Count,
    ListVolsArgs,
    ListVolsRet,
    Name,
    Names,
    PoolArgs,
    PoolCloneArgs,
    PoolMaxNamesArgs,
    PoolNameArgs,
    PoolXMLArgs,
    VolArgs,
    VolFlagsArgs,
    VolInfoRet,
    VolResizeArgs,
    VolRet,
    VolWipePatternArgs,
)
from storaged.service.handler import Begun, Handlers, Query, Work, never, refuse_unknown
from storaged.service.pools import SHORT, check_room, require_room
from storaged.service.records import volume_info, volume_ref
from storaged.service.volumelist import VolumeList
from storaged.wirenames import pool_ref, volume_record

if TYPE_CHECKING:
    from storaged.job import Pending
    from storaged.service.session import Session

#: Flags of a create and of a clone.
_PREALLOCATE: Final = 1
_REFLINK: Final = 2
_VALIDATE: Final = 4
#: A flag of the figures of a volume.
_PHYSICAL: Final = 1
#: Flags of a delete.
_ZEROED: Final = 1
_WITH_SNAPSHOTS: Final = 2
#: Flags of a resize.
_ALLOCATE: Final = 1
_DELTA: Final = 2
_SHRINK: Final = 4
#: Documents up to so many characters are parsed where nothing may wait: it takes less time than to
#: wake a thread for them.
_SHORT_DOCUMENT: Final = 16384
#: Algorithms of a wipe that the interface has.
_ALGORITHMS: Final = 10


# Lists and look-ups


def _count(session: Session, args: PoolArgs) -> Count:
    return Count(len(session.driver.volume_names(pool_ref(args.pool))))


def _check_names(args: PoolMaxNamesArgs) -> None:
    check_room("REMOTE_STORAGE_VOL_LIST_MAX", args.maxnames)


def _names(session: Session, args: PoolMaxNamesArgs) -> Names:
    return Names(tuple(session.driver.volume_names(pool_ref(args.pool))[: args.maxnames]))


def _list(session: Session, args: ListVolsArgs) -> ListVolsRet:
    refuse_unknown(args.flags, 0, "storagePoolListAllVolumes")
    pool, found = session.driver.volume_keys(pool_ref(args.pool))
    require_room("storage_vols", len(found))
    if not args.need_results:
        return ListVolsRet((), len(found))
    return VolumeList(pool.name, found)


def _scanned(session: Session, args: PoolArgs) -> bool:
    return session.driver.known.scanned(pool_ref(args.pool))


def _short(session: Session, args: PoolMaxNamesArgs | ListVolsArgs) -> bool:
    return session.driver.known.scanned(pool_ref(args.pool), most=SHORT)


def _by_name(session: Session, args: PoolNameArgs) -> VolRet:
    found = session.driver.volume_lookup_by_name(pool_ref(args.pool), args.name)
    return VolRet(volume_record(found))


def _name_known(session: Session, args: PoolNameArgs) -> bool:
    return session.driver.known.volume_of(pool_ref(args.pool), args.name)


def _by_key(session: Session, args: Name) -> VolRet:
    return VolRet(volume_record(session.driver.volume_lookup_by_key(args.name)))


def _by_path(session: Session, args: Name) -> VolRet:
    return VolRet(volume_record(session.driver.volume_lookup_by_path(args.name)))


def _key_known(session: Session, args: Name) -> bool:
    return session.driver.known.key(args.name)


def _path_known(session: Session, args: Name) -> bool:
    return session.driver.known.path(args.name)


# Facts of one volume


def _known(session: Session, args: VolArgs | VolFlagsArgs) -> bool:
    return session.driver.known.volume(args.vol.pool, args.vol.name)


def _info(session: Session, args: VolArgs) -> Pending[VolInfoRet]:
    driver = session.driver
    return driver.volume_info_job(volume_ref(driver, args.vol)).giving(volume_info)


def _info_flags(session: Session, args: VolFlagsArgs) -> Pending[VolInfoRet]:
    refuse_unknown(args.flags, _PHYSICAL, "storageVolGetInfoFlags")
    driver, physical = session.driver, bool(args.flags)
    job = driver.volume_info_job(volume_ref(driver, args.vol))
    return job.giving(lambda info: volume_info(info, physical=physical))


def _xml(session: Session, args: VolFlagsArgs) -> Pending[XML]:
    refuse_unknown(args.flags, 0, "storageVolGetXMLDesc")
    driver = session.driver
    return driver.volume_xml_job(volume_ref(driver, args.vol)).giving(XML)


def _path(session: Session, args: VolArgs) -> Name:
    return Name(session.driver.volume_path(volume_ref(session.driver, args.vol)))


# Changes


def _create(session: Session, args: PoolXMLArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, _PREALLOCATE | _VALIDATE, "storageVolCreateXML")
    driver, pool = session.driver, pool_ref(args.pool)
    driver.require_active(pool)
    request = driver.parse_volume(pool, args.xml, validate=bool(args.flags & _VALIDATE))
    job = driver.volume_create(pool, request, preallocate_metadata=bool(args.flags & _PREALLOCATE))
    return Begun(job, made)


def _soon_begun(_session: Session, args: PoolXMLArgs) -> bool:
    return len(args.xml) <= _SHORT_DOCUMENT and not args.flags & _VALIDATE


def _clone(session: Session, args: PoolCloneArgs, _force: bool) -> Begun:
    known = _PREALLOCATE | _REFLINK | _VALIDATE
    refuse_unknown(args.flags, known, "storageVolCreateXMLFrom")
    driver, pool = session.driver, pool_ref(args.pool)
    driver.pool_state(pool)
    source = volume_ref(driver, args.clonevol)
    driver.require_active(pool)
    driver.volume_path(source)  # that there is none is said before the document is looked at
    validate = bool(args.flags & _VALIDATE)
    request = driver.parse_volume(pool, args.xml, clone=True, validate=validate)
    job = driver.volume_clone(
        pool,
        request,
        source,
        reflink=bool(args.flags & _REFLINK),
        preallocate_metadata=bool(args.flags & _PREALLOCATE),
    )
    return Begun(job, made)


def made(ref: VolumeRef) -> VolRet:
    """Return the reply that names a new volume."""
    return VolRet(volume_record(ref))


def _delete(session: Session, args: VolFlagsArgs, force: bool) -> Begun:
    protect = session.shared.protect_backing
    return _delete_with(session, args, force, protect=protect, known=0)


def _delete_protected(session: Session, args: VolFlagsArgs, force: bool) -> Begun:
    # where there are no snapshots, the driver says so
    return _delete_with(session, args, force, protect=True, known=_WITH_SNAPSHOTS)


def _delete_with(
    session: Session, args: VolFlagsArgs, force: bool, *, protect: bool, known: int
) -> Begun:
    """Delete a volume.

    :param known: the flags that all types of pools know.
    """
    driver = session.driver
    ref = volume_ref(driver, args.vol)
    if args.flags:
        driver.volume_path(ref)  # that there is none is said first
        function = "virStorageBackendVolDeleteLocal"
        if driver.has_snapshots(ref.pool):
            # libvirt's only type with them; it takes the other flag as well, which does nothing
            function, known = "virStorageBackendRBDDeleteVol", _ZEROED | _WITH_SNAPSHOTS
        refuse_unknown(args.flags, known, function)
    snapshots = bool(args.flags & _WITH_SNAPSHOTS)
    return Begun(driver.volume_delete(ref, force=force, snapshots=snapshots, protect=protect))


def _resize(session: Session, args: VolResizeArgs, force: bool) -> Begun:
    return _resize_with(session, args, force, protect=session.shared.protect_backing)


def _resize_protected(session: Session, args: VolResizeArgs, force: bool) -> Begun:
    return _resize_with(session, args, force, protect=True)


def _resize_with(session: Session, args: VolResizeArgs, force: bool, *, protect: bool) -> Begun:
    if args.capacity == 0 and not args.flags & (_DELTA | _SHRINK):
        raise BadArgument(
            "capacity in virStorageVolResize cannot be zero without 'delta' or 'shrink' flags set",
            function="virStorageVolResize",
            argument="capacity",
        )
    refuse_unknown(args.flags, _ALLOCATE | _DELTA | _SHRINK, "storageVolResize")
    job = session.driver.volume_resize(
        volume_ref(session.driver, args.vol),
        args.capacity,
        allocate=bool(args.flags & _ALLOCATE),
        delta=bool(args.flags & _DELTA),
        shrink=bool(args.flags & _SHRINK),
        force=force,
        protect=protect,
    )
    return Begun(job)


def _wipe(session: Session, args: VolFlagsArgs, force: bool) -> Begun:
    pattern = VolWipePatternArgs(args.vol, 0, args.flags)
    return _wipe_with(session, pattern, force, protect=session.shared.protect_backing)


def _wipe_protected(session: Session, args: VolFlagsArgs, force: bool) -> Begun:
    pattern = VolWipePatternArgs(args.vol, 0, args.flags)
    return _wipe_with(session, pattern, force, protect=True)


def _wipe_pattern(session: Session, args: VolWipePatternArgs, force: bool) -> Begun:
    return _wipe_with(session, args, force, protect=session.shared.protect_backing)


def _wipe_pattern_protected(session: Session, args: VolWipePatternArgs, force: bool) -> Begun:
    return _wipe_with(session, args, force, protect=True)


def _wipe_with(session: Session, args: VolWipePatternArgs, force: bool, *, protect: bool) -> Begun:
    refuse_unknown(args.flags, 0, "storageVolWipePattern")
    algorithm = args.algorithm
    if algorithm >= _ALGORITHMS:
        shown = algorithm if algorithm < 1 << 31 else algorithm - (1 << 32)
        raise InvalidArgument(f"wiping algorithm {shown} not supported")
    driver = session.driver
    ref = volume_ref(driver, args.vol)
    return Begun(driver.volume_wipe(ref, algorithm, force=force, protect=protect))


HANDLERS: Final[Handlers] = {
    rpc.POOL_NUM_OF_VOLUMES: Query(_count, _scanned),
    rpc.POOL_LIST_VOLUMES: Query(_names, _short, check=_check_names),
    rpc.POOL_LIST_ALL_VOLUMES: Query(_list, _short),
    rpc.VOL_LOOKUP_BY_NAME: Query(_by_name, _name_known),
    rpc.VOL_LOOKUP_BY_KEY: Query(_by_key, _key_known),
    rpc.VOL_LOOKUP_BY_PATH: Query(_by_path, _path_known),
    rpc.VOL_GET_INFO: Query(_info, _known),
    rpc.VOL_GET_INFO_FLAGS: Query(_info_flags, _known),
    rpc.VOL_GET_XML_DESC: Query(_xml, _known),
    rpc.VOL_GET_PATH: Query(_path, _known),
    rpc.VOL_CREATE_XML: Work(_create, _soon_begun, bound=True),
    rpc.VOL_CREATE_XML_FROM: Work(_clone, never, bound=True),
    rpc.VOL_DELETE: Work(_delete, _known, own=_delete_protected),
    rpc.VOL_RESIZE: Work(_resize, _known, own=_resize_protected),
    rpc.VOL_WIPE: Work(_wipe, _known, bound=True, own=_wipe_protected),
    rpc.VOL_WIPE_PATTERN: Work(_wipe_pattern, _known, bound=True, own=_wipe_pattern_protected),
}
