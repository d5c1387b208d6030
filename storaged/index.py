"""The volumes of a pool: immutable records that readers find without waiting.

A change is one step on a dict, whatever the number of volumes; a finished scan replaces the whole
index in one assignment. Writers hold the pool's lock. Readers hold nothing: each method takes what
it needs in one C-level call, so that it sees either the state before a change or the one after.

Names are the index. Keys and paths are derived from the name in the file pools; other types give
them in the record, and then a further dict leads from there to the name. What that dict says is
checked against the record it leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from storaged.model import VolumeRecord


class VolumeIndex:
    """The volumes of one pool.

    :param records: by name; taken over, not copied.
    """

    __slots__ = ("_keys", "_names", "_paths")

    def __init__(self, records: dict[str, VolumeRecord] | None = None) -> None:
        self._names: dict[str, VolumeRecord] = {} if records is None else records
        self._keys: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for record in self._names.values():
            if record.key is not None or record.path is not None:
                self._point(record)

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
        self._names[record.name] = record
        self._point(record)

    def remove(self, name: str) -> VolumeRecord | None:
        """Remove a record and return it; None if it was not there."""
        record = self._names.pop(name, None)
        if record is not None:
            for index, own in ((self._keys, record.key), (self._paths, record.path)):
                if own is not None and index.get(own) == name:
                    del index[own]
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
        return VolumeIndex(scanned)

    def _point(self, record: VolumeRecord) -> None:
        if record.key is not None:
            self._keys[record.key] = record.name
        if record.path is not None:
            self._paths[record.path] = record.name
