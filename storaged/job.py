"""Long work as a value: its progress, its cancel, its outcome.

`Job.checkpoint` is the place where work reports how far it is and where a cancel takes hold. A
job's figures are plain attributes: reading them costs nothing and never waits.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar, cast

from storaged.errors import Cancelled, Timeout

T = TypeVar("T")
U = TypeVar("U")

#: Subscribers hear at most this often, in seconds.
REPORT_INTERVAL = 0.2
#: Pure Python work lets other threads run after this long, in seconds.
YIELD_INTERVAL = 0.0003
#: Work shorter than this never yields: on a busy host that costs a time slice.
YIELD_AFTER = 0.003

_ids = itertools.count(1)


class JobState(StrEnum):
    """Where a job is in its life."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Progress:
    """A job at one moment. *done* and *total* are bytes; a *total* of 0 is "not known"."""

    id: int
    kind: str
    pool: str
    volume: str | None
    state: JobState
    done: int
    total: int
    #: seconds since the job was made
    elapsed: float


class Pending(Generic[T]):
    """A result to come: what a question is answered with that must not wait for the answer.

    It costs next to nothing until somebody waits.

    :param kind: what brings the result, a verb.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._over = False
        #: made by the first who waits
        self._waited: threading.Event | None = None
        self._result: T | None = None
        self._error: BaseException | None = None
        self._convert: Callable[[T], object] | None = None
        self._end_hooks: list[Callable[[], None]] = []

    def finish(self, result: T) -> None:
        """End it with *result*. Only the first end counts."""
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        """End it with *error*, which `result` will raise."""
        self._end(None, error)

    @property
    def ended(self) -> bool:
        """Whether there is an outcome."""
        return self._over

    @property
    def error(self) -> BaseException | None:
        """What it failed with, None before the end and after a success."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it came within *timeout* seconds."""
        if self._over:
            return True
        with self._lock:
            if self._over:
                return True
            if self._waited is None:
                self._waited = threading.Event()
            waited = self._waited
        return waited.wait(timeout)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end and return what came of it.

        :raise Timeout: if *timeout* seconds passed; the work goes on.
        :raise BaseException: whatever the work raised.
        """
        if not self._over and not self.wait(timeout):
            raise Timeout(f"{self.kind} has not ended within {timeout:g} s")
        if self._error is not None:
            raise self._error
        found = cast(T, self._result)
        return found if self._convert is None else cast(T, self._convert(found))

    def complete(self) -> T:
        """Return the result of what was begun for the caller alone."""
        return self.result()

    def giving(self, convert: Callable[[T], U]) -> Pending[U]:
        """Have `result` return what *convert* makes of the result; for who began it.

        :returns: this same object, typed as giving that.
        """
        self._convert = convert
        return cast("Pending[U]", self)

    def on_end(self, hook: Callable[[], None]) -> None:
        """Have *hook* called after the end, at once if it has come.

        What it raises is logged.
        """
        with self._lock:
            if not self._over:
                self._end_hooks.append(hook)
                return
        _tell(hook)

    def _end(self, result: T | None, error: BaseException | None) -> None:
        with self._lock:
            if self._over:
                return
            self._result, self._error = result, error
            self._settle()
            self._over = True
            waited, hooks = self._waited, self._end_hooks
            self._end_hooks = []
        if waited is not None:
            waited.set()
        for hook in hooks:
            _tell(hook)

    def _settle(self) -> None:
        """Take note of the outcome before anybody sees it. Called with the lock held."""


class Job(Pending[T]):
    """One piece of long work.

    :param kind: what it does, a verb: create, clone, wipe, upload ...
    :param pool: name of the pool it works on.
    :param volume: name of the volume, None if it works on the pool itself.
    """

    def __init__(self, kind: str, pool: str = "", volume: str | None = None) -> None:
        super().__init__(kind)
        self.id = next(_ids)
        self.pool = pool
        self.volume = volume
        self.done = 0
        self.total = 0
        #: `time.monotonic` of the last sign of life: a worker whose job is silent is stuck
        self.beat = time.monotonic()
        self.state = JobState.RUNNING
        self._started = self.beat
        self._reported = 0.0
        self._yielded = self.beat + YIELD_AFTER
        self._cancelled = False
        self._subscribers: list[Callable[[Progress], None]] = []
        self._cancel_hooks: list[Callable[[], None]] = []

    # What the work calls

    def checkpoint(self, done: int | None = None, total: int | None = None) -> None:
        """Record progress, show a sign of life, and stop here if somebody cancelled.

        :param done: bytes done so far; unchanged if None.
        :param total: bytes there are in all; unchanged if None.
        :raise Cancelled: if `cancel` was called.
        """
        now = self.beat = time.monotonic()
        if done is not None:
            self.done = done
        if total is not None:
            self.total = total
        if self._cancelled:
            raise Cancelled(f"{self.kind} was cancelled")
        if self._subscribers and now - self._reported >= REPORT_INTERVAL:
            self._reported = now
            self._report()
        if now - self._yielded >= YIELD_INTERVAL:
            self._yielded = now
            time.sleep(0)

    def on_cancel(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Have *hook* called when the job is cancelled, at once if it is already.

        What it raises is logged.

        :returns: a function that takes the hook back.
        """
        with self._lock:
            if not self._cancelled:
                self._cancel_hooks.append(hook)
                return lambda: self._discard(self._cancel_hooks, hook)
        _tell(hook)
        return lambda: None

    # What others call

    @property
    def cancelling(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the work to stop at its next checkpoint. It may still finish first."""
        with self._lock:
            if self._cancelled or self._over:
                return
            self._cancelled = True
            hooks, self._cancel_hooks = self._cancel_hooks, []
        for hook in hooks:
            _tell(hook)

    def silent_for(self) -> float:
        """Return the seconds since the last sign of life."""
        return time.monotonic() - self.beat

    def complete(self) -> T:
        """Return the result of a job that runs for the caller alone.

        Who is interrupted meanwhile (Ctrl-C) cancels it: nobody else would.
        """
        try:
            return self.result()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def giving(self, convert: Callable[[T], U]) -> Job[U]:
        """As in `Pending`: this same job, typed as giving that."""
        super().giving(convert)
        return cast("Job[U]", self)

    def progress(self) -> Progress:
        """Return the figures of this moment."""
        elapsed = time.monotonic() - self._started
        return Progress(
            self.id, self.kind, self.pool, self.volume, self.state, self.done, self.total, elapsed
        )

    def subscribe(self, subscriber: Callable[[Progress], None]) -> Callable[[], None]:
        """Have *subscriber* called at most five times a second, and once at the end.

        It runs on the thread of the work and must not wait; what it raises is logged. If the job
        has ended, it is called at once.

        :returns: a function that ends the subscription.
        """
        with self._lock:
            if not self._over:
                self._subscribers.append(subscriber)
                return lambda: self._discard(self._subscribers, subscriber)
        _tell(subscriber, self.progress())
        return lambda: None

    def __iter__(self) -> Iterator[Progress]:
        """Yield the progress five times a second until the end, the last one included."""
        while not self.wait(REPORT_INTERVAL):
            yield self.progress()
        yield self.progress()

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} {self.pool}/{self.volume} {self.state}>"

    def _report(self) -> None:
        progress = self.progress()
        for subscriber in tuple(self._subscribers):
            _tell(subscriber, progress)

    def _settle(self) -> None:
        if self._error is None:
            self.state = JobState.DONE
        elif isinstance(self._error, Cancelled):
            self.state = JobState.CANCELLED
        else:
            self.state = JobState.FAILED
        self._cancel_hooks.clear()
        if self._subscribers:
            self._end_hooks.insert(0, self._report)

    def _discard(self, hooks: list[Callable[..., None]], hook: Callable[..., None]) -> None:
        with self._lock:
            if hook in hooks:
                hooks.remove(hook)


def _tell(hook: Callable[..., None], *arguments: object) -> None:
    """Call what others have left with a job; their faults are not the work's."""
    try:
        hook(*arguments)
    except Exception:
        import logging  # needed only here, and its import is slow

        logging.getLogger(__name__).exception("a subscriber of a job failed")
