"""The calls on volumes: one method a call of the API.

Look-ups and lists read the index; a look-up that misses takes one look at the storage. What changes
a volume returns a started `Job`.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass, replace

from storaged import volxml
from storaged.backend import Anchored, Sink, Source, WipeAlgorithm
from storaged.errors import (
    BadArgument,
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    StorageError,
    SystemFailure,
)
from storaged.job import Job
from storaged.look import VANISHED
from storaged.model import PoolRef, VolumeDef, VolumeInfo, VolumeRecord, VolumeRef
from storaged.pool import PoolObject
from storaged.poolcalls import require_writable
from storaged.poolstate import Services
from storaged.rules import sanitise_path
from storaged.streams import Streams
from storaged.table import PoolTable
from storaged.transfer import File
from storaged.volumes import Volumes
from storaged.volxml import CapacityRule

#: A volume is being made by a job of one of these kinds.
_BUILDING = ("create", "clone")


class VolumeCalls:
    """The calls on volumes."""

    def __init__(self, services: Services, table: PoolTable) -> None:
        self._services = services
        self._table = table

    # Lists and look-ups

    def volume_names(self, pool: PoolRef) -> list[str]:
        """Return the names of a pool's volumes, in no order; the pool is scanned if need be."""
        return self._scanned(pool).pool.index.names()

    def volumes(self, pool: PoolRef) -> list[VolumeRef]:
        """Return a pool's volumes, in no order; the pool is scanned if need be."""
        volumes = self._scanned(pool)
        return [volumes.ref(record) for record in volumes.pool.index.records()]

    def volume_infos(self, pool: PoolRef) -> list[VolumeInfo]:
        """Return the known figures of all volumes of a pool, without a look at each."""
        volumes = self._scanned(pool)
        return [_info(volumes, record) for record in volumes.pool.index.records()]

    def volume_lookup_by_name(self, pool: PoolRef, name: str) -> VolumeRef:
        """Return a volume by its name.

        :raise OperationInvalid: the pool is not active.
        :raise NoSuchVolume: there is none.
        """
        volumes = self._table.by_ref(pool)
        return volumes.ref(volumes.find(name))

    def volume_lookup_by_key(self, key: str) -> VolumeRef:
        """Return a volume of an active pool by its key."""
        found = self._find(key, by_key=True)
        if found is None:
            raise NoSuchVolume(f"no storage vol with matching key {key}", advice=self._where(key))
        return found

    def volume_lookup_by_path(self, path: str) -> VolumeRef:
        """Return a volume of an active pool by its path.

        A path outside the targets of all active pools costs no system call.
        """
        cleaned = sanitise_path(path)
        found = self._find(cleaned, by_key=False)
        if found is None:
            clean = "" if cleaned == path else f" ({cleaned})"
            raise NoSuchVolume(
                f"no storage vol with matching path '{path}'{clean}", advice=self._where(cleaned)
            )
        return found

    def pool_lookup_by_volume(self, ref: VolumeRef) -> PoolRef:
        """Return the pool of a volume."""
        return self._table.by_ref(ref.pool).pool.ref

    # Facts of one volume

    def volume_info(self, ref: VolumeRef) -> VolumeInfo:
        """Return the figures of a volume after one fresh look, or the last known ones.

        :raise NoSuchVolume: there is none.
        :raise SystemFailure: it was there and is gone.
        """
        volumes, sight = self._seen(ref)
        return _info(volumes, sight.record)

    def volume_definition(self, ref: VolumeRef) -> VolumeDef:
        """Return all there is to say of a volume, after one fresh look."""
        volumes, sight = self._seen(ref)
        record = sight.record
        found = None
        if sight.fresh and not _info(volumes, record).building:
            found = volumes.looks.describe(record)
        if found is None:
            found = VolumeDef(
                name=record.name,
                capacity=record.capacity,
                allocation=_info(volumes, record).allocation,
                format=record.format,
                type=record.type,
                physical=record.physical,
                permissions=record.permissions,
            )
        key, path = volumes.pool.key_of(record), volumes.pool.path_of(record)
        return replace(found, key=key, path=path)

    def volume_xml(self, ref: VolumeRef) -> str:
        """Return the XML of a volume, after one fresh look."""
        pool_type = self._table.by_ref(ref.pool).pool.snapshot.definition.type
        return volxml.format_volume(self.volume_definition(ref), pool_type)

    def volume_path(self, ref: VolumeRef) -> str:
        """Return the path of a volume, without a look."""
        volumes = self._table.by_ref(ref.pool)
        return volumes.pool.path_of(volumes.find(ref.name))

    # Changes

    def parse_volume(
        self, pool: PoolRef, text: str, *, clone: bool = False, validate: bool = False
    ) -> VolumeDef:
        """Return the request that an XML document holds, for a create or for a clone."""
        pool_type = self._table.by_ref(pool).pool.snapshot.definition.type
        rule = CapacityRule.NONE if clone else CapacityRule.OPTIONAL
        return volxml.parse_volume(text, pool_type, capacity=rule, validate=validate)

    def volume_create(
        self, pool: PoolRef, request: VolumeDef, *, preallocate_metadata: bool = False
    ) -> Job[VolumeRef]:
        """Make a volume. It is listed from the first moment and there only when it is whole."""
        require_writable(self._services)
        volumes = self._table.by_ref(pool)
        return volumes.create(request, preallocate_metadata=preallocate_metadata)

    def volume_clone(
        self,
        pool: PoolRef,
        request: VolumeDef,
        source: VolumeRef,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
    ) -> Job[VolumeRef]:
        """Make a volume from another one, of this pool or of any active one."""
        require_writable(self._services)
        volumes = self._table.by_ref(pool)
        origin = self._table.by_ref(source.pool)
        return volumes.clone(
            request,
            origin,
            origin.find(source.name),
            reflink=reflink,
            preallocate_metadata=preallocate_metadata,
        )

    def volume_delete(self, ref: VolumeRef, *, force: bool = False) -> Job[None]:
        """Delete a volume."""
        require_writable(self._services)
        return self._table.by_ref(ref.pool).delete(ref.name, force=force)

    def volume_resize(
        self,
        ref: VolumeRef,
        capacity: int,
        *,
        allocate: bool = False,
        delta: bool = False,
        shrink: bool = False,
        force: bool = False,
    ) -> Job[None]:
        """Change the capacity of a volume.

        :raise InvalidArgument: a capacity of 0 that is neither a delta nor a shrink.
        """
        require_writable(self._services)
        if capacity == 0 and not (delta or shrink):
            raise BadArgument(
                "capacity in virStorageVolResize cannot be zero without 'delta' or 'shrink' "
                "flags set",
                function="virStorageVolResize",
                argument="capacity",
            )
        return self._table.by_ref(ref.pool).resize(
            ref.name, capacity, allocate=allocate, delta=delta, shrink=shrink, force=force
        )

    def volume_wipe(self, ref: VolumeRef, algorithm: int = 0, *, force: bool = False) -> Job[None]:
        """Overwrite a volume.

        :raise InvalidArgument: no such algorithm.
        """
        require_writable(self._services)
        try:
            pattern = WipeAlgorithm(algorithm)
        except ValueError as err:
            raise InvalidArgument(f"wiping algorithm {algorithm} not supported") from err
        return self._table.by_ref(ref.pool).wipe(ref.name, pattern, force=force)

    def volume_upload(self, ref: VolumeRef, offset: int = 0, length: int = 0) -> Sink:
        """Open a volume for an upload piece by piece; its ``finish`` or ``abort`` ends it."""
        require_writable(self._services)
        return self._streams(ref).open_upload(ref.name, offset, length)

    def volume_download(
        self, ref: VolumeRef, offset: int = 0, length: int = 0, *, sparse: bool = False
    ) -> Source:
        """Open a volume for a download piece by piece; its ``close`` ends it."""
        return self._streams(ref).open_download(ref.name, offset, length, sparse=sparse)

    def volume_upload_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        """Write a file into a volume; the job gives the bytes moved."""
        require_writable(self._services)
        return self._streams(ref).upload_file(ref.name, file, offset, length, sparse=sparse)

    def volume_download_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        """Write a volume into a file; the job gives the bytes moved."""
        return self._streams(ref).download_file(ref.name, file, offset, length, sparse=sparse)

    def _streams(self, ref: VolumeRef) -> Streams:
        return Streams(self._table.by_ref(ref.pool))

    def _scanned(self, pool: PoolRef) -> Volumes:
        volumes = self._table.by_ref(pool)
        volumes.pool.require_active()
        volumes.scans.require_one()
        return volumes

    def _seen(self, ref: VolumeRef) -> tuple[Volumes, _Seen]:
        volumes = self._table.by_ref(ref.pool)
        known = volumes.find(ref.name)
        sight = volumes.looks.look(ref.name)
        record = sight.record
        if record is None or record.problem == VANISHED:
            path = volumes.pool.path_of(known)
            raise SystemFailure(f"cannot stat file '{path}'", errno.ENOENT, advice=VANISHED_ADVICE)
        if not sight.fresh:
            stale = "the storage did not answer in time; these are the last known facts"
            record = replace(record, problem=record.problem or stale)
        return volumes, _Seen(record, sight.fresh)

    def _find(self, wanted: str, *, by_key: bool) -> VolumeRef | None:
        directory, _, name = wanted.rpartition("/")
        for volumes in self._table.volumes():
            pool = volumes.pool
            if not pool.active:
                continue
            if name and pool.snapshot.definition.target == (directory or "/"):
                try:
                    found = volumes.find(name)
                except (NoSuchVolume, OperationInvalid):  # none, or it was stopped just now
                    continue
                if (pool.key_of if by_key else pool.path_of)(found) == wanted:
                    return volumes.ref(found)
            if not pool.scanned and not isinstance(pool.backend, Anchored):
                # Other paths than those in a directory are known after the first scan only.
                with suppress(StorageError):
                    volumes.scans.require_one()
            record = pool.index.by_key(wanted) if by_key else pool.index.by_path(wanted)
            if record is not None:
                return volumes.ref(record)
        return None

    def _where(self, path: str) -> str | None:
        directory = path.rpartition("/")[0] or "/"
        for pool in self._table.all():
            if pool.snapshot.definition.target == directory:
                if pool.active:
                    return f"Looked at pool '{pool.name}' just now: there is no such volume."
                return (
                    f"Its directory is that of pool '{pool.name}', which is inactive: "
                    f"storagectl pool start {pool.name}"
                )
        return "No pool has this directory as its target."


@dataclass(frozen=True, slots=True)
class _Seen:
    """A volume that is there: its facts, and whether they are fresh."""

    record: VolumeRecord
    fresh: bool


VANISHED_ADVICE = "Somebody removed it since the last refresh."


def _info(volumes: Volumes, record: VolumeRecord) -> VolumeInfo:
    pool: PoolObject = volumes.pool
    path = pool.path_of(record)
    writer = pool.leases.writer(record.name) if pool.leases else None
    building = writer is not None and writer.kind in _BUILDING
    return VolumeInfo(
        VolumeRef(pool.ref, record.name, record.key or path),
        record.type,
        record.capacity,
        writer.done if writer is not None and building else record.allocation,
        record.physical,
        record.format,
        path,
        record.problem,
        building,
    )
