"""One end of a stream of data on a socket.

Source: libvirt's protocol: data, holes and the end are packets of the call that opened the stream.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from storaged.client.link import RemoteFailure, StreamLink
from storaged.client.wire import Wire
from storaged.errors import Domain, OperationInvalid
from storaged.flow import Hole
from storaged.formats.handle import Bytes
from storaged.rpc import streams
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Header, Kind, Packet, Piece
from storaged.rpc.program import VERSION, AnyProcedure
from storaged.rpc.remoteerror import RemoteError

#: The most that one packet carries, in bytes; daemons before libvirt 1.0 take no more.
_CHUNK: Final = 262_120
#: The most that is sent without waiting, in bytes: it fits into any socket that can be written to.
_SMALL_CHUNK: Final = 65_536
#: Our own thread reads on while less than this lies in the buffer, in bytes.
_BUFFER: Final = 4 << 20
#: Likewise for pieces: small ones cost more memory than what is in them.
_PIECES: Final = 16_384


class SocketStream(StreamLink):
    """A stream over a wire.

    :param forget: called with the serial once nothing more can come, with the wire's lock held.
    """

    def __init__(self, wire: Wire, procedure: AnyProcedure, forget: Callable[[int], None]) -> None:
        #: somebody waits for it, and is to be told how it fails
        self.busy = False
        self._opened = False
        #: this side has ended it
        self._ended = False
        #: the numbers of the call that opened it, which all its packets have
        self._call = Header(procedure.program, VERSION, procedure.number, Kind.CALL, 0, 0)
        self._wire = wire
        self._forget = forget
        #: what came and was not taken yet: data, or the length of a hole
        self._pieces: deque[memoryview | int] = deque()
        self._buffered = 0
        #: the other side has sent all its data
        self._complete = False
        #: the other side has agreed to the end
        self._answered = False
        self._failure: RemoteFailure | None = None
        self._callback: Callable[[], None] | None = None

    def __del__(self) -> None:
        # Nobody will read what comes, and the other side holds the volume for it.
        if sys.is_finalizing():
            return  # the link's thread is stopped, and the link ends with the process
        if self._opened and not self._ended and not self._is_settled():
            self._forget(self._call.serial)
            self._wire.send_soon(streams.abort(self._call))

    def opened(self) -> None:
        """Take note that the other side has opened the stream."""
        self._opened = True

    # What comes; with the wire's lock held

    @property
    def full(self) -> bool:
        """Whether more lies here than should."""
        return self._buffered > _BUFFER or len(self._pieces) > _PIECES

    def begin(self, serial: int) -> None:
        """Take the serial of the call that opens the stream; packets may come from now on."""
        call = self._call
        self._call = Header(call.program, call.version, call.procedure, call.kind, serial, 0)

    def is_for(self, header: Header) -> bool:
        """Tell whether a packet with our serial is ours in all else."""
        call = self._call
        return (
            header.program == call.program
            and header.version == call.version
            and header.procedure == call.procedure
        )

    def take(self, item: Packet | Piece) -> None:
        """Take a packet of the stream."""
        if isinstance(item, Piece):
            self._take_data(item)
        else:
            what = streams.part(item.header)
            if what is streams.Part.HOLE:
                self._take_hole(item.payload)
            elif what is streams.Part.FINISH:
                self._answered = self._complete = True
                self._forget(self._call.serial)
            elif what is streams.Part.ABORT:
                self._fail(item.payload)
        if self._callback is not None:
            self._wire.post(self._callback)

    def _take_data(self, piece: Piece) -> None:
        if self._ended:
            return
        if len(piece.data):
            self._pieces.append(piece.data)
            self._buffered += len(piece.data)
        else:
            self._complete = True

    def _take_hole(self, payload: bytes) -> None:
        try:
            length = streams.read_hole(payload)
        except RPCError as err:
            self.lose(RemoteFailure.of(err))
            return
        if not self._ended:
            self._pieces.append(length)

    def _fail(self, payload: bytes) -> None:
        try:
            failure = RemoteFailure(RemoteError.unpack(payload))
        except RPCError as err:
            failure = RemoteFailure.of(err)
        self.lose(failure)
        self._forget(self._call.serial)

    def lose(self, failure: RemoteFailure) -> None:
        """Take note that nothing more will come."""
        if self._failure is None and not self._answered:
            self._failure = failure
        if self._callback is not None:
            self._wire.post(self._callback)

    # What the caller does

    def send(self, data: Bytes) -> int:
        """Send data; return how many bytes were taken, which is all of them."""
        view = memoryview(data).cast("B")
        self.busy = True
        try:
            for at in range(0, len(view), _CHUNK):
                self._wire.look()  # the other side may have given up
                self._check_open()
                self._send(view[at : at + _CHUNK])
        finally:
            self.busy = False
        return len(view)

    def try_send(self, data: Bytes) -> int | None:
        """Send what can be sent without waiting; None if that is nothing."""
        self._wire.look()
        self._check_open()
        view = memoryview(data).cast("B")[:_SMALL_CHUNK]
        if not self._wire.writable:
            return None
        self._send(view)
        return len(view)

    def send_hole(self, length: int) -> None:
        """Send a hole of *length* bytes."""
        self._wire.look()
        self._check_open()
        if length:
            try:
                packet = streams.hole(self._call, length)
            except RPCError as err:
                raise RemoteFailure.of(err) from err
            self._wire.send(packet)

    def receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole:
        """Wait for data and return at most *size* bytes of them; ``b""`` at the end."""
        self.busy = True
        try:
            while (found := self.try_receive(size, stop_at_hole=stop_at_hole)) is None:
                self._wire.wait(self._is_readable)
        finally:
            self.busy = False
        return found

    def try_receive(self, size: int, *, stop_at_hole: bool = False) -> bytes | Hole | None:
        """Return what is there without waiting; None if that is nothing."""
        if not self._pieces:
            self._wire.look()
        with self._wire.lock:
            if self._ended:
                raise _not_open()
            if self._pieces:
                found = self._taken(size, stop_at_hole)
                self._wire.drained()
                return found
            if self._failure is not None:
                raise self._failure.anew()
            return b"" if self._complete else None

    def _taken(self, size: int, stop_at_hole: bool) -> bytes | Hole:
        first = self._pieces[0]
        if isinstance(first, int):
            if stop_at_hole:
                self._pieces.popleft()
                return Hole(first)
            length = min(first, size)
            if length == first:
                self._pieces.popleft()
            else:
                self._pieces[0] = first - length
            return bytes(length)
        found: list[memoryview] = []
        left = size
        while self._pieces and left:
            piece = self._pieces[0]
            if isinstance(piece, int):
                break
            if len(piece) <= left:
                self._pieces.popleft()
            else:
                self._pieces[0] = piece[left:]
                piece = piece[:left]
            found.append(piece)
            left -= len(piece)
        self._buffered -= size - left
        return b"".join(found)

    def finish(self) -> None:
        """End the stream as complete, and wait until the other side agrees."""
        self._check_open()
        self._end(streams.finish(self._call))
        if self._failure is not None:
            raise self._failure.anew()

    def abort(self) -> None:
        """End the stream before its time."""
        if self._ended or self._answered or self._failure is not None:
            self._ended = True
            return
        with suppress(RemoteFailure):  # the link has ended, and all its streams with it
            self._end(streams.abort(self._call))

    def _end(self, packet: bytes) -> None:
        with self._wire.lock:
            self._ended = True
            self._pieces.clear()
            self._buffered = 0
            self._wire.drained()
        if not self._answered:
            self.busy = True
            try:
                self._wire.send(packet)
                self._wire.wait(self._is_settled)
            finally:
                self.busy = False

    def _send(self, data: memoryview) -> None:
        if len(data):  # nothing at all would be an end of the data
            self._wire.send(streams.head(self._call, len(data)), data)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure.anew()
        if self._ended:
            raise _not_open()

    def _is_readable(self) -> bool:
        return bool(self._pieces) or self._complete or self._failure is not None

    def _is_settled(self) -> bool:
        return self._answered or self._failure is not None

    @property
    def readable(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        if not self._is_readable():
            self._wire.look()
        return self._is_readable() or self._ended

    @property
    def writable(self) -> bool:
        """Whether `try_send` would take something, or raise."""
        return self._failure is not None or self._ended or self._wire.writable

    def on_ready(self, callback: Callable[[], None] | None) -> None:
        """Have *callback* called when the stream may have become readable or has ended."""
        with self._wire.lock:
            self._callback = callback
            ready = self._is_readable()
        if callback is not None:
            self._wire.start_thread()
            if ready:
                callback()


def _not_open() -> RemoteFailure:
    return RemoteFailure.of(OperationInvalid("stream is not open", domain=Domain.STREAMS))
