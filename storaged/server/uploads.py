"""Uploads: what a client sends goes into a sink on a thread, held only while there is data."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from storaged.errors import Domain
from storaged.flow import Sink, write_all
from storaged.rpc import streams as wire
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Header, Packet, Piece

if TYPE_CHECKING:
    from storaged.server.streams import Streams

_log = logging.getLogger(__name__)

#: What a piece of data costs beside its bytes.
OVERHEAD: Final = 512
#: The most pieces that are written at once.
_TOGETHER: Final = 256
#: Smaller pieces are copied, so that they keep no buffer in use.
_SMALL: Final = 64 << 10


class _End(Enum):
    """How an upload ends."""

    FINISH = "finish"
    ABORT = "abort"
    #: the client is gone: like an abort, but nobody is told
    HANG_UP = "hang up"


_Data: TypeAlias = memoryview | bytes
#: Data, a hole of so many bytes, or the end.
_Item: TypeAlias = _Data | int | _End


class Upload:
    """One upload. `take` and `close` are called on the loop."""

    def __init__(self, streams: Streams, header: Header, sink: Sink, *, sparse: bool) -> None:
        self._streams = streams
        self._client = streams.client
        self._crowd = streams.crowd
        self._buffers = streams.client.buffers
        self.header = header
        self._sink = sink
        self._sparse = sparse
        self._queue: deque[tuple[_Item, int]] = deque()
        self._waiting = 0
        #: whether a thread writes
        self._busy = False
        #: has one begin, so that little data do not wait for more
        self._timer: asyncio.TimerHandle | None = None
        #: whether the end has come: nothing is taken any more
        self._ended = False

    def take(self, item: Packet | Piece) -> None:
        """Take data, a hole or the end; what breaks the rules ends the upload with an error."""
        if isinstance(item, Piece):
            if item.data:
                self._put(self._kept(item.data), len(item.data) + OVERHEAD)
            return
        match wire.part(item.header):
            case wire.Part.HOLE:
                self._take_hole(item)
            case wire.Part.FINISH:
                self._put(_End.FINISH, 0)
            case wire.Part.ABORT:
                self._put(_End.ABORT, 0)
            case _:
                status = item.header.status
                self._fail(RPCError(f"unexpected status {status}", domain=Domain.STREAMS))

    def close(self) -> None:
        """Write what has come, and then end: the client is gone."""
        self._put(_End.HANG_UP, 0)

    def _take_hole(self, item: Packet) -> None:
        try:
            if not self._sparse:
                raise RPCError("a hole in a stream that is not sparse", domain=Domain.STREAMS)
            self._put(wire.read_hole(item.payload), OVERHEAD)
        except RPCError as err:
            self._fail(err)

    def _kept(self, data: memoryview) -> _Item:
        if len(data) < _SMALL or not isinstance(data.obj, bytearray):
            return bytes(data)
        self._buffers.hold(data)
        return data

    def _let_go(self, item: _Item) -> None:
        if isinstance(item, memoryview):
            self._buffers.release(item)

    def _put(self, item: _Item, size: int) -> None:
        with self._crowd.lock:
            if self._ended:
                self._let_go(item)
                return
            self._ended = isinstance(item, _End)
            self._queue.append((item, size))
            self._waiting += size
            if size:
                self._crowd.came(self, size, self._waiting)
            if self._busy:
                return
        if self._ended or self._waiting >= self._client.bounds.upload_batch:
            self._start()
        elif self._timer is None:
            delay = self._client.bounds.upload_delay
            self._timer = self._client.loop.call_later(delay, self._start)

    def _start(self) -> None:
        """Have a thread write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._crowd.lock:
            if self._busy or not self._queue:
                return
            self._busy = True
        self._client.movers.submit(self._drain)

    def _fail(self, error: BaseException) -> None:
        """End the upload with an error of the client's; what came before it is written."""
        with self._crowd.lock:
            if self._ended:
                return
        self._put(_End.HANG_UP, 0)
        self._streams.failed(self, error)

    # On a thread

    def _drain(self) -> None:
        """Write what waits, until nothing does."""
        done = 0
        while (taken := self._next(done)) is not None:
            data, other, done = taken
            try:
                if data:
                    write_all(self._sink, data)
                if other is not None:
                    self._write(other)
            except Exception as err:
                self._die(err)
                return
            finally:
                self._buffers.release(*(part for part in data if isinstance(part, memoryview)))

    def _next(self, done: int) -> tuple[list[_Data], int | _End | None, int] | None:
        """Return data to be written next, what comes behind them, and what they cost.

        :param done: the cost of the last.
        """
        data: list[_Data] = []
        cost = 0
        most = self._client.bounds.upload_batch
        with self._crowd.lock:
            if done:
                self._waiting -= done
                self._crowd.went(self, done, self._waiting)
            while self._queue and cost < most and len(data) < _TOGETHER:
                item, size = self._queue.popleft()
                cost += size
                if isinstance(item, (int, _End)):
                    return data, item, cost
                data.append(item)
            if not data:
                self._busy = False
                return None
            return data, None, cost

    def _write(self, item: int | _End) -> None:
        if isinstance(item, int):
            self._sink.hole(item)
        elif item is _End.FINISH:
            self._sink.finish()
            self._client.soon(self._streams.ended, self)
        else:
            self._sink.abort()
            ended = self._streams.ended if item is _End.ABORT else self._streams.gone
            self._client.soon(ended, self)

    def _die(self, error: Exception) -> None:
        """Drop what waits, after storage has refused something."""
        with self._crowd.lock:
            self._ended = True
            for item, _ in self._queue:
                self._let_go(item)
            self._queue.clear()
            self._crowd.went(self, self._waiting, 0)
            self._waiting = 0
        try:
            self._sink.abort()
        except Exception:
            _log.debug("an upload that failed could not be ended", exc_info=True)
        self._client.soon(self._streams.failed, self, error)
