"""Devices that come and go are told to the pools that they concern, which scan their storage then.

Events come in crowds: one LUN is several devices, and a login brings many LUNs. So what is heard is
gathered for a moment, and each pool that it concerns is asked for one scan, not more often than
every few seconds. Everybody is told of a scan that has found something else than was known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from storaged.backend import DeviceEvent, Plugged
from storaged.errors import StorageError
from storaged.events import Event, Lifecycle
from storaged.job import Job
from storaged.model import VolumeRecord
from storaged.pool import PoolObject
from storaged.poolstate import Phase
from storaged.udev import Monitor

if TYPE_CHECKING:
    from storaged.events import Events
    from storaged.poolstate import Services
    from storaged.table import PoolTable
    from storaged.volumes import Volumes

#: Events are gathered until none has come for so long, in seconds ...
_QUIET: Final = 0.3
#: ... but not for longer than this.
_PATIENCE: Final = 2.0
#: A pool is not scanned more often than this because of events, in seconds: a scan may cause some.
_INTERVAL: Final = 2.0
#: How often it is looked whether there is anybody left to tell, in seconds.
_TICK: Final = 2.0


class Hotplug:
    """Listens for events of block devices while there is an active pool whose volumes are devices.

    It has one thread of its own, which touches no storage and ends when there is nobody to tell.

    :param services: when they are closed it ends, within a moment.
    """

    def __init__(self, table: PoolTable, services: Services) -> None:
        self._table = table
        self._services = services
        self._lock = threading.Lock()
        self._listening = False
        #: by pool: when it may be scanned again
        self._due: dict[PoolObject, float] = {}
        #: pools that are to be scanned
        self._waiting: set[PoolObject] = set()

    def begin(self) -> None:
        """Listen from now on, whenever there is a pool to tell."""
        self._services.events.subscribe(self._heard_of_pool)
        self._listen()

    def _heard_of_pool(self, event: Event) -> None:
        if event.lifecycle is Lifecycle.STARTED:
            self._listen()

    def _listen(self) -> None:
        """Start the thread, unless it runs or has nobody to tell."""
        with self._lock:
            if self._listening or self._services.closed.is_set() or not self._plugged():
                return
            self._listening = True
        thread = threading.Thread(target=self._run, name="storaged-hotplug", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is left on this host: the next start of a pool tries again
            self._listening = False

    def _plugged(self) -> list[tuple[Volumes, Plugged]]:
        """Return the pools whose volumes are devices, as far as they are active."""
        found: list[tuple[Volumes, Plugged]] = []
        for volumes in self._table.volumes():
            if volumes.pool.phase is Phase.ACTIVE:
                with suppress(StorageError):
                    backend = volumes.pool.backend
                    if isinstance(backend, Plugged):
                        found.append((volumes, backend))
        return found

    def _run(self) -> None:
        caught_up = False
        with Monitor() as monitor:
            while monitor.is_listening:
                try:
                    if not self._goes_on():
                        return
                    if not caught_up:
                        caught_up = True
                        self._catch_up()
                    self._hear(monitor)
                    self._scan()
                except Exception:  # what nobody foresaw must not leave all pools unwatched
                    _log("listening for devices failed")
                    time.sleep(_QUIET)
            with self._lock:
                self._listening = False

    def _catch_up(self) -> None:
        """See what came before there was anybody to hear of it."""
        for volumes, _ in self._plugged():
            if volumes.pool.scanned:  # else the scan to come sees it
                with suppress(StorageError):
                    rescan(volumes, self._services.events)

    def _goes_on(self) -> bool:
        """Tell whether there is anybody to tell; if not, `_listen` has to start anew."""
        with self._lock:
            self._listening = not self._services.closed.is_set() and bool(self._plugged())
            return self._listening

    def _hear(self, monitor: Monitor) -> None:
        """Wait for events, and note which pools they concern."""
        events = []
        until = None
        event = monitor.next(_TICK if not self._waiting else _QUIET)
        while event is not None:
            events.append(event)
            until = until or time.monotonic() + _PATIENCE
            left = until - time.monotonic()
            event = monitor.next(min(_QUIET, left)) if left > 0 else None
        lost = monitor.lost()
        if events or lost:
            for volumes, backend in self._plugged():
                if lost or _concerns(backend, events):
                    self._waiting.add(volumes.pool)

    def _scan(self) -> None:
        """Ask the pools that wait, and whose time has come, for a scan."""
        now = time.monotonic()
        for volumes, _ in self._plugged() if self._waiting else ():
            pool = volumes.pool
            if pool in self._waiting and self._due.get(pool, now) <= now:
                self._waiting.discard(pool)
                self._due[pool] = now + _INTERVAL
                with suppress(StorageError):  # it is about to stop, or does not answer
                    rescan(volumes, self._services.events)
        active = {volumes.pool for volumes, _ in self._plugged()}
        self._waiting &= active
        self._due = {pool: due for pool, due in self._due.items() if pool in active}


def rescan(volumes: Volumes, events: Events) -> Job[None]:
    """Ask for a scan of a pool, and have everybody told if it finds other volumes.

    :raise StorageError: it cannot be begun.
    """
    pool = volumes.pool
    epoch, before = pool.epoch, dict(pool.index.view())
    job = volumes.scans.request("scan")

    def ended() -> None:
        with pool.lock:
            here = pool.epoch == epoch and pool.phase is Phase.ACTIVE
            # who asked for a refresh is told in any case
            if here and job.error is None and job.kind == "scan" and _differ(before, pool):
                pool.untold = False
                events.post(pool.ref, None)
        events.deliver()

    job.on_end(ended)
    return job


def _differ(before: Mapping[str, VolumeRecord], pool: PoolObject) -> bool:
    """Tell whether a scan, or a look before it, has found other volumes than everybody knows."""
    return pool.untold or before != pool.index.view()


def _concerns(backend: Plugged, events: Iterable[DeviceEvent]) -> bool:
    try:
        return any(map(backend.concerns, events))
    except Exception:  # a third party's fault must not leave the others' pools unwatched
        _log(f"{type(backend)} failed on a device's event")
        return False


def _log(what: str) -> None:
    """Log the exception that is being handled."""
    import logging  # needed only here, and its import is slow

    logging.getLogger(__name__).exception(what)
