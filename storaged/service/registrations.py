"""The events that one connection has asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

from storaged.errors import Domain, InternalError, InvalidArgument
from storaged.events import Event
from storaged.rpc import secret, storage
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record
from storaged.rpc.storage import LIST_MAX
from storaged.secrets.values import SecretEvent
from storaged.secrets.wirenames import LIFECYCLE as SECRET_LIFECYCLE
from storaged.secrets.wirenames import secret_record

E = TypeVar("E")

Notify = Callable[[AnyProcedure, Record], None]

#: The numbers of the events of pools as clients ask for them; those of secrets are the same two.
LIFECYCLE: Final = 0
REFRESH: Final = 1
VALUE_CHANGED: Final = 1
#: The most registrations of one connection: each costs some 300 bytes, also to who only reads.
MOST: Final = LIST_MAX // 4


@dataclass(frozen=True, slots=True)
class _Registration:
    """What is to be told: events of one kind, of one pool or secret or (None) of all."""

    event_id: int
    uuid: UUID | None


@dataclass(frozen=True, slots=True)
class Told:
    """An event as clients are told it.

    :param uuid: what it is about.
    :param record: makes what is sent, of the number of a registration.
    """

    event_id: int
    uuid: UUID
    procedure: AnyProcedure
    record: Callable[[int], Record]


@dataclass(frozen=True, slots=True)
class Topic(Generic[E]):
    """What registrations are about.

    :param event: libvirt's name of its events.
    :param callback: the name where a registration ends, which is another one where libvirt errs.
    """

    event: str
    callback: str
    tell: Callable[[E], Told]


def _told_of_pool(event: Event) -> Told:
    pool = storage.StoragePool(event.pool.name, event.pool.uuid.bytes)
    if event.lifecycle is None:
        return Told(
            REFRESH,
            event.pool.uuid,
            storage.EVENT_REFRESH,
            lambda number: storage.RefreshEvent(number, pool),
        )
    lifecycle = int(event.lifecycle)
    return Told(
        LIFECYCLE,
        event.pool.uuid,
        storage.EVENT_LIFECYCLE,
        lambda number: storage.LifecycleEvent(number, pool, lifecycle, 0),
    )


def _told_of_secret(event: SecretEvent) -> Told:
    named = secret_record(event.secret)
    lifecycle = SECRET_LIFECYCLE.get(event.change)
    if lifecycle is None:
        return Told(
            VALUE_CHANGED,
            event.secret.uuid,
            secret.EVENT_VALUE_CHANGED,
            lambda number: secret.ValueChangedEvent(number, named),
        )
    return Told(
        LIFECYCLE,
        event.secret.uuid,
        secret.EVENT_LIFECYCLE,
        lambda number: secret.LifecycleEvent(number, named, lifecycle, 0),
    )


POOLS: Final = Topic("storage pool", "storage pool", _told_of_pool)
SECRETS: Final = Topic("secret", "node device", _told_of_secret)


class Registrations(Generic[E]):
    """The registrations of one session for the events of one topic.

    Nothing is told before `register` has returned, and nothing after `deregister` or `close` has.

    :param subscribe: begins to tell events, and returns what ends that.
    :param ids: numbers that no other registration gets.
    :param notify: called for each event, under this object's lock; it must not wait.
    """

    def __init__(
        self,
        topic: Topic[E],
        subscribe: Callable[[Callable[[E], None]], Callable[[], None]],
        ids: Iterator[int],
        notify: Notify,
    ) -> None:
        self._topic = topic
        self._subscribe = subscribe
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

        :param uuid: of what they are about, which need not exist; None is any.
        :raise InternalError: no such event, or too many registrations.
        :raise InvalidArgument: this was asked for already.
        """
        if event_id not in (LIFECYCLE, REFRESH):
            text = f"unsupported {self._topic.event} event ID {event_id}"
            raise InternalError(text, domain=Domain.RPC)
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
                self._unsubscribe = self._subscribe(self._tell)
        return number

    def deregister(self, number: int) -> None:
        """End a registration.

        :raise InternalError: this connection has none of this number.
        """
        with self._lock:
            ended = self._registered.pop(number, None)
            if ended is None:
                text = f"{self._topic.callback} event callback {number} not registered"
                raise InternalError(text, domain=Domain.RPC)
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

    def _tell(self, event: E) -> None:
        told = self._topic.tell(event)
        with self._lock:
            wanted = (_Registration(told.event_id, told.uuid), _Registration(told.event_id, None))
            found = [number for one in wanted if (number := self._numbers.get(one)) is not None]
            for number in sorted(found):
                if number in self._registered:  # not ended by who was told just now
                    self._notify(told.procedure, told.record(number))
