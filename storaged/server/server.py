"""One of the daemon's servers: its sockets, its clients, its threads."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from storaged.errors import Domain, InternalError, StorageError
from storaged.rpc.errors import RPCError
from storaged.rpc.program import AnyProcedure
from storaged.rpc.remote import AuthType
from storaged.server.administered import ClientView
from storaged.server.buffers import Buffers
from storaged.server.calls import Handler
from storaged.server.connection import Connection
from storaged.server.gate import Authority
from storaged.server.identity import peer_identity
from storaged.server.limits import Bounds, ServerLimits
from storaged.server.listener import Listener
from storaged.server.sockets import Bound
from storaged.server.workers import WorkerFigures, Workers
from storaged.service import Identity, Service, Session

_log = logging.getLogger(__name__)

#: How often it is looked whether all is at rest, while the server stops, in seconds.
_GLANCE: Final = 0.01
#: What is received of a client at once, in bytes.
_BUFFER: Final = 64 << 10


class Administration(Protocol):
    """Who serves the clients of the role admin."""

    def session(self, identity: Identity) -> Handler:
        """Return what serves the calls of one client."""
        ...


class Role(Enum):
    """What clients of a socket may do."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"
    ADMIN = "admin"

    @property
    def readonly(self) -> bool:
        """Whether calls that change something are refused."""
        return self is Role.READ_ONLY


@dataclass(slots=True)
class Counts:
    """What has happened since the start."""

    accepted: int = 0
    calls: int = 0
    #: calls answered with an error
    errors: int = 0
    #: bytes
    received: int = 0


class Server:
    """A set of sockets with one table of clients, one set of limits and one set of threads.

    Everything but the constructor is called on the event loop.

    :param name: names the server to the administration.
    :param service: serves the clients of the roles rw and ro.
    :param admin: serves those of the role admin.
    :param authority: is asked about clients of sockets that ask polkit.
    :param identify: tells who connected.
    """

    def __init__(
        self,
        name: str,
        limits: ServerLimits,
        *,
        service: Service | None = None,
        admin: Administration | None = None,
        authority: Authority | None = None,
        identify: Callable[[socket.socket], Identity] = peer_identity,
        bounds: Bounds = Bounds(),  # noqa: B008 -- it cannot be changed
    ) -> None:
        self.name = name
        self.limits = limits
        self.bounds = bounds
        self.authority = authority
        self.counts = Counts()
        #: bytes of incomplete messages, and of calls that wait, of all clients
        self.partial = 0
        self._clients: dict[int, Connection] = {}
        self.buffers = Buffers()
        #: where all clients are received that upload nothing
        self.buffer = memoryview(bytearray(_BUFFER))
        self.workers = Workers(
            f"storaged-{name}",
            least=limits.min_workers,
            most=limits.max_workers,
            priority=limits.prio_workers,
        )
        #: for the data of streams, which no limit of libvirt's counts
        self.movers = Workers(f"storaged-{name}-stream", least=0, most=bounds.stream_workers)
        self._service = service
        self._admin = admin
        self._identify = identify
        self._numbers = itertools.count(1)
        self._anonymous: set[Connection] = set()
        self._listeners: list[Listener] = []
        self._tick: asyncio.TimerHandle | None = None
        self._idle_since: float | None = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the server was started on."""
        assert self._loop is not None  # noqa: S101 -- nobody connects before the start
        return self._loop

    def listen(self, bound: Bound, role: Role, auth: AuthType = AuthType.NONE) -> None:
        """Serve the clients of a socket, from `start` on.

        :raise ValueError: there is nobody to serve the role, or to ask about its clients.
        """
        if (self._admin if role is Role.ADMIN else self._service) is None:
            raise ValueError(f"nobody serves the role {role.value}")
        if auth is AuthType.SASL or (auth is AuthType.POLKIT and self.authority is None):
            raise ValueError(f"nobody can be asked for {auth.name.lower()}")
        self._listeners.append(Listener(self, bound, role, auth))

    def start(self) -> None:
        """Accept clients."""
        self._loop = asyncio.get_running_loop()
        self._tick = self._loop.call_later(self.bounds.tick, self._look)
        self.settle()

    async def stop(self, patience: float = 10.0) -> None:
        """Accept nobody, cancel what clients began, answer what can be answered, close.

        :param patience: seconds after which what is still under way is left alone.
        """
        deadline = self.loop.time() + patience
        for listener in self._listeners:
            listener.close()
        for client in list(self._clients.values()):
            client.end_work()
        await self._until(lambda: all(each.quiet for each in self._clients.values()), deadline - 1)
        for client in list(self._clients.values()):
            client.close()
        await self._until(lambda: not self._clients, min(deadline, self.loop.time() + 1))
        for client in list(self._clients.values()):
            client.abort()
        await self._until(lambda: self.workers.resting and self.movers.resting, deadline)
        if self._tick is not None:
            self._tick.cancel()
        self.workers.close()
        self.movers.close()

    # For the administration, from any thread

    def clients(self) -> list[ClientView]:
        """Return the clients, the oldest first."""
        return [
            ClientView(each.number, each.since, each.readonly, each.identity)
            for each in list(self._clients.values())
        ]

    def anonymous(self) -> int:
        """Return how many clients have not proved who they are."""
        return len(self._anonymous)

    def close_client(self, number: int) -> bool:
        """Close the connection of a client; return whether there is such a client."""
        client = self._clients.get(number)
        return client is not None and client.soon(client.close)

    def worker_figures(self) -> WorkerFigures:
        """Return the threads and their work."""
        return self.workers.figures()

    def set_limits(self, limits: ServerLimits) -> None:
        """Have other limits hold from now on; nobody is sent away.

        :raise ValueError: there would be no workers, or more at least than at most.
        """
        self.workers.resize(limits.min_workers, limits.max_workers, limits.prio_workers)
        self.limits = limits
        self.loop.call_soon_threadsafe(self.settle)

    def idle_for(self) -> float:
        """Return for how many seconds there has been no client; 0 while there is one."""
        since = self._idle_since
        return 0.0 if since is None else time.monotonic() - since

    # For listeners and connections

    def accept(self, connected: socket.socket, role: Role, auth: AuthType) -> Connection | None:
        """Make the connection of a client that has just come; None if it is gone again."""
        try:
            identity = self._identify(connected)
        except OSError:
            connected.close()
            return None
        client = Connection(self, next(self._numbers), connected, identity, role, auth)
        self.counts.accepted += 1
        self._clients[client.number] = client
        if not client.gate.passed:
            self._anonymous.add(client)
        self._idle_since = None
        self.settle()
        return client

    @property
    def accepting(self) -> bool:
        """Whether there is room for a further client."""
        limits = self.limits
        return len(self._clients) < limits.max_clients and (
            not limits.max_anonymous_clients  # no limit, as in libvirt
            or len(self._anonymous) < limits.max_anonymous_clients
        )

    def handler(self, client: Connection) -> Handler:
        """Return what serves the calls of a client."""
        if client.role is Role.ADMIN:
            assert self._admin is not None  # noqa: S101 -- `listen` has looked
            return self._admin.session(client.identity)
        assert self._service is not None  # noqa: S101 -- as above
        session = self._service.session(
            client.events.notify, readonly=client.readonly, identity=client.identity
        )
        return _ServiceHandler(self._service, session)

    def admitted(self, client: Connection) -> None:
        """Take note that a client has proved who it is."""
        self._anonymous.discard(client)
        self.settle()

    def gone(self, client: Connection) -> None:
        """Take note that a client is gone.

        It counts as anonymous as long as somebody is asked about it: questions cost a thread.
        """
        self._clients.pop(client.number, None)
        if not client.gate.asking:
            self._anonymous.discard(client)
        if not self._clients:
            self._idle_since = time.monotonic()
        self.settle()

    def drop_largest(self) -> None:
        """Close the connection whose incomplete messages take the most memory."""
        largest = max(self._clients.values(), key=lambda client: client.kept)
        largest.hang_up("of all clients' messages, its incomplete ones take the most memory")

    def settle(self) -> None:
        """Listen or do not, as there is room."""
        for listener in self._listeners:
            listener.listen(self._loop is not None and self.accepting)

    def _look(self) -> None:
        """Look at the time limits of all clients, and at threads that are stuck."""
        now = self.loop.time()
        for client in list(self._clients.values()):
            client.check(now)
        self.workers.relieve()
        self.movers.relieve()
        self._tick = self.loop.call_later(self.bounds.tick, self._look)

    async def _until(self, holds: Callable[[], bool], deadline: float) -> None:
        while not holds() and self.loop.time() < deadline:  # noqa: ASYNC110 -- threads cannot tell
            await asyncio.sleep(_GLANCE)


class _ServiceHandler:
    """What serves a client of the roles rw and ro."""

    def __init__(self, service: Service, session: Session) -> None:
        self._service = service
        self._session = session
        self.ready = session.ready
        self.call = session.call
        self.close = session.close

    def procedure(self, program: int, number: int) -> AnyProcedure:
        """Return a procedure by its numbers, or raise the error for what is not served."""
        try:
            return self._service.procedure(program, number, readonly=self._session.readonly)
        except RPCError:
            raise
        except StorageError:
            if self._session.is_open:
                raise
            refusal = InternalError("hypervisor connection not open", domain=Domain.RPC)
            raise refusal from None
