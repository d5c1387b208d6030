"""The progress bar on a terminal. The only module that imports rich."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from storaged import job
from storaged.cli.progress import Meter, describe, title


class Bar:
    """A bar with the share done, the sizes, the rate and the time left; gone when it ends."""

    interval = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._meter = Meter()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,  # a second thread would write while a message is printed
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None, figures="")
        self._bar.start()

    def show(self, progress: job.Progress) -> None:
        """Draw the bar anew."""
        self._bar.update(
            self._task,
            description=title(progress),
            completed=progress.done,
            total=progress.total or None,
            figures=describe(progress, self._meter.rate(progress)),
        )
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar and show the cursor again."""
        self._bar.stop()
