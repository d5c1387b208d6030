"""Children that do with files what another user may do, and pass on what they opened.

A file server that takes root's rights away (NFS with root_squash) lets only a file's owner at it.
A deputy is a child that is this owner; with a descriptor that it opened we read and write as if it
were ours, because the rights were asked for when it was opened. Nothing is forked without an exec.

A deputy ends when nothing was asked of it for a while, when we end, and when it hangs on a server
that is dead: that costs the request, and the next one gets a new child.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from storaged import command
from storaged.command import User
from storaged.errors import StorageError

_SCRIPT = Path(__file__).with_name("deputyscript.py")
#: How long one request may take, in seconds; an NFS server that has restarted lets clients wait.
TIMEOUT = 20.0
#: How long a child that was killed may take to end, in seconds.
_PATIENCE = 1.0
_REPLY = struct.Struct("=i")
#: How many of one pool's children are kept: a server may invent any number of owners.
_MOST = 8
#: Errors of our socket that mean that the child has ended.
_GONE = (ConnectionError, EOFError)


class Deputy:
    """What one user may do. All methods raise `OSError` with the kernel's error number.

    :raise OSError: ETIMEDOUT if the storage does not answer; what was asked may still be done.
    """

    def __init__(self, user: User, *, timeout: float = TIMEOUT) -> None:
        self.user = user
        self._timeout = timeout
        self._lock = threading.Lock()
        #: how often it was closed
        self._ends = 0
        #: whether the last request was taken by the child
        self._sent = False
        self._retired = False
        #: until when nothing is asked of it, by `time.monotonic`
        self._shunned = 0.0
        self._child: command.Child | None = None
        self._channel: socket.socket | None = None

    def open(self, directory: int, name: str, flags: int, mode: int = 0) -> int:
        """Open an entry of an open directory; the caller closes it."""
        opened = self._ask((b"open", os.fsencode(name), _number(flags), _number(mode)), directory)
        return _required(opened)

    def reopen(self, found: int, flags: int) -> int:
        """Open what a descriptor stands for, also one that only names it; the caller closes it."""
        return _required(self._ask((b"reopen", _number(flags & ~os.O_NOFOLLOW)), found))

    def mkdir(self, directory: int, name: str, mode: int) -> None:
        """Make a directory in an open one."""
        self._ask((b"mkdir", os.fsencode(name), _number(mode)), directory)

    def unlink(self, directory: int, name: str) -> None:
        """Remove an entry that is no directory."""
        self._ask((b"unlink", os.fsencode(name)), directory)

    def rmdir(self, directory: int, name: str) -> None:
        """Remove an empty directory."""
        self._ask((b"rmdir", os.fsencode(name)), directory)

    def link(self, directory: int, name: str, new: str) -> None:
        """Give an entry a second name; nothing is replaced."""
        self._ask((b"link", os.fsencode(name), os.fsencode(new)), directory)

    def rename(self, directory: int, name: str, new: str) -> None:
        """Rename an entry; what has the new name is replaced."""
        self._ask((b"rename", os.fsencode(name), os.fsencode(new)), directory)

    def rename_noreplace(self, directory: int, name: str, new: str) -> None:
        """Rename an entry; nothing is replaced. EINVAL where that cannot be promised."""
        self._ask((b"rename_noreplace", os.fsencode(name), os.fsencode(new)), directory)

    def chmod(self, fd: int, mode: int) -> None:
        """Set the mode of an open file."""
        self._ask((b"chmod", _number(mode)), fd)

    def chown(self, fd: int, owner: int, group: int) -> None:
        """Set the owner and the group of an open file; -1 leaves one as it is."""
        self._ask((b"chown", _number(owner), _number(group)), fd)

    def close(self) -> None:
        """End the child, also one that hangs, and its request; a later one starts another child."""
        self._ends += 1
        child = self._child
        if child is not None:
            child.kill()
        if self._lock.acquire(timeout=_PATIENCE):
            try:
                self._drop()
            finally:
                self._lock.release()

    def retire(self) -> None:
        """End the child once no request is under way; a later request has one for itself alone."""
        self._retired = True
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def reap(self) -> None:
        """Forget the child if it has ended."""
        if self._lock.acquire(blocking=False):
            try:
                if self._child is not None and self._child.wait(0) is not None:
                    self._drop()
            finally:
                self._lock.release()

    def _ask(self, words: Sequence[bytes], fd: int) -> int | None:
        if not self._lock.acquire(timeout=self._timeout):
            raise _timed_out()
        try:
            number, opened = self._answer(b"\0".join(words), fd)
        finally:
            self._lock.release()
            if self._retired:
                self.retire()
        if number:
            raise OSError(number, os.strerror(number))
        return opened

    def _answer(self, request: bytes, fd: int) -> tuple[int, int | None]:
        """Return the error number and the descriptor of a reply.

        A user may stop his deputy, so one that let us wait is not asked again for as long as that.
        """
        began = time.monotonic()
        if began < self._shunned:
            raise _timed_out()
        ends = self._ends
        try:
            try:
                return self._exchange(request, fd)
            except _GONE:
                if self._ends != ends or not self._was_idle():
                    raise
                self._drop()
                return self._exchange(request, fd)
        except (TimeoutError, *_GONE) as err:
            if isinstance(err, TimeoutError):
                now = time.monotonic()
                self._shunned = now + (now - began)
            self._drop()
            raise _timed_out() from err

    def _was_idle(self) -> bool:
        """Tell whether a child that has gone did so without having done anything."""
        child = self._child
        return child is not None and (not self._sent or child.wait(_PATIENCE) == 0)

    def _exchange(self, request: bytes, fd: int) -> tuple[int, int | None]:
        channel = self._channel or self._start()
        self._sent = False
        socket.send_fds(channel, [request], [fd])
        self._sent = True
        reply, opened = _receive(channel)
        if len(reply) < _REPLY.size:
            raise EOFError
        return int(_REPLY.unpack(reply)[0]), opened

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = theirs.fileno()
        groups = ",".join(map(str, _groups(self.user)))
        words = (str(fd), str(self.user.uid), str(self.user.gid), *([groups] if groups else []))
        try:
            self._child = command.start(
                (_python(), "-I", "-S", str(_SCRIPT), *words), command.environment({}), keep=[fd]
            )
        except StorageError as err:
            ours.close()
            raise OSError(errno.EACCES, err.detail) from err
        finally:
            theirs.close()
        ours.settimeout(self._timeout)
        self._channel = ours
        return ours

    def _drop(self) -> None:
        """Let go of the child; one that hangs in the kernel is reaped by a thread of its own."""
        child, self._child = self._child, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if child is None:
            return
        child.kill()
        if child.wait(0.2) is None:
            name = f"storaged-reap-{child.pid}"
            threading.Thread(target=child.reap, name=name, daemon=True).start()
        else:
            child.close(patience=0)


class Deputies:
    """One deputy for each user and group, made when it is asked for; a few of them are kept."""

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        #: the one that was asked for last is last
        self._deputies: dict[User, Deputy] = {}

    def of(self, uid: int, gid: int) -> Deputy:
        """Return the deputy of a user; those that have ended are reaped on the way.

        :raise PermissionError: root has none: he would be no more than we are.
        """
        if uid == 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        user = User(uid, gid)
        with self._lock:
            found = self._deputies.pop(user, None) or Deputy(user, timeout=self._timeout)
            self._deputies[user] = found
            while len(self._deputies) > _MOST:
                self._deputies.pop(next(iter(self._deputies))).retire()
            for deputy in self._deputies.values():
                deputy.reap()
            return found

    def close(self) -> None:
        """End all children; a later request starts another one."""
        with self._lock:
            deputies = tuple(self._deputies.values())
            self._deputies.clear()
        for deputy in deputies:
            deputy.close()


def _receive(channel: socket.socket) -> tuple[bytes, int | None]:
    """Return a reply and the descriptor that came with it.

    `socket.recv_fds` drops the flag that keeps it from programs that are started meanwhile.
    """
    room = socket.CMSG_SPACE(_REPLY.size)
    reply, others, _, _ = channel.recvmsg(_REPLY.size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in others:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= _REPLY.size:
            return reply, int(_REPLY.unpack_from(data)[0])
    return reply, None


def _groups(user: User) -> list[int]:
    """Return the groups that a user is in; those without a name are in the given one alone."""
    with suppress(KeyError, OSError):
        return os.getgrouplist(pwd.getpwuid(user.uid).pw_name, user.gid)
    return []


def _number(value: int) -> bytes:
    return b"%d" % value


def _required(fd: int | None) -> int:
    if fd is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return fd


def _timed_out() -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _python() -> str:
    """Return an interpreter: a program that embeds one says that it is itself."""
    own = sys.executable or ""
    return own if Path(own).name.startswith("python") else "/usr/bin/python3"
