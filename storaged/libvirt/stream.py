"""Streams of data under libvirt-python's names.

Source: libvirt's behaviour, the texts and numbers of all refusals included.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from storaged.client.link import RemoteFailure, StreamLink, closed
from storaged.flow import Hole
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.constants import VIR_STREAM_NONBLOCK, VIR_STREAM_RECV_STOP_AT_HOLE
from storaged.libvirt.errors import (
    fail,
    libvirtError,
    refuse,
    refuse_argument,
    refuse_unsupported,
    reporting,
)
from storaged.libvirt.process import PROCESS
from storaged.libvirt.streamevents import StreamEvents
from storaged.rpc.program import Procedure
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import VolStreamArgs

if TYPE_CHECKING:
    from storaged.libvirt.connection import virConnect

T = TypeVar("T")

#: The size of the pieces in which `virStream` moves data by itself, in bytes.
STREAM_CHUNK: Final = 262120

#: What calls return instead of waiting, and where a hole begins.
_WOULD_BLOCK: Final = -2
_AT_HOLE: Final = -3

_INVALID: Final = "Requested operation is not valid: %s"


class virStream:  # noqa: N801 -- libvirt-python's name
    """A stream; made by `virConnect.newStream`, opened by the methods of `virStorageVol`."""

    def __init__(self, conn: virConnect, _obj: int | None = None) -> None:
        self._conn = conn
        self._handle = conn._held("virStreamNew", numbers.VIR_FROM_STREAMS)
        self._nonblocking = bool((_obj or 0) & VIR_STREAM_NONBLOCK)
        self._link: StreamLink | None = None
        self._sparse = False
        self._ended = False
        #: what ended the stream: all later calls fail with it
        self._failure: RemoteError | None = None
        #: the rest of a hole that nobody asked for yet, in bytes
        self._hole = 0
        self._events: StreamEvents | None = None

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            self._link = None
            handle.release()

    def c_pointer(self) -> int:
        """Return a number that no other living object has."""
        return id(self)

    def connect(self) -> virConnect:
        """Return the connection."""
        return self._conn

    def send(self, data: bytes) -> int:
        """Send data; return how many bytes were taken, -2 if that would have to wait."""
        view = memoryview(data)
        link = self._opened("virStreamSend")
        if not view.nbytes:
            return 0
        if self._nonblocking:
            taken = self._do("virStreamSend", lambda: link.try_send(view))
            return _WOULD_BLOCK if taken is None else taken
        return self._do("virStreamSend", lambda: link.send(view))

    def sendHole(self, length: int, flags: int = 0) -> int:  # noqa: N802
        """Send a hole of *length* bytes, through a stream that was opened as a sparse one."""
        function = "virStreamSendHole"
        size, _ = index(length), as_flags(flags)
        link = self._opened(function)
        if not self._sparse:
            self._refuse_hole("Skipping is not supported with this stream", function)
        if size < 0:
            domain = numbers.VIR_FROM_STREAMS
            refuse_argument(function, "length", "must be zero or greater", domain)
        self._do(function, lambda: link.send_hole(size))
        return 0

    def recv(self, nbytes: int) -> bytes:
        """Return at most *nbytes* bytes, ``b""`` at the end; the int -2 if that would wait."""
        return self._receive("virStreamRecv", nbytes, stop=False)  # type: ignore[return-value]

    def recvFlags(self, nbytes: int, flags: int = 0) -> bytes | int:  # noqa: N802
        """Do as `recv`; with ``VIR_STREAM_RECV_STOP_AT_HOLE`` return -3 where a hole begins."""
        function = "virStreamRecvFlags"
        bits = as_flags(flags)
        if bits & ~VIR_STREAM_RECV_STOP_AT_HOLE:
            self._opened(function)
            _refuse_flags(bits & ~VIR_STREAM_RECV_STOP_AT_HOLE)
        return self._receive(function, nbytes, stop=bool(bits))

    def recvHole(self, flags: int = 0) -> int:  # noqa: N802
        """Return the length of the hole at which the data stopped; 0 if there is none."""
        function = "virStreamRecvHole"
        as_flags(flags)
        self._opened(function)
        PROCESS.reset()
        if not self._sparse:
            self._refuse_hole("Holes are not supported with this stream", function)
        found, self._hole = self._hole, 0
        return found

    def _receive(self, function: str, nbytes: int, *, stop: bool) -> bytes | int:
        size = index(nbytes)
        link = self._opened(function)
        if size < 0:
            raise ValueError("negative size")
        if self._hole:
            return _AT_HOLE if stop else self._zeros(size)
        if self._nonblocking:
            found = self._do(function, lambda: link.try_receive(size, stop_at_hole=stop))
        else:
            found = self._do(function, lambda: link.receive(size, stop_at_hole=stop))
        if found is None:
            return _WOULD_BLOCK
        if isinstance(found, Hole):
            self._hole = found.length
            return _AT_HOLE
        return found

    def _zeros(self, size: int) -> bytes:
        length = min(size, self._hole)
        self._hole -= length
        return bytes(length)

    def finish(self) -> int:
        """End the stream as complete, and wait until the other side agrees."""
        link = self._opened("virStreamFinish")
        self._leave_events()
        self._do("virStreamFinish", link.finish)
        self._ended = True
        return 0

    def abort(self) -> int:
        """End the stream before its time."""
        if self._link is None:
            PROCESS.reset()
            return 0
        link = self._opened("virStreamAbort")
        self._leave_events()
        self._do("virStreamAbort", lambda: self._abort(link))
        self._ended = True
        return 0

    def _abort(self, link: StreamLink) -> None:
        link.abort()
        if not self._handle.link.alive:  # what the other side knows nothing of was no abort
            raise closed()

    def sendAll(  # noqa: N802
        self, handler: Callable[[virStream, int, Any], bytes], opaque: Any
    ) -> None:
        """Send what *handler* returns, called with how many bytes it may be, until it is empty.

        What the handler raises aborts the stream and is raised.
        """
        while True:
            data = self._asked(handler, STREAM_CHUNK, opaque)
            if not data:
                return
            self._send_whole(data, "sendAll")

    def recvAll(  # noqa: N802
        self, handler: Callable[[virStream, bytes, Any], int | None], opaque: Any
    ) -> None:
        """Call *handler* with each piece of data, to the end.

        What the handler raises aborts the stream and is raised; so does a negative return value.
        """
        while True:
            data = self.recv(STREAM_CHUNK)
            self._check_waited(data, "recvAll")
            if not data:
                return
            returned = self._asked(handler, data, opaque)
            self._check_returned(returned, "recvAll handler")

    def sparseRecvAll(  # noqa: N802
        self,
        handler: Callable[[virStream, bytes, Any], bytes | int | None],
        holeHandler: Callable[[virStream, int, Any], int | None],  # noqa: N803
        opaque: Any,
    ) -> None:
        """Do as `recvAll`, and call *holeHandler* with the length of each hole.

        What a handler raises leaves the stream open; a negative return value aborts it.
        """
        while True:
            found = self.recvFlags(STREAM_CHUNK, VIR_STREAM_RECV_STOP_AT_HOLE)
            self._check_waited(found, "sparseRecvAll")
            if found == _AT_HOLE:
                returned = holeHandler(self, self.recvHole(), opaque)
                self._check_returned(returned, "holeHandler handler")
            elif not found:
                return
            else:
                returned = handler(self, found, opaque)  # type: ignore[assignment, arg-type]
                self._check_returned(returned, "sparseRecvAll handler")

    def sparseSendAll(  # noqa: N802
        self,
        handler: Callable[[virStream, int, Any], bytes | int],
        holeHandler: Callable[[virStream, Any], tuple[bool, int]],  # noqa: N803
        skipHandler: Callable[[virStream, int, Any], int],  # noqa: N803
        opaque: Any,
    ) -> None:
        """Send data and holes.

        *holeHandler* returns whether data come next, and how long they or the hole are;
        *skipHandler* is called with the length of a hole, for the caller to skip it. What a handler
        raises leaves the stream open; a negative return value aborts it.
        """
        while True:
            in_data, length = holeHandler(self, opaque)
            if not in_data and length > 0:
                self.sendHole(length)
                if skipHandler(self, length, opaque) < 0:
                    self.abort()  # as libvirt-python has it, which fails with the next piece
                continue
            data = handler(self, min(STREAM_CHUNK, length), opaque)
            if isinstance(data, int):
                self._check_returned(data, "sparseSendAll handler")
            if not data:
                return
            self._send_whole(data, "sparseSendAll")  # type: ignore[arg-type]

    def eventAddCallback(  # noqa: N802
        self, events: int, cb: Callable[[virStream, int, Any], None], opaque: Any
    ) -> None:
        """Have *cb* called by the event loop while the stream is ready for one of *events*."""
        function = "virStreamEventAddCallback"
        link = self._opened(function)
        PROCESS.reset()
        if self._events is not None:
            detail = "multiple stream callbacks not supported"
            refuse(1, numbers.VIR_FROM_RPC, "internal error: %s", detail, function)
        loop = PROCESS.loop
        if loop is None:
            text = "An error occurred, but the cause is unknown"
            fail(RemoteError(1, numbers.VIR_FROM_NONE, text, int1=0, int2=0), function)
        self._events = StreamEvents(
            loop, link, index(events), lambda ready: cb(self, ready, opaque)
        )

    def eventUpdateCallback(self, events: int) -> None:  # noqa: N802
        """Have the callback called for other events."""
        function = "virStreamEventUpdateCallback"
        self._opened(function)
        self._registered(function).update(index(events))

    def eventRemoveCallback(self) -> None:  # noqa: N802
        """Have no callback called any more."""
        function = "virStreamEventRemoveCallback"
        self._opened(function)
        self._registered(function)
        self._leave_events()

    def _registered(self, function: str) -> StreamEvents:
        PROCESS.reset()
        if self._events is None:
            detail = "no stream callback registered"
            refuse(1, numbers.VIR_FROM_RPC, "internal error: %s", detail, function)
        return self._events

    def _leave_events(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.stop()

    def _open(
        self, procedure: Procedure[VolStreamArgs, Any], args: VolStreamArgs, *, sparse: bool
    ) -> None:
        """Open the stream by a call; an earlier one that it carried is aborted."""
        with reporting(procedure.name), self._handle.noticing():
            link = self._handle.link.open_stream(procedure, args)
        self._leave_events()
        self._link, self._sparse = link, sparse
        self._ended, self._failure, self._hole = False, None, 0

    def _opened(self, function: str) -> StreamLink:
        """Return the link of a stream that still runs.

        :raise libvirtError: it was never opened, has failed before, or was ended.
        """
        if self._link is None:
            refuse_unsupported(function, numbers.VIR_FROM_STREAMS)
        if self._failure is not None:
            fail(self._failure if self._handle.link.alive else closed().error, function)
        if self._ended:
            code, domain = numbers.VIR_ERR_OPERATION_FAILED, numbers.VIR_FROM_RPC
            refuse(code, domain, "operation failed: %s", "stream is closed", function)
        return self._link

    def _do(self, function: str, work: Callable[[], T]) -> T:
        with reporting(function), self._handle.noticing():
            try:
                return work()
            except RemoteFailure as failure:
                self._failure = failure.error
                raise

    def _asked(self, handler: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user's; what it raises aborts the stream."""
        try:
            return handler(self, *args)
        except BaseException:
            self._abort_quietly()
            raise

    def _abort_quietly(self) -> None:
        with suppress(libvirtError):  # what the handler raised says more
            self.abort()

    def _send_whole(self, data: bytes, method: str) -> None:
        view = memoryview(data)
        while view.nbytes:
            sent = self.send(view)  # type: ignore[arg-type]
            self._check_waited(sent, method)
            view = view[sent:]

    def _check_waited(self, returned: object, method: str) -> None:
        if returned == _WOULD_BLOCK:
            PROCESS.reset()
            raise libvirtError(f"cannot use {method} with nonblocking stream")

    def _check_returned(self, returned: object, what: str) -> None:
        if isinstance(returned, int) and returned < 0:
            self._abort_quietly()
            raise RuntimeError(f"{what} returned {returned}")

    def _refuse_hole(self, detail: str, function: str) -> NoReturn:
        code, domain = numbers.VIR_ERR_OPERATION_INVALID, numbers.VIR_FROM_RPC
        refuse(code, domain, _INVALID, detail, function)


def _refuse_flags(unknown: int) -> NoReturn:
    function = "remoteStreamRecvFlags"
    error = RemoteError(
        numbers.VIR_ERR_INVALID_ARG,
        numbers.VIR_FROM_REMOTE,
        f"unsupported flags ({unknown:#x}) in function {function}",
        str1=function,
        str2="flags",
        int1=0,
        int2=0,
    )
    fail(error, "virStreamRecvFlags")
