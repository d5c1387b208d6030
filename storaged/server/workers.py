"""Threads for what must not run on the event loop, and that can be lost.

They are daemons, which the interpreter does not join at its end: a system call on a dead file
server never returns, and no thread that made it can be stopped. Executors of the standard library
would keep the process alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger(__name__)

Work = Callable[[], object]

#: A thread whose work takes longer than this, in seconds, is stuck and no longer counts.
STUCK_AFTER = 30.0
#: So many stuck threads are replaced for each that may be at work.
STUCK_FACTOR = 4


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """Threads and their work at one moment, by the names of libvirt's administration."""

    min_workers: int
    max_workers: int
    workers: int
    free_workers: int
    prio_workers: int
    job_queue_depth: int
    #: threads whose work has taken too long
    stuck_workers: int


class Workers:
    """A set of threads with one queue.

    :param name: for the names of the threads.
    :param least: threads that are kept although there is no work; they are made when needed.
    :param most: threads at work at once; stuck ones do not count.
    :param priority: threads beside these that take only work marked as ending soon.
    :param idle: seconds after which a thread above *least* without work ends.
    """

    def __init__(
        self,
        name: str,
        *,
        least: int,
        most: int,
        priority: int = 0,
        idle: float = 10.0,
        stuck_after: float = STUCK_AFTER,
    ) -> None:
        self._name = name
        self._least, self._most, self._priority = least, most, priority
        self._idle_time = idle
        self._stuck_after = stuck_after
        self._lock = threading.Lock()
        self._ordinary = _Crew(threading.Condition(self._lock))
        self._quick = _Crew(threading.Condition(self._lock))
        #: in the order of their coming; what is marked as ending soon stands in both
        self._queue = _Queue()
        self._soon = _Queue()
        self._closed = False

    def submit(self, work: Work, *, priority: bool = False) -> None:
        """Have *work* called on a thread. What it raises is logged.

        :param priority: whether it ends soon.
        """
        item = _Item(work)
        with self._lock:
            if self._closed:
                return
            self._queue.put(item)
            if priority and self._priority:
                self._soon.put(item)
            self._employ()

    def relieve(self) -> None:
        """Start threads in place of stuck ones, if there is work for them."""
        with self._lock:
            self._employ_all()

    def resize(
        self, least: int | None = None, most: int | None = None, priority: int | None = None
    ) -> None:
        """Change the number of threads; those that are too many end after their work.

        :raise ValueError: *least* would be above *most*, or *most* below 1.
        """
        with self._lock:
            new_least = self._least if least is None else least
            new_most = self._most if most is None else most
            if new_most < 1 or not 0 <= new_least <= new_most:
                raise ValueError(f"{new_least} to {new_most} workers")
            self._least, self._most = new_least, new_most
            if priority is not None:
                self._priority = priority
            self._wake_all()
            self._employ_all()

    def figures(self) -> WorkerFigures:
        """Return what there is at this moment."""
        with self._lock:
            return WorkerFigures(
                self._least,
                self._most,
                self._ordinary.threads,
                self._ordinary.idle,
                self._priority,
                self._queue.depth,
                self._ordinary.stuck(self._stuck_after) + self._quick.stuck(self._stuck_after),
            )

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        with self._lock:
            return len(self._ordinary.running) + len(self._quick.running)

    @property
    def resting(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        with self._lock:
            running = self._ordinary.running or self._quick.running
            return not running and not self._queue.depth

    def close(self) -> None:
        """Take no more work; the threads end when they have done what there is. Does not wait."""
        with self._lock:
            self._closed = True
            self._wake_all()

    def _wake_all(self) -> None:
        self._ordinary.wake.notify_all()
        self._quick.wake.notify_all()

    def _employ(self) -> None:
        """See that somebody takes what was put into the queue. Call it with the lock held."""
        if self._ordinary.idle >= self._queue.depth:
            self._ordinary.wake.notify()
        elif self._surplus(self._ordinary) < 0:
            self._spawn(self._ordinary)
        elif self._soon.depth and self._quick.idle >= self._soon.depth:
            self._quick.wake.notify()
        elif self._soon.depth and self._surplus(self._quick) < 0:
            self._spawn(self._quick)

    def _employ_all(self) -> None:
        for _ in range(self._queue.depth):
            self._employ()

    def _surplus(self, crew: _Crew) -> int:
        """Return how many threads are too many; below 0, how many more there may be."""
        most = self._priority if crew is self._quick else self._most
        if crew.threads <= most - 1:
            return crew.threads - most
        stuck = crew.stuck(self._stuck_after)
        return crew.threads - min(stuck, most * STUCK_FACTOR) - most

    def _spawn(self, crew: _Crew) -> None:
        """Start a thread. It counts at once, so that a burst does not start too many."""
        thread = threading.Thread(
            target=self._loop, args=(crew,), name=f"{self._name}-worker", daemon=True
        )
        crew.threads += 1
        crew.idle += 1
        try:
            thread.start()
        except RuntimeError:  # too many threads on this host: those at work will come to it
            crew.threads -= 1
            crew.idle -= 1
            _log.exception("cannot start a worker")

    def _loop(self, crew: _Crew) -> None:
        me = threading.get_ident()
        while (work := self._next(crew, me)) is not None:
            try:
                work()
            except Exception:
                _log.exception("a worker's work failed")
            del work  # it may hold the data of a stream
            with self._lock:
                del crew.running[me]
                crew.idle += 1

    def _next(self, crew: _Crew, me: int) -> Work | None:
        """Wait for work and return it, None if the thread shall end. It is idle until then."""
        queue = self._soon if crew is self._quick else self._queue
        with self._lock:
            rested = False
            while self._surplus(crew) <= 0:
                if work := self._take(queue):
                    crew.idle -= 1
                    crew.running[me] = time.monotonic()
                    return work
                keep = crew is self._ordinary and crew.threads <= self._least
                if self._closed or (rested and not keep):
                    break
                rested = not crew.wake.wait(self._idle_time)
            crew.idle -= 1
            crew.threads -= 1
            return None

    def _take(self, queue: _Queue) -> Work | None:
        item = queue.take()
        if item is None:
            return None
        for other in (self._queue, self._soon):
            if other is not queue and item.queues > 1:
                other.depth -= 1
        work, item.work = item.work, None
        return work


class _Item:
    """A piece of work, until somebody has taken it."""

    __slots__ = ("queues", "work")

    def __init__(self, work: Work) -> None:
        self.work: Work | None = work
        #: in how many queues it stands
        self.queues = 0


class _Queue:
    """Pieces of work; those that were taken out of another queue count no more."""

    __slots__ = ("_items", "depth")

    def __init__(self) -> None:
        self._items: deque[_Item] = deque()
        self.depth = 0

    def put(self, item: _Item) -> None:
        item.queues += 1
        self._items.append(item)
        self.depth += 1

    def take(self) -> _Item | None:
        while self._items:
            item = self._items.popleft()
            if item.work is not None:
                self.depth -= 1
                return item
        return None


class _Crew:
    """The threads of one kind."""

    __slots__ = ("idle", "running", "threads", "wake")

    def __init__(self, wake: threading.Condition) -> None:
        self.wake = wake
        #: all threads, also stuck ones
        self.threads = 0
        #: those that wait for work, or are about to
        self.idle = 0
        #: the others: since when each is at work
        self.running: dict[int, float] = {}

    def stuck(self, after: float) -> int:
        """Return how many threads have been at the same work for longer than *after* seconds."""
        before = time.monotonic() - after
        return sum(began < before for began in self.running.values())
