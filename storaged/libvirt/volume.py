"""Storage volumes under libvirt-python's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storaged.libvirt import constants
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.arguments import size
from storaged.libvirt.errors import refuse_argument, refuse_pointer
from storaged.libvirt.held import HeldByName
from storaged.libvirt.stream import STREAM_CHUNK, virStream
from storaged.rpc import storage
from storaged.rpc.program import Procedure

if TYPE_CHECKING:
    from storaged.libvirt.pool import virStoragePool


class virStorageVol(HeldByName[storage.StorageVol]):  # noqa: N801 -- libvirt-python's name
    """A volume; made by the methods of `virStoragePool` and `virConnect`."""

    #: the size of the pieces in which streams move data, in bytes
    streamBufSize = STREAM_CHUNK  # noqa: N815

    _counted = "virStorageVolRef"
    _makers = "volumes are made by the methods of a pool or a connection"

    def key(self) -> str:
        """Return the key, which no other volume has."""
        return self._record.key

    def path(self) -> str:
        """Return the path."""
        return self._handle.call(storage.VOL_GET_PATH, storage.VolArgs(self._record)).name

    def info(self) -> list[int]:
        """Return type, capacity and allocation, in bytes."""
        info = self._handle.call(storage.VOL_GET_INFO, storage.VolArgs(self._record))
        return [info.type, info.capacity, info.allocation]

    def infoFlags(self, flags: int = 0) -> list[int]:  # noqa: N802
        """Return type, capacity and allocation; the physical size for the latter if asked."""
        args = storage.VolFlagsArgs(self._record, as_flags(flags))
        info = self._handle.call(storage.VOL_GET_INFO_FLAGS, args)
        return [info.type, info.capacity, info.allocation]

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        """Return the description."""
        args = storage.VolFlagsArgs(self._record, as_flags(flags))
        return self._handle.call(storage.VOL_GET_XML_DESC, args).xml

    def storagePoolLookupByVolume(self) -> virStoragePool:  # noqa: N802
        """Return the pool."""
        args = storage.VolArgs(self._record)
        found = self._handle.call(storage.POOL_LOOKUP_BY_VOLUME, args).pool
        return self._conn._pool(found, self._handle)

    def delete(self, flags: int = 0) -> int:
        """Delete the volume."""
        args = storage.VolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStorageVolDelete")
        self._handle.call(storage.VOL_DELETE, args)
        return 0

    def wipe(self, flags: int = 0) -> int:
        """Overwrite the data with zeros."""
        args = storage.VolFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virStorageVolWipe")
        self._handle.call(storage.VOL_WIPE, args)
        return 0

    def wipePattern(self, algorithm: int, flags: int = 0) -> int:  # noqa: N802
        """Overwrite the data as one of ``VIR_STORAGE_VOL_WIPE_ALG_*`` says."""
        args = storage.VolWipePatternArgs(self._record, as_flags(algorithm), as_flags(flags))
        self._handle.check_writable("virStorageVolWipePattern")
        self._handle.call(storage.VOL_WIPE_PATTERN, args)
        return 0

    def resize(self, capacity: int, flags: int = 0) -> int:
        """Change the capacity, in bytes; ``VIR_STORAGE_VOL_RESIZE_DELTA``: by so much."""
        function = "virStorageVolResize"
        wanted, bits = size(capacity), as_flags(flags)
        self._handle.check_writable(function)
        relative = constants.VIR_STORAGE_VOL_RESIZE_DELTA | constants.VIR_STORAGE_VOL_RESIZE_SHRINK
        if wanted == 0 and not bits & relative:
            refuse_argument(
                function, "capacity", "cannot be zero without 'delta' or 'shrink' flags set"
            )
        args = storage.VolResizeArgs(self._record, wanted, bits)
        self._handle.call(storage.VOL_RESIZE, args)
        return 0

    def upload(self, stream: virStream, offset: int, length: int, flags: int = 0) -> int:
        """Write into the volume what is sent through *stream*; a *length* of 0 is no limit."""
        return self._open(storage.VOL_UPLOAD, stream, offset, length, flags)

    def download(self, stream: virStream, offset: int, length: int, flags: int = 0) -> int:
        """Have the volume's data come through *stream*; a *length* of 0 is "to the end"."""
        return self._open(storage.VOL_DOWNLOAD, stream, offset, length, flags)

    def _open(
        self,
        procedure: Procedure[storage.VolStreamArgs, Any],
        stream: virStream,
        offset: int,
        length: int,
        flags: int,
    ) -> int:
        start, count, bits = size(offset), size(length), as_flags(flags)
        function = procedure.name
        if not isinstance(stream, virStream):
            domain = numbers.VIR_FROM_STREAMS
            refuse_pointer(numbers.VIR_ERR_INVALID_STREAM, function, domain)
        self._handle.check_writable(function)
        if stream._handle is not self._handle:
            refuse_argument(
                function, "stream", f"must match connection of volume '{self._record.name}'"
            )
        sparse = bool(bits & constants.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
        args = storage.VolStreamArgs(self._record, start, count, bits)
        stream._open(procedure, args, sparse=sparse)
        return 0
