"""The lock that keeps a second engine out of a state directory, libvirt's daemons included.

It is libvirt's own: a write lock on the first byte of ``driver.pid``, whose text is the holder's
process id. Libvirt takes a POSIX lock; this is an open file description lock, which conflicts with
that in both directions and, other than it, also between two engines of one process. The kernel
gives it back when the process dies, however that happens.

Beside it stands ``owner.json``, which says what kind of engine holds the lock: it is worth waiting
for an embedded one, which lives as long as a command, and never for a daemon.

Sources: fcntl(2); libvirt's behaviour, which removes ``driver.pid`` when its daemon ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from storaged.atomic import make_directory, read_file, remove_file, write_file
from storaged.errors import ResourceBusy, StorageError, SystemFailure, system_errors
from storaged.paths import Paths, printable
from storaged.process import start_time

#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

#: How long to sleep between two tries, in seconds: from the first to the last, by the factor.
_FIRST_SLEEP, _LAST_SLEEP, _GROWTH = 0.002, 0.025, 1.5

#: The most bytes that an ``owner.json`` may have.
_OWNER_LIMIT = 16384

#: What stops a daemon of libvirt for good: its sockets would start it again.
_STOP = {
    "libvirtd": "systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket "
    "libvirtd-admin.socket",
    "virtstoraged": "systemctl stop virtstoraged.service virtstoraged.socket "
    "virtstoraged-ro.socket virtstoraged-admin.socket",
}


class EngineKind(StrEnum):
    """What sort of program an engine runs in."""

    #: a library or a command: it ends soon, so that others wait for it
    EMBEDDED = "embedded"
    #: a service: others talk to it instead
    DAEMON = "daemon"


@dataclass(frozen=True, slots=True)
class Owner:
    """The engine that holds the lock.

    :param pid: its process; None where nobody knows.
    :param kind: None where it did not say; libvirt's daemons do not.
    :param socket: where clients reach it.
    """

    pid: int | None = None
    kind: EngineKind | None = None
    socket: str | None = None

    @property
    def program(self) -> str:
        """The name of its program as the kernel knows it, "an unknown program" if it is gone."""
        return _comm(self.pid) or "an unknown program"


class DriverLock:
    """The lock of one state directory; nobody holds it until `acquire`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def acquire(self, *, timeout: float, kind: EngineKind, socket: str | None = None) -> HeldLock:
        """Take the lock.

        :param timeout: seconds to wait for another embedded engine; 0 tries once.
        :param kind: what we are, for others who want the lock.
        :param socket: where we can be reached.
        :raise ResourceBusy: a daemon holds it (at once), or an embedded engine still does after
            *timeout*; names the process.
        :raise SystemFailure: the file cannot be made or written; nothing is held then.
        """
        try:
            make_directory(self._paths.state, mode=self._paths.public_mode)
            held = HeldLock(self._paths, self._wait(timeout))
            try:
                held.announce(kind, socket)
            except BaseException:
                held.release()
                raise
        except SystemFailure as err:
            if err.errno in (errno.EACCES, errno.EPERM) and not self._paths.is_session:
                err.advice = "Run it as root, or use storage of your own: storagectl --session"
            raise
        return held

    def _wait(self, timeout: float) -> int:
        """Return a descriptor that holds the lock, as soon as there is one."""
        deadline = time.monotonic() + timeout
        sleep = _FIRST_SLEEP
        while (fd := self._try()) is None:
            owner = self.owner() or Owner()
            left = deadline - time.monotonic()
            if owner.kind is EngineKind.DAEMON or left <= 0:
                raise self._busy(owner, timeout)
            time.sleep(min(sleep, left))
            sleep = min(sleep * _GROWTH, _LAST_SLEEP)
        return fd

    def owner(self) -> Owner | None:
        """Return who holds the lock at this moment, None if nobody does.

        Takes no lock and changes nothing. A holder of a POSIX lock is a libvirt daemon.

        :raise SystemFailure: the file cannot be looked at.
        """
        with system_errors(f"Failed to open pid file '{printable(self._paths.lock_file)}'"):
            try:
                fd = os.open(self._paths.lock_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
                kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
                text = os.pread(fd, 20, 0)
            finally:
                os.close(fd)
        if kind == fcntl.F_UNLCK:
            return None
        if pid >= 0:  # a POSIX lock; 0 is a process of another pid namespace
            return Owner(pid or None, EngineKind.DAEMON)
        # A holder that has not yet said what it is counts as embedded: one more look will tell.
        hint = text.strip()
        return self._announced() or Owner(int(hint) if hint.isdigit() else None)

    def _try(self) -> int | None:
        """Return a descriptor that holds the lock, None if somebody else does."""
        shown = printable(self._paths.lock_file)
        while True:
            with system_errors(f"Failed to open pid file '{shown}'"):
                flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(self._paths.lock_file, flags, 0o644)
            try:
                with system_errors(f"Failed to acquire pid file '{shown}'"):
                    if not lock_first_byte(fd):
                        os.close(fd)
                        return None
                    if self._is_current(fd, shown):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            # Libvirt removed the file when it ended: what we locked is no longer the lock.
            os.close(fd)

    def _is_current(self, fd: int, shown: str) -> bool:
        locked = os.fstat(fd)
        if not stat.S_ISREG(locked.st_mode):
            raise SystemFailure(f"Failed to acquire pid file '{shown}', which is no regular file")
        try:
            return os.path.samestat(locked, self._paths.lock_file.lstat())
        except FileNotFoundError:
            return False

    def _announced(self) -> Owner | None:
        """Return what ``owner.json`` says, if the process that wrote it still lives."""
        try:
            data = json.loads(read_file(self._paths.owner_file, _OWNER_LIMIT) or b"null")
            pid, socket = data["pid"], data["socket"]
            kind, started = EngineKind(data["kind"]), data["started"]
        except (StorageError, ValueError, TypeError, KeyError, RecursionError):
            return None
        if type(pid) is not int or started is None or started != start_time(pid):
            return None
        return Owner(pid, kind, socket if isinstance(socket, str) else None)

    def _busy(self, owner: Owner, timeout: float) -> ResourceBusy:
        directory = printable(self._paths.state)
        who = f"process {owner.pid} ({owner.program})" if owner.pid else "another process"
        if owner.kind is EngineKind.DAEMON:
            detail = f"storage state directory '{directory}' is in use by {who}"
            return ResourceBusy(detail, pid=owner.pid, advice=self._daemon_advice(owner))
        detail = f"storage state directory '{directory}' is still in use by {who}"
        waited = f"Waited {timeout:g} seconds for it to end."
        look = f" See what it does: ps -fp {owner.pid}" if owner.pid else ""
        return ResourceBusy(detail, pid=owner.pid, advice=waited + look)

    def _daemon_advice(self, owner: Owner) -> str:
        if owner.socket is not None:
            where = "session" if self._paths.is_session else "system"
            uri = f"storage:///{where}?socket={owner.socket}"
            return f"Let it do the work: virsh -c '{uri}' pool-list --all"
        known = _STOP.get(owner.program)
        if known is None and owner.pid is None:
            return "Stop the libvirt daemon, which may run in a container."
        return f"Stop it first: {known or f'kill {owner.pid}'}"


class HeldLock:
    """A lock that is held, until `release`, the end of a ``with`` block or of the process.

    A child that is forked without exec shares it. The file stays behind, as empty of meaning as
    any lock file without its lock.
    """

    def __init__(self, paths: Paths, fd: int) -> None:
        self._paths = paths
        self._fd = fd

    def announce(self, kind: EngineKind, socket: str | None) -> None:
        """Say who holds the lock: the process id in its file, the rest beside it.

        :raise SystemFailure: one of the files cannot be written; the lock is still held.
        """
        pid = os.getpid()
        with system_errors(f"Failed to write to pid file '{printable(self._paths.lock_file)}'"):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(pid).encode(), 0)
        owner = {"kind": kind, "pid": pid, "started": start_time(pid), "socket": socket}
        make_directory(self._paths.runtime)
        write_file(self._paths.owner_file, json.dumps(owner).encode(), durable=False)

    def release(self) -> None:
        """Give the lock back. Calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            with suppress(StorageError):  # a stale owner is recognised by its process
                remove_file(self._paths.owner_file, durable=False)
            # Said aloud, because a forked child may hold a copy of the descriptor.
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0))
        finally:
            os.close(fd)

    def __enter__(self) -> HeldLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def lock_first_byte(fd: int, *, wait: bool = False) -> bool:
    """Take a write lock as libvirt's daemons do on files that are one process's; tell whether.

    :param wait: until whoever has it gives it back.
    :raise OSError: the file cannot be locked.
    """
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: fcntl(2) allows either
        return False
    return True


def _comm(pid: int | None) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").rstrip("\n")
    except OSError:
        return None
