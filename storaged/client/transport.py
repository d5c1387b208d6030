"""What a link goes over: a connected socket, and what belongs to it."""

from __future__ import annotations

import os
import socket
from errno import EIO
from typing import Final

from storaged.client.link import RemoteFailure
from storaged.errors import Domain, SystemFailure

#: The longest path that fits into the address of a socket on Linux, in bytes.
_PATH_MAX: Final = 107


class Transport:
    """A connected socket.

    :param sock: blocking.
    """

    #: whether nobody else can read what goes over it
    secure = True
    #: whether it is encrypted on its way
    encrypted = False

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def explain(self, doing: str) -> str:
        """Return what was tried, with what is known of why it failed."""
        return doing

    def close(self) -> None:
        """Let go. Calling it again does nothing."""
        self.socket.close()


def connect_unix(path: str | os.PathLike[str]) -> Transport:
    """Connect to a socket of this host, however long its path is.

    :raise RemoteFailure: nobody listens there (code 38).
    """
    text = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(text)) <= _PATH_MAX:
            sock.connect(text)
        else:
            _connect_far(sock, text)
    except OSError as err:
        sock.close()
        failure = SystemFailure(
            f"Failed to connect socket to '{text}'", err.errno or EIO, domain=Domain.RPC
        )
        raise RemoteFailure.of(failure) from err
    return Transport(sock)


def _connect_far(sock: socket.socket, path: str) -> None:
    """Connect to a path that does not fit into the address of a socket, by way of its directory."""
    directory, name = os.path.split(path)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{opened}/{name}")
    finally:
        os.close(opened)
