"""The volumes of a pool: immutable records that readers find without waiting.

A change is one step on a dict, whatever the number of volumes; a finished scan replaces the whole
index in one assignment. Writers hold the pool's lock. Readers hold nothing: each method takes what
it needs in one C-level call, so that it sees either the state before a change or the one after.

Names are the index. Keys and paths are derived from the name in the file pools; other types give
them in the record, and then a further dict leads from there to the name. What that dict says is
checked against the record it leads to.

A third kind of dict leads from the files that images name to the volumes whose images they are. It
holds nothing of the volumes that name none, which are most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from storaged.formats.image import ImageInfo
from storaged.model import VolumeRecord
from storaged.references import refer


class VolumeIndex:
    """The volumes of one pool.

    :param records: by name; taken over, not copied.
    :param target: path of the pool's target, where relative names in images begin; None if the
        images of the pool name no files.
    """

    __slots__ = ("_keys", "_names", "_paths", "_target", "_users")

    def __init__(
        self, records: dict[str, VolumeRecord] | None = None, target: str | None = None
    ) -> None:
        self._names: dict[str, VolumeRecord] = {} if records is None else records
        self._keys: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._target = target
        #: by the path of a file: the names of the volumes whose images name it
        self._users: dict[str, dict[str, None]] = {}
        known: dict[int, tuple[str, ...]] = {}
        for record in self._names.values():
            if record.key is not None or record.path is not None:
                self._point(record)
            image = record.image
            if image is not None and target is not None and not refers_to_nothing(image):
                # overlays of one file share what their headers say
                places = known.get(id(image))
                if places is None:
                    places = known[id(image)] = places_of(image, target)
                self._note(record.name, places)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def get(self, name: str) -> VolumeRecord | None:
        """Return the record of *name*, None if there is none."""
        return self._names.get(name)

    def by_key(self, key: str) -> VolumeRecord | None:
        """Return the record with the own key *key*; derived keys are not looked up here."""
        record = self._names.get(self._keys.get(key, ""))
        return record if record is not None and record.key == key else None

    def by_path(self, path: str) -> VolumeRecord | None:
        """Return the record with the own path *path*; derived paths are not looked up here."""
        record = self._names.get(self._paths.get(path, ""))
        return record if record is not None and record.path == path else None

    def users(self, place: str) -> list[str]:
        """Return the names of the volumes whose images name a file, in no order.

        :param place: its path without dots and doubled slashes.
        """
        found = self._users.get(place)
        return [] if found is None else list(found)

    def names(self) -> list[str]:
        """Return all names, in no order."""
        return list(self._names)

    def records(self) -> list[VolumeRecord]:
        """Return all records, in no order."""
        return list(self._names.values())

    def view(self) -> Mapping[str, VolumeRecord]:
        """Return the records by name, for a scan to compare with. It may change meanwhile."""
        return self._names

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a record."""
        old = self._names.get(record.name)
        self._names[record.name] = record
        self._point(record)
        before, after = self._places(old), self._places(record)
        if before != after:
            self._note(record.name, after)
            self._forget(record.name, (place for place in before if place not in after))

    def remove(self, name: str) -> VolumeRecord | None:
        """Remove a record and return it; None if it was not there."""
        record = self._names.pop(name, None)
        if record is not None:
            for index, own in ((self._keys, record.key), (self._paths, record.path)):
                if own is not None and index.get(own) == name:
                    del index[own]
            self._forget(name, self._places(record))
        return record

    def merged(self, scanned: dict[str, VolumeRecord], touched: Iterable[str]) -> VolumeIndex:
        """Return the index after a scan.

        :param scanned: what the scan found; taken over.
        :param touched: names that changed or were under work since the scan began: what this index
            says of them wins, also that they are not there.
        """
        for name in touched:
            record = self._names.get(name)
            if record is None:
                scanned.pop(name, None)
            else:
                scanned[name] = record
        return VolumeIndex(scanned, self._target)

    def _point(self, record: VolumeRecord) -> None:
        if record.key is not None:
            self._keys[record.key] = record.name
        if record.path is not None:
            self._paths[record.path] = record.name

    def _places(self, record: VolumeRecord | None) -> tuple[str, ...]:
        if record is None or record.image is None or self._target is None:
            return ()
        return places_of(record.image, self._target)

    def _note(self, name: str, places: Iterable[str]) -> None:
        for place in places:
            self._users.setdefault(place, {})[name] = None

    def _forget(self, name: str, places: Iterable[str]) -> None:
        for place in places:
            users = self._users.get(place)
            if users is not None:
                users.pop(name, None)
                if not users:
                    del self._users[place]


def refers_to_nothing(image: ImageInfo) -> bool:
    """Tell whether an image names no other file."""
    return image.backing is None and image.data_file is None and not image.extents


def places_of(image: ImageInfo, target: str) -> tuple[str, ...]:
    """Return the paths of the files that an image names, without dots and doubled slashes.

    :param target: the directory that the image lies in.
    """
    if refers_to_nothing(image):
        return ()
    names = [] if image.backing is None else [image.backing.name]
    if image.data_file is not None:
        names.append(image.data_file)
    places = (refer(name, target).place for name in (*names, *image.extents))
    return tuple(dict.fromkeys(place for place in places if place is not None))
