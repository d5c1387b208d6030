"""One run of storagectl: which engine it opens and how it answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from storaged.cli import outcome

if TYPE_CHECKING:
    from storaged import Storage
    from storaged.job import Job

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Invocation:
    """The settings of one run.

    :param root: directory below which configuration and state lie; None is the host's own.
    :param lock_timeout: how long to wait for another engine to let go, in seconds.
    :param json: answers and errors are JSON.
    :param verbose: tracebacks and the log on standard error.
    """

    root: str | None = None
    session: bool = False
    lock_timeout: float = 30.0
    json: bool = False
    verbose: bool = False

    def look(self) -> Storage:
        """Open the engine to read: it takes no lock, so it works beside a running engine."""
        import storaged

        return storaged.open(self.root, session=self.session, readonly=True)

    def change(self) -> Storage:
        """Open the engine to change something: it holds the driver's lock until it is closed.

        :raise ResourceBusy: another engine kept the lock for all of `lock_timeout`.
        """
        import storaged

        return storaged.open(self.root, session=self.session, lock_timeout=self.lock_timeout)

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
