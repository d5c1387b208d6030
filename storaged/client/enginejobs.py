"""Jobs that run on the other side of a connection, as the `Job` that callers know.

A job that this connection began ends with a message that carries its outcome. Its progress, and
all of the jobs of others, is told only to who follows it: short work costs no message for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from storaged.client.enginevalues import failures
from storaged.client.link import Link, PendingCall, RemoteFailure
from storaged.errors import (
    Cancelled,
    Domain,
    InternalError,
    InvalidArgument,
    OperationFailed,
    StorageError,
)
from storaged.job import Job, JobState, Progress
from storaged.rpc import extension
from storaged.rpc.program import EXTENSION, AnyProcedure, Procedure
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import revive

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class RemoteJob(Job[T], Generic[T]):
    """A job on the other side.

    :param facts: what is known of it.
    :param board: asks the other side.
    :param own: whether this connection began it, and so is told its outcome.
    """

    def __init__(self, facts: extension.JobFacts, board: JobBoard, *, own: bool) -> None:
        super().__init__(facts.kind, facts.pool, facts.volume)
        self.id = facts.id
        self.own = own
        self._board = board
        self._followed = False
        self._started = time.monotonic() - facts.elapsed / 1000
        self.done, self.total = facts.done, facts.total

    def note(self, facts: extension.JobFacts) -> None:
        """Take newer facts, and tell subscribers."""
        self.beat = time.monotonic()
        self.done, self.total = facts.done, facts.total
        if not self.ended:
            self._report()

    def cancel(self) -> None:
        """Ask the work to stop. It may still finish first.

        :raise StorageError: the other side does not let us.
        """
        if self.ended:
            return
        super().cancel()
        with suppress(InvalidArgument):  # it has ended meanwhile
            self._board.cancel(self.id)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it came within *timeout* seconds."""
        if not self.own:
            self._listen()  # nobody would tell us of the end
        return super().wait(timeout)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end and return what the work returned; for a job of others None."""
        if not self.own:
            self._listen()
        return super().result(timeout)

    def progress(self) -> Progress:
        """Return the figures of the last message; they come from the first call on."""
        if self.own and not (self._followed or self.ended):
            self._listen()
            self._board.look(self)
        return super().progress()

    def subscribe(self, subscriber: Callable[[Progress], None]) -> Callable[[], None]:
        """Have *subscriber* called at most five times a second, and once at the end."""
        self._listen()
        return super().subscribe(subscriber)

    def on_end(self, hook: Callable[[], None]) -> None:
        """Have *hook* called after the end, at once if the job has ended."""
        if not self.own:
            self._listen()
        super().on_end(hook)

    def _listen(self) -> None:
        if not (self._followed or self.ended):
            self._followed = True
            self._board.follow(self)


class JobBoard:
    """The jobs of one connection that callers hold."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._jobs: dict[int, RemoteJob[Any]] = {}
        #: jobs of others that nobody follows, as long as a caller holds them
        self._seen: WeakValueDictionary[int, RemoteJob[Any]] = WeakValueDictionary()
        #: how each job that we began makes its result of the record that comes at the end
        self._readers: dict[int, Callable[[bytes], Any]] = {}
        self._beginning = 0
        #: ends that came before the caller that began the job was told its number
        self._early: dict[int, extension.JobEnded] = {}
        link.on_event(self._heard)
        link.on_close(lambda _reason: self.lose("The daemon has ended: its log says why."))

    def begin(
        self,
        procedure: Procedure[Any, R],
        args: Record,
        convert: Callable[[R], T],
        *,
        flags: int = 0,
    ) -> RemoteJob[T]:
        """Have a call done as a job.

        :param convert: makes the result of the record that the call returns.
        """
        if procedure.program == EXTENSION:
            flags |= extension.CallFlag.OWN
        wish = extension.CallArgs(procedure.number, args.pack(), flags)
        with self._early_ends():
            with failures():
                facts = self._link.call(extension.JOB_BEGIN, wish).job
            job: RemoteJob[T] = RemoteJob(facts, self, own=True)
            with self._lock:
                ended = self._early.pop(job.id, None)
                if ended is None:
                    self._jobs[job.id] = job
                    self._readers[job.id] = lambda data: convert(procedure.ret.unpack(data))
        if ended is not None:
            _end(job, ended, lambda data: convert(procedure.ret.unpack(data)))
        elif not self._link.alive:
            self.lose()
        return job

    def known(self, facts: extension.JobFacts) -> RemoteJob[Any]:
        """Return the job that facts are about: the one that a caller holds, if there is one."""
        with self._lock:
            held = self._jobs.get(facts.id) or self._seen.get(facts.id)
            if held is None:
                held = self._seen[facts.id] = RemoteJob(facts, self, own=False)
                return held
        held.note(facts)
        return held

    def lose(self, advice: str | None = None) -> None:
        """End all jobs: the connection is gone, and with it who could tell of them."""
        with self._lock:
            lost = list(self._jobs.values())
            self._jobs.clear()
            self._readers.clear()
        for job in lost:
            lost_it = InternalError("client socket is closed", advice=advice, domain=Domain.RPC)
            job.fail(lost_it)

    @contextmanager
    def _early_ends(self) -> Iterator[None]:
        with self._lock:
            self._beginning += 1
        try:
            yield
        finally:
            with self._lock:
                self._beginning -= 1
                if not self._beginning:
                    self._early.clear()

    def follow(self, job: RemoteJob[Any]) -> None:
        """Have the progress of a job sent from now on."""
        with self._lock:
            self._jobs[job.id] = job
        try:
            pending = self._link.begin(extension.JOB_FOLLOW, extension.JobId(job.id))
        except RemoteFailure:
            self.lose()
        else:
            pending.on_done(lambda: self._answered(job, pending))

    def _answered(self, job: RemoteJob[Any], pending: PendingCall[Any]) -> None:
        """Take the answer to a wish to follow; one that is refused has ended meanwhile."""
        try:
            pending.result()
        except RemoteFailure:
            if not job.own:  # the end of our own is told anyhow
                with self._lock:
                    self._jobs.pop(job.id, None)
                job.finish(None)

    def look(self, job: RemoteJob[Any]) -> None:
        """Bring the figures of a job up to date."""
        with suppress(RemoteFailure):  # it has ended, and we are told of that
            job.note(self._link.call(extension.JOB_GET, extension.JobId(job.id)).job)

    def cancel(self, number: int) -> None:
        """Have a job cancelled.

        :raise InvalidArgument: it has ended.
        """
        with failures():
            self._link.call(extension.JOB_CANCEL, extension.JobId(number))

    def _heard(self, procedure: AnyProcedure, record: Record) -> None:
        if isinstance(record, extension.JobEnded):
            self._ended(record)
        elif isinstance(record, extension.JobRet):
            with self._lock:
                job = self._jobs.get(record.job.id)
            if job is not None:
                self._progressed(job, record.job)

    def _progressed(self, job: RemoteJob[Any], facts: extension.JobFacts) -> None:
        job.note(facts)
        state = JobState(facts.state)
        if job.own or state is JobState.RUNNING:
            return  # the end of our own comes with its outcome
        with self._lock:
            self._jobs.pop(job.id, None)
        if state is JobState.DONE:
            job.finish(None)
        elif state is JobState.CANCELLED:
            job.fail(Cancelled(f"{job.kind} was cancelled"))
        else:
            job.fail(OperationFailed(f"{job.kind} of {job.volume or job.pool} failed"))

    def _ended(self, record: extension.JobEnded) -> None:
        number = record.job.id
        with self._lock:
            job = self._jobs.pop(number, None)
            reader = self._readers.pop(number, None)
            if reader is None and self._beginning:
                self._early[number] = record
        if job is not None and reader is not None:
            _end(job, record, reader)


def _end(job: RemoteJob[Any], record: extension.JobEnded, reader: Callable[[bytes], Any]) -> None:
    job.done, job.total = record.job.done, record.job.total
    if record.error is not None:
        job.fail(revive(record.error))
        return
    try:
        job.finish(reader(record.ret))
    except StorageError as err:  # an outcome that cannot be read
        job.fail(err)
