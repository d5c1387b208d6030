"""The daemon's control connection: commands, jobs and their progress, from blocking code.

The QMP library is asynchronous. Its loop runs in the calling thread, only while a command is under
way; so the thread that does the work is the only one there is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from storaged.errors import Cancelled, OperationFailed, Timeout

T = TypeVar("T")

#: How often we look whether the work was cancelled and how far it is, in seconds.
_TICK: Final = 0.05
#: How long the start may take, and what a job is asked while it runs, in seconds.
_PATIENCE: Final = 60.0
#: How long a cancelled job gets to end before the daemon is killed, in seconds.
_CANCEL_PATIENCE: Final = 1.0
#: How much of a text of the daemon's is shown: it may quote an image.
_MAX_TEXT: Final = 400
_JOB: Final = "job"

#: Called with (done, total) while work goes on; stops it by raising.
Tick = Callable[[int | None, int | None], None]


class _JobFacts(NamedTuple):
    """What the daemon says of its job."""

    status: str
    done: int
    total: int
    error: str | None

    @classmethod
    def of(cls, answer: object) -> _JobFacts:
        """Read the answer to ``query-jobs``.

        :raise ConnectionError: it is not about one job.
        """
        match answer:
            case [{"status": str(status), "current-progress": int(done), **more}]:
                error = str(more["error"]) if "error" in more else None
                total = more.get("total-progress")
                return cls(status, done, total if isinstance(total, int) else 0, error)
        raise ConnectionError("the daemon does not know of its job")


class Monitor:
    """One connection.

    Where the daemon hangs up, every method raises `ConnectionError`.

    :param sock: connected to the daemon's monitor; closed with the connection.
    :param tick: called about every 50 ms while we wait, without figures if there are none.
    """

    def __init__(self, sock: socket.socket, tick: Tick) -> None:
        self._tick = tick
        # this thread may belong to a program with an event loop policy of its own
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._client = QMPClient("storaged")
        # the library logs all it sends, and as an error what we tell by raising
        self._client.logger = _silent()
        try:
            self._run(self._patiently(self._client.connect(sock)))
        except BaseException:
            self.close()
            sock.close()
            raise

    def execute(self, command: str, arguments: Mapping[str, object], patience: float) -> Any:
        """Run a command and return its answer.

        :raise OperationFailed: the daemon refuses; the text is its own.
        :raise Timeout: it did not answer within *patience* seconds.
        """
        return self._run(self._patiently(self._client.execute(command, dict(arguments)), patience))

    def run_job(
        self, command: str, arguments: Mapping[str, object], *, figures: bool = True
    ) -> None:
        """Run a command that starts a job, and wait for the job's end.

        A job that becomes ready (a mirror that has caught up) is completed.

        :param figures: whether the tick gets the job's figures: not all jobs count bytes.
        :raise OperationFailed: the job failed.
        """
        self._run(self._follow(command, arguments, figures))

    def quit(self, patience: float) -> None:
        """Have the daemon close its images and end; the work can no longer be cancelled.

        :raise Timeout: it has not begun to within *patience* seconds.
        """

        async def ask() -> None:
            try:
                async with asyncio.timeout(patience):
                    await self._client.execute("quit")
            except TimeoutError as err:
                raise Timeout("qemu-storage-daemon does not answer") from err

        self._run(ask())

    def close(self) -> None:
        """Hang up. Calling it again does nothing."""
        if self._client.runstate is not Runstate.IDLE:
            with suppress(QMPError, OSError, EOFError):
                self._run(self._client.disconnect())
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except ExecuteError as err:
            raise OperationFailed(clean(str(err))) from err
        except (QMPError, EOFError) as err:
            raise ConnectionError(str(err)) from err

    async def _patiently(self, work: Coroutine[Any, Any, T], patience: float = _PATIENCE) -> T:
        """Wait for *work*, with a look at the tick now and then, and not for ever."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        end = loop.time() + patience
        try:
            while not (await asyncio.wait({task}, timeout=_TICK))[0]:
                self._tick(None, None)
                if loop.time() > end:
                    raise Timeout("qemu-storage-daemon does not answer")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_TICK)

    async def _follow(self, command: str, arguments: Mapping[str, object], figures: bool) -> None:
        with self._client.listener("JOB_STATUS_CHANGE") as listener:
            await self._patiently(self._client.execute(command, {"job-id": _JOB, **arguments}))
            try:
                failure = await self._see_through(listener, figures)
            except Cancelled:
                await self._cancel(listener)
                raise
        if failure is not None:
            raise OperationFailed(clean(failure))

    async def _see_through(self, listener: EventListener, figures: bool) -> str | None:
        """Wait for the end of the job, completing it when it is ready; return why it failed."""
        completed, done = False, 0
        while True:
            job = await self._job()
            if figures:
                done = max(done, job.done)
                self._tick(done, max(done, job.total))
            else:
                self._tick(None, None)
            if job.status == "concluded":
                await self._patiently(self._client.execute("job-dismiss", {"id": _JOB}))
                return job.error
            if job.status == "ready" and not completed:
                completed = True
                await self._patiently(self._client.execute("job-complete", {"id": _JOB}))
            await _change(listener)

    async def _job(self) -> _JobFacts:
        return _JobFacts.of(await self._patiently(self._client.execute("query-jobs")))

    async def _job_now(self) -> _JobFacts:
        """Ask without a look at the tick: it would stop us."""
        return _JobFacts.of(await self._client.execute("query-jobs"))

    async def _cancel(self, listener: EventListener) -> None:
        """Stop the job; whoever is in the way of that is killed a little later."""
        with suppress(QMPError, OSError):
            async with asyncio.timeout(_CANCEL_PATIENCE):
                await self._client.execute("job-cancel", {"id": _JOB})
                while (await self._job_now()).status != "concluded":
                    await _change(listener)


async def _change(listener: EventListener) -> None:
    """Wait until the job tells of a change, or for the next tick."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_TICK):
            event: Message = await listener.get()
            del event
    listener.clear()


def clean(text: str) -> str:
    """Return a text of the daemon's as one printable line of bounded length."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])


def _silent() -> logging.Logger:
    logger = logging.Logger("storaged.qsd.monitor", logging.CRITICAL + 1)
    logger.propagate = False
    return logger
