"""A link over a socket: calls with serial numbers, events between the replies.

Source: libvirt's protocol and the order in which its own clients begin a connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar
from weakref import ReferenceType, ref

from storaged.client.link import (
    CloseReason,
    EventCallback,
    Link,
    PendingCall,
    RemoteFailure,
    closed,
)
from storaged.client.streamlink import SocketStream
from storaged.client.transport import Transport
from storaged.client.wire import Wire
from storaged.errors import Domain, InternalError, Timeout, Unsupported
from storaged.rpc import keepalive, remote
from storaged.rpc.errors import AuthFailed, RPCError
from storaged.rpc.packet import PREFIX, Header, Kind, Packet, Piece, Status, check_size
from storaged.rpc.program import EXTENSION, REMOTE, VERSION, Access, AnyProcedure, Procedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)

#: The flag of OPEN for a connection that may only read.
_READONLY: Final = 1
#: Seconds that a good-bye may take.
_CLOSE_TIMEOUT: Final = 5.0


class SocketCall(PendingCall[R], Generic[R]):
    """A call that is on its way."""

    def __init__(self, wire: Wire, procedure: Procedure[Any, R]) -> None:
        self._wire = wire
        self._procedure = procedure
        self._outcome: Packet | RemoteFailure | None = None
        self._callbacks: list[Callable[[], None]] = []

    def is_for(self, header: Header) -> bool:
        """Tell whether a reply with our serial is ours; the number is looked at by who waits."""
        return header.program == self._procedure.program and header.version == VERSION

    def _is_done(self) -> bool:
        return self._outcome is not None

    def settle(self, outcome: Packet | RemoteFailure) -> None:
        """Take the outcome; with the wire's lock held."""
        self._outcome = outcome
        for callback in self._callbacks:
            self._wire.post(callback)
        self._callbacks.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reply; return whether it came in time."""
        return self._outcome is not None or self._wire.wait(self._is_done, timeout)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the reply and return it."""
        self.wait(timeout)
        reply = self._outcome
        if reply is None:
            raise RemoteFailure.of(Timeout(f"no reply within {timeout:g} s", domain=Domain.RPC))
        if isinstance(reply, RemoteFailure):
            raise reply.anew()
        try:
            if reply.header.procedure != self._procedure.number:
                raise RPCError(f"reply to procedure {reply.header.procedure} comes unexpected")
            if reply.header.status == Status.OK:
                return self._procedure.ret.unpack(reply.payload)
            error = RemoteError.unpack(reply.payload)
        except RPCError as err:
            raise RemoteFailure.of(err) from err
        raise RemoteFailure(error)

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have *callback* called once the reply is there."""
        with self._wire.lock:
            done = self._outcome is not None
            if not done:
                self._callbacks.append(callback)
        if done:
            callback()
        else:
            self._wire.start_thread()


class SocketLink(Link):
    """A connection to a daemon.

    :param transport: connected; the link closes it.
    :param name: the URI as the daemon is to see it.
    :param uri: the URI as it was given.
    :raise RemoteFailure: the daemon does not let us in, or does not serve *name*; the transport is
        closed then.
    """

    def __init__(
        self, transport: Transport, name: str, *, uri: str | None = None, readonly: bool = False
    ) -> None:
        super().__init__(name if uri is None else uri, readonly=readonly)
        self.secure = transport.secure
        self.encrypted = transport.encrypted
        self._transport = transport
        self._wire = Wire(transport.socket, self._take, self._lose, transport.explain)
        self._wire.full = self._is_full
        self._serial = 0
        self._calls: dict[int, SocketCall[Any]] = {}
        #: weak, so that a stream that nobody holds any more is ended
        self._streams: dict[int, ReferenceType[SocketStream]] = {}
        self._listeners: tuple[EventCallback, ...] = ()
        self._mourners: tuple[Callable[[int], None], ...] = ()
        self._extension: int | None = None
        self._timer: keepalive.Timer | None = None
        self._closing = threading.Lock()
        try:
            self._begin_connection(name)
        except BaseException:
            self._wire.end(closed(), CloseReason.CLIENT)
            transport.close()
            raise

    def _begin_connection(self, name: str) -> None:
        types = self.call(remote.AUTH_LIST, Void()).types
        if remote.AuthType.POLKIT in types:
            self.call(remote.AUTH_POLKIT, Void())
        elif types and remote.AuthType.NONE not in types:
            raise RemoteFailure.of(AuthFailed(f"unsupported authentication type {types[0]}"))
        self.call(remote.OPEN, remote.OpenArgs(name, _READONLY if self.readonly else 0))
        for feature in (
            remote.Feature.REMOTE_EVENT_CALLBACK,
            remote.Feature.REMOTE_CLOSE_CALLBACK,
        ):
            self._supports(feature)

    def _supports(self, feature: int, timeout: float | None = None) -> bool:
        args = remote.FeatureArgs(feature)
        return bool(self.call(remote.SUPPORTS_FEATURE, args, timeout=timeout).supported)

    # Calls

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        self._wire.look()
        return self._wire.ended is None

    def call(self, procedure: Procedure[A, R], args: A, *, timeout: float | None = None) -> R:
        """Call a procedure and return what it returns."""
        serial, pending = self._send_call(procedure, args)
        try:
            return pending.result(timeout)
        finally:
            self._calls.pop(serial, None)

    def begin(self, procedure: Procedure[A, R], args: A) -> SocketCall[R]:
        """Call a procedure without waiting for the reply."""
        return self._send_call(procedure, args)[1]

    def open_stream(self, procedure: Procedure[A, R], args: A) -> SocketStream:
        """Call a procedure that a stream of data belongs to, and return the stream."""
        stream = SocketStream(self._wire, procedure, self._forget_stream)
        serial, pending = self._send_call(procedure, args, stream)
        try:
            pending.result()
        except BaseException:
            self._forget_stream(serial)
            raise
        finally:
            self._calls.pop(serial, None)
        stream.opened()
        return stream

    def _send_call(
        self, procedure: Procedure[A, R], args: A, stream: SocketStream | None = None
    ) -> tuple[int, SocketCall[R]]:
        try:
            payload = args.pack()
            length = check_size(len(payload))
        except RPCError as err:
            raise RemoteFailure.of(err) from err
        pending = SocketCall(self._wire, procedure)
        with self._wire.lock:
            if self._wire.ended is not None:
                raise closed()
            serial = self._serial
            while serial in self._calls or serial in self._streams:
                serial = (serial + 1) & 0xFFFF_FFFF
            self._serial = (serial + 1) & 0xFFFF_FFFF
            self._calls[serial] = pending
            if stream is not None:
                stream.begin(serial)
                self._streams[serial] = ref(stream)
        program, number = procedure.program, procedure.number
        head = PREFIX.pack(length, program, VERSION, number, Kind.CALL, serial, Status.OK)
        self._wire.send(head + payload)
        return serial, pending

    def _forget_stream(self, serial: int) -> None:
        self._streams.pop(serial, None)

    # What comes; all of this with the wire's lock held

    def _take(self, item: Packet | Piece) -> None:
        header = item.header
        if self._timer is not None:
            self._timer.heard(time.monotonic())
        if header.kind in (Kind.STREAM, Kind.STREAM_HOLE):
            found = self._streams.get(header.serial)
            stream = None if found is None else found()
            if stream is not None and stream.is_for(header):
                stream.take(item)
        elif isinstance(item, Packet):
            if header.kind == Kind.REPLY:
                self._take_reply(item)
            elif header.kind == Kind.MESSAGE:
                self._take_message(item)

    def _take_reply(self, reply: Packet) -> None:
        pending = self._calls.get(reply.header.serial)
        if pending is not None and pending.is_for(reply.header):
            self._calls.pop(reply.header.serial, None)
            pending.settle(reply)

    def _take_message(self, message: Packet) -> None:
        header = message.header
        pong = keepalive.answer(header)
        if pong is not None:
            self._wire.send_soon(pong)
            return
        procedure = _event(header)
        if procedure is None or not self._listeners:
            return
        try:
            record = procedure.args.unpack(message.payload)
        except RPCError:
            return  # as libvirt's clients do: the connection is still in step
        self._wire.post(lambda: self._tell(procedure, record))

    def _tell(self, procedure: AnyProcedure, record: Record) -> None:
        for listener in self._listeners:
            listener(procedure, record)

    def _is_full(self) -> bool:
        return any(stream.full for stream in self._open_streams())

    def _open_streams(self) -> list[SocketStream]:
        found = [reference() for reference in list(self._streams.values())]
        return [stream for stream in found if stream is not None]

    def _lose(self, failure: RemoteFailure, reason: int) -> None:
        for pending in list(self._calls.values()):
            pending.settle(failure)
        self._calls.clear()
        for stream in self._open_streams():
            stream.lose(failure if stream.busy else closed())
        self._streams.clear()
        if reason != CloseReason.CLIENT:
            for mourner in self._mourners:
                self._wire.post(lambda mourner=mourner: mourner(reason))  # type: ignore[misc]

    # Events and the end

    def on_event(self, callback: EventCallback) -> Callable[[], None]:
        """Have *callback* called for every event that the daemon sends."""
        with self._wire.lock:
            self._listeners = (*self._listeners, callback)
        self._wire.start_thread()

        def forget() -> None:
            with self._wire.lock:
                self._listeners = tuple(each for each in self._listeners if each is not callback)

        return forget

    def on_close(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have *callback* called with a `CloseReason` once the link has ended by itself."""
        with self._wire.lock:
            self._mourners = (*self._mourners, callback)
        self._wire.start_thread()

        def forget() -> None:
            with self._wire.lock:
                self._mourners = tuple(each for each in self._mourners if each is not callback)

        return forget

    def extension_level(self) -> int:
        """Return the level of storaged's own program in the daemon, 0 if it has none."""
        if self._extension is None:
            from storaged.rpc import extension
            from storaged.version import VERSION as OURS

            try:
                told = self.call(extension.HELLO, extension.Hello(f"storaged {OURS}"))
                self._extension = told.level
            except RemoteFailure:
                if self._wire.ended is not None:
                    raise
                self._extension = 0
        return self._extension

    def keepalive(self, interval: int, count: int) -> None:
        """Ask for signs of life, and end the link when there are none."""
        if interval <= 0:
            self._timer = None
            return
        with self._wire.lock:
            self._timer = keepalive.Timer(interval, count, time.monotonic())
            self._wire.tick = self._look_at_clock
        self._wire.start_thread()
        # The reply also has our thread look at the clock, which it may not have done before.
        if not self._supports(remote.Feature.PROGRAM_KEEPALIVE, interval * (count + 1)):
            self._timer = None
            raise RemoteFailure.of(Unsupported("virConnectSetKeepAlive", domain=Domain.REMOTE))

    def _look_at_clock(self) -> float | None:
        """Do what the time asks for; return the seconds until there is more to do."""
        timer = self._timer
        if timer is None:
            return None
        now = time.monotonic()
        if self._is_full():
            timer.pause()
        else:
            timer.resume(now)
        action = timer.look(now)
        if action is keepalive.Action.PING:
            self._wire.send_soon(keepalive.PING)
        elif action is keepalive.Action.GIVE_UP:
            dead = InternalError("connection closed due to keepalive timeout", domain=Domain.RPC)
            self._wire.end(RemoteFailure.of(dead), CloseReason.KEEPALIVE)
        due = timer.next
        return None if due is None else max(due - now, 0)

    def close(self) -> None:
        """Say good-bye and let go."""
        if not self._closing.acquire(blocking=False):
            return
        self._wire.closing = True
        if self._wire.ended is None and self._wire.writable:
            with suppress(RemoteFailure):  # it hung up first, or does not answer
                self.call(remote.CLOSE, Void(), timeout=_CLOSE_TIMEOUT)
        self._wire.end(closed(), CloseReason.CLIENT)
        self._wire.join(_CLOSE_TIMEOUT)
        self._transport.close()


def _event(header: Header) -> AnyProcedure | None:
    """Return which event a message is."""
    found: AnyProcedure | None = None
    if header.version == VERSION and header.program == REMOTE:
        found = remote.PROCEDURES.get(header.procedure)
    elif header.version == VERSION and header.program == EXTENSION:
        from storaged.rpc import extension

        found = extension.PROCEDURES.get(header.procedure)
    return found if found is not None and found.access is Access.EVENT else None
