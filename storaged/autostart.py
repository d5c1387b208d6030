"""What is started with the host, and tried again where that failed.

A failed autostart is a state: the pool says why, and when the next try is. The delays double up to
a bound; a change of the host's mounts is a reason to try at once. It ends with a success, and as
soon as somebody starts, stops or undefines the pool, or switches its autostart off.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from storaged.errors import StorageError
from storaged.job import Job
from storaged.model import PoolRef
from storaged.pool import PoolObject
from storaged.poolstate import Phase, Retry, Services
from storaged.worker import Limits

#: Changes of mounts are a reason to try again if the last try was so long ago, in seconds: failed
#: tries change mounts themselves.
_SETTLED = 5.0
#: How long what happens at once is collected, in seconds.
_COLLECT = 0.2
_MOUNTS = "/proc/self/mountinfo"


class Autostart:
    """Starts pools and tries again; one thread while something is to be tried again.

    :param start: starts a pool.
    """

    def __init__(self, services: Services, start: Callable[[PoolRef], Job[None]]) -> None:
        self._services = services
        self._start = start
        self._lock = threading.Lock()
        #: what waits for its next try, and when the last one ended
        self._waiting: dict[PoolObject, tuple[Retry, float]] = {}
        self._watched = False
        #: an eventfd that wakes the thread
        self._nudges: int | None = None
        #: it was asked to try again now
        self._hurry = False

    def begin(self, pools: Iterable[PoolObject]) -> list[Job[None]]:
        """Start the inactive ones of *pools* that are to be started with the host."""
        wanted = [pool for pool in pools if pool.autostart and pool.phase is Phase.INACTIVE]
        begun = [self._attempt(pool, Retry("", 0)) for pool in wanted]
        return [job for job in begun if job is not None]

    def is_waiting(self) -> bool:
        """Tell whether a pool is still to be started."""
        return bool(self._waiting)

    def nudge(self) -> None:
        """Try again what waits: something has changed on this host."""
        with self._lock:
            self._hurry = True
            self._poke()

    def end(self) -> None:
        """Try nothing again."""
        with self._lock:
            self._waiting.clear()
            self._poke()

    def _poke(self) -> None:
        """Wake the thread. Call it with the lock held."""
        if self._nudges is not None:
            with suppress(BlockingIOError):
                os.eventfd_write(self._nudges, 1)

    def _attempt(self, pool: PoolObject, last: Retry) -> Job[None] | None:
        try:
            job = self._start(pool.ref)
        except StorageError as err:
            self._failed(pool, last, err)
            return None
        if last.attempts:
            pool.retry = Retry(last.why, last.attempts)
        job.on_end(partial(self._ended, pool, job, last))
        return job

    def _ended(self, pool: PoolObject, job: Job[None], last: Retry) -> None:
        if job.error is None:
            pool.retry = None
        else:
            self._failed(pool, last, job.error)

    def _failed(self, pool: PoolObject, last: Retry, error: BaseException) -> None:
        if pool.removed or not pool.autostart or pool.phase is not Phase.INACTIVE:
            pool.retry = None
            return
        why = error.message if isinstance(error, StorageError) else repr(error)
        now = time.monotonic()
        due = now + pause(self._services.limits, last.attempts)
        retry = pool.retry = Retry(why, last.attempts + 1, due)
        with self._lock:
            if self._services.closed.is_set():
                return
            self._waiting[pool] = (retry, now)
            if self._watched:
                self._poke()
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
        nudges = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with self._lock:
            self._nudges = nudges
        mounts = _open_mounts()
        try:
            poller = select.poll()
            poller.register(nudges, select.POLLIN)
            if mounts is not None:
                poller.register(mounts, select.POLLPRI)
            while (due := self._try_due()) is not None:
                self._wait(poller, nudges, due)
        finally:
            with self._lock:
                if self._nudges == nudges:
                    self._nudges = None
            os.close(nudges)
            if mounts is not None:
                os.close(mounts)

    def _try_due(self) -> float | None:
        """Try again what is due; return when the next one is, None if nothing is left."""
        while True:
            now = time.monotonic()
            with self._lock:
                self._waiting = {
                    pool: (retry, ended)
                    for pool, (retry, ended) in self._waiting.items()
                    if pool.retry is retry  # else somebody has decided otherwise
                }
                if not self._waiting:
                    self._watched = False
                    return None
                due = {
                    pool: retry
                    for pool, (retry, _) in self._waiting.items()
                    if retry.due is None or retry.due <= now
                }
                if not due:
                    return min(retry.due or now for retry, _ in self._waiting.values())
                for pool in due:
                    del self._waiting[pool]
            for pool, retry in due.items():
                self._attempt(pool, retry)

    def _wait(self, poller: select.poll, nudges: int, due: float) -> None:
        """Wait until *due*, or until something happens that may have mended what failed."""
        left = max(due - time.monotonic(), 0)
        happened = poller.poll(math.ceil(left * 1000))
        if not happened:
            return
        time.sleep(_COLLECT)
        with suppress(BlockingIOError):
            os.eventfd_read(nudges)
        now = time.monotonic()
        with self._lock:
            if not self._hurry and all(fd == nudges for fd, _ in happened):
                return  # only something new to wait for
            self._hurry = False
            for pool, (retry, ended) in list(self._waiting.items()):
                if pool.retry is retry and now - ended >= _SETTLED:
                    pool.retry = sooner = replace(retry, due=now)
                    self._waiting[pool] = (sooner, ended)


def pause(limits: Limits, failed: int) -> float:
    """Return the seconds to the next try after one that failed.

    :param failed: how many had failed before.
    """
    return min(limits.retry_after * 2.0 ** min(failed, 32), limits.retry_at_least)


def _open_mounts() -> int | None:
    """Open what tells of each change of the host's mounts."""
    try:
        return os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # without it the delays alone decide
        return None
