"""Event loops: what a connection needs of one, libvirt's default one, and one of the user's own."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from storaged.libvirt.constants import (
    VIR_EVENT_HANDLE_ERROR,
    VIR_EVENT_HANDLE_HANGUP,
    VIR_EVENT_HANDLE_READABLE,
    VIR_EVENT_HANDLE_WRITABLE,
)

HandleCallback = Callable[[int, int, int, Any], object]
TimeoutCallback = Callable[[int, Any], object]
#: A callback with the value that it is given.
Bound = tuple[Callable[..., object], Any]

_POLLS: Final = (
    (VIR_EVENT_HANDLE_READABLE, select.POLLIN),
    (VIR_EVENT_HANDLE_WRITABLE, select.POLLOUT),
    (VIR_EVENT_HANDLE_ERROR, select.POLLERR | select.POLLNVAL),
    (VIR_EVENT_HANDLE_HANGUP, select.POLLHUP),
)


class EventLoop(ABC):
    """Watches files and clocks, and calls back."""

    @abstractmethod
    def add_handle(self, fd: int, events: int, callback: HandleCallback, opaque: Any) -> int:
        """Watch a file for ``VIR_EVENT_HANDLE_*``; return the number of the watch, or -1."""

    @abstractmethod
    def update_handle(self, watch: int, events: int) -> None:
        """Watch for other events; an unknown number is ignored."""

    @abstractmethod
    def remove_handle(self, watch: int) -> int:
        """Stop watching; return 0, or -1 for an unknown number."""

    @abstractmethod
    def add_timeout(self, timeout: int, callback: TimeoutCallback, opaque: Any) -> int:
        """Call back every *timeout* milliseconds, -1 for never; return the timer's number."""

    @abstractmethod
    def update_timeout(self, timer: int, timeout: int) -> None:
        """Change the time; an unknown number is ignored."""

    @abstractmethod
    def remove_timeout(self, timer: int) -> int:
        """Stop calling; return 0, or -1 for an unknown number."""


class _Watch:
    __slots__ = ("events", "fd", "number", "target")

    def __init__(self, number: int, fd: int, events: int, target: Bound) -> None:
        self.number, self.fd, self.events, self.target = number, fd, events, target


class _Timer:
    __slots__ = ("due", "every", "number", "target")

    def __init__(self, number: int, every: int, target: Bound) -> None:
        self.number, self.target = number, target
        self.set(every)

    def set(self, every: int) -> None:
        self.every = every
        self.due = time.monotonic() + every / 1000


class DefaultLoop(EventLoop):
    """Libvirt's own loop: one turn a call of `run`, on whatever thread calls it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watches: dict[int, _Watch] = {}
        self._timers: dict[int, _Timer] = {}
        self._next_watch = self._next_timer = 1
        self._running: int | None = None
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)

    def add_handle(self, fd: int, events: int, callback: HandleCallback, opaque: Any) -> int:
        """Watch a file."""
        with self._lock:
            number, self._next_watch = self._next_watch, self._next_watch + 1
            self._watches[number] = _Watch(number, fd, events, (callback, opaque))
        self._interrupt()
        return number

    def update_handle(self, watch: int, events: int) -> None:
        """Watch for other events."""
        with self._lock:
            if watch in self._watches:
                self._watches[watch].events = events
        self._interrupt()

    def remove_handle(self, watch: int) -> int:
        """Stop watching."""
        with self._lock:
            found = self._watches.pop(watch, None)
        self._interrupt()
        return -1 if found is None else 0

    def add_timeout(self, timeout: int, callback: TimeoutCallback, opaque: Any) -> int:
        """Call back every *timeout* milliseconds."""
        with self._lock:
            number, self._next_timer = self._next_timer, self._next_timer + 1
            self._timers[number] = _Timer(number, timeout, (callback, opaque))
        self._interrupt()
        return number

    def update_timeout(self, timer: int, timeout: int) -> None:
        """Change the time."""
        with self._lock:
            if timer in self._timers:
                self._timers[timer].set(timeout)
        self._interrupt()

    def remove_timeout(self, timer: int) -> int:
        """Stop calling."""
        with self._lock:
            found = self._timers.pop(timer, None)
        self._interrupt()
        return -1 if found is None else 0

    def run(self) -> int:
        """Wait for the next event, call back for all that have happened, and return 0."""
        with self._lock:
            self._running = threading.get_ident()
            watches = [each for each in self._watches.values() if each.events and each.fd >= 0]
            wait = self._wait()
        ready = _poll([(self._awake, VIR_EVENT_HANDLE_READABLE)], watches, wait)
        with self._lock:
            self._running = None
        self._drain()
        self._call_timers()
        self._call_watches(watches, ready)
        return 0

    def _wait(self) -> int | None:
        """Return the milliseconds until the next timer is due, None if there is none."""
        due = [timer.due for timer in self._timers.values() if timer.every >= 0]
        if not due:
            return None
        return max(0, -int((time.monotonic() - min(due)) * 1000 // 1))

    def _call_timers(self) -> None:
        now = time.monotonic()
        with self._lock:
            timers = [each for each in self._timers.values() if each.every >= 0 and each.due <= now]
        for timer in timers:
            if self._timers.get(timer.number) is timer:
                timer.set(timer.every)
                callback, opaque = timer.target
                _guarded(callback, timer.number, opaque)

    def _call_watches(self, watches: list[_Watch], ready: dict[int, int]) -> None:
        for watch in watches:
            events = ready.get(watch.fd, 0)
            events &= watch.events | VIR_EVENT_HANDLE_ERROR | VIR_EVENT_HANDLE_HANGUP
            if events and self._watches.get(watch.number) is watch:
                callback, opaque = watch.target
                _guarded(callback, watch.number, watch.fd, events, opaque)

    def _interrupt(self) -> None:
        """Have a turn that waits on another thread begin anew with what has changed."""
        if self._running is not None and self._running != threading.get_ident():
            try:
                os.write(self._wake, b"x")
            except BlockingIOError:
                return  # it is awake already

    def _drain(self) -> None:
        try:
            os.read(self._awake, 4096)
        except BlockingIOError:
            return


class CustomLoop(EventLoop):
    """A loop of the user's: six functions, called with `invoke_handle` and `invoke_timeout`."""

    def __init__(
        self,
        add_handle: Callable[..., int],
        update_handle: Callable[..., object],
        remove_handle: Callable[..., object],
        add_timeout: Callable[..., int],
        update_timeout: Callable[..., object],
        remove_timeout: Callable[..., object],
    ) -> None:
        self._add_handle = add_handle
        self._update_handle = update_handle
        self._remove_handle = remove_handle
        self._add_timeout = add_timeout
        self._update_timeout = update_timeout
        self._remove_timeout = remove_timeout

    def add_handle(self, fd: int, events: int, callback: HandleCallback, opaque: Any) -> int:
        """Watch a file."""
        return self._add_handle(fd, events, invoke_handle, (callback, opaque))

    def update_handle(self, watch: int, events: int) -> None:
        """Watch for other events."""
        self._update_handle(watch, events)

    def remove_handle(self, watch: int) -> int:
        """Stop watching."""
        return -1 if self._remove_handle(watch) == -1 else 0

    def add_timeout(self, timeout: int, callback: TimeoutCallback, opaque: Any) -> int:
        """Call back every *timeout* milliseconds."""
        return self._add_timeout(timeout, invoke_timeout, (callback, opaque))

    def update_timeout(self, timer: int, timeout: int) -> None:
        """Change the time."""
        self._update_timeout(timer, timeout)

    def remove_timeout(self, timer: int) -> int:
        """Stop calling."""
        return -1 if self._remove_timeout(timer) == -1 else 0


def invoke_handle(watch: int, fd: int, event: int, opaque: Any, compat: Any = None) -> None:
    """Do what a file is watched for; a loop of the user's calls this."""
    callback, value = (opaque, compat) if callable(opaque) else opaque[:2]
    _guarded(callback, watch, fd, event, value)


def invoke_timeout(timer: int, opaque: Any, compat: Any = None) -> None:
    """Do what a timer is for; a loop of the user's calls this."""
    callback, value = (opaque, compat) if callable(opaque) else opaque[:2]
    _guarded(callback, timer, value)


def _poll(own: list[tuple[int, int]], watches: list[_Watch], wait: int | None) -> dict[int, int]:
    """Return what happened to which file."""
    wanted: dict[int, int] = {}
    for fd, events in [*own, *((watch.fd, watch.events) for watch in watches)]:
        wanted[fd] = wanted.get(fd, 0) | events
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, sum(bits for event, bits in _POLLS[:2] if events & event))
    return {
        fd: sum(event for event, bits in _POLLS if found & bits) for fd, found in poll.poll(wait)
    }


def _guarded(callback: Callable[..., object], *args: object) -> None:
    """Call back; what the callback raises is shown, and the loop goes on."""
    try:
        callback(*args)
    except Exception:
        sys.excepthook(*sys.exc_info())
