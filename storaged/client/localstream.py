"""Events and streams of data between an engine and its user in one process."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

from storaged.client.link import EventCallback, RemoteFailure, StreamLink
from storaged.errors import Domain, InvalidArgument, OperationInvalid, StorageError
from storaged.flow import Hole, Sink, Source
from storaged.formats.handle import Bytes
from storaged.rpc.program import EXTENSION, REMOTE, AnyProcedure
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import describe, describe_bug, describe_fully
from storaged.service import Opened

_End = TypeVar("_End")

#: One write to a volume takes at most this much, in bytes.
_CHUNK: Final = 1 << 20


@contextmanager
def engine_failures(program: int = REMOTE) -> Iterator[None]:
    """Raise what the engine raises as it would come over a socket."""
    try:
        yield
    except StorageError as err:
        described = describe_fully(err) if program == EXTENSION else describe(err)
        raise RemoteFailure(described) from err
    except Exception as err:
        raise RemoteFailure(describe_bug(err)) from err


class Events:
    """Tells events in their order, on a thread of its own that begins with the first listener."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Callable[[], None]] = deque()
        self._listeners: tuple[EventCallback, ...] = ()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, procedure: AnyProcedure, record: Record) -> None:
        """Take an event; it is forgotten if nobody listens."""
        if self._listeners:
            self.run(lambda: self._tell(procedure, record))

    def run(self, task: Callable[[], None]) -> None:
        """Have *task* called on the thread."""
        with self._changed:
            if self._closed:
                return
            self._queue.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="storaged-link", daemon=True)
                self._thread.start()
            self._changed.notify()

    def listen(self, callback: EventCallback) -> Callable[[], None]:
        """Have *callback* called with each event from now on."""
        with self._changed:
            self._listeners = (*self._listeners, callback)

        def forget() -> None:
            with self._changed:
                self._listeners = tuple(each for each in self._listeners if each is not callback)

        return forget

    def close(self) -> None:
        """Stop the thread; what was not told yet is forgotten."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def _tell(self, procedure: AnyProcedure, record: Record) -> None:
        for listener in self._listeners:
            _guarded(partial(listener, procedure, record))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                task = self._queue.popleft()
            _guarded(task)


def _guarded(task: Callable[[], None]) -> None:
    """Do what others have left here; their faults end neither the thread nor the rest."""
    try:
        task()
    except Exception:
        import logging  # slow to import, and rarely needed

        logging.getLogger(__name__).exception("a callback of a link failed")


class LocalStream(StreamLink):
    """A stream of data into or out of a volume of this process's engine.

    Storage takes and gives as fast as it can, so nothing here is ever said to wait.
    """

    def __init__(self, opened: Opened, events: Events) -> None:
        self._sink: Sink | None = opened.sink
        self._source: Source | None = opened.source
        self._sparse = opened.sparse
        self._events = events
        #: what is left of a hole that is told as zeros
        self._zeros = 0
        self._ended = False
        self._callback: Callable[[], None] | None = None

    def __del__(self) -> None:
        if sys.is_finalizing():
            return  # the engine's threads are stopped, and its locks may be held for good
        with suppress(RemoteFailure):  # nobody is there who could be told
            self.abort()

    def send(self, data: Bytes) -> int:
        """Send data; return how many bytes were taken, which is all of them."""
        view = memoryview(data).cast("B")
        sink = self._opened(self._sink)
        with self._failing():
            for at in range(0, len(view), _CHUNK):
                sink.write(view[at : at + _CHUNK])
        return len(view)

    def try_send(self, data: Bytes) -> int:
        """Send data."""
        return self.send(memoryview(data).cast("B")[:_CHUNK])

    def send_hole(self, length: int) -> None:
        """Send a hole of *length* bytes."""
        sink = self._opened(self._sink)
        if not self._sparse or length < 0:
            self.abort()
            raise refusal(f"a hole of {length} bytes in a stream that is not sparse")
        if length:
            with self._failing():
                sink.hole(length)

    def receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole:
        """Return at most *size* bytes of data; ``b""`` at the end."""
        source = self._opened(self._source)
        if not self._zeros:
            with self._failing():
                found = source.read(size)
            if not isinstance(found, Hole):
                return found
            self._zeros = found.length
        length = self._zeros if stop_at_hole else min(size, self._zeros)
        self._zeros -= length
        return Hole(length) if stop_at_hole else bytes(length)

    def try_receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole:
        """Return data."""
        return self.receive(size, stop_at_hole=stop_at_hole)

    def finish(self) -> None:
        """End the stream as complete."""
        if self._ended:
            raise _not_open()
        self._ended = True
        with engine_failures():
            if self._sink is not None:
                self._sink.finish()
            elif self._source is not None:
                self._source.close()

    def abort(self) -> None:
        """End the stream before its time."""
        if self._ended:
            return
        self._ended = True
        with engine_failures():
            if self._sink is not None:
                self._sink.abort()
            elif self._source is not None:
                self._source.close()

    @property
    def readable(self) -> bool:
        """Whether this is the receiving end."""
        return self._source is not None or self._ended

    @property
    def writable(self) -> bool:
        """Whether this is the sending end."""
        return self._sink is not None or self._ended

    def on_ready(self, callback: Callable[[], None] | None) -> None:
        """Have *callback* called, for the stream is ready."""
        if callback is not None:
            self._events.run(callback)

    def _opened(self, end: _End | None) -> _End:
        if self._ended or end is None:
            raise _not_open()
        return end

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """End the stream with the first failure, as a daemon does."""
        try:
            with engine_failures():
                yield
        except RemoteFailure:
            self.abort()
            raise


def refusal(text: str) -> RemoteFailure:
    """Return the failure of what no stream is for."""
    return RemoteFailure.of(InvalidArgument(text, domain=Domain.STREAMS))


def _not_open() -> RemoteFailure:
    return RemoteFailure.of(OperationInvalid("stream is not open", domain=Domain.STREAMS))
