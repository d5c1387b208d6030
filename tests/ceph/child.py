"""Processes that die with us, and can be stopped, continued and killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.kernel.programs import SYSTEM_PATH, patience


class Child:
    """A program that was started; it is killed when the thread that started it ends.

    :param log: what it writes to its standard error is added there.
    :param directory: where it works, ours by default.
    :param pipes: speak to it by `stdin` and `stdout`; else the one is empty, the other the log.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        directory: Path | None = None,
        pipes: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = os.fspath(argv[0])
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else errors,
                stderr=errors,
                cwd=directory,
                env={**os.environ, "PATH": SYSTEM_PATH, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Tell whether it has not ended; a stopped one runs."""
        return self.process.poll() is None

    def freeze(self) -> None:
        """Stop it: it answers nobody until `thaw`, its connections stay."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, if it was stopped."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it for the length of a block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def terminate(self, seconds: float = 20) -> None:
        """Ask it to end, wait until it did."""
        self.thaw()
        self._signal(signal.SIGTERM)
        self.wait(seconds)

    def kill(self) -> None:
        """Kill it at once, also if it is stopped; nothing happens if it has ended."""
        self._signal(signal.SIGKILL)
        self.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            # who would read what is still to be written is dead
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def wait(self, seconds: float = 20) -> int:
        """Wait for its end, return its exit status.

        :raise subprocess.TimeoutExpired: it runs on.
        """
        return self.process.wait(patience(seconds))

    def last_words(self) -> str:
        """Return the end of what it wrote to its standard error."""
        return self.log.read_text(errors="replace")[-2000:]

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self.process.send_signal(number)


class Daemon:
    """One of Ceph's daemons; it can be frozen, killed and started again."""

    def __init__(self, name: str, conf: Path) -> None:
        self.name = name
        self._conf = conf
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """Its process, the last one if there were several."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child

    @property
    def running(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start it, in the foreground; it answers a moment later."""
        kind, _, identity = self.name.partition(".")
        self._child = Child(
            [f"ceph-{kind}", "-c", self._conf, "-f", "-i", identity],
            log=self._conf.parent / "log" / f"{self.name}.err",
            directory=self._conf.parent,
        )

    def freeze(self) -> None:
        """Let it answer nobody, until `thaw`; connections to it stay."""
        self.child.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.child.thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it for the length of a block."""
        with self.child.frozen():
            yield

    def terminate(self) -> None:
        """Let it end in order: an OSD with its data in memory writes them down."""
        self.child.terminate()

    def kill(self) -> None:
        """Let it die at once: connections to it break, new ones are refused."""
        if self._child is not None:
            self._child.kill()
