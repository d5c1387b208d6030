"""Unix sockets to listen on: made with the right mode from the first moment, taken over, adopted.

A path may be longer than the 107 bytes that an address has room for; then a descriptor of its
directory leads there.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storaged.errors import ResourceBusy, SystemFailure, system_errors

#: How many bytes an address has room for.
_ADDRESS_MAX: Final = 107
#: ``struct ucred``: process, user and group.
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that listens.

    :param inode: of the file that this process made; None for a socket that was handed to it.
    """

    socket: socket.socket
    path: Path
    inode: int | None

    def close(self) -> None:
        """Stop listening, and remove the file if it is still the one that was made."""
        self.socket.close()
        if self.inode is None:
            return
        with suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def bind(path: Path, *, mode: int, group: int | None = None, backlog: int = 1000) -> Bound:
    """Listen at *path*; its directory must be there. A socket that nobody serves is replaced.

    Nobody can connect before mode and group are right.

    :param group: the id of the group that shall own it; None leaves the process's own.
    :param backlog: how many connections may wait to be accepted.
    :raise ResourceBusy: somebody serves the socket; the message says who.
    :raise SystemFailure: there is no such directory, what stands there is no socket ...
    """
    with system_errors(f"Failed to bind socket to '{path}'"):
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _require_free(directory, path)
            return _bound(directory, path, mode, group, backlog)
        finally:
            os.close(directory)


def adopt(fd: int) -> Bound:
    """Take a listening socket that was handed to this process, such as by systemd.

    :raise SystemFailure: it is no unix socket that listens.
    """
    with system_errors(f"cannot use the socket {fd} that was handed over"):
        found = socket.socket(fileno=fd)
        if found.family != socket.AF_UNIX or not found.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            found.detach()
            raise OSError(errno.EINVAL, "not a unix socket that listens")
        found.setblocking(False)
        os.set_inheritable(fd, False)
        name = found.getsockname()
    return Bound(found, Path(os.fsdecode(name) if name else ""), None)


def _bound(directory: int, path: Path, mode: int, group: int | None, backlog: int) -> Bound:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)
        made.bind(_address(directory, path))
        # Until it listens nobody can connect, whatever mode the umask has left it.
        if group is not None:
            os.chown(path.name, -1, group, dir_fd=directory)
        os.chmod(path.name, mode, dir_fd=directory)
        inode = os.stat(path.name, dir_fd=directory).st_ino
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return Bound(made, path, inode)


def _address(directory: int, path: Path) -> str:
    """Return *path*, or what leads there if it is too long for an address."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX:
        return str(path)
    return f"/proc/self/fd/{directory}/{path.name}"


def _require_free(directory: int, path: Path) -> None:
    """Raise if *path* is a socket that somebody serves, or no socket at all."""
    try:
        found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SystemFailure(f"Failed to bind socket to '{path}', which is no socket", errno.EEXIST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(directory, path))
        except ConnectionRefusedError:
            return  # who made it is gone
        except BlockingIOError:  # as many as may wait do wait: it is served, but busy
            raise _served(path, None) from None
        raise _served(path, _peer(probe))


def _peer(probe: socket.socket) -> int:
    """Return the process that listens."""
    found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[0])


def _served(path: Path, pid: int | None) -> ResourceBusy:
    who = "somebody"
    if pid:
        who = f"process {pid}"
        with suppress(OSError):
            who += f" ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return ResourceBusy(
        f"the socket '{path}' is served by {who}",
        pid=pid or None,
        advice="Stop that daemon first, or serve below another directory with --root.",
    )
