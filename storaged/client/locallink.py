"""A link to an engine in this process: the same calls, without socket, bytes and daemon.

Calls run on the thread of the caller, events are told on a thread of the link's own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Generic, TypeVar, cast

from storaged.client.link import EventCallback, Link, PendingCall, RemoteFailure
from storaged.client.link import closed as closed_failure
from storaged.client.localstream import Events, LocalStream, engine_failures, refusal
from storaged.errors import StorageError
from storaged.job import Job, Pending
from storaged.rpc import extension, remote
from storaged.rpc.program import AnyProcedure, Procedure
from storaged.rpc.record import Record
from storaged.service import Identity, Opened, Service

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)

_READONLY: Final = 1


class LocalLink(Link):
    """A connection to an engine of this process.

    :param uri: what the connection is called.
    :param owned: what ends with the link; taken over once the link is open.
    """

    def __init__(
        self,
        service: Service,
        uri: str,
        *,
        readonly: bool = False,
        owned: ExitStack | None = None,
    ) -> None:
        super().__init__(uri, readonly=readonly)
        self._service = service
        self._events = Events()
        identity = Identity(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())
        self._session = service.session(self._events.put, readonly=readonly, identity=identity)
        self._closed = False
        self._owned = ExitStack()
        path = "/session" if service.driver.is_session else "/system"
        self.call(remote.OPEN, remote.OpenArgs(f"storage://{path}", _READONLY if readonly else 0))
        if owned is not None:
            self._owned = owned.pop_all()

    @property
    def alive(self) -> bool:
        """Whether the link was not closed."""
        return not self._closed

    def call(self, procedure: Procedure[A, R], args: A, *, timeout: float | None = None) -> R:
        """Call a procedure and return what it returns; *timeout* is for what runs as a job."""
        outcome = self._begin(procedure, args)
        with engine_failures(procedure.program):
            if not isinstance(outcome, Pending):
                return cast(R, outcome)
            return cast(R, outcome.complete() if timeout is None else outcome.result(timeout))

    def begin(self, procedure: Procedure[A, R], args: A) -> LocalCall[R]:
        """Call a procedure without waiting for the reply."""
        if self._closed:
            raise closed_failure()
        job: Job[R] = Job("call")

        def run() -> None:
            try:
                outcome = self._begin(procedure, args)
                if isinstance(outcome, Pending):
                    outcome.wait()
                    with engine_failures(procedure.program):
                        outcome = outcome.result()
                job.finish(cast(R, outcome))
            except BaseException as err:
                job.fail(err)

        if self._session.ready(procedure, args):
            self._begin_ready(procedure, args, job)
        else:
            threading.Thread(target=run, name="storaged-call", daemon=True).start()
        return LocalCall(job)

    def _begin_ready(self, procedure: Procedure[A, R], args: A, job: Job[R]) -> None:
        """Begin what needs no thread to wait on."""
        try:
            outcome = self._begin(procedure, args)
        except RemoteFailure as err:
            job.fail(err)
            return
        if not isinstance(outcome, Pending):
            job.finish(cast(R, outcome))
            return
        work = outcome

        def ended() -> None:
            try:
                with engine_failures(procedure.program):
                    job.finish(work.result())
            except RemoteFailure as err:
                job.fail(err)

        work.on_end(ended)

    def open_stream(self, procedure: Procedure[A, R], args: A) -> LocalStream:
        """Call a procedure that a stream of data belongs to, and return the stream."""
        outcome = self._begin(procedure, args)
        with engine_failures(procedure.program):
            if isinstance(outcome, Pending):
                outcome = outcome.complete()
        if not isinstance(outcome, Opened):
            raise refusal(f"{procedure.name} opens no stream")
        return LocalStream(outcome, self._events)

    def _begin(self, procedure: AnyProcedure, args: Record) -> Record | Pending[Any] | Opened:
        if self._closed:
            raise closed_failure()
        with engine_failures(procedure.program):
            self._service.procedure(procedure.program, procedure.number)
            return self._session.call(procedure, args)

    def on_event(self, callback: EventCallback) -> Callable[[], None]:
        """Have *callback* called for every event."""
        return self._events.listen(callback)

    def on_close(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Do nothing: this link never ends by itself."""
        return lambda: None

    def extension_level(self) -> int:
        """Return the level of this very program."""
        return extension.LEVEL

    def keepalive(self, interval: int, count: int) -> None:
        """Do nothing: this process cannot outlive itself."""

    def close(self) -> None:
        """End what the connection began, and let go."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            stack.callback(self._owned.close)
            stack.callback(self._events.close)
            stack.callback(self._session.close)


class LocalCall(PendingCall[R], Generic[R]):
    """A call under way in the engine."""

    def __init__(self, job: Job[R]) -> None:
        self._job = job

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reply; return whether it came in time."""
        return self._job.wait(timeout)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the reply and return it."""
        try:
            return self._job.result(timeout)
        except StorageError as err:
            raise RemoteFailure.of(err) from err

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have *callback* called once the reply is there."""
        self._job.on_end(callback)
