"""The two directions of a connected socket, shared by many threads.

Nobody reads while nobody waits. Of the threads that wait, the first one reads for all, and passes
the turn on when it has what it waits for: so a call of a single thread costs no switch between
threads. Where something may come that nobody waits for (events, signs of life), a thread of our
own takes the turn whenever it is free.

A stream of data that nobody reads must not fill the memory: while more than `Wire.full` allows lies
in its buffer, our own thread stops reading, and with it the other side's sending. Who waits for
something else goes on reading for it, since it can only come behind those data.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from storaged.client.link import CloseReason, RemoteFailure, closed
from storaged.errors import Domain, InternalError, SystemFailure
from storaged.formats.handle import Bytes
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Packet, Piece, Splitter

#: One reading takes at least this much, in bytes.
_READ_LEAST: Final = 65_536
#: One reading takes at most this much, in bytes.
_READ_MOST: Final = 1 << 20

#: Nobody waits longer at a stretch, in seconds: poll(2) counts milliseconds in 32 bits.
_WAIT_MOST: Final = 86_400.0
#: What says that the other side is gone, whether it hung up or died.
_GONE: Final = (ConnectionResetError, BrokenPipeError)

#: What the link makes of a packet; called with the wire's lock held.
Handle = Callable[[Packet | Piece], None]


class _Gate:
    """Where a thread stands that waits while another one reads."""

    __slots__ = ("_lock", "opened", "reads", "ready")

    def __init__(self, ready: Callable[[], bool], reads: Callable[[], bool]) -> None:
        self.ready = ready
        self.reads = reads
        self.opened = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        if not self.opened:
            self.opened = True
            self._lock.release()

    def pass_through(self, timeout: float | None) -> None:
        self._lock.acquire(timeout=-1 if timeout is None else min(timeout, _WAIT_MOST))


class Wire:
    """A connected socket, read by turns.

    :param sock: blocking; the wire shuts it down at its end, and never closes it.
    :param handle: takes each packet, in their order, on whichever thread reads.
    :param lost: called once when the wire ends, with the failure and the `CloseReason`.
    :param explain: puts what the transport knows into the text of an error.
    """

    def __init__(
        self,
        sock: socket.socket,
        handle: Handle,
        lost: Callable[[RemoteFailure, int], None],
        explain: Callable[[str], str] = str,
    ) -> None:
        #: guards all that packets change; short
        self.lock = threading.RLock()
        #: why there is nothing more to come, None while the connection stands
        self.ended: RemoteFailure | None = None
        #: whether this side is about to hang up; however the wire ends then, it was us
        self.closing = False
        #: whether too much lies unread for our own thread to read on
        self.full: Callable[[], bool] = _never
        #: called by our own thread every now and then; returns the seconds until the next time
        self.tick: Callable[[], float | None] | None = None
        self._sock = sock
        self._handle = handle
        self._lost = lost
        self._explain = explain
        self._splitter = Splitter()
        self._input = select.poll()
        self._input.register(sock, select.POLLIN)
        self._output = select.poll()
        self._output.register(sock, select.POLLOUT)
        self._taken = False
        self._gates: list[_Gate] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._sending = threading.Lock()
        #: what must go out before anything else, guarded by `_sending`
        self._rest = b""
        self._urgent: deque[bytes] = deque()

    # Waiting and reading

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until *ready* says so, and read meanwhile if nobody else does.

        :param ready: looks at what packets change; must become true when the wire ends.
        :returns: whether it did within *timeout* seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.lock:
            try:
                while not ready():
                    left = None if deadline is None else deadline - time.monotonic()
                    late = left is not None and left <= 0
                    if not self._taken:
                        self._take_turn(left)  # also when it is late: the reply may be there
                    elif not late:
                        self._stand_by(_Gate(ready, _always), left)
                    if late:
                        return ready()
            finally:
                self._pass_turn()
        return True

    def look(self) -> None:
        """Read what is there, if nobody else reads."""
        with self.lock:
            if not self._taken and self.ended is None:
                self._take_turn(0)
                self._pass_turn()

    def drained(self) -> None:
        """Have our own thread read on if it stopped for too much data; with the lock held."""
        if self._thread is not None and not self._taken:
            self._pass_turn()

    def _take_turn(self, timeout: float | None) -> None:
        """Read once, with the lock given up meanwhile, and hand on what came."""
        self._taken = True
        self.lock.release()
        try:
            data = self._read(timeout)
        finally:
            self.lock.acquire()
            self._taken = False
        if data is None or self.ended is not None:
            return
        try:
            if not data:
                self._end(self._trouble("End of file while reading data", 5), CloseReason.EOF)
                return
            for item in self._splitter.feed(data):
                self._handle(item)
        except RPCError as err:
            self._end(RemoteFailure.of(err), CloseReason.ERROR)
        except BaseException as err:  # what was taken out of the stream would be missing
            failure = RemoteFailure.of(InternalError(str(err), domain=Domain.RPC))
            self._end(failure, CloseReason.ERROR)
            raise
        for gate in self._gates:
            if gate.ready():
                gate.open()
        if self._rest:
            self._send_urgent()

    def _read(self, timeout: float | None) -> bytes | None:
        """Return what comes next, ``b""`` at the end, None if nothing came in time."""
        if timeout is not None and not self._input.poll(_milliseconds(timeout)):
            return None
        size = min(max(self._splitter.missing, _READ_LEAST), _READ_MOST)
        try:
            return self._sock.recv(size)
        except OSError as err:
            with self.lock:
                self._end(self._trouble("Cannot recv data", err.errno or 5), _reason(err))
            return None

    def _stand_by(self, gate: _Gate, timeout: float | None) -> None:
        self._gates.append(gate)
        self.lock.release()
        try:
            gate.pass_through(timeout)
        finally:
            self.lock.acquire()
            self._gates.remove(gate)

    def _pass_turn(self) -> None:
        """Wake one of those who wait to read on, if nobody reads."""
        if self._taken:
            return
        for gate in self._gates:
            if not gate.opened and gate.reads():
                gate.open()
                return

    # Our own thread

    def start_thread(self) -> None:
        """Have a thread of our own read whenever nobody else does."""
        with self.lock:
            if self._thread is None and (self.ended is None or self._posted):
                self._thread = threading.Thread(target=self._run, name="storaged-link", daemon=True)
                self._thread.start()

    def post(self, task: Callable[[], None]) -> None:
        """Have our own thread call *task*, after what was posted before; with the lock held."""
        self._posted.append(task)

    def _run(self) -> None:
        with self.lock:
            while self.ended is None or self._posted:
                if self._posted:
                    self._run_posted()
                    continue
                due = None if self.tick is None else self.tick()
                if self.ended is not None:
                    continue
                if self._taken or self.full():
                    self._stand_by_first(due)
                else:
                    self._take_turn(due)
            self._thread = None

    def _stand_by_first(self, due: float | None) -> None:
        gate = _Gate(lambda: bool(self._posted) or self.ended is not None, lambda: not self.full())
        self._gates.insert(0, gate)
        self.lock.release()
        try:
            gate.pass_through(due)
        finally:
            self.lock.acquire()
            self._gates.remove(gate)

    def _run_posted(self) -> None:
        """Call what was posted; others may read meanwhile, and the tasks may call themselves."""
        self._pass_turn()
        task = self._posted.popleft()
        self.lock.release()
        try:
            task()
        except Exception:
            import logging  # needed only here, and its import is slow

            logging.getLogger(__name__).exception("a callback of a link failed")
        finally:
            self.lock.acquire()

    # Sending

    def send(self, *parts: Bytes) -> None:
        """Send a packet, given in one or more parts; read meanwhile if the other side is slow.

        :raise RemoteFailure: the wire has ended.
        """
        if self.ended is not None:
            raise closed()
        with self._sending:
            self._push(parts)
        if self._urgent:
            self._send_urgent()

    def send_soon(self, data: bytes) -> None:
        """Send a small packet without waiting, later if that cannot be done now."""
        self._urgent.append(data)
        self._send_urgent()

    @property
    def writable(self) -> bool:
        """Whether a small packet can be sent without waiting."""
        return not (self._rest or self._sending.locked()) and bool(self._output.poll(0))

    def _send_urgent(self) -> None:
        while (self._urgent or self._rest) and self._sending.acquire(blocking=False):
            try:
                self._rest += b"".join(self._urgent.popleft() for _ in range(len(self._urgent)))
                if not self._push_rest():
                    return
            finally:
                self._sending.release()

    def _push_rest(self) -> bool:
        while self._rest:
            sent = self._send_some([memoryview(self._rest)])
            if not sent:
                return False
            self._rest = self._rest[sent:]
        return True

    def _push(self, parts: tuple[Bytes, ...]) -> None:
        views = [memoryview(part) for part in (self._rest, *parts) if len(part)]
        self._rest = b""
        try:
            while views:
                sent = self._send_some(views)
                if self.ended is not None:
                    raise self.ended.anew()
                if not sent:
                    self._wait_writable()
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except KeyboardInterrupt:
            # What has begun must be ended, or nothing after it would be understood.
            self._rest = b"".join(views)
            raise

    def _send_some(self, views: list[memoryview]) -> int:
        """Send what can be sent now; return how many bytes that was."""
        try:
            if len(views) == 1:
                return self._sock.send(views[0], socket.MSG_DONTWAIT)
            return self._sock.sendmsg(views, [], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as err:
            with self.lock:
                self._end(self._trouble("Cannot write data", err.errno or 5), _reason(err))
            return 0

    def _wait_writable(self) -> None:
        """Wait until something can be sent.

        The other side may only read on once somebody takes what it sends.
        """
        with self.lock:
            reads = not self._taken
            self._taken = True
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT | (select.POLLIN if reads else 0))
        try:
            found = poll.poll()
        finally:
            if reads:
                with self.lock:
                    self._taken = False
                    self._pass_turn()
        if reads and found[0][1] & select.POLLIN:
            self.look()

    # The end

    def end(self, failure: RemoteFailure, reason: int) -> None:
        """End the wire: all who wait are told."""
        with self.lock:
            self._end(failure, reason)

    def join(self, timeout: float) -> bool:
        """Wait until nobody uses the socket any more; return whether that came in time."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        deadline = time.monotonic() + timeout
        with self.lock:
            while self._taken and time.monotonic() < deadline:
                self._stand_by(_Gate(lambda: not self._taken, _always), 0.05)
            return not self._taken

    def _end(self, failure: RemoteFailure, reason: int) -> None:
        if self.ended is not None:
            return
        if self.closing:
            failure, reason = closed(), CloseReason.CLIENT
        self.ended = failure
        with suppress(OSError):  # the other side was faster
            self._sock.shutdown(socket.SHUT_RDWR)
        self._lost(failure, reason)
        for gate in self._gates:
            gate.open()

    def _trouble(self, doing: str, number: int) -> RemoteFailure:
        failure = SystemFailure(self._explain(doing), number, domain=Domain.RPC)
        return RemoteFailure.of(failure)


def _milliseconds(timeout: float) -> float:
    return min(max(timeout, 0), _WAIT_MOST) * 1000


def _reason(err: OSError) -> int:
    return CloseReason.EOF if isinstance(err, _GONE) else CloseReason.ERROR


def _always() -> bool:
    return True


def _never() -> bool:
    return False
