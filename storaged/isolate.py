"""Children in which libraries run that may abort the process they are in, as librbd does.

A child serves one class of ours (see `storaged.isolatescript`) under an interpreter that has the
library. Many calls are under way in it at once. If it dies, those fail, and the next call starts
another child; nothing else notices. It ends with us, and lets what cannot be stopped halfway come
to its end first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storaged.isolatesession import ChildDied as ChildDied
from storaged.isolatesession import Listener, start
from storaged.isolatesession import Reply as Reply
from storaged.isolatesession import ServiceError as ServiceError
from storaged.isolatesession import Session as Session
from storaged.job import Job, Pending

#: Between two starts of a child there is so much time at least, in seconds, unless we ended it.
_PAUSE = 1.0


class Isolated:
    """A service in a child of its own, which is started when it is needed.

    :param python: the interpreter.
    :param module: what is served.
    :param greet: called with each new child before anybody else may use it; what it raises is
        raised by the calls that needed the child.
    :param hear: called with what the child tells unasked, on a thread that must not wait.
    :param package: where the modules of storaged are that the child imports.
    """

    def __init__(
        self,
        python: str,
        module: str,
        *,
        greet: Callable[[Session], None],
        hear: Listener = lambda _name, _fact: None,
        package: Path = Path(__file__).parent,
    ) -> None:
        self._python = python
        self._module = module
        self._greet = greet
        self._hear = hear
        self._package = package
        #: guards what stands below
        self._lock = threading.Lock()
        #: the start that is under way, unless we have ended it
        self._start: Pending[Session] | None = None
        #: the child that was started last, maybe not greeted yet
        self._newest: Session | None = None
        #: no child is started before, by `time.monotonic`
        self._earliest = 0.0
        #: the child for everybody
        self._session: Session | None = None

    @property
    def pid(self) -> int | None:
        """The process of the child, None while there is none."""
        session = self._session
        return session.pid if session is not None and session.alive else None

    def call(
        self,
        verb: str,
        timeout: float,
        *,
        job: Job[Any] | None = None,
        again: bool = False,
        **words: Any,
    ) -> Any:
        """Make a call and return what the child answers; see `Reply.take`.

        :param again: if the child dies of itself under it, ask once more: it only looks at things.
        """
        if job is not None:
            job.checkpoint()
        session = self.session()
        try:
            return session.begin(verb, words).take(timeout, job)
        except ChildDied:
            if not again or session.ended:
                raise
        return self.begin(verb, **words).take(timeout, job)

    def begin(self, verb: str, *, fd: int | None = None, **words: Any) -> Reply:
        """Begin a call; its answer is taken later. See `Session.begin`."""
        return self.session().begin(verb, words, fd)

    def session(self) -> Session:
        """Return the child, started if there is none.

        Those who wait for somebody else's start share its failure.

        :raise ChildDied: it cannot be started.
        """
        session = self._session
        if session is not None and session.alive:
            return session
        with self._lock:
            session, others = self._session, self._start
            if session is not None and session.alive:
                return session
            if others is None:
                ours = self._start = Pending[Session]("start")
        if others is not None:
            return others.result()
        try:
            session = self._make(ours)
        except BaseException as err:
            self._end_start(ours, None)
            ours.fail(err)
            raise
        self._end_start(ours, session)
        ours.finish(session)
        return session

    def close(self) -> None:
        """End the child once it has ended what is under way; a later call starts another one."""
        session = self._end()
        if session is not None:
            session.close()

    def kill(self) -> None:
        """End the child at once, also one that hangs and one that is being greeted."""
        session = self._end()
        if session is not None:
            session.kill()

    def _end(self) -> Session | None:
        with self._lock:
            self._earliest = 0.0
            self._start = self._session = None
            session, self._newest = self._newest, None
            return session

    def _end_start(self, ours: Pending[Session], session: Session | None) -> None:
        with self._lock:
            if self._start is ours:
                self._session, self._start = session, None

    def _make(self, ours: Pending[Session]) -> Session:
        """Start a child and greet it; if we were told to end it meanwhile, it is dead."""
        time.sleep(max(self._earliest - time.monotonic(), 0))
        with self._lock:
            self._earliest = time.monotonic() + _PAUSE
        session = start(self._python, self._module, self._hear, self._package)
        with self._lock:
            wanted = self._start is ours
            if wanted:
                self._newest = session
        if not wanted:
            session.kill()
        try:
            self._greet(session)
        except BaseException:
            session.kill()
            raise
        return session
