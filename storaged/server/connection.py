"""One client: its bytes in and out, its time limits, and what it may cost."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from storaged.rpc import keepalive
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import PACKET_MAX, Kind, Packet, Piece, Splitter
from storaged.rpc.remote import AuthType
from storaged.server.calls import Calls, Handler
from storaged.server.deadline import MessageDeadline
from storaged.server.events import EventQueue
from storaged.server.gate import Gate
from storaged.server.outlet import Outlet
from storaged.server.streams import Streams
from storaged.service import Identity

if TYPE_CHECKING:
    from storaged.server.server import Role, Server

_log = logging.getLogger(__name__)

#: When the client is gone, its uploads get so long to write what has come, in seconds.
_LAST_WRITES: Final = 1.0
#: What the kernel keeps for a client that downloads, in bytes: less is copied once more.
_SEND_BUFFER: Final = 4 << 20


class _Held(Enum):
    """Why the client is not read."""

    CALLS = auto()
    STREAMS = auto()


class Connection(asyncio.BufferedProtocol):
    """One client. All is called on the loop if nothing else is said.

    :param number: names the client to the administration.
    :param connected: the socket; it is the transport's, but for what that has no call for.
    :param auth: how the client has to prove who it is.
    """

    def __init__(
        self,
        server: Server,
        number: int,
        connected: socket.socket,
        identity: Identity,
        role: Role,
        auth: AuthType,
    ) -> None:
        self.server = server
        self.number = number
        self.identity = identity
        self.role = role
        self.readonly = role.readonly
        #: seconds since the epoch
        self.since = int(time.time())
        self.loop = server.loop
        self.bounds = server.bounds
        self.movers = server.movers
        self.buffers = server.buffers
        self.gate = Gate(auth, identity)
        self.lost = False
        self._socket = connected
        self._outlet: Outlet | None = None
        self._transport: asyncio.Transport | None = None
        limit = PACKET_MAX if self.gate.passed else self.bounds.anonymous_message
        self._splitter = Splitter(limit)
        self._deadline = MessageDeadline(self._splitter, self.bounds)
        self.events = EventQueue(self._wake, most=self.bounds.events, size=self.bounds.event_bytes)
        self._handler: Handler = server.handler(self)
        self.calls = Calls(self, self._handler)
        self.streams = Streams(self)
        self._buffer: memoryview | None = None
        self._full = False
        self._held: set[_Held] = set()
        self._began = self.loop.time()
        #: since when the client is not read
        self._held_since = 0.0
        self._closing_since: float | None = None
        self._kept = 0
        self._timer: keepalive.Timer | None = None
        self._look: asyncio.TimerHandle | None = None
        self._session_ended = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- of a stream socket
        self._transport = transport
        self._outlet = Outlet(transport, self._socket, self.soon)
        transport.set_write_buffer_limits(self.bounds.unsent, self.bounds.unsent // 4)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes are to be put."""
        if not self.streams.uploads:
            self._drop_buffer()
            return self.server.buffer
        if self._buffer is None:
            self._buffer = self.buffers.take()
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came: data of uploads are written from where they were received."""
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            self._received(bytes(self.server.buffer[:nbytes]))
        else:
            self._received(buffer[:nbytes])
            self.buffers.release(buffer)

    def _received(self, data: bytes | memoryview) -> None:
        if self._timer is not None:
            self._timer.heard(self.loop.time())
        self.server.counts.received += len(data)
        self.calls.begin_turn()
        try:
            found = self._splitter.feed(data)
        except RPCError as err:
            self.hang_up(f"it broke the protocol: {err}")
            return
        for item in found:
            self._take(item)
        self._deadline.settle(self.loop.time(), whole=bool(found))
        self._settle_kept()

    def eof_received(self) -> None:
        """End: the client sends nothing more."""
        self._closing_since = self.loop.time()
        self.calls.close()

    def pause_writing(self) -> None:
        """Make nothing more: the client does not read."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on with what waited for the client to read."""
        self._full = False
        self.send_events()
        self.calls.were_read()
        self.streams.turns.give()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all that was the client's."""
        self.lost = True
        if self._outlet is not None:
            self._outlet.end()
        if self._look is not None:
            self._look.cancel()
        self.calls.close()
        self.events.close()
        self._drop_buffer()
        self._forget_kept()
        self.loop.call_later(_LAST_WRITES, self._end_session)
        self.streams.close(self._end_session)
        self.server.gone(self)

    # What calls and streams need

    @property
    def full(self) -> bool:
        """Whether so much is unsent that nothing more should be made."""
        return self._full

    def send(self, *parts: bytes | memoryview) -> None:
        """Send parts of packets, at once as far as the client takes them."""
        if self._outlet is not None and not self.lost:
            self._outlet.send(*parts)

    def send_from_thread(self, packet: bytes) -> bool:
        """Send a small packet, if that can be done without waking the loop; tell whether it was.

        From any thread.
        """
        return self._outlet is not None and self._outlet.send_from_thread(packet)

    def soon(self, call: Callable[..., None], *arguments: object) -> bool:
        """Have something called on the loop; return False if there is none. From any thread."""
        try:
            self.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False  # it is closed: the process ends
        return True

    def send_events(self) -> None:
        """Send the events that wait, as far as the client reads."""
        while not self._full and not self.calls.registering and not self.lost:
            packet = self.events.take()
            if packet is None:
                return
            self.send(packet)
        if self.events.overflowing and not self.lost:
            self.hang_up("it does not read its events")

    def widen(self) -> None:
        """Have the kernel keep more for the client: it downloads."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def _wake(self) -> None:
        self.soon(self.send_events)

    def hold_for_streams(self, *, held: bool) -> None:
        """Stop or go on reading, for the sake of what waits for storage."""
        self._hold(_Held.STREAMS, held)

    def hold_calls(self, *, held: bool) -> None:
        """Stop or go on reading, for the sake of the calls that wait."""
        self._hold(_Held.CALLS, held)
        self._settle_kept()

    def admitted(self) -> None:
        """Take note that the client has proved who it is."""
        self._splitter.limit = PACKET_MAX
        self.server.admitted(self)

    def watch(self) -> None:
        """Begin to ping the client when it is silent; it has asked for that."""
        limits = self.server.limits
        if self._timer is None and limits.keepalive_interval > 0:
            now = self.loop.time()
            self._timer = keepalive.Timer(limits.keepalive_interval, limits.keepalive_count, now)
            if self._held:
                self._timer.pause()
            self._look_at_timer()

    # Ends

    def close(self) -> None:
        """Close when all replies are sent; nothing more is read."""
        self.calls.close()
        if self._transport is not None and not self.lost:
            if self._closing_since is None:
                self._closing_since = self.loop.time()
            self.send()  # what a thread could not send to its end
            self._transport.close()

    def hang_up(self, why: str) -> None:
        """Close at once, with a line in the log."""
        who = f"client {self.number} (process {self.identity.pid})"
        _log.warning("closing the connection of %s: %s", who, why)
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self.calls.close()
        self._forget_kept()
        if self._transport is not None:
            self._transport.abort()

    def end_work(self) -> None:
        """Cancel what the client began; the server is about to stop."""
        self._end_session()

    @property
    def kept(self) -> int:
        """How many bytes of incomplete messages and of waiting calls are kept."""
        return self._kept

    @property
    def quiet(self) -> bool:
        """Whether no call is under way."""
        return self.calls.unanswered == 0

    def check(self, now: float) -> None:
        """Look at the time limits."""
        bounds = self.bounds
        if self._closing_since is not None:
            if now - self._closing_since > bounds.closing_time:
                self.abort()
        elif self.gate.asking:
            self._began = now  # a person thinks
        elif not self.gate.passed and now - self._began > bounds.anonymous_time:
            self.hang_up("it has not proved who it is")
        elif self._held:
            if now - self._held_since > bounds.message_time and self._gone():
                self.hang_up("it is gone, and storage takes no more of what it sent")
        elif self._deadline.passed(now):
            self.hang_up("the rest of a message has not come")

    # Inside

    def _drop_buffer(self) -> None:
        if self._buffer is not None:
            self.buffers.release(self._buffer)
            self._buffer = None

    def _take(self, item: Packet | Piece) -> None:
        kind = item.header.kind
        if isinstance(item, Piece) or kind in (Kind.STREAM, Kind.STREAM_HOLE):
            self.streams.take(item)
        elif kind in (Kind.CALL, Kind.CALL_WITH_FDS):
            self.calls.take(item)
        elif (pong := keepalive.answer(item.header)) is not None and not self._full:
            self.send(pong)  # who does not read has no use for one more
        # All else is ignored, as libvirt does.

    def _settle_kept(self) -> None:
        """Take note of how much of messages is kept; too much in all ends the connection."""
        kept = self._splitter.kept + self.calls.waiting
        grown = kept - self._kept
        if not grown or self.lost:
            return
        self._kept = kept
        self.server.partial += grown
        if grown > 0 and self.server.partial > self.bounds.partial:
            self.server.drop_largest()

    def _forget_kept(self) -> None:
        self.server.partial -= self._kept
        self._kept = 0

    def _hold(self, why: _Held, held: bool) -> None:
        if held == (why in self._held) or self.lost or self._transport is None:
            return
        now = self.loop.time()
        if held:
            if not self._held:
                self._held_since = now
                self._transport.pause_reading()
                if self._timer is not None:
                    self._timer.pause()
            self._held.add(why)
            return
        self._held.discard(why)
        if not self._held:
            self._deadline.postpone(now - self._held_since)
            if self._timer is not None:
                self._timer.resume(now)
            self._transport.resume_reading()

    def _look_at_timer(self) -> None:
        assert self._timer is not None  # noqa: S101 -- the timer has asked for it
        action = self._timer.look(self.loop.time())
        if action is keepalive.Action.GIVE_UP:
            self.hang_up("it has not answered for too long")
            return
        if action is keepalive.Action.PING:
            self.send(keepalive.PING)
        if (due := self._timer.next) is not None:
            self._look = self.loop.call_at(due, self._look_at_timer)

    def _gone(self) -> bool:
        """Whether the client is gone, although it is not read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _end_session(self) -> None:
        """End what the client began: registrations, jobs. It may take a moment, so on a thread."""
        if not self._session_ended:
            self._session_ended = True
            self.movers.submit(self._handler.close)
