"""The watch over storage that can go away under an active pool: NFS, iSCSI, Ceph and the like.

A pool whose storage does not answer shows itself inaccessible, stays active and refuses work that
would hang; its last volumes and figures are kept. When the storage answers again, the pool is
scanned, and a refresh event tells so.

Storage that other hosts change as well says so (`Shared`): the pool is scanned at once, and a
refresh event tells if that has found something else than was known.
"""

from __future__ import annotations

import errno
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from storaged.backend import Shared, Watched
from storaged.errors import OperationFailed, StorageError, SystemFailure
from storaged.facts import Outage
from storaged.hotplug import rescan
from storaged.job import Job
from storaged.poolstate import Services
from storaged.table import PoolTable
from storaged.volumes import Volumes
from storaged.worker import Limits, Workers

_log = logging.getLogger(__name__)

#: What a look fails with because this process, or this host, has come to a limit.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
#: No pool is looked at less often, in seconds: with the time that it has to answer, this is how
#: long an outage can go unnoticed.
SELDOM = 4.0
#: How often pools are looked for while none is watched, in seconds.
_IDLE = 5.0
#: How long answers are collected before they are judged, in seconds.
_COLLECT = 0.05
#: Between two scans because of what others have changed there is so much time at least, in seconds.
_APART = 0.25


@dataclass(slots=True)
class _Look:
    """The looks at one pool between its start and its stop. Times by `time.monotonic`.

    :param due: when the next one is.
    :param job: the one under way; it may hang for ever, and then there is no other.
    :param began: when it did, None while it waits for a thread.
    :param late: it has been told that the storage does not answer.
    :param scan_due: the pool is to be scanned after an outage.
    :param told: others may have changed volumes since the last scan began; any thread sets it.
    :param scan: the one under way, because of either; the next is not before *scan_after*.
    """

    epoch: int
    due: float
    job: Job[None] | None = None
    began: float | None = None
    late: bool = False
    scan_due: bool = False
    told: bool = False
    scan_after: float = 0.0
    scan: Job[None] | None = None


class Watch:
    """One thread that watches all pools, and one for each look that hangs.

    :param table: the pools; whatever is active and `Watched` is watched.
    """

    def __init__(self, table: PoolTable, services: Services) -> None:
        self._table = table
        self._services = services
        self._patience = services.limits.answers_within
        limits = Limits(threads=4096, stuck_after=self._patience, stuck=sys.maxsize)
        self._workers = Workers("watched", limits)
        self._looks: dict[Volumes, _Look] = {}
        self._wake = threading.Event()
        self._unsubscribe: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Watch from now on, until the engine is closed."""
        self._unsubscribe = self._services.events.subscribe(lambda _event: self._wake.set())
        threading.Thread(target=self._run, name="storaged-watch", daemon=True).start()

    def end(self) -> None:
        """Watch no more; nobody is waited for."""
        self._unsubscribe()
        self._wake.set()

    def _run(self) -> None:
        while not self._services.closed.is_set():
            self._wake.clear()
            due = self._round(time.monotonic())
            if self._wake.wait(max(due - time.monotonic(), 0)):
                time.sleep(_COLLECT)

    def _round(self, now: float) -> float:
        """Look after all pools; return when there is something to do next."""
        soonest = now + _IDLE
        looks: dict[Volumes, _Look] = {}
        for volumes in self._table.volumes():
            pool = volumes.pool
            epoch = pool.epoch  # before its backend, which may be that of the next one then
            backend = pool.watched
            if backend is None or not pool.active:
                continue
            look = self._looks.get(volumes)
            known = look is not None and look.epoch == epoch
            if look is None or not known:
                look = _Look(epoch, now)
            looks[volumes] = look
            try:
                if not known and isinstance(backend, Shared):
                    self._listen(backend, look)
                due = self._look_after(volumes, backend, look, now)
                due = min(due, self._scan(volumes, backend, look))
            except Exception:  # a third party's fault must not leave the others' pools unwatched
                _log.exception("the watch over pool '%s' failed", pool.name)
                due = now + SELDOM
            soonest = min(soonest, due)
        self._looks = looks
        return soonest

    def _look_after(self, volumes: Volumes, backend: Watched, look: _Look, now: float) -> float:
        """Begin, judge or give up the look at a pool; return when the next step is due."""
        if look.job is not None and look.job.ended:
            self._judge(volumes, look, look.job.error)
            look.job, look.late = None, False
            look.due = now + min(backend.watch_every, SELDOM)
        if volumes.pool.outage is not None:
            self._release(volumes)
        if look.job is None:
            if now < look.due:
                return look.due
            self._begin(backend, look)
            return now + self._patience
        if look.began is None or look.late:
            return now + self._patience
        if now < look.began + self._patience:
            return look.began + self._patience
        look.late = True
        silent = Outage(time.time() - (now - look.began), f"no answer for {self._patience:g} s")
        volumes.pool.lose(silent, look.epoch)
        return now + self._patience

    def _begin(self, backend: Watched, look: _Look) -> None:
        job: Job[None] = Job("watch")
        look.began = None

        def work(_job: Job[None]) -> None:
            look.began = time.monotonic()
            backend.watch()

        try:
            self._workers.submit(job, work)
        except OperationFailed:  # no thread is left on this host: that says nothing of the storage
            look.due = time.monotonic() + SELDOM
            return
        look.job = job
        job.on_end(self._wake.set)

    def _judge(self, volumes: Volumes, look: _Look, error: BaseException | None) -> None:
        pool = volumes.pool
        if isinstance(error, SystemFailure) and error.errno in _EXHAUSTED:
            return  # that says nothing of the storage
        if error is not None:
            why = error.message if isinstance(error, StorageError) else repr(error)
            pool.lose(Outage(time.time(), why), look.epoch)
            return
        if pool.outage is None and not pool.workers.inaccessible():
            return
        with pool.lock:
            if pool.epoch != look.epoch:
                return
            pool.regain()
        volumes.scans.renew()
        look.scan, look.scan_due = None, True

    def _listen(self, backend: Shared, look: _Look) -> None:
        def changed() -> None:
            look.told = True
            self._wake.set()

        try:
            backend.listen(changed)
        except Exception:  # a third party's fault: the storage can be watched all the same
            _log.exception("changes by others will not be heard of")

    def _scan(self, volumes: Volumes, backend: Watched, look: _Look) -> float:
        """See to it that a pool is scanned whose storage is back, or was changed by others.

        :returns: when to begin with that; infinite if there is nothing to do before something ends.
        """
        now = time.monotonic()
        seldom = now + min(backend.watch_every, SELDOM)
        if look.scan is not None and look.scan.ended:
            if look.scan.error is not None:
                look.scan_due |= look.scan.kind == "refresh"
                look.told = True
                look.scan_after = seldom
            look.scan = None
        due = look.scan_due or look.told
        if not due or look.scan is not None or volumes.pool.outage is not None:
            return math.inf
        if now < look.scan_after:
            return look.scan_after
        look.scan_after = seldom  # unless it can be begun
        loud, look.told = look.scan_due, False
        try:
            scan = volumes.scans.request() if loud else rescan(volumes, self._services.events)
        except StorageError:
            look.told = True
            return look.scan_after
        look.scan, look.scan_due, look.scan_after = scan, False, now + _APART
        scan.on_end(self._wake.set)
        return math.inf

    def _release(self, volumes: Volumes) -> None:
        """End jobs that have been stuck for too long, so that nobody waits for them any more.

        The work itself cannot be stopped: its thread and its leases stay until it returns.
        """
        pool = volumes.pool
        for job in pool.workers.stuck():
            if job.ended:
                continue
            try:
                pool.workers.require_answering()
            except OperationFailed as err:
                job.fail(err)
