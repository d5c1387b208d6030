"""What queries return: the names of pools and volumes, and their state and figures.

They stand apart from the definitions of `storaged.model`, which passes them on, because a client
needs these in every command and those in few: each class takes its time to load.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from storaged.traits import PoolType, VolumeType


class PoolState(IntEnum):
    """What clients are told of a pool; the numbers stand on the wire."""

    INACTIVE = 0
    BUILDING = 1
    RUNNING = 2
    DEGRADED = 3
    #: active, but its storage does not answer
    INACCESSIBLE = 4


@dataclass(frozen=True, slots=True)
class Space:
    """How full a pool is, in bytes."""

    capacity: int = 0
    allocation: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True)
class PoolRef:
    """Names a pool. The uuid decides; the name is for people."""

    name: str
    uuid: UUID


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """Names a volume: its pool and its name; the key goes with it for clients that ask."""

    pool: PoolRef
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Outage:
    """Storage that does not answer.

    :param since: seconds since 1970.
    :param why: how that shows.
    """

    since: float
    why: str

    def __str__(self) -> str:
        return f"does not answer since {self.clock()} ({self.why})"

    def clock(self, pattern: str = "%H:%M:%S") -> str:
        """Return the local time at which it began, with the date if that was another day."""
        began = time.localtime(self.since)
        today = began[:3] == time.localtime()[:3]
        return time.strftime(pattern if today else f"%Y-%m-%d {pattern}", began)


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """The state of a pool at one moment: one immutable snapshot."""

    ref: PoolRef
    state: PoolState
    persistent: bool
    autostart: bool
    space: Space
    #: what is wrong with this pool, for people
    problems: tuple[str, ...] = ()
    type: PoolType | str = ""
    #: path of the target; None for the network types
    target: str | None = None
    #: since when and why the storage does not answer, for an inaccessible pool
    outage: Outage | None = None

    @property
    def active(self) -> bool:
        """Whether the pool is started."""
        return self.state is not PoolState.INACTIVE


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """The figures of a volume at one moment, in bytes."""

    ref: VolumeRef
    type: VolumeType
    capacity: int
    allocation: int
    physical: int
    format: str | None
    path: str
    problem: str | None = None
    #: being created or cloned just now
    building: bool = False
    #: how full a thin pool, a thin volume or a snapshot is, in percent; None where nothing fills up
    data_percent: float | None = None
    metadata_percent: float | None = None
