"""Waiting for a job: a bar on a terminal, a line now and then in a pipe, Ctrl-C as a cancel."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from typing import NoReturn, Protocol, TextIO, TypeVar

from storaged.cli.outcome import ExitCode
from storaged.cli.render import clean, duration
from storaged.errors import StorageError
from storaged.job import Job, Progress
from storaged.units import format_size

T = TypeVar("T")

#: Jobs that end within this time show nothing, in seconds.
PATIENCE = 0.5
#: How long a cancelled job may take to stop, in seconds.
CANCEL_BOUND = 30.0


class Reporter(Protocol):
    """Shows how far a job is. *interval* is the pause between two calls of `show`, in seconds."""

    interval: float

    def show(self, progress: Progress) -> None:
        """Show the figures of this moment."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found."""
        ...


class Meter:
    """The rate of a job over its last *window* seconds, so that a pause soon shows."""

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def rate(self, progress: Progress) -> float:
        """Take one more reading and return bytes a second; 0.0 while nothing can be told."""
        samples = self._samples
        samples.append((progress.elapsed, progress.done))
        while len(samples) > 2 and progress.elapsed - samples[0][0] > self._window:
            samples.popleft()
        seconds = samples[-1][0] - samples[0][0]
        return max(0.0, (samples[-1][1] - samples[0][1]) / seconds) if seconds > 0 else 0.0


def title(progress: Progress) -> str:
    """Name the work, such as ``clone web2.qcow2``."""
    return clean(f"{progress.kind} {progress.volume or progress.pool}")


def describe(progress: Progress, rate: float) -> str:
    """Put the figures into words: how far, how fast, how long still."""
    parts = []
    if progress.total:
        parts.append(f"{100 * progress.done // progress.total} %")
        parts.append(f"{format_size(progress.done)} of {format_size(progress.total)}")
    else:
        parts.append(format_size(progress.done))
    if rate > 0:
        parts.append(f"{format_size(int(rate))}/s")
        if progress.total:
            parts.append(f"{duration((progress.total - progress.done) / rate)} left")
    return ", ".join(parts)


class Lines:
    """Plain lines at growing intervals: short jobs stay silent, long ones do not fill a log."""

    interval = 0.2

    def __init__(self, stream: TextIO, *, first: float = 2.0, longest: float = 60.0) -> None:
        self._stream = stream
        self._meter = Meter(window=longest)
        self._next = self._step = first
        self._longest = longest

    def show(self, progress: Progress) -> None:
        """Write a line if it is time for one."""
        rate = self._meter.rate(progress)
        if progress.elapsed < self._next:
            return
        self._step = min(self._step * 2, self._longest)
        self._next = progress.elapsed + self._step
        print(f"{title(progress)}: {describe(progress, rate)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put back."""


class JSONLines:
    """One JSON object a line and second, ``{"progress": {...}}``, for programs."""

    interval = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, progress: Progress) -> None:
        """Write one line."""
        figures = {
            "job": progress.id,
            "kind": progress.kind,
            "pool": progress.pool,
            "volume": progress.volume,
            "done": progress.done,
            "total": progress.total,
            "elapsed": round(progress.elapsed, 3),
        }
        print(json.dumps({"progress": figures}), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put back."""


def reporter(stream: TextIO, *, as_json: bool) -> Reporter:
    """Return what suits *stream*: rich is loaded for a terminal only."""
    if stream.isatty():
        from storaged.cli.bar import Bar

        return Bar(stream)
    return JSONLines(stream) if as_json else Lines(stream)


def follow(job: Job[T], *, as_json: bool = False) -> T:
    """Wait for *job*, showing its progress on standard error, and return its result.

    The first Ctrl-C cancels the job and waits until it has put everything back, a second one
    leaves at once.

    :raise Cancelled: the cancel took hold; nothing half made is left.
    :raise StorageError: whatever the work raised.
    """
    try:
        if not job.wait(PATIENCE):
            _watch(job, reporter(sys.stderr, as_json=as_json))
    except KeyboardInterrupt:
        _cancel(job)
    return job.result()


def watch(job: Job[T], *, as_json: bool = False) -> T:
    """Wait for *job* as `follow` does, but leave it alone on Ctrl-C.

    :raise StorageError: whatever the work raised.
    """
    if not job.wait(PATIENCE):
        _watch(job, reporter(sys.stderr, as_json=as_json))
    return job.result()


def _watch(job: Job[T], shown: Reporter) -> None:
    try:
        while not job.wait(shown.interval):
            shown.show(job.progress())
    finally:
        shown.close()


def _cancel(job: Job[T]) -> None:
    try:
        what = title(job.progress())
        try:
            job.cancel()
        except StorageError as err:  # the other side cannot
            print(f"{err.detail}, leaving it", file=sys.stderr, flush=True)
            _leave()
        print(f"cancelling {what}; Ctrl-C again leaves at once", file=sys.stderr, flush=True)
        if job.wait(CANCEL_BOUND):
            return
        print(f"{what} does not stop, leaving it", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    _leave()


def _leave() -> NoReturn:
    """End the process without waiting for its threads.

    What was under construction has no name yet: the kernel, or the next start of the pool, removes
    it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.INTERRUPTED)
