"""The queries on volumes: lists, look-ups, and the facts of one volume.

Look-ups and lists read the index; a look-up that misses takes one look at the storage, and so do
the facts of one volume.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from storaged import volxml
from storaged.backend import Anchored
from storaged.errors import (
    NoSuchVolume,
    OperationInvalid,
    StorageError,
)
from storaged.job import Job
from storaged.look import VANISHED, Sight
from storaged.model import PoolRef, VolumeDef, VolumeInfo, VolumeRecord, VolumeRef
from storaged.pool import PoolObject
from storaged.poolstate import Services
from storaged.rules import sanitise_path
from storaged.table import PoolTable
from storaged.volumes import Volumes

#: A volume is being made by a job of one of these kinds.
_BUILDING = ("create", "clone")


class VolumeQueries:
    """The queries on volumes."""

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
        volumes, seen = self._seen(ref)
        return _info(volumes, seen.record)

    def volume_info_job(self, ref: VolumeRef) -> Job[VolumeInfo]:
        """As `volume_info`, as a job that ends by itself within the time that a look may take.

        It needs no thread that waits. A volume that is not known is looked for first, which waits.
        """
        volumes = self._table.by_ref(ref.pool)
        known = volumes.find(ref.name)
        job: Job[VolumeInfo] = Job("look", ref.pool.name, ref.name)
        self._after_look(job, volumes, known, lambda s: job.finish(_info(volumes, s.record)))
        return job

    def volume_xml_job(self, ref: VolumeRef) -> Job[str]:
        """As `volume_xml`, in the way of `volume_info_job`."""
        volumes = self._table.by_ref(ref.pool)
        known = volumes.find(ref.name)
        job: Job[str] = Job("look", ref.pool.name, ref.name)
        self._after_look(job, volumes, known, lambda seen: self._describe(job, volumes, seen))
        return job

    def volume_definition(self, ref: VolumeRef) -> VolumeDef:
        """Return all there is to say of a volume, after one fresh look."""
        volumes, seen = self._seen(ref)
        found = None
        if seen.fresh and not _info(volumes, seen.record).building:
            found = volumes.looks.describe(seen.record)
        return _definition(volumes, seen.record, found)

    def volume_xml(self, ref: VolumeRef) -> str:
        """Return the XML of a volume, after one fresh look."""
        pool_type = self._table.by_ref(ref.pool).pool.snapshot.definition.type
        return volxml.format_volume(self.volume_definition(ref), pool_type)

    def volume_path(self, ref: VolumeRef) -> str:
        """Return the path of a volume, without a look."""
        volumes = self._table.by_ref(ref.pool)
        return volumes.pool.path_of(volumes.find(ref.name))

    def _scanned(self, pool: PoolRef) -> Volumes:
        volumes = self._table.by_ref(pool)
        volumes.pool.require_active()
        volumes.scans.require_one()
        return volumes

    def _seen(self, ref: VolumeRef) -> tuple[Volumes, _Seen]:
        volumes = self._table.by_ref(ref.pool)
        known = volumes.find(ref.name)
        return volumes, _judged(volumes, known, volumes.looks.look(ref.name))

    def _after_look(
        self,
        job: Job[Any],
        volumes: Volumes,
        known: VolumeRecord,
        then: Callable[[_Seen], None],
    ) -> None:
        """Have *then* called with what a look found; what fails fails the job."""

        def settle(sight: Sight) -> None:
            then(_judged(volumes, known, sight))

        begun = volumes.looks.begin(known.name)
        if isinstance(begun, Sight):
            _failing(job, lambda: settle(begun))
            return
        look = begun
        look.on_end(lambda: _failing(job, lambda: settle(Sight(look.result(), fresh=True))))
        if not look.ended:
            self._services.deadlines.add(
                look, lambda: _failing(job, lambda: settle(volumes.looks.last_known(known.name)))
            )

    def _describe(self, job: Job[str], volumes: Volumes, seen: _Seen) -> None:
        """End *job* with the XML of a volume that was looked at."""
        record = seen.record
        pool_type = volumes.pool.snapshot.definition.type

        def finish(found: VolumeDef | None) -> None:
            job.finish(volxml.format_volume(_definition(volumes, record, found), pool_type))

        described = None
        if seen.fresh and not _info(volumes, record).building:
            described = volumes.looks.begin_describing(record)
        if described is None:
            finish(None)
            return
        look = described
        look.on_end(lambda: _failing(job, lambda: finish(look.result())))
        if not look.ended:
            self._services.deadlines.add(look, lambda: _failing(job, lambda: finish(None)))

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


def _judged(volumes: Volumes, known: VolumeRecord, sight: Sight) -> _Seen:
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
    return _Seen(record, sight.fresh)


def _failing(job: Job[Any], work: Callable[[], None]) -> None:
    """Do *work*; what it raises ends *job*."""
    try:
        work()
    except BaseException as err:
        job.fail(err)


def _definition(volumes: Volumes, record: VolumeRecord, found: VolumeDef | None) -> VolumeDef:
    """Return what a description says, or where there is none, what the record does."""
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
