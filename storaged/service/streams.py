"""The uploads and downloads that one connection has open.

An end that the connection leaves open is closed with it; what an upload has written stays. One
thread may be in the middle of a write then, so the two take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from storaged.errors import OperationInvalid
from storaged.flow import Hole, Sink, Source, write_all
from storaged.formats.handle import Bytes


class Streams:
    """The open ends of one session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[TrackedSink | TrackedSource] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def sink(self, sink: Sink) -> Sink:
        """Return *sink* as one that `close` ends."""
        tracked = TrackedSink(sink, self._forget)
        if not self._keep(tracked):
            tracked.abort()
        return tracked

    def source(self, source: Source) -> Source:
        """Return *source* as one that `close` ends."""
        tracked = TrackedSource(source, self._forget)
        if not self._keep(tracked):
            tracked.close()
        return tracked

    def close(self) -> None:
        """End what is open. It does not wait: storage that hangs is left to a thread."""
        with self._lock:
            self._closed = True
            left = tuple(self._open)
        if not left:
            return
        ending = threading.Thread(
            target=_end_all, args=(left,), name="storaged-hang-up", daemon=True
        )
        try:
            ending.start()
        except RuntimeError:  # no thread is left on this host
            _end_all(left)

    def _keep(self, end: TrackedSink | TrackedSource) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._open.add(end)
            return True

    def _forget(self, end: TrackedSink | TrackedSource) -> None:
        with self._lock:
            self._open.discard(end)


class TrackedSink:
    """A sink of a session: it may be ended while another thread writes."""

    def __init__(self, sink: Sink, ended: Callable[[TrackedSink], None]) -> None:
        self._sink = sink
        self._told = ended
        self._turn = threading.Lock()
        self._ended = False

    def write(self, data: Bytes) -> None:
        """Take the next bytes.

        :raise OperationInvalid: the transfer has ended.
        """
        with self._turn:
            self._require_open()
            self._sink.write(data)

    def write_many(self, parts: Sequence[Bytes]) -> None:
        """Take several pieces, in their order.

        :raise OperationInvalid: the transfer has ended.
        """
        with self._turn:
            self._require_open()
            write_all(self._sink, parts)

    def hole(self, length: int) -> None:
        """Make the next bytes read as zeros.

        :raise OperationInvalid: the transfer has ended.
        """
        with self._turn:
            self._require_open()
            self._sink.hole(length)

    def finish(self) -> None:
        """End the transfer as complete.

        :raise OperationInvalid: the transfer has ended.
        """
        with self._turn:
            self._require_open()
            self._ended = True
            try:
                self._sink.finish()
            finally:
                self._told(self)

    def abort(self) -> None:
        """End the transfer; calling it after an end does nothing."""
        with self._turn:
            if self._ended:
                return
            self._ended = True
            try:
                self._sink.abort()
            finally:
                self._told(self)

    def _require_open(self) -> None:
        if self._ended:
            raise OperationInvalid("the transfer has ended")


class TrackedSource:
    """A source of a session: it may be closed while another thread reads."""

    def __init__(self, source: Source, ended: Callable[[TrackedSource], None]) -> None:
        self._source = source
        self._told = ended
        self._turn = threading.Lock()
        self._ended = False

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece; nothing after an end."""
        with self._turn:
            return b"" if self._ended else self._source.read(size)

    def close(self) -> None:
        """Let go. Calling it again does nothing."""
        with self._turn:
            if self._ended:
                return
            self._ended = True
            try:
                self._source.close()
            finally:
                self._told(self)

    abort = close


def _end_all(ends: tuple[TrackedSink | TrackedSource, ...]) -> None:
    for end in ends:
        try:
            end.abort()
        except Exception:
            import logging  # slow to import, and rarely needed

            logging.getLogger(__name__).exception("a transfer could not be ended")
