"""Events on the other side, of pools and of secrets: asked for while somebody listens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from storaged.client.enginevalues import failures
from storaged.client.link import Link, RemoteFailure
from storaged.events import Event, Feed, Lifecycle
from storaged.rpc import secret, storage
from storaged.rpc.program import AnyProcedure, Procedure
from storaged.rpc.record import Record, Void
from storaged.secrets.values import SecretChange, SecretEvent
from storaged.secrets.wirenames import LIFECYCLE, secret_named
from storaged.wirenames import pool_ref

E = TypeVar("E")

#: Libvirt's numbers of the two kinds of events that there are of pools, and of secrets.
_KINDS = (0, 1)


class RemoteFeed(Generic[E]):
    """Those who hear the events of one connection; registered there while there are any.

    :param register: the call that begins them, and *deregister* the one that ends them.
    :param read: makes an event of what came, or None of what is not of this feed.
    """

    def __init__(
        self,
        link: Link,
        register: Procedure[Any, storage.CallbackId],
        deregister: Procedure[storage.CallbackId, Void],
        read: Callable[[Record], E | None],
    ) -> None:
        self._link = link
        self._begin, self._end, self._read = register, deregister, read
        self._events: Feed[E] = Feed()
        self._lock = threading.Lock()
        self._listeners = 0
        self._registered: list[int] = []
        self._quit: Callable[[], None] | None = None

    def subscribe(self, subscriber: Callable[[E], None]) -> Callable[[], None]:
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
            for kind in _KINDS:
                found = self._link.call(self._begin, self._begin.args(kind, None))
                self._registered.append(found.callback_id)

    def _leave(self) -> None:
        """Count one listener less; without any, have no events sent."""
        self._listeners -= 1
        if self._listeners:
            return
        numbers, self._registered = self._registered, []
        for number in numbers:
            with suppress(RemoteFailure):  # the connection has ended
                self._link.call(self._end, storage.CallbackId(number))
        if self._quit is not None:
            self._quit()
            self._quit = None

    def _heard(self, procedure: AnyProcedure, record: Record) -> None:
        event = self._read(record)
        if event is not None:
            self._events.put(event)
            self._events.deliver()


class RemoteEvents(RemoteFeed[Event]):
    """The events of pools."""

    def __init__(self, link: Link) -> None:
        super().__init__(link, storage.EVENT_REGISTER, storage.EVENT_DEREGISTER, _of_pool)


class RemoteSecretEvents(RemoteFeed[SecretEvent]):
    """The events of secrets: each tells which one it is and what it is for, and no more of it."""

    def __init__(self, link: Link) -> None:
        super().__init__(link, secret.EVENT_REGISTER, secret.EVENT_DEREGISTER, _of_secret)


def _of_pool(record: Record) -> Event | None:
    if isinstance(record, storage.LifecycleEvent):
        return Event(pool_ref(record.pool), Lifecycle(record.event))
    if isinstance(record, storage.RefreshEvent):
        return Event(pool_ref(record.pool), None)
    return None


def _of_secret(record: Record) -> SecretEvent | None:
    if isinstance(record, secret.ValueChangedEvent):
        return SecretEvent(secret_named(record.secret), SecretChange.VALUE_CHANGED)
    if isinstance(record, secret.LifecycleEvent):
        for change, number in LIFECYCLE.items():
            if number == record.event:
                return SecretEvent(secret_named(record.secret), change)
    return None
