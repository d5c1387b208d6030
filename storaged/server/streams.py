"""The streams of one client: which are open, and which of them a packet is for.

A stream has the numbers of the call that opened it. Packets that come before the reply to that call
wait for it; packets for streams that have ended, or never were, are ignored.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from storaged.errors import Domain, StorageError, SystemFailure
from storaged.rpc import streams as wire
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Header, Packet, Piece
from storaged.rpc.remoteerror import RemoteError, describe, describe_bug
from storaged.server.downloads import Download, Turns
from storaged.server.uploads import OVERHEAD, Upload
from storaged.service import Opened

if TYPE_CHECKING:
    import asyncio

    from storaged.server.buffers import Buffers
    from storaged.server.limits import Bounds
    from storaged.server.workers import Workers

Key: TypeAlias = tuple[int, int, int]
Item: TypeAlias = Packet | Piece

#: Of so many downloads that were sent to their end is known that the client may still finish them.
_SENT_MAX: Final = 4096


class Client(Protocol):
    """What streams need of a connection."""

    loop: asyncio.AbstractEventLoop
    bounds: Bounds
    movers: Workers
    buffers: Buffers

    def send(self, *parts: bytes | memoryview) -> None:
        """Send parts of packets. On the loop only."""
        ...

    def soon(self, call: Callable[..., None], *arguments: object) -> bool:
        """Have something called on the loop; False if there is none any more. From any thread."""
        ...

    @property
    def full(self) -> bool:
        """Whether so much is unsent that nothing more should be made."""
        ...

    def widen(self) -> None:
        """Make room for the data of a download. On the loop only."""
        ...

    def hold_for_streams(self, *, held: bool) -> None:
        """Stop or go on reading from the client. On the loop only."""
        ...


class Streams:
    """The streams of one client; all is called on the loop if nothing else is said."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.crowd = Crowd(client)
        self.turns = Turns(client)
        self._open: dict[Key, _Stream] = {}
        #: how many of them are uploads
        self.uploads = 0
        self._sent: OrderedDict[Key, None] = OrderedDict()
        #: those that still have something to do although the client is gone
        self._ending: set[_Stream] = set()
        self._all_ended: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def expect(self, header: Header) -> None:
        """Take note of a call that is about to open a stream.

        :raise RPCError: its numbers are those of an open stream, or there are too many streams.
        """
        key = header.key
        if key in self._open:
            raise RPCError(f"stream {header.serial} is open already", domain=Domain.STREAMS)
        if len(self._open) >= self.client.bounds.streams:
            raise RPCError(f"more than {len(self._open)} streams", domain=Domain.STREAMS)
        self._sent.pop(key, None)
        self._open[key] = _Awaited(header, self.crowd)

    def forget(self, header: Header) -> None:
        """Take note that the call failed: there is no stream."""
        if isinstance(awaited := self._open.get(header.key), _Awaited):
            del self._open[header.key]
            awaited.close()

    def begin(self, header: Header, opened: Opened) -> None:
        """Begin to move data; the reply to the call has been sent."""
        key = header.key
        awaited = self._open.pop(key, None)
        stream: Upload | Download
        if opened.sink is not None:
            self.uploads += 1
            stream = Upload(self, header, opened.sink, sparse=opened.sparse)
        else:
            assert opened.source is not None  # noqa: S101 -- one of the two is there
            self.client.widen()
            stream = Download(self, header, opened.source)
        self._open[key] = stream
        if isinstance(awaited, _Awaited):
            awaited.close()
            for item in awaited.items:
                self.take(item)
        if isinstance(stream, Download):
            self.turns.ask(stream)

    def take(self, item: Item) -> None:
        """Take a packet of a stream, or a part of one."""
        key = item.header.key
        stream = self._open.get(key)
        if stream is not None:
            stream.take(item)
        elif key in self._sent and wire.part(item.header) in (wire.Part.FINISH, wire.Part.ABORT):
            del self._sent[key]
            self.client.send(wire.finish(item.header))

    def all_sent(self, stream: Download) -> None:
        """Take note that a download has come to its end. Some clients never finish it."""
        if self._remove(stream):
            self._sent[stream.header.key] = None
            if len(self._sent) > _SENT_MAX:
                self._sent.popitem(last=False)
            self.client.send(wire.end_mark(stream.header))

    def ended(self, stream: Upload | Download) -> None:
        """Take note that a stream has ended as the client wished."""
        if self._remove(stream):
            self.client.send(wire.finish(stream.header))

    def failed(self, stream: Upload | Download, error: BaseException) -> None:
        """Take note that a stream is dead, and tell the client why."""
        if self._remove(stream):
            self.client.send(wire.failure(stream.header, _described(error)))

    def gone(self, stream: Upload | Download) -> None:
        """Take note that a stream has let go of its volume, of which nobody is to be told."""
        self._remove(stream)

    def close(self, ended: Callable[[], None]) -> None:
        """End all streams; what has come for uploads is written first. *ended* is called then."""
        streams, self._open = list(self._open.values()), {}
        self._ending.update(stream for stream in streams if not isinstance(stream, _Awaited))
        self._all_ended = ended
        for stream in streams:
            stream.close()
        if not self._ending:
            ended()

    def _remove(self, stream: Upload | Download) -> bool:
        """Forget a stream; return whether the client still has it."""
        if stream in self._ending:
            self._ending.discard(stream)
            if not self._ending and self._all_ended is not None:
                self._all_ended()
        if self._open.get(stream.header.key) is not stream:
            return False
        del self._open[stream.header.key]
        self.uploads -= isinstance(stream, Upload)
        return True


class Crowd:
    """What waits in memory for storage, of all uploads of one client. Safe from all threads.

    Above a bound the client is not read any more, until half of it has gone.
    """

    def __init__(self, client: Client) -> None:
        self.lock = threading.Lock()
        self._client = client
        self._waiting = 0
        #: those of whose data too much waits
        self._crowded: set[object] = set()
        self._held = False

    @property
    def waiting(self) -> int:
        """How many bytes wait."""
        return self._waiting

    def came(self, stream: object, size: int, waiting: int) -> None:
        """Take note of *size* bytes more, which makes *waiting* of this stream. With the lock."""
        bounds = self._client.bounds
        self._waiting += size
        if waiting > bounds.upload_waiting:
            self._crowded.add(stream)
        if not self._held and (self._crowded or self._waiting > bounds.uploads_waiting):
            self._held = True
            self._client.soon(self._settle)

    def went(self, stream: object, size: int, waiting: int) -> None:
        """Take note that *size* bytes are gone, which leaves *waiting*. With the lock."""
        bounds = self._client.bounds
        self._waiting -= size
        if self._crowded and waiting <= bounds.upload_waiting // 2:
            self._crowded.discard(stream)
        if self._held and not self._crowded and self._waiting <= bounds.uploads_waiting // 2:
            self._held = False
            self._client.soon(self._settle)

    def _settle(self) -> None:
        self._client.hold_for_streams(held=self._held)


class _Awaited:
    """A stream whose call has not been answered."""

    def __init__(self, header: Header, crowd: Crowd) -> None:
        self.header = header
        self._crowd = crowd
        self._size = 0
        self.items: list[Item] = []

    def take(self, item: Item) -> None:
        """Keep a packet."""
        if isinstance(item, Piece):
            item = Piece(item.header, memoryview(bytes(item.data)), item.last)
        size = OVERHEAD + len(item.data if isinstance(item, Piece) else item.payload)
        self.items.append(item)
        self._size += size
        with self._crowd.lock:
            self._crowd.came(self, size, self._size)

    def close(self) -> None:
        """Take note that what came is taken up, or dropped."""
        with self._crowd.lock:
            self._crowd.went(self, self._size, 0)
        self._size = 0


_Stream: TypeAlias = _Awaited | Upload | Download


def _described(error: BaseException) -> RemoteError:
    if isinstance(error, SystemFailure):
        error.domain = Domain.STREAMS
    return describe(error) if isinstance(error, StorageError) else describe_bug(error)
