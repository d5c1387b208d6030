"""The storage calls of the REMOTE program: 45 procedures, two events, and their records.

On the wire a pool is found by its uuid alone, a volume by the names of its pool and its own; what
else stands beside these is for people.

Source: libvirt's protocol, by number, order and type.
"""

from __future__ import annotations

from typing import Annotated, Final

from storaged.rpc.program import Access, Procedure
from storaged.rpc.record import Nested, Record, Void
from storaged.rpc.xdr import (
    STRING,
    Array,
    Int,
    Maybe,
    MaybeString,
    String,
    UHyper,
    UInt,
    UuidBytes,
)

#: The most pools or volumes that a list can carry.
LIST_MAX: Final = 16384


class StoragePool(Record):
    """Names a pool."""

    name: String
    uuid: UuidBytes


class StorageVol(Record):
    """Names a volume."""

    pool: String
    name: String
    key: String


class Names(Record):
    """Names of pools or volumes."""

    names: Annotated[tuple[str, ...], Array(STRING, LIST_MAX)]


class Count(Record):
    """How many there are; also the answer to a question: 0 or 1."""

    num: Int


class MaxNames(Record):
    """How many names the caller has room for."""

    maxnames: Int


class XML(Record):
    """A document."""

    xml: String


class Flags(Record):
    """Flags alone."""

    flags: UInt = 0


class XMLArgs(Record):
    """A document and flags."""

    xml: String
    flags: UInt = 0


class Name(Record):
    """A name, a key or a path."""

    name: String


class Uuid(Record):
    """An uuid."""

    uuid: UuidBytes


class PoolArgs(Record):
    """A pool."""

    pool: StoragePool


class PoolFlagsArgs(Record):
    """A pool and flags."""

    pool: StoragePool
    flags: UInt = 0


class PoolAutostartArgs(Record):
    """A pool, and whether it is to be started at boot."""

    pool: StoragePool
    autostart: Int


class PoolMaxNamesArgs(Record):
    """A pool, and how many names the caller has room for."""

    pool: StoragePool
    maxnames: Int


class PoolNameArgs(Record):
    """A pool, and the name of a volume in it."""

    pool: StoragePool
    name: String


class PoolXMLArgs(Record):
    """A pool, and the document of a volume."""

    pool: StoragePool
    xml: String
    flags: UInt = 0


class PoolCloneArgs(Record):
    """A pool, the document of a volume, and the volume it is made from."""

    pool: StoragePool
    xml: String
    clonevol: StorageVol
    flags: UInt = 0


class PoolInfoRet(Record):
    """State and sizes of a pool, in bytes."""

    state: Int
    capacity: UHyper
    allocation: UHyper
    available: UHyper


class ListPoolsArgs(Record):
    """Which pools to list."""

    need_results: Int
    flags: UInt = 0


class ListPoolsRet(Record):
    """Pools, and how many there are."""

    pools: Annotated[tuple[StoragePool, ...], Array(Nested(StoragePool), LIST_MAX)]
    ret: UInt


class ListVolsArgs(Record):
    """A pool whose volumes are to be listed."""

    pool: StoragePool
    need_results: Int
    flags: UInt = 0


class ListVolsRet(Record):
    """Volumes, and how many there are."""

    vols: Annotated[tuple[StorageVol, ...], Array(Nested(StorageVol), LIST_MAX)]
    ret: UInt


class FindSourcesArgs(Record):
    """A type of pool, and where to look."""

    type: String
    src_spec: MaybeString
    flags: UInt = 0


class VolArgs(Record):
    """A volume."""

    vol: StorageVol


class VolFlagsArgs(Record):
    """A volume and flags."""

    vol: StorageVol
    flags: UInt = 0


class VolInfoRet(Record):
    """Type and sizes of a volume, in bytes."""

    type: Int
    capacity: UHyper
    allocation: UHyper


class VolWipePatternArgs(Record):
    """A volume, and with what to overwrite it."""

    vol: StorageVol
    algorithm: UInt
    flags: UInt = 0


class VolResizeArgs(Record):
    """A volume, and its new capacity in bytes."""

    vol: StorageVol
    capacity: UHyper
    flags: UInt = 0


class VolStreamArgs(Record):
    """A volume and a part of it, in bytes; a length of 0 is "to the end"."""

    vol: StorageVol
    offset: UHyper
    length: UHyper
    flags: UInt = 0


class PoolRet(Record):
    """A pool."""

    pool: StoragePool


class VolRet(Record):
    """A volume."""

    vol: StorageVol


class EventRegisterArgs(Record):
    """Which events to send: of one pool, or of all."""

    event_id: Int
    pool: Annotated[StoragePool | None, Maybe(Nested(StoragePool))]


class CallbackId(Record):
    """Names a registration for events."""

    callback_id: Int


class LifecycleEvent(Record):
    """What happened to a pool."""

    callback_id: Int
    pool: StoragePool
    event: Int
    detail: Int = 0


class RefreshEvent(Record):
    """A pool was refreshed."""

    callback_id: Int
    pool: StoragePool


_R: Final = Access.READER

NUM_OF_POOLS: Final = Procedure(71, "virConnectNumOfStoragePools", Void, Count, _R, priority=True)
LIST_POOLS: Final = Procedure(72, "virConnectListStoragePools", MaxNames, Names, _R, priority=True)
NUM_OF_DEFINED_POOLS: Final = Procedure(
    73, "virConnectNumOfDefinedStoragePools", Void, Count, _R, priority=True
)
LIST_DEFINED_POOLS: Final = Procedure(
    74, "virConnectListDefinedStoragePools", MaxNames, Names, _R, priority=True
)
FIND_POOL_SOURCES: Final = Procedure(75, "virConnectFindStoragePoolSources", FindSourcesArgs, XML)
POOL_CREATE_XML: Final = Procedure(76, "virStoragePoolCreateXML", XMLArgs, PoolRet)
POOL_DEFINE_XML: Final = Procedure(77, "virStoragePoolDefineXML", XMLArgs, PoolRet, priority=True)
POOL_CREATE: Final = Procedure(78, "virStoragePoolCreate", PoolFlagsArgs, Void)
POOL_BUILD: Final = Procedure(79, "virStoragePoolBuild", PoolFlagsArgs, Void)
POOL_DESTROY: Final = Procedure(80, "virStoragePoolDestroy", PoolArgs, Void, priority=True)
POOL_DELETE: Final = Procedure(81, "virStoragePoolDelete", PoolFlagsArgs, Void)
POOL_UNDEFINE: Final = Procedure(82, "virStoragePoolUndefine", PoolArgs, Void, priority=True)
POOL_REFRESH: Final = Procedure(83, "virStoragePoolRefresh", PoolFlagsArgs, Void)
POOL_LOOKUP_BY_NAME: Final = Procedure(
    84, "virStoragePoolLookupByName", Name, PoolRet, _R, priority=True
)
POOL_LOOKUP_BY_UUID: Final = Procedure(
    85, "virStoragePoolLookupByUUID", Uuid, PoolRet, _R, priority=True
)
POOL_LOOKUP_BY_VOLUME: Final = Procedure(
    86, "virStoragePoolLookupByVolume", VolArgs, PoolRet, _R, priority=True
)
POOL_GET_INFO: Final = Procedure(
    87, "virStoragePoolGetInfo", PoolArgs, PoolInfoRet, _R, priority=True
)
POOL_GET_XML_DESC: Final = Procedure(
    88, "virStoragePoolGetXMLDesc", PoolFlagsArgs, XML, _R, priority=True
)
POOL_GET_AUTOSTART: Final = Procedure(
    89, "virStoragePoolGetAutostart", PoolArgs, Count, _R, priority=True
)
POOL_SET_AUTOSTART: Final = Procedure(
    90, "virStoragePoolSetAutostart", PoolAutostartArgs, Void, priority=True
)
POOL_NUM_OF_VOLUMES: Final = Procedure(
    91, "virStoragePoolNumOfVolumes", PoolArgs, Count, _R, priority=True
)
POOL_LIST_VOLUMES: Final = Procedure(
    92, "virStoragePoolListVolumes", PoolMaxNamesArgs, Names, _R, priority=True
)
VOL_CREATE_XML: Final = Procedure(93, "virStorageVolCreateXML", PoolXMLArgs, VolRet)
VOL_DELETE: Final = Procedure(94, "virStorageVolDelete", VolFlagsArgs, Void)
VOL_LOOKUP_BY_NAME: Final = Procedure(
    95, "virStorageVolLookupByName", PoolNameArgs, VolRet, _R, priority=True
)
VOL_LOOKUP_BY_KEY: Final = Procedure(
    96, "virStorageVolLookupByKey", Name, VolRet, _R, priority=True
)
VOL_LOOKUP_BY_PATH: Final = Procedure(
    97, "virStorageVolLookupByPath", Name, VolRet, _R, priority=True
)
VOL_GET_INFO: Final = Procedure(98, "virStorageVolGetInfo", VolArgs, VolInfoRet, _R, priority=True)
VOL_GET_XML_DESC: Final = Procedure(
    99, "virStorageVolGetXMLDesc", VolFlagsArgs, XML, _R, priority=True
)
VOL_GET_PATH: Final = Procedure(100, "virStorageVolGetPath", VolArgs, Name, _R, priority=True)
VOL_CREATE_XML_FROM: Final = Procedure(125, "virStorageVolCreateXMLFrom", PoolCloneArgs, VolRet)
POOL_IS_ACTIVE: Final = Procedure(154, "virStoragePoolIsActive", PoolArgs, Count, _R, priority=True)
POOL_IS_PERSISTENT: Final = Procedure(
    155, "virStoragePoolIsPersistent", PoolArgs, Count, _R, priority=True
)
VOL_WIPE: Final = Procedure(165, "virStorageVolWipe", VolFlagsArgs, Void)
VOL_UPLOAD: Final = Procedure(208, "virStorageVolUpload", VolStreamArgs, Void, stream=True)
VOL_DOWNLOAD: Final = Procedure(209, "virStorageVolDownload", VolStreamArgs, Void, stream=True)
VOL_WIPE_PATTERN: Final = Procedure(259, "virStorageVolWipePattern", VolWipePatternArgs, Void)
VOL_RESIZE: Final = Procedure(260, "virStorageVolResize", VolResizeArgs, Void)
LIST_ALL_POOLS: Final = Procedure(
    281, "virConnectListAllStoragePools", ListPoolsArgs, ListPoolsRet, _R, priority=True
)
POOL_LIST_ALL_VOLUMES: Final = Procedure(
    282, "virStoragePoolListAllVolumes", ListVolsArgs, ListVolsRet, _R, priority=True
)
EVENT_REGISTER: Final = Procedure(
    368, "virConnectStoragePoolEventRegisterAny", EventRegisterArgs, CallbackId, _R, priority=True
)
EVENT_DEREGISTER: Final = Procedure(
    369, "virConnectStoragePoolEventDeregisterAny", CallbackId, Void, _R, priority=True
)
EVENT_LIFECYCLE: Final = Procedure(
    370, "virConnectStoragePoolEventLifecycle", LifecycleEvent, Void, Access.EVENT
)
EVENT_REFRESH: Final = Procedure(
    373, "virConnectStoragePoolEventRefresh", RefreshEvent, Void, Access.EVENT
)
VOL_GET_INFO_FLAGS: Final = Procedure(
    378, "virStorageVolGetInfoFlags", VolFlagsArgs, VolInfoRet, _R, priority=True
)
POOL_LOOKUP_BY_TARGET_PATH: Final = Procedure(
    391, "virStoragePoolLookupByTargetPath", Name, PoolRet, _R, priority=True
)
GET_POOL_CAPABILITIES: Final = Procedure(
    403, "virConnectGetStoragePoolCapabilities", Flags, XML, _R
)

PROCEDURES: Final = tuple(found for found in list(vars().values()) if isinstance(found, Procedure))
