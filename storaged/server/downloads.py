"""Downloads: read on threads, in turns, and no faster than the client takes the data."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from storaged.errors import Domain
from storaged.flow import Hole, Source
from storaged.rpc import streams as wire
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Header, Packet, Piece

if TYPE_CHECKING:
    from storaged.server.streams import Client, Streams

_log = logging.getLogger(__name__)

#: The most pieces of one turn: holes cost the client time, too.
_PIECES: Final = 64


class Turns:
    """Whose turn it is to read: downloads of one client take turns. All is called on the loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asking: deque[Download] = deque()
        #: turns under way
        self._reading = 0

    def ask(self, download: Download) -> None:
        """Have a download read when it is its turn."""
        self._asking.append(download)
        self.give()

    def withdraw(self, download: Download) -> None:
        """Have a download not read, if it is not its turn yet."""
        if download in self._asking:
            self._asking.remove(download)

    def give(self) -> None:
        """Let those read who ask for it, as far as the client takes it."""
        bounds = self._client.bounds
        most = max(bounds.downloads_waiting // bounds.download_turn, 1)
        while self._asking and self._reading < most and not self._client.full:
            self._reading += 1
            self._asking.popleft().begin_turn()

    def done(self) -> None:
        """Take note of the end of a turn."""
        self._reading -= 1

    def close(self) -> None:
        """Forget all."""
        self._asking.clear()


class Download:
    """One download. `take` and `close` are called on the loop."""

    def __init__(self, streams: Streams, header: Header, source: Source) -> None:
        self._streams = streams
        self._client = streams.client
        self.header = header
        self._source = source
        #: whether a thread reads, or will when it is this download's turn
        self._reading = False
        #: whether nobody wants more
        self._stopped = False
        #: whether the client waits to hear of the end
        self._answer = False

    def take(self, item: Packet | Piece) -> None:
        """Take the client's wish to end; what breaks the rules ends the download with an error."""
        part = wire.part(item.header)
        if isinstance(item, Piece):
            if not item.data:
                return
        elif part in (wire.Part.FINISH, wire.Part.ABORT):
            self._stop(answer=True)
            return
        error = RPCError("a download takes no data", domain=Domain.STREAMS)
        self._streams.failed(self, error)
        self._stop()

    def close(self) -> None:
        """End: the client is gone."""
        self._stop()

    def begin_turn(self) -> None:
        """Have a thread read."""
        self._reading = True
        self._client.movers.submit(self.read)

    def _stop(self, *, answer: bool = False) -> None:
        if self._stopped:
            return
        self._stopped, self._answer = True, answer
        if not self._reading:
            self._streams.turns.withdraw(self)
            self._reading = True
            self._client.movers.submit(self._close)

    # On a thread

    def read(self) -> None:
        """Read a piece of some size, and hand it over as packets."""
        parts: list[bytes | memoryview] = []
        left, pieces = self._client.bounds.download_turn, 0
        ended, error = False, None
        try:
            while left > 0 and pieces < _PIECES and not self._stopped:
                piece = self._source.read(left)
                if not piece:
                    ended = True
                    self._source.close()
                    break
                pieces += 1
                left -= self._add(parts, piece)
        except Exception as err:
            error = err
            self._end_source()
        self._client.soon(self._was_read, parts, ended, error)

    def _add(self, parts: list[bytes | memoryview], piece: bytes | Hole) -> int:
        """Append the packets of a piece; return what it takes of the turn."""
        if isinstance(piece, Hole):
            parts.append(wire.hole(self.header, piece.length))
            return 0
        for chunk in wire.chunks(piece):
            parts += (wire.head(self.header, len(chunk)), chunk)
        return len(piece)

    def _close(self) -> None:
        self._end_source()
        self._client.soon(self._was_stopped)

    def _end_source(self) -> None:
        try:
            self._source.close()
        except Exception:
            _log.debug("a download could not be closed", exc_info=True)

    # On the loop again

    def _was_read(
        self, parts: list[bytes | memoryview], ended: bool, error: Exception | None
    ) -> None:
        turns = self._streams.turns
        turns.done()
        self._reading = False
        if self._stopped:
            if ended or error is not None:
                self._was_stopped()
            else:
                self._reading = True
                self._client.movers.submit(self._close)
        elif error is not None:
            self._send(parts)
            self._streams.failed(self, error)
        elif ended:
            self._send(parts)
            self._streams.all_sent(self)
        else:
            turns.ask(self)  # first, so that reading and sending overlap
            self._send(parts)
        turns.give()

    def _send(self, parts: list[bytes | memoryview]) -> None:
        if parts:
            self._client.send(*parts)

    def _was_stopped(self) -> None:
        if self._answer:
            self._streams.ended(self)
        else:
            self._streams.gone(self)
