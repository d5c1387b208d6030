"""The child's side of `storaged.isolate`: a script that serves one class of ours.

::

    python -I isolatescript.py FD PACKAGE MODULE

FD is a stream socket, PACKAGE the directory of the package storaged, MODULE what is served: a
module of it that has a class `Service`. Each message is the length of what follows in four bytes,
little endian, and then JSON::

    [id, verb, {words}, 0]              a request; with 1 for 0 a descriptor has come with it
    [0, "cancel", {"id": id}, 0]        whoever asked has lost interest
    [id, "done", result]                the replies
    [id, "failed", [class, errno, text]]
    [id, "progress", [done, total]]
    [0, name, fact]                     something has happened that nobody asked for

The interpreter may be another one than ours, because a library's bindings come for one version
only. So this imports the standard library alone, and reaches the package storaged without running
what stands in its ``__init__``.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types
from contextlib import suppress
from typing import Any

#: How many requests are worked on at once.
THREADS = 64
#: The child has ended so many seconds after the other end has gone, whatever it is doing.
ENDING = 30
#: How many of them the requests under way have, before the service is closed.
_LAST_WORDS = 20.0
#: Progress is told at most so often, in seconds.
_INTERVAL = 0.1
#: No message is longer, in bytes: a list of a million names is shorter.
_LONGEST = 1 << 28
_RECEIVED = 1 << 16
_LENGTH = struct.Struct("<I")
_DESCRIPTOR = struct.Struct("@i")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Cancelled(Exception):
    """Whoever asked has lost interest."""


def encode(message: list[Any]) -> bytes:
    """Return a message as it is sent.

    :raise TypeError: JSON cannot say that.
    :raise ValueError: it is too long, or JSON cannot say it.
    """
    data = _to_json(message).encode()
    if len(data) > _LONGEST:
        raise ValueError(f"a message of {len(data)} bytes")
    return _LENGTH.pack(len(data)) + data


class Channel:
    """Messages over a stream socket, which it closes. Any thread may send, one receives.

    :param descriptors: whether the other end may send some; else they are dropped.
    """

    def __init__(self, sock: socket.socket, *, descriptors: bool = False) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._room = socket.CMSG_SPACE(_DESCRIPTOR.size) if descriptors else 0
        self._buffer = bytearray()
        self._fds: list[int] = []

    def send(self, data: bytes, fd: int | None = None) -> None:
        """Send a message.

        :raise OSError: the other end has gone or takes nothing; nothing more can be sent then.
        """
        others = []
        if fd is not None:
            others.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd)))
        with self._sending:
            sent = self._socket.sendmsg([data], others, socket.MSG_NOSIGNAL)
            while sent < len(data):
                sent += self._socket.send(memoryview(data)[sent:], socket.MSG_NOSIGNAL)

    def tell(self, data: bytes) -> None:
        """Send a message; if nobody is there to take it, that is no error."""
        with suppress(OSError):
            self.send(data)

    def receive(self) -> list[Any] | None:
        """Return the next message, None at the end.

        :raise ValueError: it is none.
        """
        head = self._take(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > _LONGEST:
            raise ValueError(f"a message of {length} bytes")
        body = self._take(length)
        if body is None:
            return None
        message = json.loads(body.decode())
        if not isinstance(message, list):
            raise ValueError("a message that is no list")
        return message

    def descriptor(self) -> int:
        """Return the descriptor that has come with the message that was received last."""
        return self._fds.pop(0)

    def hang_up(self) -> None:
        """Let both ends see the end, at once."""
        with self._ending, suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, after `hang_up`; for the one who receives."""
        with self._sending, self._ending:  # its number will be another's
            self._socket.close()

    def _take(self, size: int) -> bytearray | None:
        while len(self._buffer) < size:
            try:
                data, others, flags, _ = self._socket.recvmsg(
                    _RECEIVED, self._room, socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                return None
            self._fds.extend(_DESCRIPTOR.unpack(found)[0] for _, _, found in others)
            if self._room and flags & socket.MSG_CTRUNC:
                raise ValueError("no room for one more descriptor")
            if not data:
                return None
            self._buffer += data
        taken = self._buffer[:size]
        del self._buffer[:size]
        return taken


class Task:
    """One request under way.

    :param fd: the descriptor that has come with it, closed when the request ends; None: none has.
    """

    def __init__(self, channel: Channel, number: int, fd: int | None) -> None:
        self.fd = fd
        self.cancelled = False
        self._channel = channel
        self._number = number
        self._told = 0.0

    def checkpoint(self, done: int = 0, total: int = 0) -> None:
        """Tell how far it is, and stop here if nobody is interested any more.

        :raise Cancelled: then.
        """
        if self.cancelled:
            raise Cancelled
        now = time.monotonic()
        if total and now - self._told >= _INTERVAL:
            self._told = now
            self._channel.tell(encode([self._number, "progress", [done, total]]))

    def end(self) -> None:
        """Close the descriptor."""
        if self.fd is not None:
            os.close(self.fd)


class Server:
    """Hands requests to methods of a service, ``do_VERB(task, **words)``, each on a thread."""

    def __init__(self, channel: Channel, service: Any) -> None:
        self._channel = channel
        self._service = service
        self._waiting: queue.SimpleQueue[tuple[int, str, dict[str, Any], Task]] = (
            queue.SimpleQueue()
        )
        self._tasks: dict[int, Task] = {}
        self._threads = 0

    def serve(self) -> None:
        """Serve until the other end has gone; what is under way then may end, within a bound."""
        while (message := self._channel.receive()) is not None:
            number, verb, words, with_fd = message
            if number:
                self._begin(number, verb, words, self._channel.descriptor() if with_fd else None)
            elif (task := self._tasks.get(words["id"])) is not None:
                task.cancelled = True
        signal.alarm(ENDING)  # it ends also a thread that never lets go of the interpreter
        for task in list(self._tasks.values()):
            task.cancelled = True
        until = time.monotonic() + _LAST_WORDS
        while self._tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _begin(self, number: int, verb: str, words: dict[str, Any], fd: int | None) -> None:
        if verb == "ping":  # it shows that this thread is well, whatever the others do
            self._channel.tell(encode([number, "done", None]))
            return
        self._tasks[number] = task = Task(self._channel, number, fd)
        self._waiting.put((number, verb, words, task))
        if len(self._tasks) > self._threads and self._threads < THREADS:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            number, verb, words, task = self._waiting.get()
            reply = self._answer(number, verb, words, task)
            task.end()
            self._tasks.pop(number, None)
            self._channel.tell(reply)

    def _answer(self, number: int, verb: str, words: dict[str, Any], task: Task) -> bytes:
        try:
            task.checkpoint()
            return encode([number, "done", getattr(self._service, f"do_{verb}")(task, **words)])
        except Cancelled:
            failure = ["Cancelled", 0, ""]
        except BaseException as err:  # whatever it is: who asked is told
            code = getattr(err, "errno", None)
            failure = [type(err).__name__, abs(code) if isinstance(code, int) else 0, str(err)]
        return encode([number, "failed", failure])


def load(package: str, module: str) -> Any:
    """Import a module of the package storaged that lies there, without the package's own code."""
    storaged = types.ModuleType("storaged")
    storaged.__path__ = [package]
    sys.modules["storaged"] = storaged
    return importlib.import_module(module)


def main(argv: list[str]) -> None:
    """Serve a module's `Service`. It never returns: no thread that hangs keeps the process."""
    fd, package, module = int(argv[0]), argv[1], argv[2]
    os.set_inheritable(fd, False)
    os.chdir("/")
    status = 1
    try:
        channel = Channel(socket.socket(fileno=fd), descriptors=True)
        service = load(package, module).Service(
            lambda name, fact: channel.tell(encode([0, name, fact]))
        )
        Server(channel, service).serve()
        service.close()
        status = 0
    except BaseException:  # the last line of it is told
        traceback.print_exc()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
