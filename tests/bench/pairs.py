"""Two who do the same in turn, so that what else the machine does meets both.

It runs in the system's Python too, which has libvirt's binding: it imports nothing of ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Side = TypeVar("Side")

#: What was measured: a name, a unit, and the values of both sides, theirs first, run by run.
Found = dict[str, Any]


def show(found: Found) -> None:
    """Print a row for the process that started this one."""
    print(json.dumps(found), flush=True)


class Rows(Generic[Side]):
    """Runs of one thing on both sides in turn.

    :param sides: theirs first.
    :param tell: is given each row.
    """

    def __init__(
        self, sides: list[Side], rounds: int, tell: Callable[[Found], None] = show
    ) -> None:
        self._sides = sides
        self._rounds = rounds
        self._tell = tell

    def time(
        self,
        name: str,
        work: Callable[[Side], object],
        *,
        before: Callable[[Side], object] = lambda _: None,
        share: int = 1,
    ) -> None:
        """Tell how long *work* takes, as a share of what it does."""

        def run(side: Side) -> float:
            return _seconds(side, work, before) * 1000 / share

        self.value(name, run)

    def speed(
        self,
        name: str,
        work: Callable[[Side], object],
        amount: float,
        *,
        before: Callable[[Side], object] = lambda _: None,
    ) -> None:
        """Tell how fast *work* moves *amount* MiB."""
        self.value(name, lambda side: amount / _seconds(side, work, before), "MiB/s")

    def value(self, name: str, run: Callable[[Side], float], unit: str = "ms") -> None:
        """Tell what *run* measures."""
        times: list[list[float]] = [[], []]
        for number in range(self._rounds):
            # who is first changes from round to round
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(run(self._sides[which]))
        self._tell({"name": name, "unit": unit, "times": times})


def _seconds(side: Side, work: Callable[[Side], object], before: Callable[[Side], object]) -> float:
    before(side)
    start = time.perf_counter()
    work(side)
    return time.perf_counter() - start
