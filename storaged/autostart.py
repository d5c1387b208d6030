"""What is started with the host, and tried again where that failed.

A failed autostart is a state: the pool says why, and when the next try is. The delays double up to
a bound. It ends with a success, and as soon as somebody starts, stops or undefines the pool, or
switches its autostart off. What is left to be started is kept in a file for each pool until then,
so that an engine takes up what the one before it did not bring to an end.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from storaged.errors import StorageError
from storaged.job import Job
from storaged.pool import PoolObject
from storaged.poolstate import Phase, Retry, Services
from storaged.starting import start
from storaged.worker import Limits

#: Why a pool was not started, as long as nothing else is known.
_INTERRUPTED: Final = "it was interrupted"


class Autostart:
    """Starts pools and tries again; one thread while something is to be tried again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        #: what waits for its next try
        self._waiting: dict[PoolObject, Retry] = {}
        self._watched = False
        self._wake = threading.Event()

    def recall(self, pools: Iterable[PoolObject]) -> None:
        """Have those of *pools* tell it that an engine before this one has not started."""
        for pool, why in self._left(pools):
            if _is_wanted(pool):
                pool.retry = Retry(why, 0, math.inf)

    def note(self, pools: Iterable[PoolObject]) -> None:
        """Keep that the inactive ones of *pools* with autostart are to be started.

        :raise SystemFailure: it cannot be kept.
        """
        for pool in pools:
            if _is_wanted(pool):
                self._services.store.note_unstarted(pool.ref.uuid, _INTERRUPTED)

    def begin(self, pools: Iterable[PoolObject]) -> list[Job[None]]:
        """Start those of *pools* that are kept as to be started."""
        begun = []
        for pool, _ in self._left(pools):
            if not _is_wanted(pool):
                pool.decide()
            elif (job := self._attempt(pool, pool.retry or Retry("", 0))) is not None:
                begun.append(job)
        return begun

    def is_waiting(self) -> bool:
        """Tell whether a pool is still to be started."""
        return bool(self._waiting)

    def end(self) -> None:
        """Try nothing again."""
        with self._lock:
            self._waiting.clear()
        self._wake.set()

    def _left(self, pools: Iterable[PoolObject]) -> list[tuple[PoolObject, str]]:
        """Return those of *pools* that are kept as to be started, and why they were not."""
        left = self._services.store.unstarted()
        if not left:
            return []
        return [(pool, left[pool.ref.uuid]) for pool in pools if pool.ref.uuid in left]

    def _attempt(self, pool: PoolObject, last: Retry) -> Job[None] | None:
        """Start a pool; return the job, None if it could not be begun."""
        if self._services.closed.is_set():
            return None
        attempt = pool.retry = Retry(last.why, last.attempts)
        try:
            job = start(pool)
        except Exception as err:  # the others are still to be started
            self._failed(pool, attempt, err)
            return None
        job.on_end(partial(self._ended, pool, job, attempt))
        return job

    def _ended(self, pool: PoolObject, job: Job[None], attempt: Retry) -> None:
        if job.error is None:
            pool.decide()
        else:
            self._failed(pool, attempt, job.error)

    def _failed(self, pool: PoolObject, attempt: Retry, error: BaseException) -> None:
        why = error.message if isinstance(error, StorageError) else repr(error)
        due = time.monotonic() + pause(self._services.limits, attempt.attempts)
        retry = Retry(why, attempt.attempts + 1, due)
        if not _is_wanted(pool):
            pool.decide()
            return
        with pool.lock:
            if pool.retry is not attempt:
                return  # somebody has decided otherwise
            pool.retry = retry
            with suppress(StorageError):  # that it is to be started is kept already
                self._services.store.note_unstarted(pool.ref.uuid, why)
        with self._lock:
            if self._services.closed.is_set():
                return
            self._waiting[pool] = retry
            self._wake.set()
            if self._watched:
                return
            self._watched = True
        self._begin_thread()

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="storaged-autostart", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is left on this host; the next failure tries again
            with self._lock:
                self._watched = False

    def _run(self) -> None:
        """Try again what is due until nothing waits."""
        while (due := self._try_due()) is not None:
            self._wake.wait(max(due - time.monotonic(), 0))
            self._wake.clear()

    def _try_due(self) -> float | None:
        """Try again what is due; return when the next one is, None if nothing is left."""
        now = time.monotonic()
        with self._lock:
            # whoever has decided otherwise has taken the retry from its pool
            waiting = {p: retry for p, retry in self._waiting.items() if p.retry is retry}
            due = {p: retry for p, retry in waiting.items() if (retry.due or 0) <= now}
            self._waiting = {p: retry for p, retry in waiting.items() if p not in due}
        for pool, retry in due.items():
            self._attempt(pool, retry)
        with self._lock:
            if self._waiting:
                return min(retry.due or 0 for retry in self._waiting.values())
            self._watched = False
            return None


def pause(limits: Limits, failed: int) -> float:
    """Return the seconds to the next try after one that failed.

    :param failed: how many had failed before.
    """
    return min(limits.retry_after * 2.0 ** min(failed, 32), limits.retry_at_least)


def _is_wanted(pool: PoolObject) -> bool:
    """Tell whether a pool is one that is to be started with the host and does not run."""
    return pool.autostart and not pool.removed and pool.phase is Phase.INACTIVE
