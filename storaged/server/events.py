"""Events on their way to one client: in their order, and bounded while the client does not read."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Kind, pack
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record

_log = logging.getLogger(__name__)

#: The serial of all events. Libvirt's daemons send 1, although its protocol says 0.
SERIAL = 1


class EventQueue:
    """Takes events from any thread; the connection takes them out on the loop.

    :param wake: called from any thread when there is something to take out; must not wait.
    :param most: events that may wait.
    :param size: bytes that may wait.
    """

    def __init__(self, wake: Callable[[], None], *, most: int, size: int) -> None:
        self._wake = wake
        self._most = most
        self._size_most = size
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._woken = False
        self._closed = False

    def notify(self, procedure: AnyProcedure, record: Record) -> None:
        """Queue an event. Never waits and never raises."""
        try:
            packet = pack(
                procedure.program, procedure.number, Kind.MESSAGE, SERIAL, payload=record.pack()
            )
        except RPCError:
            _log.exception("an event cannot be sent: %r", procedure)
            return
        with self._lock:
            if self._closed:
                return
            self._queue.append(packet)
            self._size += len(packet)
            if self._woken:
                return
            self._woken = True
        self._wake()

    def take(self) -> bytes | None:
        """Return the next packet, None if none waits."""
        with self._lock:
            self._woken = False
            if not self._queue:
                return None
            packet = self._queue.popleft()
            self._size -= len(packet)
            return packet

    @property
    def overflowing(self) -> bool:
        """Whether more waits than may. Asking has the next event wake again."""
        with self._lock:
            self._woken = False
            return len(self._queue) > self._most or self._size > self._size_most

    def close(self) -> None:
        """Drop what waits and what comes."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._size = 0
