"""What goes out to a client: from the loop, and small replies from the threads that made them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable


class Outlet:
    """The sending side of one connection.

    Threads may send while asyncio has nothing unsent. Whether it has is kept here and not asked of
    asyncio from a thread, which takes a partly sent buffer out of its queue for a moment.

    :param soon: has something called on the loop, from any thread.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        connected: socket.socket,
        soon: Callable[[Callable[[], None]], bool],
    ) -> None:
        self._transport = transport
        self._socket = connected
        self._soon = soon
        #: held by whoever sends, so that parts of two packets do not mix
        self._lock = threading.Lock()
        #: whether asyncio had unsent bytes when the loop last sent something
        self._buffered = False
        #: the end of a packet whose beginning was sent from a thread
        self._unsent = b""
        self._ended = False

    def send(self, *parts: bytes | memoryview) -> None:
        """Send parts of packets, at once as far as the client takes them. On the loop."""
        transport = self._transport
        with self._lock:
            if self._ended or transport.is_closing():
                return
            if self._unsent:
                transport.write(self._unsent)
                self._unsent = b""
            if len(parts) == 1:
                transport.write(parts[0])
            elif parts:
                left = list(parts)
                if not transport.get_write_buffer_size():
                    _skip(left, self._send_now(left))
                if left:
                    transport.write(b"".join(left))
            self._buffered = transport.get_write_buffer_size() > 0

    def send_from_thread(self, packet: bytes) -> bool:
        """Send a small packet without waking the loop, if nothing is unsent; tell whether it was.

        From any thread.
        """
        with self._lock:
            if self._ended or self._buffered or self._unsent or self._transport.is_closing():
                return False
            sent = self._send_now([packet])
            if sent == 0:
                return False
            if sent < len(packet):
                self._unsent = packet[sent:]
                self._soon(self.send)
        return True

    def end(self) -> None:
        """Send nothing more: the socket is about to be closed, and its number may be another's."""
        with self._lock:
            self._ended = True

    def _send_now(self, parts: list[bytes | memoryview] | list[bytes]) -> int:
        """Send what the kernel takes without waiting; return how many bytes that was."""
        try:
            return self._socket.sendmsg(parts)
        except OSError:
            return 0  # nothing fits, or it is broken, which the transport finds out


def _skip(parts: list[bytes | memoryview], sent: int) -> None:
    """Remove the first *sent* bytes."""
    done = 0
    while done < len(parts) and sent >= len(parts[done]):
        sent -= len(parts[done])
        done += 1
    del parts[:done]
    if sent:
        parts[0] = memoryview(parts[0])[sent:]
