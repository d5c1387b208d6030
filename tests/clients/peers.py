"""Scenarios run by `tests.clients.peer` on both daemons, and their answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from tests.clients.daemons import SYSTEM_PYTHON, Daemons, Served, require_binding
from tests.clients.differences import compare

_HERE = Path(__file__).parent


class Peer:
    """A process of the system's Python that runs the scenarios of one module on one daemon."""

    def __init__(self, module: ModuleType, served: Served) -> None:
        self.served = served
        assert module.__file__ is not None
        arguments = [module.__file__, served.uri, str(served.pid), str(served.directory)]
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(_HERE / "peer.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_HERE.parents[1])},
        )

    def begin(self, scenario: str, *arguments: Any) -> None:
        """Have a scenario run; `answer` waits for it."""
        assert self._process.stdin is not None
        line = json.dumps([scenario, *self.served.inward(arguments)])
        print(line, file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the end of the scenario that runs."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client of {self.served.name} died with {self._process.wait()}"
        return dict(json.loads(line))

    def value(self, answer: dict[str, Any]) -> Any:
        """Return what a scenario returned.

        :raise AssertionError: it failed.
        """
        assert "failed" not in answer, f"on {self.served.name}:\n{answer['failed']}"
        return self.served.outward(answer["value"])

    def run(self, scenario: str, *arguments: Any) -> Any:
        """Run a scenario and return what it returned."""
        self.begin(scenario, *arguments)
        return self.value(self.answer())

    def close(self) -> None:
        self._process.communicate()


@dataclass(frozen=True)
class Peers:
    """A peer for each daemon."""

    theirs: Peer
    ours: Peer

    def both(self, scenario: str, *arguments: Any) -> tuple[Any, Any]:
        """Return what a scenario answers on libvirt's daemon and on ours, run at the same time."""
        self.theirs.begin(scenario, *arguments)
        self.ours.begin(scenario, *arguments)
        answers = [peer.answer() for peer in (self.theirs, self.ours)]
        return self.theirs.value(answers[0]), self.ours.value(answers[1])

    def same(self, scenario: str, *arguments: Any) -> Any:
        """Return our answer, which must be libvirt's but for the wanted differences."""
        theirs, ours = self.both(scenario, *arguments)
        compare(scenario, theirs, ours)
        return ours


@contextmanager
def open_peers(module: ModuleType, daemons: Daemons) -> Iterator[Peers]:
    """Run a peer for each of the two daemons."""
    require_binding()
    with ExitStack() as stack:
        peers = [Peer(module, served) for served in daemons]
        for peer in peers:
            stack.callback(peer.close)
        yield Peers(*peers)


def scenarios(module: ModuleType) -> list[str]:
    """Return the names of a module's own public functions, in their order."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
