"""Events of pools on the other side: asked for while somebody listens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from storaged.client.enginevalues import failures
from storaged.client.link import Link, RemoteFailure
from storaged.events import Event, Events, Lifecycle
from storaged.rpc import storage
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record
from storaged.wirenames import pool_ref

#: Libvirt's numbers of the two kinds of events.
_LIFECYCLE, _REFRESH = 0, 1


class RemoteEvents:
    """Those who hear the events of one connection; registered there while there are any."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._events = Events()
        self._lock = threading.Lock()
        self._listeners = 0
        self._registered: list[int] = []
        self._quit: Callable[[], None] | None = None

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Have *subscriber* called for each event from now on; it must not wait.

        :returns: a function that ends the subscription.
        :raise StorageError: the other side tells no events.
        """
        unsubscribe = self._events.subscribe(subscriber)
        over = False

        def end() -> None:
            nonlocal over
            unsubscribe()
            with self._lock:
                if not over:
                    over = True
                    self._leave()

        with self._lock:
            self._listeners += 1
        try:
            with self._lock:
                self._register()
        except BaseException:
            end()
            raise
        return end

    def _register(self) -> None:
        if self._registered:
            return
        self._quit = self._link.on_event(self._heard)
        with failures():
            for kind in (_LIFECYCLE, _REFRESH):
                wish = storage.EventRegisterArgs(kind, None)
                found = self._link.call(storage.EVENT_REGISTER, wish)
                self._registered.append(found.callback_id)

    def _leave(self) -> None:
        """Count one listener less; without any, have no events sent."""
        self._listeners -= 1
        if self._listeners:
            return
        numbers, self._registered = self._registered, []
        for number in numbers:
            with suppress(RemoteFailure):  # the connection has ended
                self._link.call(storage.EVENT_DEREGISTER, storage.CallbackId(number))
        if self._quit is not None:
            self._quit()
            self._quit = None

    def _heard(self, procedure: AnyProcedure, record: Record) -> None:
        if isinstance(record, storage.LifecycleEvent):
            self._events.post(pool_ref(record.pool), Lifecycle(record.event))
        elif isinstance(record, storage.RefreshEvent):
            self._events.post(pool_ref(record.pool), None)
        self._events.deliver()
