"""One child of `storaged.isolate`, from its start to its death, and the calls that it answers."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from storaged import command
from storaged.errors import Cancelled, OperationFailed, StorageError, Timeout
from storaged.isolatescript import ENDING, THREADS, Channel, encode
from storaged.job import Job

_SCRIPT = Path(__file__).with_name("isolatescript.py")
#: How long a child may take to show that it is well, or to take a request, in seconds.
_PULSE = 5.0
#: How often a call looks whether its job was cancelled, in seconds.
_SLICE = 0.1
#: How long a child that has hung up of itself may take to tell how it ended, in seconds.
_ENDING = 1.0
#: How long it may take to end; it sees to that itself before.
_PATIENCE = ENDING + 5.0
#: What every child answers, whatever else it does.
_PING = "ping"
_TIMEVAL = struct.Struct("@qq")

#: Hears what is told that nobody asked for: its name and what it says.
Listener = Callable[[str, Any], None]


class ServiceError(Exception):
    """What a call failed with in the child.

    :param kind: the name of the exception's class.
    :param errno: its error number, 0 if it has none.
    """

    def __init__(self, kind: str, errno: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.errno = errno


class ChildDied(OperationFailed):
    """The child has died under a call, or could not be started."""


class Reply:
    """What a call will be answered with."""

    def __init__(self, session: Session, number: int, verb: str) -> None:
        self.verb = verb
        self._session = session
        self._number = number
        #: held until the end
        self._gate = threading.Lock()
        self._gate.acquire()
        self._ended = False
        self._result: Any = None
        self._error: Exception | None = None
        self._progress: tuple[int, int] | None = None

    @property
    def ended(self) -> bool:
        """Whether there is an answer."""
        return self._ended

    def take(self, timeout: float, job: Job[Any] | None = None) -> Any:
        """Wait for the answer and return it.

        :param timeout: in seconds; as long as there is progress it begins anew.
        :param job: hears of the progress; its cancel stops the call where that can be done.
        :raise ServiceError: what the service said.
        :raise ChildDied: nobody will answer.
        :raise Timeout: nobody has answered in time.
        :raise Cancelled: the job was cancelled, and the call has ended without success.
        """
        until = time.monotonic() + timeout
        told, cancelled = None, False
        longest = threading.TIMEOUT_MAX if job is None else _SLICE
        while not self._gate.acquire(timeout=max(min(until - time.monotonic(), longest), 0)):
            if self._progress != told:
                told = self._progress
                until = time.monotonic() + timeout
            if job is not None and not cancelled:
                try:
                    job.checkpoint(*(told or ()))
                except Cancelled:
                    cancelled = True
                    self._session.cancel(self._number)
            if time.monotonic() >= until:
                self._give_up(timeout)
                break
        self._gate.release()
        error = self._error
        if error is None:
            return self._result
        if cancelled and isinstance(error, ServiceError) and error.kind == "Cancelled":
            raise Cancelled(f"'{self.verb}' was cancelled")
        raise error

    def wait(self, timeout: float) -> bool:
        """Wait for the answer; return whether it has come."""
        found = self._gate.acquire(timeout=timeout)
        if found:
            self._gate.release()
        return found

    def _give_up(self, timeout: float) -> None:
        """Raise, unless the answer has come after all; then the gate is ours."""
        well = self._session.give_up(self._number, timeout)
        if not self._gate.acquire(timeout=0 if well else _PULSE):
            raise Timeout(f"no answer to '{self.verb}' within {timeout:g} s")

    # What the session calls

    def progress(self, done: int, total: int) -> None:
        """Take note of how far the work is."""
        self._progress = (done, total)

    def end(self, result: Any, error: Exception | None = None) -> None:
        """End it; called once."""
        self._result, self._error = result, error
        self._ended = True
        self._gate.release()


class Session:
    """One child, from its start to its death.

    :param hear: called on a thread that must not wait.
    """

    def __init__(self, child: command.Child, channel: Channel, hear: Listener) -> None:
        self._child = child
        self._channel = channel
        self._hear = hear
        self._lock = threading.Lock()
        self._numbers = 0
        self._pending: dict[int, Reply] = {}
        #: calls that nobody waits for any more, and that have not ended
        self._given_up: set[int] = set()
        #: when a call has ended or made progress, by `time.monotonic`
        self._moved = time.monotonic()
        #: why we ended it
        self._ended: str | None = None
        #: how it has ended
        self._dead: str | None = None
        threading.Thread(target=self._listen, name="storaged-isolate", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether calls can be made."""
        return self._ended is None and self._dead is None

    @property
    def ended(self) -> bool:
        """Whether it is we who ended it."""
        return self._ended is not None

    @property
    def pid(self) -> int:
        """The child's process."""
        return self._child.pid

    def begin(self, verb: str, words: Mapping[str, Any], fd: int | None = None) -> Reply:
        """Begin a call.

        :param words: what JSON can say.
        :param fd: a descriptor; it stays the caller's, the child gets a copy for this call.
        :raise ChildDied: there is no child any more.
        """
        if fd is not None:
            os.fstat(fd)  # a closed one is the caller's fault, not the child's
        with self._lock:
            self._numbers += 1
            number = self._numbers
        data = encode([number, verb, words, int(fd is not None)])
        reply = Reply(self, number, verb)
        with self._lock:
            if not self.alive:
                raise self._death()
            self._pending[number] = reply
        self._send(data, fd)
        return reply

    def cancel(self, number: int) -> None:
        """Tell the child that nobody is interested in a call any more."""
        self._send(encode([0, "cancel", {"id": number}, 0]))

    def give_up(self, number: int, timeout: float) -> bool:
        """Take note that nobody waits for a call any more, and kill a child that is of no use.

        That is one that gives no sign, and one whose threads are all lost: with as many calls
        given up as it has threads, none has moved for so long.

        :returns: whether it lives.
        """
        with self._lock:
            if number in self._pending:
                self._given_up.add(number)
            silent = time.monotonic() - self._moved
            lost = len(self._given_up) >= THREADS and silent >= timeout
        if lost:
            self.kill("was killed: it does not come to an end with anything")
            return False
        try:
            self.cancel(number)
            sign = self.begin(_PING, {})
        except ChildDied:
            return False
        if not sign.wait(_PULSE):
            self.kill("was killed: it gave no sign of life")
        return self.alive

    def kill(self, why: str = "was killed") -> None:
        """Kill the child: its calls fail."""
        self._part(why)
        self._child.kill()
        self._channel.hang_up()

    def close(self) -> None:
        """Let the child end by itself, in the background; its calls fail."""
        self._part("was closed")
        self._channel.hang_up()

    def _part(self, why: str) -> None:
        with self._lock:
            if self.alive:
                self._ended = why

    def _send(self, data: bytes, fd: int | None = None) -> None:
        try:
            self._channel.send(data, fd)
        except BlockingIOError:
            self.kill("was killed: it takes no requests")
        except OSError:  # it has died; the calls end as soon as it is known of what
            self._channel.hang_up()

    def _listen(self) -> None:
        """Take the replies until the child has gone."""
        try:
            while (message := self._channel.receive()) is not None:
                self._take(*message)
        except Exception as err:  # a child that has gone mad
            self.kill(f"was killed: it talks nonsense ({err})")
        self._channel.hang_up()
        self._bury()

    def _take(self, number: int, what: str, value: Any) -> None:
        if not number:
            _tell(self._hear, what, value)
            return
        if what == "progress":
            reply = self._pending.get(number)
            if reply is not None:
                reply.progress(*value)
        else:
            error = None if what == "done" else ServiceError(*value)
            with self._lock:
                reply = self._pending.pop(number, None)
                self._given_up.discard(number)
            if reply is not None:
                reply.end(value, error)
        if reply is not None and reply.verb != _PING:
            self._moved = time.monotonic()

    def _bury(self) -> None:
        status = self._child.wait(_ENDING if self._ended is None else 0)
        found = _how(status, self._child.said())
        with self._lock:
            self._dead = self._ended or found
            pending = list(self._pending.values())
            self._pending.clear()
        for reply in pending:
            reply.end(None, self._death())
        self._channel.close()
        if self._child.wait(_PATIENCE) is None:  # until then it may bring its work to an end
            self._child.kill()
        self._child.reap()

    def _death(self) -> ChildDied:
        return ChildDied(f"the process that does the work {self._ended or self._dead}")


def start(python: str, module: str, hear: Listener, package: Path = _SCRIPT.parent) -> Session:
    """Start a child.

    :param package: the directory of the package storaged.
    :raise ChildDied: it cannot be run.
    """
    child = None
    ours, theirs = _sockets()
    try:
        # a child that takes nothing must not hold whoever asks
        patience = _TIMEVAL.pack(*divmod(int(_PULSE * 1_000_000), 1_000_000))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        fd = theirs.fileno()
        argv = (python, "-I", str(_SCRIPT), str(fd), str(package.absolute()), module)
        child = command.start(argv, command.environment(os.environ), keep=[fd])
        return Session(child, Channel(ours), hear)
    except (OSError, RuntimeError, StorageError) as err:  # RuntimeError: not one more thread
        ours.close()
        if child is not None:
            child.close(patience=0)
        raise _not_started(err) from err
    finally:
        theirs.close()


def _sockets() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as err:
        raise _not_started(err) from err


def _not_started(err: Exception) -> ChildDied:
    why = err.detail if isinstance(err, StorageError) else str(err)
    return ChildDied(f"the process that does the work cannot be started: {why}")


def _how(status: int | None, said: str) -> str:
    """Say how a child has ended, and the last that it said itself."""
    if status is None:
        how = "has hung up"
    elif status >= 0:
        how = f"has ended with status {status}"
    else:
        how = f"was ended by signal {-status}"
        with suppress(ValueError):
            how += f" ({signal.Signals(-status).name})"
    lines = said.splitlines()
    # what has aborted says why, and then where it was
    telling = [line for line in lines if "assert" in line or "terminate called" in line]
    return f"{how}: {(telling or lines)[-1]}" if lines and status else how


def _tell(hear: Listener, name: str, fact: Any) -> None:
    """Tell what happened; the listener's faults are not the child's."""
    try:
        hear(name, fact)
    except Exception:
        import logging  # needed only here, and its import is slow

        logging.getLogger(__name__).exception("a listener to a child failed")
