"""Events: told after the change is visible, in its order, once to each subscriber."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, TypeVar

from storaged.facts import PoolRef
from storaged.job import Job

T = TypeVar("T")


class Lifecycle(IntEnum):
    """What happened to a pool; the numbers stand on the wire."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    STOPPED = 3
    #: built
    CREATED = 4
    #: its storage was deleted
    DELETED = 5


@dataclass(frozen=True, slots=True)
class Event:
    """One event. *lifecycle* is None for a finished refresh."""

    pool: PoolRef
    lifecycle: Lifecycle | None


class Feed(Generic[T]):
    """A queue of events of one kind and those who hear them.

    `put` may be called under a lock: it never calls anybody. `deliver` is called when no lock is
    held; whoever delivers also tells what others put there meanwhile, so that the order holds.
    """

    def __init__(self) -> None:
        self._queue: deque[T] = deque()
        self._subscribers: dict[object, Callable[[T], None]] = {}
        self._lock = threading.Lock()
        self._delivering = False

    def subscribe(self, subscriber: Callable[[T], None]) -> Callable[[], None]:
        """Have *subscriber* called for each event from now on; it must not wait.

        :returns: a function that ends the subscription.
        """
        token = object()  # the same function may be subscribed twice
        with self._lock:
            self._subscribers[token] = subscriber

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers.pop(token, None)

        return unsubscribe

    def put(self, event: T) -> None:
        """Put an event into the queue."""
        self._queue.append(event)

    def deliver(self) -> None:
        """Tell everybody what is in the queue, unless another thread is about it."""
        while True:
            with self._lock:
                if self._delivering or not self._queue:
                    return
                self._delivering = True
                subscribers = tuple(self._subscribers.values())
                event = self._queue.popleft()
            try:
                for subscriber in subscribers:
                    _tell(subscriber, event)
            finally:
                with self._lock:
                    self._delivering = False


class Events(Feed[Event]):
    """The events of pools."""

    def post(self, pool: PoolRef, lifecycle: Lifecycle | None) -> None:
        """Put an event into the queue."""
        self.put(Event(pool, lifecycle))


class JobFeed:
    """Tells of each job that begins to work on a pool or a volume."""

    def __init__(self) -> None:
        self._subscribers: tuple[Callable[[Job[Any]], None], ...] = ()
        self._lock = threading.Lock()

    def subscribe(self, subscriber: Callable[[Job[Any]], None]) -> Callable[[], None]:
        """Have *subscriber* called with each job that begins from now on; it must not wait.

        :returns: a function that ends the subscription.
        """

        def told(job: Job[Any]) -> None:  # the same function may be subscribed twice
            subscriber(job)

        with self._lock:
            self._subscribers = (*self._subscribers, told)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(one for one in self._subscribers if one is not told)

        return unsubscribe

    def tell(self, job: Job[Any]) -> None:
        """Tell everybody that *job* has begun. Call it without a lock."""
        for subscriber in self._subscribers:
            _tell(subscriber, job)


def _tell(subscriber: Callable[[T], None], event: T) -> None:
    try:
        subscriber(event)
    except Exception:  # a subscriber's fault must not fail the operation that it hears of
        import logging  # needed only here, and its import is slow

        logging.getLogger(__name__).exception("a subscriber failed on %r", event)
