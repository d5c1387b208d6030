"""The events that one connection has asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from storaged.errors import Domain, InternalError, InvalidArgument
from storaged.events import Event, Events
from storaged.rpc import storage
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record
from storaged.rpc.storage import LIST_MAX

Notify = Callable[[AnyProcedure, Record], None]

#: The number of an event as clients ask for it.
LIFECYCLE: Final = 0
REFRESH: Final = 1
#: The most registrations of one connection: each costs some 300 bytes, also to who only reads.
MOST: Final = LIST_MAX // 4


@dataclass(frozen=True, slots=True)
class _Registration:
    """What is to be told: events of one kind, of one pool or (None) of all."""

    event_id: int
    uuid: UUID | None


class Registrations:
    """The registrations of one session.

    Nothing is told before `register` has returned, and nothing after `deregister` or `close` has.

    :param ids: numbers that no other registration gets.
    :param notify: called for each event, under this object's lock; it must not wait.
    """

    def __init__(self, events: Events, ids: Iterator[int], notify: Notify) -> None:
        self._events = events
        self._ids = ids
        self._notify = notify
        # Who is told at once, on the thread of the event, may register or end a registration.
        self._lock = threading.RLock()
        self._registered: dict[int, _Registration] = {}
        #: the number of each; a client may have so many that looking at all would hold up events
        self._numbers: dict[_Registration, int] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._registered)

    def register(self, event_id: int, uuid: UUID | None) -> int:
        """Ask for events and return the number of the registration.

        :param uuid: of the pool they are about, which need not exist; None is any.
        :raise InternalError: no such event, or too many registrations.
        :raise InvalidArgument: this was asked for already.
        """
        if event_id not in (LIFECYCLE, REFRESH):
            raise InternalError(f"unsupported storage pool event ID {event_id}", domain=Domain.RPC)
        wanted = _Registration(event_id, uuid)
        with self._lock:
            if self._closed:
                raise InternalError("connection not open", domain=Domain.RPC)
            if wanted in self._numbers:
                raise InvalidArgument("event callback already tracked", domain=Domain.NONE)
            if len(self._numbers) >= MOST:
                raise InternalError(
                    f"Too many event callbacks '{len(self._numbers) + 1}' for limit '{MOST}'",
                    domain=Domain.RPC,
                )
            number = next(self._ids)
            self._registered[number] = wanted
            self._numbers[wanted] = number
            if self._unsubscribe is None:
                self._unsubscribe = self._events.subscribe(self._tell)
        return number

    def deregister(self, number: int) -> None:
        """End a registration.

        :raise InternalError: this connection has none of this number.
        """
        with self._lock:
            ended = self._registered.pop(number, None)
            if ended is None:
                raise InternalError(
                    f"storage pool event callback {number} not registered", domain=Domain.RPC
                )
            del self._numbers[ended]
            if not self._registered:
                self._stop()

    def close(self) -> None:
        """End all registrations, for good. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            self._registered.clear()
            self._numbers.clear()
            self._stop()

    def _stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _tell(self, event: Event) -> None:
        kind = REFRESH if event.lifecycle is None else LIFECYCLE
        pool = storage.StoragePool(event.pool.name, event.pool.uuid.bytes)
        with self._lock:
            wanted = (_Registration(kind, event.pool.uuid), _Registration(kind, None))
            found = [number for one in wanted if (number := self._numbers.get(one)) is not None]
            for number in sorted(found):
                if number not in self._registered:
                    continue  # ended by who was told just now
                if event.lifecycle is None:
                    self._notify(storage.EVENT_REFRESH, storage.RefreshEvent(number, pool))
                else:
                    told = storage.LifecycleEvent(number, pool, int(event.lifecycle), 0)
                    self._notify(storage.EVENT_LIFECYCLE, told)
