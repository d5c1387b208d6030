"""Connections under libvirt-python's names."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from storaged.client.link import Link, RemoteFailure
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.arguments import number, parse_uuid, text, uuid_bytes
from storaged.libvirt.errors import refuse_argument, refuse_foreign, refuse_pointer, reporting
from storaged.libvirt.handle import Handle
from storaged.libvirt.identity import identity_params
from storaged.libvirt.pool import virStoragePool
from storaged.libvirt.process import PROCESS, ErrorTuple
from storaged.libvirt.registrations import POOLS, Registrations, check_loop
from storaged.libvirt.secretcalls import SecretMethods
from storaged.libvirt.stream import virStream
from storaged.libvirt.unsupported import Unsupported
from storaged.libvirt.volume import virStorageVol
from storaged.rpc import remote, storage
from storaged.rpc.record import Void

_NO_NULL = "must not be NULL"
_HOST = numbers.VIR_FROM_DOMAIN


class virConnect(SecretMethods, Unsupported):  # noqa: N801 -- libvirt-python's name
    """A connection; made by `open`, `openReadOnly` and `openAuth`.

    All that libvirt-python has beyond storage and secrets is there, and raises `libvirtError` with
    code 3.
    """

    def __init__(self, _obj: Link | None = None) -> None:
        if _obj is None:
            raise TypeError("connections are made by open(), openReadOnly() and openAuth()")
        handle = Handle(_obj)
        self._handle: Handle | None = handle
        self._registrations = Registrations(handle)

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            self._handle = None
            handle.release()

    def __enter__(self) -> virConnect:
        return self

    def __exit__(
        self,
        exc_type_: type[BaseException] | None,
        exc_value_: BaseException | None,
        traceback_: TracebackType | None,
    ) -> None:
        self.close()

    def c_pointer(self) -> int:
        """Return a number that no other living object has; 0 once the connection is closed."""
        return 0 if self._handle is None else id(self)

    def close(self) -> int:
        """Let go; return 1 if pools, volumes, streams or callbacks still need the link, else 0."""
        handle = self._held("virConnectClose", numbers.VIR_FROM_NONE, hold=False)
        PROCESS.reset()
        self._handle = None
        return 1 if handle.release() else 0

    # The connection itself

    def getType(self) -> str:  # noqa: N802
        """Return the name of the driver: ``storage``; ``remote`` if nobody can be asked."""
        handle = self._open("virConnectGetType", _HOST)
        PROCESS.reset()
        try:
            with handle.noticing():
                return handle.link.call(remote.GET_TYPE, Void()).type
        except RemoteFailure:
            return "remote"

    def getLibVersion(self) -> int:  # noqa: N802
        """Return the version of libvirt that the other side behaves as."""
        handle = self._open("virConnectGetLibVersion", _HOST)
        return handle.call(remote.GET_LIB_VERSION, Void()).version

    def getURI(self) -> str:  # noqa: N802
        """Return the URI."""
        return self._open("virConnectGetURI", _HOST).link.uri

    def getCapabilities(self) -> str:  # noqa: N802
        """Return what the driver can do, as a document."""
        handle = self._open("virConnectGetCapabilities", _HOST)
        return handle.call(remote.GET_CAPABILITIES, Void()).capabilities

    def isAlive(self) -> int:  # noqa: N802
        """Return whether the link stands: 0 or 1."""
        return int(self._open("virConnectIsAlive", _HOST).link.alive)

    def isSecure(self) -> int:  # noqa: N802
        """Return whether nobody else can read what goes over the link: 0 or 1."""
        return int(self._open("virConnectIsSecure", _HOST).link.secure)

    def isEncrypted(self) -> int:  # noqa: N802
        """Return 0: libvirt means its own encryption, and does not count ssh around the link."""
        self._open("virConnectIsEncrypted", _HOST)
        return 0

    def setKeepAlive(self, interval: int, count: int) -> int:  # noqa: N802
        """Ask for signs of life after *interval* seconds of silence, *count* times."""
        seconds, times = number(interval), as_flags(count)
        handle = self._open("virConnectSetKeepAlive", _HOST)
        check_loop(handle.link)
        with reporting("virConnectSetKeepAlive"):
            handle.link.keepalive(seconds, times)
        return 0

    def registerCloseCallback(self, cb: Callable[..., Any], opaque: Any) -> int:  # noqa: N802
        """Have ``cb(conn, reason, opaque)`` called when the connection ends by itself."""
        self._open("virConnectRegisterCloseCallback", _HOST)
        self._registrations.set_close(self, cb, opaque)
        return 0

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        """Have nothing called when the connection ends."""
        self._open("virConnectUnregisterCloseCallback", _HOST)
        self._registrations.unset_close()

    def setIdentity(self, params: dict[str, Any], flags: int = 0) -> int:  # noqa: N802
        """Say for whom the connection works; the daemon heeds it from those whom it trusts.

        :param params: ``VIR_CONNECT_IDENTITY_*`` with texts and numbers.
        """
        function = "virConnectSetIdentity"
        bits = as_flags(flags)
        handle = self._open(function, _HOST)
        args = remote.IdentityArgs(identity_params(params), bits)
        handle.call(remote.SET_IDENTITY, args)
        return 0

    def newStream(self, flags: int = 0) -> virStream:  # noqa: N802
        """Return a stream that is not opened yet; ``VIR_STREAM_NONBLOCK``: one that never waits."""
        bits = as_flags(flags)
        self._open("virStreamNew", numbers.VIR_FROM_STREAMS)
        return virStream(self, bits)

    def virConnGetLastError(self) -> ErrorTuple | None:  # noqa: N802
        """Return the last error of this thread."""
        return PROCESS.last_error

    def virConnResetLastError(self) -> None:  # noqa: N802
        """Forget the last error of this thread."""
        PROCESS.reset()

    # Pools

    def numOfStoragePools(self) -> int:  # noqa: N802
        """Return how many pools run."""
        handle = self._open("virConnectNumOfStoragePools")
        return handle.call(storage.NUM_OF_POOLS, Void()).num

    def listStoragePools(self) -> list[str]:  # noqa: N802
        """Return the names of the pools that run."""
        count = self.numOfStoragePools()
        if not count:
            return []
        handle = self._open("virConnectListStoragePools")
        return list(handle.call(storage.LIST_POOLS, storage.MaxNames(count)).names)

    def numOfDefinedStoragePools(self) -> int:  # noqa: N802
        """Return how many pools do not run."""
        handle = self._open("virConnectNumOfDefinedStoragePools")
        return handle.call(storage.NUM_OF_DEFINED_POOLS, Void()).num

    def listDefinedStoragePools(self) -> list[str]:  # noqa: N802
        """Return the names of the pools that do not run."""
        count = self.numOfDefinedStoragePools()
        if not count:
            return []
        handle = self._open("virConnectListDefinedStoragePools")
        return list(handle.call(storage.LIST_DEFINED_POOLS, storage.MaxNames(count)).names)

    def listAllStoragePools(self, flags: int = 0) -> list[virStoragePool]:  # noqa: N802
        """Return the pools, those that ``VIR_CONNECT_LIST_STORAGE_POOLS_*`` choose."""
        bits = as_flags(flags)
        handle = self._open("virConnectListAllStoragePools")
        found = handle.call(storage.LIST_ALL_POOLS, storage.ListPoolsArgs(1, bits))
        return [self._pool(each, handle) for each in found.pools]

    def findStoragePoolSources(  # noqa: N802
        self,
        type: str,
        srcSpec: str | None,  # noqa: N803
        flags: int = 0,
    ) -> str:
        """Return what there is to make pools of a type from, as a document."""
        function = "virConnectFindStoragePoolSources"
        kind, spec, bits = text(type, function, 2), text(srcSpec, function, 3), as_flags(flags)
        handle = self._open(function)
        if kind is None:
            refuse_argument(function, "type", _NO_NULL)
        handle.check_writable(function)
        args = storage.FindSourcesArgs(kind, spec, bits)
        return handle.call(storage.FIND_POOL_SOURCES, args).xml

    def getStoragePoolCapabilities(self, flags: int = 0) -> str:  # noqa: N802
        """Return what types of pools there are, as a document."""
        args = storage.Flags(as_flags(flags))
        handle = self._open("virConnectGetStoragePoolCapabilities")
        return handle.call(storage.GET_POOL_CAPABILITIES, args).xml

    def storagePoolLookupByName(self, name: str) -> virStoragePool:  # noqa: N802
        """Return the pool with this name."""
        function = "virStoragePoolLookupByName"
        found = text(name, function, 2)
        handle = self._open(function)
        if found is None:
            refuse_argument(function, "name", _NO_NULL)
        reply = handle.call(storage.POOL_LOOKUP_BY_NAME, storage.Name(found))
        return self._pool(reply.pool, handle)

    def storagePoolLookupByUUID(self, uuid: bytes) -> virStoragePool:  # noqa: N802
        """Return the pool with this uuid of 16 bytes."""
        function = "virStoragePoolLookupByUUID"
        raw = uuid_bytes(uuid)
        handle = self._open(function)
        if raw is None:
            refuse_argument(function, "uuid", "must be 16 bytes")
        reply = handle.call(storage.POOL_LOOKUP_BY_UUID, storage.Uuid(raw))
        return self._pool(reply.pool, handle)

    def storagePoolLookupByUUIDString(self, uuidstr: str) -> virStoragePool:  # noqa: N802
        """Return the pool with this uuid."""
        function = "virStoragePoolLookupByUUIDString"
        found = text(uuidstr, function, 2)
        handle = self._open(function)
        if found is None:
            refuse_argument(function, "uuidstr", _NO_NULL)
        raw = parse_uuid(found)
        if raw is None:
            refuse_argument(function, "uuidstr", "must be a valid UUID")
        reply = handle.call(storage.POOL_LOOKUP_BY_UUID, storage.Uuid(raw), function)
        return self._pool(reply.pool, handle)

    def storagePoolLookupByTargetPath(self, path: str) -> virStoragePool:  # noqa: N802
        """Return the pool that runs with this path as its target."""
        function = "virStoragePoolLookupByTargetPath"
        found = text(path, function, 2)
        handle = self._open(function)
        if found is None:
            refuse_argument(function, "path", _NO_NULL)
        reply = handle.call(storage.POOL_LOOKUP_BY_TARGET_PATH, storage.Name(found))
        return self._pool(reply.pool, handle)

    def storagePoolCreateXML(self, xmlDesc: str, flags: int = 0) -> virStoragePool:  # noqa: N802, N803
        """Start a pool from its definition; it is forgotten when it stops."""
        function = "virStoragePoolCreateXML"
        args, handle = self._document(function, "xmlDesc", xmlDesc, flags)
        return self._pool(handle.call(storage.POOL_CREATE_XML, args).pool, handle)

    def storagePoolDefineXML(self, xml: str, flags: int = 0) -> virStoragePool:  # noqa: N802
        """Define a pool that stays, and do not start it."""
        function = "virStoragePoolDefineXML"
        args, handle = self._document(function, "xml", xml, flags)
        return self._pool(handle.call(storage.POOL_DEFINE_XML, args).pool, handle)

    # Volumes

    def storageVolLookupByKey(self, key: str) -> virStorageVol:  # noqa: N802
        """Return the volume with this key, of any pool that runs."""
        function = "virStorageVolLookupByKey"
        found = text(key, function, 2)
        handle = self._open(function)
        if found is None:
            refuse_argument(function, "key", _NO_NULL)
        reply = handle.call(storage.VOL_LOOKUP_BY_KEY, storage.Name(found))
        return virStorageVol(self, reply.vol, handle)

    def storageVolLookupByPath(self, path: str) -> virStorageVol:  # noqa: N802
        """Return the volume at this path, of any pool that runs."""
        function = "virStorageVolLookupByPath"
        found = text(path, function, 2)
        handle = self._open(function)
        if found is None:
            refuse_argument(function, "path", _NO_NULL)
        reply = handle.call(storage.VOL_LOOKUP_BY_PATH, storage.Name(found))
        return virStorageVol(self, reply.vol, handle)

    # Events

    def storagePoolEventRegisterAny(  # noqa: N802
        self,
        pool: virStoragePool | None,
        eventID: int,  # noqa: N803
        cb: Callable[..., Any],
        opaque: Any,
    ) -> int:
        """Have *cb* called with the events of one pool, or of all; return what ends that.

        ``cb(conn, pool, event, detail, opaque)`` for ``VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE``,
        ``cb(conn, pool, opaque)`` for ``VIR_STORAGE_POOL_EVENT_ID_REFRESH``.
        """
        function = "virConnectStoragePoolEventRegisterAny"
        event = number(eventID)
        handle = self._open(function)
        if pool is not None and pool._handle is not handle:
            domain = numbers.VIR_FROM_STORAGE
            refuse_foreign(f"storage pool '{pool.name()}'", "pool", function, domain)
        about = None if pool is None else pool._record
        return self._registrations.add(self, POOLS, event, about, cb, opaque)

    def storagePoolEventDeregisterAny(self, callbackID: int) -> None:  # noqa: N802, N803
        """End what `storagePoolEventRegisterAny` began."""
        local = number(callbackID)
        self._open("virConnectStoragePoolEventDeregisterAny")
        self._registrations.remove(POOLS, local)

    # What the other objects use

    def _open(self, function: str, domain: int = numbers.VIR_FROM_STORAGE) -> Handle:
        """Return the handle of a connection that is not closed.

        :raise libvirtError: it is, with code 6.
        """
        return self._held(function, domain, hold=False)

    def _held(
        self, function: str, domain: int = numbers.VIR_FROM_STORAGE, *, hold: bool = True
    ) -> Handle:
        if self._handle is None:
            refuse_pointer(numbers.VIR_ERR_INVALID_CONN, function, domain)
        return self._handle.hold() if hold else self._handle

    def _pool(self, pool: storage.StoragePool, handle: Handle) -> virStoragePool:
        return virStoragePool(self, pool, handle)

    def _document(
        self, function: str, name: str, xml: str, flags: int
    ) -> tuple[storage.XMLArgs, Handle]:
        """Check the arguments of what takes a pool's definition."""
        found, bits = text(xml, function, 2), as_flags(flags)
        handle = self._open(function)
        if name == "xmlDesc" and found is None:
            refuse_argument(function, name, _NO_NULL)
        handle.check_writable(function)
        if found is None:
            refuse_argument(function, name, _NO_NULL)
        return storage.XMLArgs(found, bits), handle
