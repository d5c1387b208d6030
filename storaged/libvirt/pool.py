"""Storage pools under libvirt-python's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.arguments import format_uuid, number, text
from storaged.libvirt.errors import refuse_argument, refuse_pointer
from storaged.libvirt.held import HeldByName
from storaged.libvirt.volume import virStorageVol
from storaged.rpc import storage

if TYPE_CHECKING:
    pass

_NO_NULL = "must not be NULL"


class virStoragePool(HeldByName[storage.StoragePool]):  # noqa: N801 -- libvirt-python's name
    """A pool; made by the methods of `virConnect`."""

    _counted = "virStoragePoolRef"
    _makers = "pools are made by the methods of a connection"

    def UUID(self) -> bytes:  # noqa: N802
        """Return the uuid as 16 bytes."""
        return self._record.uuid

    def UUIDString(self) -> str:  # noqa: N802
        """Return the uuid as text."""
        return format_uuid(self._record.uuid)

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        """Return the definition; with ``VIR_STORAGE_XML_INACTIVE`` that of the next start."""
        args = storage.PoolFlagsArgs(self._record, as_flags(flags))
        return self._handle.call(storage.POOL_GET_XML_DESC, args).xml

    def info(self) -> list[int]:
        """Return state, capacity, allocation and available space, in bytes."""
        info = self._handle.call(storage.POOL_GET_INFO, storage.PoolArgs(self._record))
        return [info.state, info.capacity, info.allocation, info.available]

    def isActive(self) -> int:  # noqa: N802
        """Return whether the pool runs: 0 or 1."""
        return self._handle.call(storage.POOL_IS_ACTIVE, storage.PoolArgs(self._record)).num

    def isPersistent(self) -> int:  # noqa: N802
        """Return whether the pool stays when it is stopped: 0 or 1."""
        return self._handle.call(storage.POOL_IS_PERSISTENT, storage.PoolArgs(self._record)).num

    def autostart(self) -> int:
        """Return whether the pool is started at boot: 0 or 1."""
        return self._handle.call(storage.POOL_GET_AUTOSTART, storage.PoolArgs(self._record)).num

    def setAutostart(self, autostart: int) -> int:  # noqa: N802
        """Say whether the pool is started at boot."""
        args = storage.PoolAutostartArgs(self._record, number(autostart))
        self._handle.check_writable("virStoragePoolSetAutostart")
        self._handle.call(storage.POOL_SET_AUTOSTART, args)
        return 0

    def build(self, flags: int = 0) -> int:
        """Make what the pool stands on: a directory, a file system, a volume group."""
        args = storage.PoolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStoragePoolBuild")
        self._handle.call(storage.POOL_BUILD, args)
        return 0

    def create(self, flags: int = 0) -> int:
        """Start the pool."""
        args = storage.PoolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStoragePoolCreate")
        self._handle.call(storage.POOL_CREATE, args)
        return 0

    def destroy(self) -> int:
        """Stop the pool; its data stay."""
        self._handle.check_writable("virStoragePoolDestroy")
        self._handle.call(storage.POOL_DESTROY, storage.PoolArgs(self._record))
        return 0

    def delete(self, flags: int = 0) -> int:
        """Delete what the pool stands on."""
        args = storage.PoolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStoragePoolDelete")
        self._handle.call(storage.POOL_DELETE, args)
        return 0

    def undefine(self) -> int:
        """Forget the definition of a pool that does not run."""
        self._handle.check_writable("virStoragePoolUndefine")
        self._handle.call(storage.POOL_UNDEFINE, storage.PoolArgs(self._record))
        return 0

    def refresh(self, flags: int = 0) -> int:
        """Look anew which volumes there are."""
        args = storage.PoolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStoragePoolRefresh")
        self._handle.call(storage.POOL_REFRESH, args)
        return 0

    def numOfVolumes(self) -> int:  # noqa: N802
        """Return how many volumes there are."""
        return self._handle.call(storage.POOL_NUM_OF_VOLUMES, storage.PoolArgs(self._record)).num

    def listVolumes(self) -> list[str]:  # noqa: N802
        """Return the names of the volumes."""
        count = self.numOfVolumes()
        if not count:
            return []
        args = storage.PoolMaxNamesArgs(self._record, count)
        return list(self._handle.call(storage.POOL_LIST_VOLUMES, args).names)

    def listAllVolumes(self, flags: int = 0) -> list[virStorageVol]:  # noqa: N802
        """Return the volumes."""
        args = storage.ListVolsArgs(self._record, 1, as_flags(flags))
        found = self._handle.call(storage.POOL_LIST_ALL_VOLUMES, args)
        return [virStorageVol(self._conn, each, self._handle) for each in found.vols]

    def storageVolLookupByName(self, name: str) -> virStorageVol:  # noqa: N802
        """Return the volume with this name."""
        function = "virStorageVolLookupByName"
        found = text(name, function, 2)
        if found is None:
            refuse_argument(function, "name", _NO_NULL)
        args = storage.PoolNameArgs(self._record, found)
        return self._volume(self._handle.call(storage.VOL_LOOKUP_BY_NAME, args).vol)

    def createXML(self, xmlDesc: str, flags: int = 0) -> virStorageVol:  # noqa: N802, N803
        """Make a volume from its description."""
        function = "virStorageVolCreateXML"
        xml, bits = text(xmlDesc, function, 2), as_flags(flags)
        if xml is None:
            refuse_argument(function, "xmlDesc", _NO_NULL)
        self._handle.check_writable(function)
        args = storage.PoolXMLArgs(self._record, xml, bits)
        return self._volume(self._handle.call(storage.VOL_CREATE_XML, args).vol)

    def createXMLFrom(  # noqa: N802
        self,
        xmlDesc: str,  # noqa: N803
        clonevol: virStorageVol,
        flags: int = 0,
    ) -> virStorageVol:
        """Make a volume from its description, with the data of another one."""
        function = "virStorageVolCreateXMLFrom"
        xml, bits = text(xmlDesc, function, 2), as_flags(flags)
        if not isinstance(clonevol, virStorageVol):
            refuse_pointer(numbers.VIR_ERR_INVALID_STORAGE_VOL, function)
        if xml is None:
            refuse_argument(function, "xmlDesc", _NO_NULL)
        self._handle.check_writable(function)
        clonevol._handle.check_writable(function)
        args = storage.PoolCloneArgs(self._record, xml, clonevol._record, bits)
        return self._volume(self._handle.call(storage.VOL_CREATE_XML_FROM, args).vol)

    def _volume(self, vol: storage.StorageVol) -> virStorageVol:
        return virStorageVol(self._conn, vol, self._handle)
