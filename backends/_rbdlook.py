"""What is known of rbd images: asked of their headers, which tells size and use without an open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from storaged.backend import Backend, Figures, Host, LooksAtVolumes, Refresh
from storaged.backends._rbdlink import Link
from storaged.errors import NoSuchVolume, StorageError
from storaged.isolate import Reply
from storaged.job import Job
from storaged.model import PoolDef, Space, VolumeDef, VolumeRecord, VolumeType

#: In a scan, images that are silent for so long are listed without their figures, in seconds.
PATIENCE: Final = 2.0
#: So many images are asked about in one question.
_MANY: Final = 500
#: So many problems of single images are told.
_TOLD: Final = 5
_MEASURING: Final = "failed to stat the RADOS cluster"
_UNREAD: Final = "its header could not be read: the OSDs that have it do not answer"

#: Size, order of its objects' size, bytes of the objects that exist (None: not known).
_Facts = tuple[int, int, int | None]


class LooksAtImages(Backend, LooksAtVolumes):
    """The images of a Ceph pool, or of one namespace in it."""

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        self._changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        #: the images that others have changed since the last scan, None: it may be any
        self._told: set[str] | None = None
        #: those that were read because of that, and those of them that are to be read once more: of
        #: what a job of ours has to do with meanwhile, the pool takes nothing from a scan
        self._read: set[str] = set()
        self._once_more: set[str] = set()
        self.link = Link(definition, host, self._hear)
        #: the images that were there when they were last looked at, by name: their ids
        self._ids: dict[str, str] = {}
        self._version = -1
        self._space: Space | None = None

    def path_of(self, name: str) -> str:
        """Return the path of a volume, which is its key too."""
        return f"{self.definition.source.name}/{name}"

    def gone(self, name: str) -> NoSuchVolume:
        """Return the error for an image that is not there any more."""
        return NoSuchVolume(f"no storage vol with matching path '{self.path_of(name)}'")

    def _hear(self, name: str | None) -> None:
        """Take note of what another client tells: which image it has changed, None: any."""
        with self._lock:
            if name is None:
                self._told = None
            elif self._told is not None:
                self._told.add(name)
        self._changed()

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        """See `Backend.refresh`.

        A scan that nobody but other clients have asked for reads the headers of those images that
        are new, or that they have told of.
        """
        with self._lock:
            told, self._told = self._told, set()
            self._read |= told or set()
            once_more, self._once_more = self._once_more, set()
        told = None if told is None else told | once_more
        same = {} if told is None or job.kind == "refresh" else _without(known, told)
        try:
            return self._refresh(known, same, job)
        except BaseException:
            self._told = None
            raise

    def _refresh(
        self,
        known: Mapping[str, VolumeRecord],
        same: Mapping[str, VolumeRecord],
        job: Job[Any],
    ) -> Refresh:
        problems = []
        version, names = self.link.ask("names", "Unable to list RBD images", again=True)
        job.checkpoint()
        measuring = self.link.begin("space", _MEASURING)
        usable = {name: id for name, id in names.items() if is_listed(name)}
        odd = [name for name in names if not _is_text(name)]
        if odd:
            shown = ", ".join(ascii(name) for name in odd[:_TOLD])
            problems.append(f"{len(odd)} images have names that are no UTF-8: {shown}")
        with self._lock:
            self._version, self._ids = version, finished(names)
        found = {name: same[name] for name, id in usable.items() if _is(same.get(name), id)}
        rest = {name: id for name, id in usable.items() if name not in found}
        found |= self._records(rest, known, job)
        try:
            space = self._measured(measuring, PATIENCE)
        except StorageError as err:  # the monitors tell them, and all else is read without these
            problems.append(f"its figures cannot be read: {err.message}")
            space = self._space or Space(0, 0, 0)
        unread = sum(1 for record in found.values() if record.problem == _UNREAD)
        if unread:
            problems.append(f"{unread} of {len(found)} images could not be read")
        return Refresh(found, space, problems=tuple(problems))

    def _records(
        self, names: Mapping[str, str], known: Mapping[str, VolumeRecord], job: Job[Any]
    ) -> dict[str, VolumeRecord]:
        ids = [id for id in names.values() if id]
        facts: dict[str, _Facts | None] = {}
        for start in range(0, len(ids), _MANY):
            asked = ids[start : start + _MANY]
            facts |= self.link.ask(
                "facts",
                "failed to read the headers of RBD images",
                again=True,
                ids=asked,
                patience=PATIENCE,
                used=self.counts_objects,
            )
            job.checkpoint(start + len(asked), len(ids))
            if len(facts) < start + len(asked):
                break  # what does not answer now would let each further question wait
        records = {}
        for name, id in names.items():
            if id in facts:
                told = facts[id]
                if told is not None:  # else it has just been removed
                    records[name] = self._record(name, id, told, known.get(name))
            elif id:
                records[name] = self._unread(name, id, known.get(name))
            else:
                with suppress(NoSuchVolume):
                    records[name] = self._old(name, known.get(name))
        return records

    def _old(self, name: str, known: VolumeRecord | None) -> VolumeRecord:
        """Return the record of an image of the old format, which has to be opened."""
        found = self.link.ask(
            "look_old", "failed to open the RBD image", volume=name, again=True, name=name
        )
        if found is None:
            raise self.gone(name)
        return self._record(name, "", (found[1], found[2], None), known)

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        if not is_listed(name):
            return None
        found = self.link.ask(
            "look",
            f"failed to open the RBD image '{name}'",
            volume=name,
            again=True,
            name=name,
            used=self.counts_objects,
        )
        if found is None:
            with self._lock:
                self._ids.pop(name, None)
            return None
        return self.take(name, found, known)

    def take(
        self, name: str, found: tuple[str, int, int, int | None], known: VolumeRecord | None = None
    ) -> VolumeRecord:
        """Take note of an image that is there, and return its record.

        :param found: id, size, order of its objects' size, bytes of its objects if that is known.
        :param known: the record so far; it is returned itself if nothing has changed.
        """
        id, size, order, used = found
        with self._lock:
            self._ids[name] = id
        return self._record(name, id, (size, order, used), known)

    def describe(self, record: VolumeRecord) -> VolumeDef:
        return VolumeDef(
            name=record.name,
            capacity=record.capacity,
            allocation=record.allocation,
            format=record.format,
            type=record.type,
            key=record.key,
            path=record.path,
        )

    def measure(self) -> Figures | None:
        asked = self.link.begin("space", _MEASURING)
        return Figures(self._measured(asked, self.link.timeout))

    @property
    def counts_objects(self) -> bool:
        """Whether the allocation is what the objects take; libvirt's default is the size."""
        return self.definition.refresh_allocation == "default"

    def _measured(self, reply: Reply, timeout: float) -> Space:
        with self.link.translated(_MEASURING):
            self._space = Space(*reply.take(timeout))
        return self._space

    def _record(
        self, name: str, id: str, facts: _Facts, known: VolumeRecord | None
    ) -> VolumeRecord:
        size, order, used = facts
        rounded = -(-size >> order) << order
        path = self.path_of(name)
        made = VolumeRecord(
            name=name,
            capacity=size,
            allocation=rounded if used is None else used,
            format="raw",
            type=VolumeType.NETWORK,
            stamp=id.encode(),
            key=path,
            path=path,
        )
        return known if known == made and known is not None else made

    def _unread(self, name: str, id: str, known: VolumeRecord | None) -> VolumeRecord:
        """Return the record of an image of which only the name is known, or was known before."""
        size = allocation = 0
        if known is not None and known.stamp == id.encode():
            size, allocation = known.capacity, known.allocation
        path = self.path_of(name)
        return VolumeRecord(
            name=name,
            capacity=size,
            allocation=allocation,
            format="raw",
            type=VolumeType.NETWORK,
            key=path,
            path=path,
            problem=_UNREAD,
        )


def _without(known: Mapping[str, VolumeRecord], told: Collection[str]) -> dict[str, VolumeRecord]:
    """Return the records that need not be read anew."""
    kept = {name: record for name, record in dict(known).items() if record.problem is None}
    for name in told:
        kept.pop(name, None)
    return kept


def _is(record: VolumeRecord | None, id: str) -> bool:
    """Tell whether a record is of an image with an id."""
    return record is not None and bool(id) and record.stamp == id.encode()


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def finished(names: Mapping[str, str]) -> dict[str, str]:
    """Return those images, ids by name, that are not being filled."""
    from storaged.backends._rbdmake import is_unfinished

    return {name: id for name, id in names.items() if not is_unfinished(name)}


def is_listed(name: str) -> bool:
    """Tell whether an image is one of the pool's volumes."""
    from storaged.backends._rbdmake import is_unfinished

    return _is_text(name) and not is_unfinished(name)
