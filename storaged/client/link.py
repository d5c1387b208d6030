"""What a connection is for those who call through it, whatever it goes over.

::

    link = open_link("storage:///system")
    reply = link.call(storage.POOL_LOOKUP_BY_NAME, storage.Name("images"))

A link may be used by many threads at once. Whatever goes wrong is a `RemoteFailure` with the error
as it stands on the wire, no matter which side found it; `remoteerror.revive` makes the class of
`storaged.errors` of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from storaged.errors import Domain, InternalError, StorageError
from storaged.flow import Hole
from storaged.formats.handle import Bytes
from storaged.rpc.program import AnyProcedure, Procedure
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import RemoteError, describe

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)

#: Called with an event's procedure and its record.
EventCallback = Callable[[AnyProcedure, Record], None]


class CloseReason:
    """Why a connection has ended: libvirt's numbers."""

    #: reading or writing failed, or the other side broke the protocol
    ERROR = 0
    #: the other side hung up
    EOF = 1
    #: the other side did not answer to signs of life any more
    KEEPALIVE = 2
    #: this side closed it
    CLIENT = 3


class RemoteFailure(Exception):
    """A call failed: on the other side, or on the way.

    :param error: the error as it stands on the wire, or would if this side had not found it.
    """

    def __init__(self, error: RemoteError) -> None:
        super().__init__(error.message)
        self.error = error

    @classmethod
    def of(cls, error: StorageError) -> RemoteFailure:
        """Return the failure that carries an error of this side."""
        return cls(describe(error))

    def anew(self) -> RemoteFailure:
        """Return the same failure for another one who meets it, with a traceback of its own."""
        return RemoteFailure(self.error)


def closed() -> RemoteFailure:
    """Return the failure of what is asked of a link that has ended."""
    return RemoteFailure.of(InternalError("client socket is closed", domain=Domain.RPC))


class PendingCall(ABC, Generic[R]):
    """A call whose reply nobody waits for yet."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reply, the end of the link included; return whether it came in time."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> R:
        """Wait for the reply and return it.

        :raise RemoteFailure: the call failed; with code 68 if *timeout* seconds passed.
        """

    @abstractmethod
    def on_done(self, callback: Callable[[], None]) -> None:
        """Have *callback* called once the reply is there, at once if it already is.

        It runs on the link's own thread, and must not raise.
        """


class StreamLink(ABC):
    """One end of a stream of data. Only one thread may send, and one receive, at a time."""

    @abstractmethod
    def send(self, data: Bytes) -> int:
        """Send data; return how many bytes were taken, which is all of them.

        :raise RemoteFailure: the stream or the link has ended.
        """

    @abstractmethod
    def try_send(self, data: Bytes) -> int | None:
        """Send what can be sent without waiting; None if that is nothing.

        :raise RemoteFailure: as for `send`.
        """

    @abstractmethod
    def send_hole(self, length: int) -> None:
        """Send a hole of *length* bytes; only a sparse stream takes it.

        :raise RemoteFailure: as for `send`.
        """

    @abstractmethod
    def receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole:
        """Wait for data and return at most *size* bytes of them; ``b""`` at the end.

        :param stop_at_hole: return a hole as what it is, whole; else as zeros.
        :raise RemoteFailure: the stream or the link has ended before the data have.
        """

    @abstractmethod
    def try_receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole | None:
        """Return what is there without waiting; None if that is nothing.

        :raise RemoteFailure: as for `receive`.
        """

    @abstractmethod
    def finish(self) -> None:
        """End the stream as complete, and wait until the other side agrees.

        :raise RemoteFailure: it does not, or the stream has ended before.
        """

    @abstractmethod
    def abort(self) -> None:
        """End the stream before its time. Does nothing if it has ended."""

    @property
    @abstractmethod
    def readable(self) -> bool:
        """Whether `receive` would return, or raise, at once."""

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether `try_send` would take something, or raise."""

    @abstractmethod
    def on_ready(self, callback: Callable[[], None] | None) -> None:
        """Have *callback* called when the stream may have become readable or has ended.

        It runs on a thread of the link's own, must not wait and must not raise. None takes it back.
        """


class Link(ABC):
    """One connection.

    :param uri: as it was given, aliases resolved.
    :param readonly: whether only calls that change nothing are allowed.
    """

    #: whether nobody else can read what goes over it
    secure = True
    #: whether it is encrypted on its way
    encrypted = False

    def __init__(self, uri: str, *, readonly: bool) -> None:
        self.uri = uri
        self.readonly = readonly

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""

    @abstractmethod
    def call(self, procedure: Procedure[A, R], args: A, *, timeout: float | None = None) -> R:
        """Call a procedure and return what it returns.

        :param timeout: seconds after which nobody waits for the reply any more; the other side may
            still do what was asked.
        :raise RemoteFailure: the call failed, the link has ended, or the time is over (code 68).
        """

    @abstractmethod
    def begin(self, procedure: Procedure[A, R], args: A) -> PendingCall[R]:
        """Call a procedure without waiting for the reply.

        :raise RemoteFailure: the link has ended.
        """

    @abstractmethod
    def open_stream(self, procedure: Procedure[A, R], args: A) -> StreamLink:
        """Call a procedure that a stream of data belongs to, and return the stream.

        :raise RemoteFailure: the call failed; there is no stream then.
        """

    @abstractmethod
    def on_event(self, callback: EventCallback) -> Callable[[], None]:
        """Have *callback* called for every event that the other side sends, in their order.

        It runs on a thread of the link's own; what it raises is logged. It may call through this
        link. An event may be told before the call that registered for it has returned.

        :returns: a function that takes the callback back.
        """

    @abstractmethod
    def on_close(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have *callback* called with a `CloseReason` once the link has ended by itself.

        :returns: a function that takes the callback back.
        """

    @abstractmethod
    def extension_level(self) -> int:
        """Return the level of storaged's own program on the other side, 0 if it has none."""

    def has_extension(self) -> bool:
        """Tell whether the other side is storaged, and so has a program of its own."""
        return self.extension_level() > 0

    @abstractmethod
    def keepalive(self, interval: int, count: int) -> None:
        """Ask for signs of life, and end the link when there are none.

        :param interval: seconds of silence before asking; 0 or less stops it.
        :param count: how many questions in a row may stay without an answer.
        :raise RemoteFailure: the other side does not take part (code 3).
        """

    @abstractmethod
    def close(self) -> None:
        """Say good-bye and let go. Calling it again does nothing."""

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
