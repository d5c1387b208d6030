"""Storaged's daemon, in which work on volumes named ``halt-...`` stops for good half-way.

A test kills it there: all that the work has made until then is real, and nothing goes on. A file of
the volume's name below ``--halted DIR``, the first option, says that it has come to that.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from storaged.daemon.main import main
from storaged.job import Job

#: What the names of volumes begin with that never come to be.
PREFIX = "halt-"

_checkpoint = Job.checkpoint


def _is_half_done(job: Job[object]) -> bool:
    """Tell whether bytes were moved, or the backend says between two steps that it is alive.

    While a tool runs nothing has been made as yet.
    """
    caller = sys._getframe(2).f_globals["__name__"]
    return job.done > 0 or caller.startswith("storaged.backends.")


def halt_in(place: Path) -> None:
    """Have the work stop from now on."""

    def checkpoint(job: Job[object], done: int | None = None, total: int | None = None) -> None:
        _checkpoint(job, done, total)
        if (job.volume or "").startswith(PREFIX) and _is_half_done(job):
            (place / str(job.volume)).touch()
            threading.Event().wait()

    Job.checkpoint = checkpoint  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    halt_in(Path(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
