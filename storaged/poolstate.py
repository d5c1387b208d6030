"""What a pool is made of: where it is in its life, what queries see of it, what pools share."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from storaged.events import JobFeed
from storaged.model import Permissions, PoolDef, PoolInfo
from storaged.worker import Deadlines, Limits

if TYPE_CHECKING:
    from storaged.backend import Host
    from storaged.events import Events
    from storaged.registry import Registry
    from storaged.settings import PolicyStore
    from storaged.state import StateStore


#: How long a query waits for a look at one volume, in seconds.
LOOK_PATIENCE = 0.25


class Phase(Enum):
    """Where a pool is in its life."""

    INACTIVE = "inactive"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Services:
    """What the pools of one engine share."""

    host: Host
    store: StateStore
    events: Events
    registry: Registry
    policies: PolicyStore
    limits: Limits
    readonly: bool = False
    #: set when the engine is closed: from then on it must not change anything
    closed: threading.Event = field(default_factory=threading.Event)
    #: tells of each job that begins
    feed: JobFeed = field(default_factory=JobFeed)
    #: ends looks that take too long
    deadlines: Deadlines = field(default_factory=lambda: Deadlines(LOOK_PATIENCE))


@dataclass(frozen=True, slots=True)
class Retry:
    """An autostart that failed and is tried again.

    :param why: "" before anything has failed.
    :param attempts: how many have failed in this engine.
    :param due: when the next one is, by `time.monotonic`; None while it is under way; infinite in
        an engine that leaves it to the daemon.
    """

    why: str
    attempts: int
    due: float | None = None

    def __str__(self) -> str:
        if self.due is None:
            return f"autostart failed: {self.why}; it is being tried again"
        if math.isinf(self.due):
            return f"autostart failed: {self.why}; the daemon tries again as soon as it runs"
        seconds = max(math.ceil(self.due - time.monotonic()), 0)
        return f"autostart failed: {self.why}; next try in {seconds} s"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool at one moment.

    :param definition: what runs, or will run at the next start.
    :param pending: what a redefinition under an active pool left for after the stop.
    :param permissions: of the target as found; those of the definition before the first scan.
    """

    definition: PoolDef
    pending: PoolDef | None
    info: PoolInfo
    permissions: Permissions
