"""Who needs a volume: the volumes of all active pools whose images name it as a file of theirs.

It is told from what the scans found, by the words of the paths: a backing file that is named
through a link, or by a volume of a pool that is not active, is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from typing import Any

from storaged.errors import OperationInvalid, StorageError, Timeout
from storaged.job import Job
from storaged.model import VolumeRecord, VolumeRef
from storaged.references import clean
from storaged.scan import PATIENCE
from storaged.table import PoolTable
from storaged.volumes import Volumes

#: So many are named in a message.
_NAMED = 3
#: How often a cancel is looked for while others work, in seconds.
_STEP = 0.25


class Loss(StrEnum):
    """What makes a volume of no use to those that need it, as the verb for it."""

    DELETE = "delete"
    WIPE = "wipe"
    SHRINK = "shrink"

    @property
    def command(self) -> str:
        """What storagectl has for it, with ``{}`` for the volume."""
        return "resize {} SIZE --shrink" if self is Loss.SHRINK else f"{self} {{}}"


class Dependants:
    """Who needs which volume of an engine. Any thread may ask."""

    def __init__(self, table: PoolTable) -> None:
        self._table = table

    def known(self, volumes: Volumes, record: VolumeRecord) -> list[VolumeRef]:
        """Return who is known to need a volume, sorted by pool and name, without waiting."""
        place = clean(volumes.pool.path_of(record))
        found = []
        for other in self._table.volumes():
            if not other.pool.active:
                continue
            for name in other.pool.index.users(place):
                user = other.pool.index.get(name)
                if user is not None and not (other is volumes and name == record.name):
                    found.append(other.ref(user))
        return sorted(found, key=lambda ref: (ref.pool.name, ref.name))

    def all(
        self,
        volumes: Volumes,
        record: VolumeRecord,
        job: Job[Any] | None = None,
        *,
        patience: float | None = None,
    ) -> list[VolumeRef]:
        """As `known`, when the volumes of all active pools are known.

        A pool whose storage shows no sign of life is not waited for: it must not be in the way of
        work in the others.

        :param job: whose cancel ends the waiting.
        :param patience: seconds to wait for the pools that have not been read yet.
        :raise Timeout: they were not read in that time; they are being read.
        """
        end = None if patience is None else time.monotonic() + patience
        for scan in self.begin():
            while not scan.wait(_STEP if end is None else min(_STEP, end - time.monotonic())):
                if end is not None and time.monotonic() >= end:
                    raise Timeout(f"the volumes of pool '{scan.pool}' have not been read yet")
                if job is not None:
                    job.checkpoint()
                if scan.silent_for() > PATIENCE:
                    break
        return self.known(volumes, record)

    def begin(self) -> list[Job[None]]:
        """Begin to read the volumes of the active pools that have not been read; never waits."""
        begun = []
        for volumes in self._table.volumes():
            if volumes.pool.active:
                with suppress(StorageError):
                    scan = volumes.scans.first()
                    if scan is not None:
                        begun.append(scan)
        return begun

    def require_none(
        self, volumes: Volumes, record: VolumeRecord, job: Job[Any], loss: Loss = Loss.DELETE
    ) -> None:
        """Refuse to take a volume, or what it holds, away from those that need it; for a worker.

        :param loss: what was to be done to it.
        :raise OperationInvalid: somebody does; the advice names them.
        """
        users = self.all(volumes, record, job)
        if users:
            command = loss.command.format(f"{volumes.pool.name}/{record.name}")
            raise OperationInvalid(
                f"volume '{record.name}' is needed by other volumes",
                advice=f"It is a backing file of {in_words(users)}. To {loss} it all the same: "
                f"storagectl vol {command} --force",
            )


def in_words(users: Iterable[VolumeRef]) -> str:
    """Return the first few of some volumes as text."""
    names = [f"{user.pool.name}/{user.name}" for user in users]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
