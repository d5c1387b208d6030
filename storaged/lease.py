"""Leases: who works on which volume. Many readers or one writer; never waited for.

A conflict is an error at once, as libvirt has it, so that leases cannot dead-lock. All methods are
called with the pool's lock held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storaged.errors import VolumeBusy
from storaged.job import Job


@dataclass(slots=True)
class _Holders:
    readers: list[Job[Any]] = field(default_factory=list)
    writer: Job[Any] | None = None


class Leases:
    """The leases on the volumes of one pool, by volume name."""

    def __init__(self) -> None:
        self._held: dict[str, _Holders] = {}

    def __len__(self) -> int:
        return len(self._held)

    def writer(self, name: str) -> Job[Any] | None:
        """Return the job that changes the volume, None if none does."""
        holders = self._held.get(name)
        return holders.writer if holders else None

    def held(self, name: str) -> bool:
        """Tell whether anybody reads or changes the volume."""
        return name in self._held

    def written(self) -> set[str]:
        """Return the names of all volumes that a job changes."""
        return {name for name, holders in self._held.items() if holders.writer}

    def read(self, name: str, job: Job[Any]) -> None:
        """Let *job* read the volume.

        :raise VolumeBusy: another job changes it.
        """
        self._refuse_writer(name)
        self._held.setdefault(name, _Holders()).readers.append(job)

    def write(self, name: str, job: Job[Any]) -> None:
        """Let *job*, and nobody else, use the volume.

        :raise VolumeBusy: another job reads or changes it.
        """
        self._refuse_writer(name)
        holders = self._held.get(name)
        if holders and holders.readers:
            raise VolumeBusy(f"volume '{name}' is still in use.", advice=_busy(holders.readers[0]))
        self._held[name] = _Holders(writer=job)

    def release(self, name: str, job: Job[Any]) -> None:
        """Give back what *job* holds of the volume; nothing held is no error."""
        holders = self._held.get(name)
        if holders is None:
            return
        if holders.writer is job:
            holders.writer = None
        elif job in holders.readers:
            holders.readers.remove(job)
        if not holders.readers and holders.writer is None:
            del self._held[name]

    def _refuse_writer(self, name: str) -> None:
        writer = self.writer(name)
        if writer is None:
            return
        doing = "being allocated" if writer.kind in ("create", "clone") else "in use"
        raise VolumeBusy(f"volume '{name}' is still {doing}.", advice=_busy(writer))


def _busy(job: Job[Any]) -> str:
    progress = job.progress()
    share = f", {100 * progress.done // progress.total} % done" if progress.total else ""
    return f"Job {progress.id} ({progress.kind}{share}) works on it; wait for it or cancel it."
