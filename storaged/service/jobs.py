"""The jobs that one connection has begun or follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from storaged.driver import Driver
from storaged.errors import StorageError
from storaged.job import Job, Progress
from storaged.rpc import extension, remoteerror
from storaged.rpc.extension import JobEnded, JobFacts, JobRet
from storaged.rpc.remoteerror import RemoteError
from storaged.service.handler import Begun
from storaged.service.registrations import Notify

#: Follows all jobs.
ALL = 0


class Jobs:
    """The jobs of one session."""

    def __init__(self, driver: Driver, notify: Notify) -> None:
        self._driver = driver
        self._notify = notify
        self._lock = threading.Lock()
        self._bound: dict[int, Job[Any]] = {}
        #: those whose end is told; the engine counts no scan among its jobs
        self._begun: dict[int, Job[Any]] = {}
        #: what ends each following, by the job's id
        self._followed: dict[int, Callable[[], None]] = {}
        self._following_all: Callable[[], None] | None = None
        self._closed = False
        #: whether what is bound to a session that has ended is to be cancelled
        self._cancels = False

    def bind(self, job: Job[Any]) -> None:
        """Have a job cancelled when the session ends before it does."""
        with self._lock:
            gone = self._closed
            if not gone:
                self._bound[job.id] = job
        if not gone:
            job.on_end(lambda: self._unbind(job))
        elif self._cancels:
            job.cancel()

    def announce(self, begun: Begun) -> None:
        """Have the end of a job told, with what came of it."""
        with self._lock:
            self._begun[begun.job.id] = begun.job
        begun.job.on_end(lambda: self._tell_end(begun))

    def has_begun(self, number: int) -> bool:
        """Tell whether a job under way is of this session."""
        return number in self._begun

    def find(self, number: int) -> Job[Any]:
        """Return a job under way: of the engine, or a scan that this session has begun.

        :raise InvalidArgument: there is none of this number.
        """
        return self._begun.get(number) or self._driver.job(number)

    def follow(self, number: int) -> None:
        """Have the progress of a job told, or with `ALL` of each job from now on.

        :raise InvalidArgument: no such job is under way.
        """
        if number != ALL:
            self._watch(self.find(number))
            return
        with self._lock:
            if self._closed or self._following_all is not None:
                return
            self._following_all = self._driver.on_job(self._watch)
        for job in self._driver.jobs():
            self._watch(job)

    def unfollow(self, number: int) -> None:
        """End what `follow` began; what is not followed is no error."""
        with self._lock:
            if number == ALL:
                ends = [*self._followed.values()]
                self._followed.clear()
                if self._following_all is not None:
                    ends.append(self._following_all)
                    self._following_all = None
            else:
                end = self._followed.pop(number, None)
                ends = [] if end is None else [end]
        for end in ends:
            end()

    def close(self, *, cancel: bool) -> None:
        """Follow no job any more.

        :param cancel: cancel those that are bound to the session.
        """
        with self._lock:
            self._closed, self._cancels = True, cancel
            bound = tuple(self._bound.values())
            self._bound.clear()
        self.unfollow(ALL)
        if cancel:
            for job in bound:
                job.cancel()

    def _unbind(self, job: Job[Any]) -> None:
        with self._lock:
            self._bound.pop(job.id, None)

    def _watch(self, job: Job[Any]) -> None:
        with self._lock:
            if self._closed or job.id in self._followed:
                return
            self._followed[job.id] = lambda: None  # until there is something to end
        end = job.subscribe(self._tell_progress)
        with self._lock:
            if not job.ended and job.id in self._followed:
                self._followed[job.id] = end
                return
            self._followed.pop(job.id, None)
        end()

    def _tell_progress(self, progress: Progress) -> None:
        if self._closed:
            return
        if progress.state != "running":
            with self._lock:
                self._followed.pop(progress.id, None)
        self._notify(extension.EVENT_JOB_PROGRESS, JobRet(facts(progress)))

    def _tell_end(self, begun: Begun) -> None:
        with self._lock:
            self._begun.pop(begun.job.id, None)
            if self._closed:
                return
        error: RemoteError | None = None
        ret = b""
        try:
            ret = begun.answer(begun.job.result()).pack()
        except StorageError as err:
            error = remoteerror.describe_fully(err)
        except BaseException as err:
            error = remoteerror.describe_bug(err)
        ended = JobEnded(facts(begun.job.progress()), error, ret)
        self._notify(extension.EVENT_JOB_ENDED, ended)


def facts(progress: Progress) -> JobFacts:
    """Return the record of a job at one moment."""
    return JobFacts(
        progress.id,
        progress.kind,
        progress.pool,
        progress.volume,
        str(progress.state),
        max(progress.done, 0),
        max(progress.total, 0),
        max(int(progress.elapsed * 1000), 0),
    )
