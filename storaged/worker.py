"""Daemon threads that touch storage, and that can be lost.

A system call on a dead file server never returns, and no thread that made it can be stopped. So
each pool has threads of its own, a stuck one is replaced and no longer counts, and a pool with four
stuck ones refuses new work at once. The threads are daemons, which the interpreter does not join:
executors of the standard library would keep the process alive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from storaged.errors import OperationFailed, OperationInvalid
from storaged.facts import Outage
from storaged.job import Job, Pending

T = TypeVar("T")

#: How often late jobs are looked for, and for how long after the last one, in seconds.
_TICK = 0.05
_QUIET = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of an engine: threads, patience with storage, new tries. Times in seconds."""

    #: threads at work at once; stuck ones do not count
    threads: int = 64
    #: a job without a sign of life for so long is stuck
    stuck_after: float = 30.0
    #: so many stuck jobs make the pool refuse new work
    stuck: int = 4
    #: an idle thread ends after so long
    idle: float = 10.0
    #: so many threads at most are given up when storage answers again and they do not return
    lost: int = 64
    #: storage that is watched and gives no sign within this does not answer
    answers_within: float = 5.0
    #: a failed autostart is tried again after so long, then after twice that, and so on ...
    retry_after: float = 1.0
    #: ... but at least this often
    retry_at_least: float = 60.0


class Workers:
    """The threads of one pool.

    :param name: the pool's name, for the names of the threads and for messages.
    """

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self._name = name
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Job[Any], Callable[[Job[Any]], Any]]] = deque()
        #: what threads without work wait for to be released; the last one is woken first
        self._parked: list[threading.Lock] = []
        #: all threads, also those that are about to begin
        self._threads = 0
        #: those of them that have no work, or are about to fetch some
        self._idle = 0
        self._running: dict[Job[Any], float] = {}
        #: what is still at work and does not count any more
        self._lost: set[Job[Any]] = set()
        self._outage: Outage | None = None
        self._closed = False

    def stuck(self) -> tuple[Job[Any], ...]:
        """Return the jobs that have shown no sign of life for too long."""
        now = time.monotonic()
        with self._lock:
            return self._stuck(now)

    def inaccessible(self) -> bool:
        """Tell whether so many jobs are stuck that new work is refused."""
        return len(self._running) >= self._limits.stuck and len(self.stuck()) >= self._limits.stuck

    def outage(self) -> Outage | None:
        """Return since when so many jobs have been stuck that new work is refused, if they are."""
        if not self.inaccessible() or not (stuck := self.stuck()):
            return None
        silent = max(job.silent_for() for job in stuck)
        return Outage(time.time() - silent, f"{len(stuck)} operations wait for its storage")

    def refuse(self, outage: Outage | None) -> None:
        """Refuse new work because the storage does not answer; None: take it again."""
        with self._lock:
            self._outage = outage

    def give_up_stuck(self) -> None:
        """Do not count stuck jobs any more, because the storage answers again.

        Their threads end when they return. Not more than `Limits.lost` are given up at a time.
        """
        with self._lock:
            room = self._limits.lost - len(self._lost)
            for job in self._stuck(time.monotonic())[:room]:
                del self._running[job]
                self._lost.add(job)
                self._threads -= 1

    def close(self) -> None:
        """Take no work any more; what waits fails, what is at work is left alone."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, deque()
            error = self._ended()
        for job, _work in left:
            job.fail(error)

    def require_answering(self) -> None:
        """Raise if new work is refused.

        :raise OperationFailed: too many jobs are stuck, or the storage does not answer.
        """
        with self._lock:
            self._require_answering()

    def submit(self, job: Job[T], work: Callable[[Job[T]], T], *, anyway: bool = False) -> Job[T]:
        """Have *work* run on a thread; its outcome becomes the job's.

        :param anyway: although the storage does not answer (`refuse`).
        :returns: *job*, at once.
        :raise OperationFailed: too many jobs are stuck, the storage does not answer, or the host
            has no thread left; nothing was started.
        :raise OperationInvalid: the pool was stopped by force.
        """
        with self._lock:
            stuck = self._require_answering(anyway=anyway)
            missing = len(self._waiting) + 1 - self._idle
            free = self._limits.threads + len(stuck) - self._threads
            for _ in range(min(missing, free)):
                self._spawn()
            if self._parked:
                self._parked.pop().release()  # it then waits for the lock
            # Last: what the caller undoes, also after an interrupt, must not begin.
            self._waiting.append((job, work))
        return job

    def _spawn(self) -> None:
        """Start a thread for what is in the queue. Call it with the lock held."""
        thread = threading.Thread(target=self._loop, name=f"storaged-{self._name}", daemon=True)
        # It counts from now on, so that a burst does not start too many.
        self._threads += 1
        self._idle += 1
        try:
            thread.start()
        except RuntimeError as err:  # too many threads on this host
            self._threads -= 1
            self._idle -= 1
            if self._threads > len(self._running):
                return  # one of those that are free will come to it
            raise OperationFailed(f"cannot work on pool '{self._name}': {err}") from err

    def _loop(self) -> None:
        while True:
            found = self._fetch()
            if found is None:
                return
            lost = self._run(*found)
            del found  # nothing is kept alive while there is nothing to do
            if lost:
                return
            with self._lock:
                self._idle += 1

    def _fetch(self) -> tuple[Job[Any], Callable[[Job[Any]], Any]] | None:
        """Wait for work and take it; None if the thread was idle for too long, and ends."""
        patient = True
        while True:
            with self._lock:
                if self._waiting:
                    self._idle -= 1
                    found = self._waiting.popleft()
                    job = found[0]
                    self._running[job] = job.beat = time.monotonic()
                    return found
                if not patient:
                    self._idle -= 1
                    self._threads -= 1
                    return None
                wake = threading.Lock()
                wake.acquire()
                self._parked.append(wake)
            if not wake.acquire(timeout=self._limits.idle):
                patient = False
                with self._lock:
                    if wake in self._parked:
                        self._parked.remove(wake)

    def _run(self, job: Job[T], work: Callable[[Job[T]], T]) -> bool:
        """Do the work; tell whether the thread has been given up meanwhile."""
        try:
            outcome = work(job)
        except BaseException as err:
            lost = self._forget(job)
            job.fail(err)
        else:
            lost = self._forget(job)
            job.finish(outcome)
        return lost

    def _forget(self, job: Job[Any]) -> bool:
        with self._lock:
            if job in self._lost:
                self._lost.remove(job)
                return True
            self._running.pop(job, None)
            return False

    def _stuck(self, now: float) -> tuple[Job[Any], ...]:
        after = self._limits.stuck_after
        return tuple(
            job for job, began in self._running.items() if now - max(began, job.beat) > after
        )

    def _require_answering(self, *, anyway: bool = False) -> tuple[Job[Any], ...]:
        """Return the stuck jobs, if they are few enough."""
        if self._closed:
            raise self._ended()
        if self._outage is not None and not anyway:
            raise OperationFailed(f"pool '{self._name}' {self._outage}", advice=self._advice())
        stuck = self._stuck(time.monotonic()) if self._running else ()
        if len(stuck) >= self._limits.stuck:
            raise self._refusal(stuck)
        return stuck

    def _refusal(self, stuck: tuple[Job[Any], ...]) -> OperationFailed:
        now = time.monotonic()
        longest = max(now - job.beat for job in stuck)
        kinds = ", ".join(sorted({job.kind for job in stuck}))
        return OperationFailed(
            f"pool '{self._name}' does not answer: {len(stuck)} operations ({kinds}) have been "
            f"waiting for its storage, the longest for {longest:.0f} s",
            advice=self._advice(),
        )

    def _advice(self) -> str:
        return (
            "Mend the storage or its server; the pool is taken up again by itself. To let go of "
            f"it: storagectl pool stop {self._name} --force"
        )

    def _ended(self) -> OperationInvalid:
        return OperationInvalid(f"storage pool '{self._name}' is not active")


class Deadlines:
    """Ends jobs for which their callers do not want to wait any longer.

    One thread looks at them twenty times a second while there are any; so a job that ends in time,
    as nearly all do, costs no wake-up.

    :param seconds: how long each job may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        #: the first one is due first
        self._pending: deque[tuple[float, Pending[Any], Callable[[], None]]] = deque()
        self._watched = False

    def add(self, job: Pending[Any], expire: Callable[[], None]) -> None:
        """Have *expire* called if *job* has not ended in time; it must not wait."""
        entry = (time.monotonic() + self._seconds, job, expire)
        with self._lock:
            self._pending.append(entry)
            if self._watched:
                return
            self._watched = True
        try:
            threading.Thread(target=self._watch, name="storaged-deadlines", daemon=True).start()
        except RuntimeError:  # no thread is left on this host: then nobody waits at all
            with self._lock:
                self._watched = False
                left, self._pending = self._pending, deque()
            for _, _, late in left:
                late()

    def _watch(self) -> None:
        quiet = 0
        while True:
            time.sleep(_TICK)
            with self._lock:
                due = self._due(time.monotonic())
                quiet = 0 if self._pending or due else quiet + 1
                if quiet * _TICK > _QUIET:
                    self._watched = False
                    return
            for expire in due:
                expire()

    def _due(self, now: float) -> list[Callable[[], None]]:
        """Take out what has ended or is late, and return how to end the latter."""
        due = []
        while self._pending and (self._pending[0][1].ended or self._pending[0][0] <= now):
            _, job, expire = self._pending.popleft()
            if not job.ended:
                due.append(expire)
        return due
