"""Do with files what one user may do: run as a script of its own, which becomes that user.

::

    python -I -S deputyscript.py FD UID GID [GROUP,...]

FD is a SOCK_SEQPACKET socket. A request is its words, with NUL between them, and the descriptors
that it is about; the reply is an error number of four bytes, 0 for none, and the descriptor that
was opened. It ends when the other end is closed, or when nothing was asked for a while.

It is started as root, because the user may have no way to the interpreter. It imports the standard
library only, nothing of storaged, and gives its rights up for good before it reads a word: UID is
never 0.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

#: How long it waits for something to do, in seconds.
IDLE = 60.0
#: More than the longest request: two names, each of 255 bytes.
_ROOM = 4096
_MAX_FDS = 1
_EINVAL = 22
_NOREPLACE = 1


def main(argv: list[str]) -> int:
    """Become the user and serve; return the exit status."""
    fd, uid, gid = (int(word) for word in argv[:3])
    groups = [int(word) for word in argv[3].split(",")] if len(argv) > 3 else []
    os.chdir("/")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # takes all capabilities away as well
    os.umask(0)  # modes are given in full
    with socket.socket(fileno=fd) as channel:
        channel.settimeout(IDLE)
        try:
            while _serve(channel):
                pass
        except (TimeoutError, ConnectionError):
            pass
    return 0


def _serve(channel: socket.socket) -> bool:
    """Answer one request; tell whether there was one."""
    request, fds, _, _ = socket.recv_fds(channel, _ROOM, _MAX_FDS)
    if not request:
        return False
    opened = None
    try:
        opened = _do(request.split(b"\0"), fds)
        number = 0
    except OSError as err:
        number = err.errno or _EINVAL
    finally:
        for fd in fds:
            os.close(fd)
    socket.send_fds(channel, [struct.pack("=i", number)], [] if opened is None else [opened])
    if opened is not None:
        os.close(opened)
    return True


def _do(words: list[bytes], fds: list[int]) -> int | None:
    """Do one thing below, or with, the descriptor; return the one that it opened."""
    verb, *rest = words
    (at,) = fds
    opened = None
    if verb == b"open":
        opened = os.open(rest[0], int(rest[1]) | os.O_CLOEXEC, int(rest[2]), dir_fd=at)
    elif verb == b"reopen":
        opened = os.open(f"/proc/self/fd/{at}", int(rest[0]) | os.O_CLOEXEC)
    elif verb == b"mkdir":
        os.mkdir(rest[0], int(rest[1]), dir_fd=at)
    elif verb == b"unlink":
        os.unlink(rest[0], dir_fd=at)
    elif verb == b"rmdir":
        os.rmdir(rest[0], dir_fd=at)
    elif verb == b"link":
        os.link(rest[0], rest[1], src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
    elif verb == b"rename":
        os.rename(rest[0], rest[1], src_dir_fd=at, dst_dir_fd=at)
    elif verb == b"rename_noreplace":
        _rename_noreplace(at, rest[0], rest[1])
    elif verb == b"chmod":
        os.fchmod(at, int(rest[0]))
    elif verb == b"chown":
        os.fchown(at, int(rest[0]), int(rest[1]))
    else:
        raise OSError(_EINVAL, "unknown request")
    return opened


def _rename_noreplace(directory: int, name: bytes, new: bytes) -> None:
    """Rename an entry; nothing is replaced. EINVAL where that cannot be promised."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(directory, name, directory, new, _NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
