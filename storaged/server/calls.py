"""The calls of one client: decoded, served at once or on a thread, answered in any order.

So many calls of a client are in progress at once as its limit says; a call counts until its reply
was handed to a client that reads. Calls above that wait here, so that what comes between them
(pings, data of streams, a hang-up) is still seen; only when many wait is the client not read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from storaged.errors import StorageError
from storaged.job import Pending
from storaged.rpc import admin, extension, remote, secret, storage
from storaged.rpc.errors import AuthFailed, AuthUnavailable, RPCError
from storaged.rpc.packet import Header, Packet, Status, reply
from storaged.rpc.program import EXTENSION, VERSION, Access, AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remote import AuthPolkitRet, AuthType, Feature, FeatureArgs, FeatureRet
from storaged.rpc.remoteerror import describe, describe_bug, describe_fully
from storaged.service import Opened, Outcome

if TYPE_CHECKING:
    from storaged.server.connection import Connection

_log = logging.getLogger(__name__)

#: What a waiting call costs beside its payload.
_OVERHEAD: Final = 512
#: Replies up to this size, in bytes, may be sent from the thread that made them.
_SMALL: Final = 4096
#: So many calls of one client are served before it is another client's turn.
_TURN: Final = 32
#: Their replies go out before the events that they bring about.
_REGISTERING: Final = frozenset(
    {
        storage.EVENT_REGISTER,
        secret.EVENT_REGISTER,
        extension.JOB_BEGIN,
        extension.JOB_FOLLOW,
    }
)


class Handler(Protocol):
    """Who serves the calls of a connection. `ready` and `call` are those of a session."""

    def procedure(self, program: int, number: int) -> AnyProcedure:
        """Return a procedure by its numbers, or raise the error for what is not served."""
        ...

    def ready(self, procedure: AnyProcedure, args: Record) -> bool:
        """Tell whether `call` neither waits nor touches storage."""
        ...

    def call(self, procedure: AnyProcedure, args: Record) -> Outcome:
        """Serve a call."""
        ...

    def close(self) -> None:
        """End what ends with the connection."""
        ...


class Calls:
    """The calls of one client; all is called on the loop if nothing else is said."""

    def __init__(self, client: Connection, handler: Handler) -> None:
        self._client = client
        self._handler = handler
        self._server = client.server
        self._counted = 0
        #: one item a call that a thread has answered; `_counted` still has them
        self._answered: deque[None] = deque()
        self._unread = 0
        self._backlog: deque[Packet] = deque()
        #: what the backlog costs
        self.waiting = 0
        self._turn = 0
        self._serving = False
        self._later = False
        self._closing = False
        #: calls under way whose replies go before all events
        self.registering = 0
        self._own: dict[AnyProcedure, Callable[[Header], None]] = {
            remote.AUTH_LIST: self._tell_ways,
            remote.AUTH_SASL_INIT: self._refuse_sasl,
            remote.AUTH_SASL_START: self._refuse_sasl,
            remote.AUTH_SASL_STEP: self._refuse_sasl,
            remote.AUTH_POLKIT: self._ask_authority,
            remote.CLOSE: self._close_politely,
            admin.CLOSE: self._close_politely,
        }

    @property
    def in_progress(self) -> int:
        """How many calls are under way, or have a reply that the client has not taken."""
        return self._counted - len(self._answered)

    @property
    def unanswered(self) -> int:
        """How many calls are under way."""
        return self.in_progress - self._unread

    def take(self, packet: Packet) -> None:
        """Take a call: serve it, or keep it until it is its turn."""
        if self._closing:
            return
        if self._backlog or self._serving or not self._may_begin():
            self._backlog.append(packet)
            self.waiting += len(packet.payload) + _OVERHEAD
            self._settle()
            if self._answered:  # by a thread that did not see the backlog yet
                self.serve_waiting()
            return
        self._begin(packet)

    def serve_waiting(self) -> None:
        """Serve the calls that wait, as far as they may be."""
        if self._serving:
            return
        self._forget_answered()
        self._serving = True
        try:
            while self._backlog and not self._closing and self._may_begin():
                packet = self._backlog.popleft()
                self.waiting -= len(packet.payload) + _OVERHEAD
                self._begin(packet)
        finally:
            self._serving = False
        self._settle()

    def were_read(self) -> None:
        """Take note that the client has taken what was unsent."""
        self._counted -= self._unread
        self._unread = 0
        self.serve_waiting()

    def close(self) -> None:
        """Drop what waits: the client is gone, or going."""
        self._closing = True
        self._backlog.clear()
        self.waiting = 0

    def _may_begin(self) -> bool:
        if self.in_progress >= self._server.limits.max_client_requests:
            return False
        if self._client.full and self._unread:
            return False  # whoever does not read gets one large reply, not five
        self._turn += 1
        if self._turn <= _TURN:
            return True
        if not self._later:
            self._later = True
            self._client.loop.call_soon(self._next_turn)
        return False

    def _next_turn(self) -> None:
        self._later = False
        self._turn = 0
        self.serve_waiting()

    def begin_turn(self) -> None:
        """Take note that the loop has come round."""
        self._forget_answered()
        if not self._later:
            self._turn = 0

    def _forget_answered(self) -> None:
        """Count no more what threads have answered."""
        answered = self._answered
        for _ in range(len(answered)):
            answered.popleft()
            self._counted -= 1

    def _settle(self) -> None:
        self._client.hold_calls(held=self.waiting > self._client.bounds.backlog)

    def _begin(self, packet: Packet) -> None:
        header = packet.header
        self._counted += 1
        self._server.counts.calls += 1
        try:
            procedure = self._find(header)
            args = procedure.args.unpack(packet.payload)
            self._serve(header, procedure, args)
        except Exception as err:
            self._refuse(header, err)

    def _find(self, header: Header) -> AnyProcedure:
        if header.status != Status.OK:
            raise RPCError(f"Unexpected message status {header.status}")
        if header.version != VERSION:
            raise RPCError(f"Cannot find program {header.program} version {header.version}")
        try:
            procedure = self._handler.procedure(header.program, header.procedure)
        except RPCError:
            raise  # what nobody knows is told to everybody
        except StorageError:
            self._client.gate.require_passed()
            raise
        if procedure.access is Access.EVENT:
            raise RPCError(f"unknown procedure: {header.procedure}")
        self._client.gate.require(procedure)
        return procedure

    def _serve(self, header: Header, procedure: AnyProcedure, args: Record) -> None:
        own = self._own.get(procedure)
        if own is not None:
            own(header)
            return
        if isinstance(args, FeatureArgs) and args.feature == Feature.PROGRAM_KEEPALIVE:
            self._client.watch()
            self._reply(header, FeatureRet(1))
            return
        if procedure.stream:
            self._client.streams.expect(header)
        try:
            if self._handler.ready(procedure, args):
                self._conclude(header, self._handler.call(procedure, args))
                return
        except Exception:
            if procedure.stream:
                self._client.streams.forget(header)
            raise
        self.registering += procedure in _REGISTERING
        self._server.workers.submit(
            partial(self._work, header, procedure, args), priority=procedure.priority
        )

    def _conclude(self, header: Header, outcome: Outcome) -> None:
        if isinstance(outcome, Record):
            self._reply(header, outcome)
        elif isinstance(outcome, Pending):
            job = outcome
            job.on_end(partial(self._note_end, header, job))
        else:
            self._reply(header, Void())
            self._client.streams.begin(header, outcome)

    def _note_end(self, header: Header, job: Pending[Any]) -> None:
        """Have the outcome of a job answered. On the thread of the job."""
        if job.error is None and header.program != EXTENSION:
            with suppress(Exception):  # whatever it is, the loop tells the client
                if self._answer_from_thread(reply(header, job.result().pack())):
                    return
        self._client.soon(self._job_ended, header, job)

    def _job_ended(self, header: Header, job: Pending[Any]) -> None:
        try:
            self._reply(header, job.result())
        except Exception as err:
            self._refuse(header, err)

    # On a thread

    def _work(self, header: Header, procedure: AnyProcedure, args: Record) -> None:
        """Serve a call that may wait."""
        try:
            outcome = self._handler.call(procedure, args)
            if isinstance(outcome, Record):
                packed = reply(header, outcome.pack())  # large ones take their time, too
                if procedure in _REGISTERING or not self._answer_from_thread(packed):
                    self._client.soon(self._was_worked, header, procedure, packed)
            elif not self._client.soon(self._was_worked, header, procedure, outcome):
                _drop(outcome)
        except Exception as err:
            self._client.soon(self._was_refused, header, procedure, err)

    def _answer_from_thread(self, packet: bytes) -> bool:
        """Send a reply without waking the loop, if that can be done; tell whether it was.

        The loop would be woken for each reply, and client and loop would then contend for a
        processor: that costs as much as a look at a volume.
        """
        if len(packet) > _SMALL or not self._client.send_from_thread(packet):
            return False
        self._answered.append(None)
        if self._backlog:
            self._client.soon(self.serve_waiting)
        return True

    # On the loop again

    def _was_worked(
        self, header: Header, procedure: AnyProcedure, outcome: bytes | Pending[Any] | Opened
    ) -> None:
        if self._client.lost:
            if isinstance(outcome, Opened):
                self._server.movers.submit(partial(_drop, outcome))
            return
        if isinstance(outcome, bytes):
            self._answer(outcome)
        else:
            self._conclude(header, outcome)
        self._registered(procedure)

    def _was_refused(self, header: Header, procedure: AnyProcedure, error: Exception) -> None:
        if procedure.stream:
            self._client.streams.forget(header)
        self._refuse(header, error)
        self._registered(procedure)

    def _registered(self, procedure: AnyProcedure) -> None:
        if procedure in _REGISTERING:
            self.registering -= 1
            self._client.send_events()

    # Replies

    def _reply(self, header: Header, record: Record) -> None:
        self._answer(reply(header, record.pack()))

    def _refuse(self, header: Header, error: Exception) -> None:
        self._server.counts.errors += 1
        _log.debug("client %d, procedure %d: %s", self._client.number, header.procedure, error)
        if not isinstance(error, StorageError):
            _log.error("procedure %d failed", header.procedure, exc_info=error)
            remote_error = describe_bug(error)
        elif header.program == EXTENSION:
            remote_error = describe_fully(error)
        else:
            remote_error = describe(error)
        self._answer(reply(header, remote_error.pack(), status=Status.ERROR))

    def _answer(self, packet: bytes) -> None:
        """Send a reply; it counts until the client takes it."""
        self._client.send(packet)
        if self._client.full:
            self._unread += 1
        else:
            self._counted -= 1
            if self._backlog:
                self.serve_waiting()

    # What the server answers by itself

    def _close_politely(self, header: Header) -> None:
        self.close()
        self._reply(header, Void())
        self._client.close()

    def _tell_ways(self, header: Header) -> None:
        ways = self._client.gate.ways()
        if self._client.gate.passed:
            self._client.admitted()
        self._reply(header, ways)

    def _refuse_sasl(self, header: Header) -> None:
        raise AuthFailed("authentication failed")  # no socket asks for it

    def _ask_authority(self, header: Header) -> None:
        client = self._client
        client.gate.require_asking(AuthType.POLKIT)
        client.gate.asking = True
        authority = self._server.authority

        def ask() -> None:
            try:
                if authority is None:
                    raise AuthUnavailable("nobody can be asked")
                authority.check(client.identity, readonly=client.readonly)
            except Exception as err:
                client.soon(self._turn_away, header, err)
            else:
                client.soon(self._let_in, header)

        self._server.movers.submit(ask)

    def _turn_away(self, header: Header, error: Exception) -> None:
        if self._was_asked():
            self._refuse(header, error)

    def _let_in(self, header: Header) -> None:
        if self._was_asked():
            self._client.gate.passed = True
            self._client.admitted()
            self._reply(header, AuthPolkitRet(1))

    def _was_asked(self) -> bool:
        """End the question about the client; tell whether the client is still there."""
        self._client.gate.asking = False
        if self._client.lost:
            self._server.gone(self._client)
        return not self._client.lost


def _drop(outcome: Pending[Any] | Opened) -> None:
    """End what was opened for a client that is gone."""
    if isinstance(outcome, Opened):
        if outcome.sink is not None:
            outcome.sink.abort()
        if outcome.source is not None:
            outcome.source.close()
