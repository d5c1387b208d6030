"""What can be answered from memory: for callers that must not wait.

Each question costs a few dictionary look-ups, takes no lock and touches no storage. "Yes" is also
the answer where the call would fail at once. The state may change right after; then the call takes
the time that it takes for everybody.
"""

from __future__ import annotations

from storaged.backend import Anchored
from storaged.model import PoolRef
from storaged.rules import sanitise_path
from storaged.table import PoolTable


class Known:
    """What is known of the pools of one engine."""

    def __init__(self, table: PoolTable) -> None:
        self._table = table

    def pools(self) -> int:
        """Return how many pools there are."""
        return len(self._table)

    def figures(self, ref: PoolRef) -> bool:
        """Tell whether the figures of a pool are known, or it has none."""
        volumes = self._table.get(ref.uuid)
        return volumes is None or not volumes.pool.active or volumes.pool.space_known

    def scanned(self, ref: PoolRef, *, most: int | None = None) -> bool:
        """Tell whether the volumes of a pool are known.

        :param most: and whether they are no more than this.
        """
        volumes = self._table.get(ref.uuid)
        if volumes is None or not volumes.pool.active:
            return True
        return volumes.pool.scanned and (most is None or len(volumes.pool.index) <= most)

    def all_scanned(self) -> bool:
        """Tell whether the volumes of all active pools are known."""
        return all(pool.scanned or not pool.active for pool in self._table.all())

    def volume_of(self, ref: PoolRef, name: str) -> bool:
        """Tell whether a pool knows a volume of this name."""
        volumes = self._table.get(ref.uuid)
        return volumes is None or not volumes.pool.active or name in volumes.pool.index

    def volume(self, pool: str, name: str) -> bool:
        """Tell whether the pool of a name knows a volume of a name."""
        found = self._table.find(pool)
        return found is None or not found.active or name in found.index

    def path(self, path: str) -> bool:
        """Tell whether it is known which volume a path leads to, or that there is none."""
        return self.key(sanitise_path(path))

    def key(self, key: str) -> bool:
        """Tell whether it is known which volume a key names, or that there is none."""
        directory, _, name = key.rpartition("/")
        directory = directory or "/"
        for pool in self._table.all():
            if not pool.active:
                continue
            if name and pool.target == directory:
                if name not in pool.index:
                    return False
            elif not pool.scanned and not isinstance(pool.backend, Anchored):
                return False
        return True
