"""The queries on volumes: lists, look-ups, and the facts of one volume.

Look-ups and lists read the index; a look-up that misses takes one look at the storage, and so do
the facts of one volume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self, TypeVar

from storaged import volxml
from storaged.backend import Anchored, HasSnapshots
from storaged.dependants import Dependants
from storaged.errors import (
    NoSuchVolume,
    OperationInvalid,
    StorageError,
)
from storaged.job import Pending
from storaged.look import VANISHED, Sight
from storaged.model import PoolRef, VolumeDef, VolumeInfo, VolumeRecord, VolumeRef
from storaged.pool import PoolObject
from storaged.poolstate import Services
from storaged.rules import sanitise_path
from storaged.table import PoolTable
from storaged.volumes import Volumes
from storaged.worker import Deadlines

T = TypeVar("T")

#: A volume is being made by a job of one of these kinds.
_BUILDING = ("create", "clone")


class VolumeQueries:
    """The queries on volumes."""

    def __init__(self, services: Services, table: PoolTable) -> None:
        self._services = services
        self._table = table
        self._dependants = Dependants(table)

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

    def volume_keys(self, pool: PoolRef) -> tuple[PoolRef, list[tuple[str, str]]]:
        """Return a pool, and names and keys of its volumes, in no order; it is scanned if need be.

        It is for long lists: `volumes` makes an object of each.
        """
        found = self._scanned(pool).pool
        target = found.target
        records = found.index.records()
        return found.ref, [(r.name, r.key or r.path or f"{target}/{r.name}") for r in records]

    def volume_page(
        self, pool: PoolRef, after: str | None, count: int
    ) -> tuple[list[VolumeInfo], bool]:
        """Return the known figures of some volumes, sorted by name, and whether there are more.

        :param after: those whose names come after this one; None is from the start.
        :param count: at most so many.
        """
        volumes = self._scanned(pool)
        names = volumes.pool.index.names()
        wanted = sorted(names if after is None else [name for name in names if name > after])
        records = [volumes.pool.index.get(name) for name in wanted[:count]]
        infos = [_info(volumes, record) for record in records if record is not None]
        return infos, len(wanted) > count

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
        """
        volumes, record, _ = self._seen(ref)
        return _info(volumes, record)

    def volume_info_job(self, ref: VolumeRef) -> Pending[VolumeInfo]:
        """As `volume_info`, for who must not wait: it ends within the time that a look may take.

        It needs no thread that waits. A volume that is not known is looked for first, which waits.
        """
        volumes = self._table.by_ref(ref.pool)
        return _InfoLook(volumes, volumes.find(ref.name)).begin(self._services.deadlines)

    def volume_xml_job(self, ref: VolumeRef) -> Pending[str]:
        """As `volume_xml`, in the way of `volume_info_job`."""
        volumes = self._table.by_ref(ref.pool)
        return _XMLLook(volumes, volumes.find(ref.name)).begin(self._services.deadlines)

    def volume_definition(self, ref: VolumeRef) -> VolumeDef:
        """Return all there is to say of a volume, after one fresh look."""
        volumes, record, fresh = self._seen(ref)
        found = None
        if fresh and not _info(volumes, record).building:
            found = volumes.looks.describe(record)
        return _definition(volumes, record, found)

    def volume_xml(self, ref: VolumeRef) -> str:
        """Return the XML of a volume, after one fresh look."""
        pool_type = self._table.by_ref(ref.pool).pool.snapshot.definition.type
        return volxml.format_volume(self.volume_definition(ref), pool_type)

    def volume_path(self, ref: VolumeRef) -> str:
        """Return the path of a volume, without a look."""
        volumes = self._table.by_ref(ref.pool)
        return volumes.pool.path_of(volumes.find(ref.name))

    def has_snapshots(self, pool: PoolRef) -> bool:
        """Tell whether volumes of the pool's type have snapshots of their own."""
        return isinstance(self._table.by_ref(pool).pool.backend, HasSnapshots)

    def volume_users(self, ref: VolumeRef, *, patience: float | None = None) -> list[VolumeRef]:
        """Return the volumes that need this one: as a backing file, a data file or an extent.

        They are sorted by pool and name. All active pools are scanned if need be; one whose storage
        does not answer is passed over.

        :param patience: seconds that the scans may take; None waits for them.
        :raise Timeout: they take longer, and go on.
        """
        volumes = self._table.by_ref(ref.pool)
        return self._dependants.all(volumes, volumes.find(ref.name), patience=patience)

    def _scanned(self, pool: PoolRef) -> Volumes:
        volumes = self._table.by_ref(pool)
        volumes.pool.require_active()
        volumes.scans.require_one()
        return volumes

    def _seen(self, ref: VolumeRef) -> tuple[Volumes, VolumeRecord, bool]:
        """Return a volume's pool, its facts, and whether they are fresh."""
        volumes = self._table.by_ref(ref.pool)
        known = volumes.find(ref.name)
        sight = volumes.looks.look(ref.name)
        return volumes, _judged(volumes, known, sight), sight.fresh

    def _find(self, wanted: str, *, by_key: bool) -> VolumeRef | None:
        directory, _, name = wanted.rpartition("/")
        for volumes in self._table.volumes():
            pool = volumes.pool
            if not pool.active:
                continue
            if name and pool.snapshot.definition.target == (directory or "/"):
                try:
                    found = volumes.find(name)
                except OperationInvalid:  # it was stopped just now
                    continue
                except NoSuchVolume:
                    if isinstance(pool.backend, Anchored):
                        continue
                else:
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


class _AfterLook(Pending[T], ABC):
    """An answer that follows from a look at a volume.

    :param known: what was known of the volume before.
    """

    def __init__(self, volumes: Volumes, known: VolumeRecord) -> None:
        super().__init__("look")
        self._volumes = volumes
        self._known = known

    def begin(self, deadlines: Deadlines) -> Self:
        """Begin the look; it is not waited for longer than *deadlines* allow."""
        self._deadlines = deadlines
        begun = self._volumes.looks.begin(self._known.name)
        if isinstance(begun, Sight):
            self._take(begun)
            return self
        self._look = begun
        begun.on_end(self._take_look)
        if not begun.ended:
            deadlines.add(begun, self._take_known)
        return self

    @abstractmethod
    def conclude(self, record: VolumeRecord, *, fresh: bool) -> None:
        """Make the answer of what was found. What it raises ends the call."""

    def _take_look(self) -> None:
        try:
            sight = Sight(self._look.result(), fresh=True)
        except BaseException as err:
            self.fail(err)
        else:
            self._take(sight)

    def _take_known(self) -> None:
        self._take(self._volumes.looks.last_known(self._known.name))

    def _take(self, sight: Sight) -> None:
        try:
            self.conclude(_judged(self._volumes, self._known, sight), fresh=sight.fresh)
        except BaseException as err:
            self.fail(err)


class _InfoLook(_AfterLook[VolumeInfo]):
    """The figures of a volume."""

    def conclude(self, record: VolumeRecord, *, fresh: bool) -> None:
        self.finish(_info(self._volumes, record))


class _XMLLook(_AfterLook[str]):
    """The document of a volume: it is described after the look."""

    def conclude(self, record: VolumeRecord, *, fresh: bool) -> None:
        self._record = record
        described = None
        if fresh and not _info(self._volumes, record).building:
            described = self._volumes.looks.begin_describing(record)
        if described is None:
            self._finish(None)
            return
        self._described = described
        described.on_end(self._take_description)
        if not described.ended:
            self._deadlines.add(described, self._do_without)

    def _take_description(self) -> None:
        try:
            self._finish(self._described.result())
        except BaseException as err:
            self.fail(err)

    def _do_without(self) -> None:
        try:
            self._finish(None)
        except BaseException as err:
            self.fail(err)

    def _finish(self, found: VolumeDef | None) -> None:
        pool_type = self._volumes.pool.snapshot.definition.type
        definition = _definition(self._volumes, self._record, found)
        self.finish(volxml.format_volume(definition, pool_type))


VANISHED_ADVICE = "Somebody removed it since the last refresh."


def _judged(volumes: Volumes, known: VolumeRecord, sight: Sight) -> VolumeRecord:
    """Return what a look found.

    :raise NoSuchVolume: the volume has gone.
    """
    record = sight.record
    if record is None or record.problem == VANISHED:
        path = volumes.pool.path_of(known)
        raise NoSuchVolume(f"no storage vol with matching path '{path}'", advice=VANISHED_ADVICE)
    if not sight.fresh:
        stale = "the storage did not answer in time; these are the last known facts"
        record = replace(record, problem=record.problem or stale)
    return record


def _definition(volumes: Volumes, record: VolumeRecord, found: VolumeDef | None) -> VolumeDef:
    """Return what a description says, or where there is none, what the record does."""
    if found is None:
        extra: dict[str, Any] = dict(record.extra or {})
        found = VolumeDef(
            name=record.name,
            capacity=record.capacity,
            allocation=_info(volumes, record).allocation,
            format=record.format,
            type=record.type,
            physical=record.physical,
            permissions=record.permissions,
            **{name: extra[name] for name in ("backing", "extents") if name in extra},
        )
    key, path = volumes.pool.key_of(record), volumes.pool.path_of(record)
    return replace(found, key=key, path=path)


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
        *_fullness(record),
    )


def _fullness(record: VolumeRecord) -> tuple[float | None, float | None]:
    """Return how full a volume is, its data and its metadata, in percent."""
    extra = record.extra
    if extra is None:
        return None, None
    found = (extra.get("data_percent"), extra.get("metadata_percent"))
    data, metadata = (value if isinstance(value, float) else None for value in found)
    return data, metadata
