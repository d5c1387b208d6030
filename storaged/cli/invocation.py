"""One run of storagectl: which engine it opens and how it answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from storaged.cli import outcome

if TYPE_CHECKING:
    from storaged import Storage
    from storaged.job import Job

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Invocation:
    """The settings of one run.

    :param root: directory below which configuration and state lie; None is the host's own.
    :param connect: the URI of the engine to use.
    :param embedded: work in this process, whether or not there is a daemon.
    :param lock_timeout: how long to wait for another engine to let go, in seconds.
    :param json: answers and errors are JSON.
    :param verbose: tracebacks and the log on standard error.
    """

    root: str | None = None
    session: bool = False
    connect: str | None = None
    embedded: bool = False
    lock_timeout: float = 30.0
    json: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, json: bool = False, verbose: bool = False) -> Self:
        """Return the run that the options before the command describe."""
        return cls(
            root=settings.get("root"),
            session=settings.get("session", False),
            connect=settings.get("connect"),
            embedded=settings.get("embedded", False),
            lock_timeout=settings.get("lock_timeout", 30.0),
            json=json or settings.get("as_json", False),
            verbose=verbose or settings.get("verbose", False),
        )

    def look(self, driver: str = "storage") -> Storage:
        """Open the engine to read: it takes no lock, so it works beside a running engine.

        :param driver: which one is needed of a daemon of libvirt's that has them all.
        """
        from storaged.cli.connection import Chooser

        return Chooser(self, writes=False, driver=driver).open()

    def change(self, driver: str = "storage") -> Storage:
        """Open the engine to change something.

        One in this process holds the driver's lock until it is closed.

        :raise ResourceBusy: another engine kept the lock for all of `lock_timeout`.
        """
        from storaged.cli.connection import Chooser

        return Chooser(self, writes=True, driver=driver).open()

    def connect_daemon(self, what: str) -> Storage:
        """Open a connection to a daemon, for *what* only a daemon can do."""
        from storaged.cli.connection import Chooser

        return Chooser(self, writes=False).open_daemon(what)

    def emit(self, document: object, text: str | Callable[[], str]) -> None:
        """Answer: with *document* as JSON, or with *text* and a newline for people."""
        if self.json:
            import json  # not at the top: people pay for each start

            print(json.dumps(document, indent=2 if sys.stdout.isatty() else None))
            return
        words = text if isinstance(text, str) else text()
        if words:
            print(words)

    def warn(self, text: str) -> None:
        """Say on standard error what is worth knowing but stops nothing."""
        outcome.warn(text, as_json=self.json)

    def follow(self, job: Job[T]) -> T:
        """Wait for *job* with progress on standard error; Ctrl-C cancels it."""
        from storaged.cli.progress import follow

        return follow(job, as_json=self.json)

    def watch(self, job: Job[T]) -> T:
        """Wait for *job* with progress on standard error; Ctrl-C leaves it alone."""
        from storaged.cli.progress import watch

        return watch(job, as_json=self.json)
