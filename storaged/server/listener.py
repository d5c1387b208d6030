"""A socket that listens: who connects becomes a client, as far as there is room."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from storaged.rpc.remote import AuthType
from storaged.server.sockets import Bound

if TYPE_CHECKING:
    from storaged.server.server import Role, Server

_log = logging.getLogger(__name__)

#: So many are accepted before it is others' turn.
_BATCH: Final = 32
#: After a failure: seconds until the next attempt.
_PATIENCE: Final = 1.0


class Listener:
    """One socket of a server."""

    def __init__(self, server: Server, bound: Bound, role: Role, auth: AuthType) -> None:
        self.bound = bound
        self.role = role
        self.auth = auth
        self._server = server
        self._listening = False
        self._closed = False
        self._connecting: set[asyncio.Task[Any]] = set()

    def listen(self, wanted: bool) -> None:
        """Accept from now on, or do not: who comes waits."""
        if self._closed or wanted == self._listening:
            return
        self._listening = wanted
        loop = self._server.loop
        if wanted:
            loop.add_reader(self.bound.socket, self._accept)
        else:
            loop.remove_reader(self.bound.socket)

    def close(self) -> None:
        """Stop listening for good."""
        self.listen(False)
        self._closed = True
        self.bound.close()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            if not self._listening or not self._server.accepting:
                return
            try:
                connected, _ = self.bound.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as err:  # the process or the host has run out of something
                _log.error("cannot accept a connection: %s", err)
                self.listen(False)
                self._server.loop.call_later(_PATIENCE, self._server.settle)
                return
            connected.setblocking(False)
            self._connect(connected)

    def _connect(self, connected: socket.socket) -> None:
        client = self._server.accept(connected, self.role, self.auth)
        if client is None:
            return
        loop = self._server.loop
        task = loop.create_task(loop.connect_accepted_socket(lambda: client, connected))
        self._connecting.add(task)

        def connected_or_not(done: asyncio.Task[Any]) -> None:
            self._connecting.discard(done)
            if done.cancelled() or done.exception() is not None:
                client.connection_lost(None)
                connected.close()

        task.add_done_callback(connected_or_not)
