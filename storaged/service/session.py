"""One connection's view of the engine: what it may do, and what ends with it."""

from __future__ import annotations

import threading

from storaged.errors import Domain, InternalError
from storaged.rpc.errors import OperationDenied
from storaged.rpc.identity import Identity
from storaged.rpc.program import Access, AnyProcedure
from storaged.rpc.record import Record
from storaged.service.handler import Begun, Needs, Outcome, Query, Work, answering
from storaged.service.jobs import Jobs
from storaged.service.registrations import POOLS, SECRETS, Notify, Registrations
from storaged.service.shared import Shared
from storaged.service.streams import Streams


class Session:
    """The calls of one connection. Any thread may call; several may at once.

    :param notify: called with each event, on any thread; it must neither wait nor raise.
    :param readonly: calls that change something are refused.
    """

    def __init__(
        self,
        shared: Shared,
        notify: Notify,
        *,
        readonly: bool = False,
        identity: Identity = Identity(),  # noqa: B008 -- it cannot be changed
    ) -> None:
        self.shared = shared
        self.driver = shared.driver
        self.readonly = readonly
        #: for whom the client works; another daemon may say that it works for somebody else
        self.identity = identity
        #: as the client opened it, None until then
        self.uri: str | None = None
        #: whether the client is a daemon that calls for others
        self.for_others = False
        driver, ids = shared.driver, shared.callback_ids
        self.registrations = Registrations(POOLS, driver.events.subscribe, ids, notify)
        self.secret_registrations = Registrations(
            SECRETS, lambda told: driver.secret_events.subscribe(told), ids, notify
        )
        self.jobs = Jobs(self.driver, notify)
        self.streams = Streams()
        self.closed = False
        self._handlers = shared.handlers
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the client has opened the connection, and nobody has closed it."""
        return self.uri is not None and not self.closed

    def ready(self, procedure: AnyProcedure, args: Record) -> bool:
        """Tell whether `call` neither waits nor touches storage.

        So it does where it raises at once, and where it only begins a job.
        """
        handler = self._handlers.get(procedure)
        if handler is None or self._refusal(procedure, handler) is not None:
            return True
        return handler.ready(self, args)

    def call(self, procedure: AnyProcedure, args: Record) -> Outcome:
        """Serve a call.

        :returns: the reply; or a job whose result is the reply; or the open end of a transfer.
        :raise StorageError: what the client is to be told.
        """
        handler = self.admit(procedure, args)
        if isinstance(handler, Query):
            return handler.call(self, args)
        begun = self.begin(handler, args)
        return answering(begun.job, begun.answer)

    def admit(self, procedure: AnyProcedure, args: Record) -> Query | Work:
        """Return what serves a call that this connection may make.

        :raise InternalError: the connection is not open.
        :raise OperationDenied: it may only read.
        :raise StorageError: an argument that is refused before that is looked at.
        """
        handler = self._handlers.get(procedure)
        if handler is None:
            raise InternalError(f"{procedure.name} has no handler", domain=Domain.RPC)
        if not self.is_open:
            refusal = self._refusal(procedure, handler)
            if refusal is not None:
                raise refusal
        if handler.check is not None:
            handler.check(args)
        if self.readonly and procedure.access is Access.WRITER:
            raise _denied(procedure)
        return handler

    def begin(
        self,
        work: Work,
        args: Record,
        *,
        own: bool = False,
        force: bool = False,
        detach: bool = False,
    ) -> Begun:
        """Begin work that ends with the connection, if it is of that kind.

        :param own: it was asked for through storaged's own program.
        :param force: go on although a virtual machine has the volume open.
        :param detach: the work goes on when the connection ends.
        """
        begin = work.own if own and work.own is not None else work.begin
        begun = begin(self, args, force)
        if work.bound and not detach:
            self.jobs.bind(begun.job)
        return begun

    def require_new(self) -> None:
        """Raise unless the connection can still be opened.

        :raise InternalError: the client has opened it already.
        """
        if self.uri is not None or self.closed:
            raise InternalError("connection already open", domain=Domain.RPC)

    def opened(self, uri: str, *, readonly: bool) -> None:
        """Note that the client has opened the connection.

        :raise InternalError: it did already.
        """
        with self._lock:
            self.require_new()
            self.readonly = self.readonly or readonly
            self.uri = uri

    def close(self) -> None:
        """End what is the connection's own, without waiting. Calling it again does nothing.

        Registrations end. Transfers end; what an upload wrote stays. Creates, clones and wipes that
        it began are cancelled, unless the client worked for others or detached them.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self.registrations.close()
        self.secret_registrations.close()
        self.jobs.close(cancel=not self.for_others)
        self.streams.close()

    def _refusal(self, procedure: AnyProcedure, handler: Query | Work) -> Exception | None:
        """Return why the connection may not make a call, None if it may."""
        if not self.is_open and handler.needs is not Needs.NOTHING:
            return InternalError(handler.needs.value, domain=Domain.RPC)
        if self.readonly and procedure.access is Access.WRITER:
            return _denied(procedure)
        return None


def _denied(procedure: AnyProcedure) -> OperationDenied:
    domain = Domain.SECRET if procedure.name.startswith("virSecret") else Domain.STORAGE
    return OperationDenied(f"read only access prevents {procedure.name}", domain=domain)
