"""Calling back while a stream is ready: a timer of the event loop that fires without a pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from storaged.client.link import StreamLink
from storaged.libvirt.constants import VIR_STREAM_EVENT_READABLE, VIR_STREAM_EVENT_WRITABLE
from storaged.libvirt.eventloop import EventLoop
from storaged.libvirt.wakeup import Wakeup

#: How often a stream that takes nothing is asked again, in milliseconds: a link tells only when
#: there is something to read.
_RETRY: Final = 10
_NEVER: Final = -1


class StreamEvents:
    """The callback of one stream.

    :param events: ``VIR_STREAM_EVENT_*`` to call back for.
    :param callback: called by the loop, with those of the events that are so.
    """

    def __init__(
        self, loop: EventLoop, link: StreamLink, events: int, callback: Callable[[int], object]
    ) -> None:
        self._loop = loop
        self._link = link
        self._events = events
        self._callback = callback
        self._stopped = False
        self._wakeup = Wakeup(loop)
        self._timer = loop.add_timeout(0 if events else _NEVER, lambda *_: self._fire(), None)
        link.on_ready(lambda: self._wakeup.post(self._plan))

    def update(self, events: int) -> None:
        """Call back for other events."""
        self._events = events
        self._plan()

    def stop(self) -> None:
        """Call back no more."""
        self._stopped = True
        self._link.on_ready(None)
        self._loop.remove_timeout(self._timer)
        self._wakeup.close()

    def _ready(self) -> int:
        readable = self._events & VIR_STREAM_EVENT_READABLE and self._link.readable
        writable = self._events & VIR_STREAM_EVENT_WRITABLE and self._link.writable
        found = VIR_STREAM_EVENT_READABLE if readable else 0
        return found | VIR_STREAM_EVENT_WRITABLE if writable else found

    def _fire(self) -> None:
        ready = self._ready()
        try:
            if ready:
                self._callback(ready)
        finally:
            self._plan()

    def _plan(self) -> None:
        if self._stopped:
            return
        if self._ready():
            timeout = 0
        else:
            timeout = _RETRY if self._events & VIR_STREAM_EVENT_WRITABLE else _NEVER
        self._loop.update_timeout(self._timer, timeout)
