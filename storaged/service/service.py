"""The procedures of the protocol over one engine: what a server and an embedding client share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakSet

from storaged.driver import Driver
from storaged.rpc import extension as extension_program
from storaged.rpc import remote
from storaged.rpc.errors import RPCError
from storaged.rpc.extension import Metric
from storaged.rpc.identity import Identity
from storaged.rpc.program import EXTENSION, REMOTE, Access, AnyProcedure
from storaged.rpc.unserved import refusal
from storaged.service import extension, generic, images, pools, secrets, transfers, volumes
from storaged.service.registrations import Notify
from storaged.service.session import Session
from storaged.service.shared import Shared

#: What libvirt 9.0.0 calls itself.
LEVEL: Final = 9_000_000


class Service:
    """The procedures over one engine. Any thread may call.

    :param level: the version of libvirt that clients are told, such as 9000000.
    :param token: the secret that the daemons of this host know each other by; None trusts none.
    """

    def __init__(self, driver: Driver, *, level: int = LEVEL, token: str | None = None) -> None:
        self.driver = driver
        handlers = {
            **generic.HANDLERS,
            **pools.HANDLERS,
            **volumes.HANDLERS,
            **transfers.HANDLERS,
            **secrets.HANDLERS,
            **extension.HANDLERS,
            **images.HANDLERS,
        }
        self._shared = Shared(driver, handlers, level, token)
        self._lock = threading.Lock()
        self._sessions: WeakSet[Session] = WeakSet()

    def session(
        self,
        notify: Notify,
        *,
        readonly: bool = False,
        identity: Identity = Identity(),  # noqa: B008 -- it cannot be changed
    ) -> Session:
        """Return what serves one connection.

        :param notify: called with each event, on any thread; it must neither wait nor raise.
        :param readonly: calls that change something are refused.
        :param identity: who the client is.
        """
        session = Session(self._shared, notify, readonly=readonly, identity=identity)
        with self._lock:
            self._sessions.add(session)
        return session

    def procedure(self, program: int, number: int, *, readonly: bool = False) -> AnyProcedure:
        """Return a procedure that clients may call.

        :param readonly: whether it came through a read-only connection.
        :raise RPCError: no such program, or no such procedure in it.
        :raise StorageError: libvirt has the procedure, but a storage daemon does not serve it.
        """
        if program == REMOTE:
            found = remote.PROCEDURES.get(number)
            if found is None or found.access is Access.EVENT:
                raise refusal(number, readonly=readonly)
            return found
        if program == EXTENSION:
            found = extension_program.PROCEDURES.get(number)
            if found is None or found.access is Access.EVENT:
                raise RPCError(f"unknown procedure: {number}")
            return found
        raise RPCError(f"Cannot find program {program} version 1")

    def set_protect_backing(self, protect: bool) -> None:
        """Say whether deletes, wipes and shrinks through libvirt's program spare what others need.

        libvirt's do not, so that is the default; those through storaged's own program always do.
        """
        self._shared.protect_backing = protect

    def add_metrics(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        """Have further figures told beside those of the engine."""
        self._shared.metrics = metrics

    def close(self) -> None:
        """Close all sessions. The engine stays open."""
        with self._lock:
            sessions = tuple(self._sessions)
        for session in sessions:
            session.close()
