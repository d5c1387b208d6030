"""What the tests of `storaged.isolate` have served in a child: a service that also misbehaves."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Failure(Exception):
    """An error as bindings raise them: its number is negative."""

    errno = -107


class Service:
    """Answers; its `close` leaves a note where it was told to."""

    def __init__(self, hear: Callable[[str, Any], None]) -> None:
        self._hear = hear
        self._note: Path | None = None
        self._closing = 0.0
        self._met = threading.Condition()
        self._now = self._peak = 0
        self._seen: list[str] = []

    def close(self) -> None:
        """Leave the note, after as long as was asked for."""
        time.sleep(self._closing)
        if self._note is not None:
            with self._note.open("a") as file:
                file.write("closed")

    def do_echo(self, _task: Any, value: Any = None) -> Any:
        """Return what is given."""
        return value

    def do_see(self, _task: Any, name: str) -> None:
        """Note that this was begun."""
        self._seen.append(name)

    def do_seen(self, _task: Any) -> list[str]:
        """Return what was begun."""
        return self._seen

    def do_make(self, _task: Any, size: int) -> str:
        """Return something of a size."""
        return "x" * size

    def do_fail(self, _task: Any, path: str = "/none") -> None:
        """Fail as the system does."""
        Path(path).stat()

    def do_refuse(self, _task: Any) -> None:
        """Fail as bindings do."""
        raise Failure("no connection\n\udcff")

    def do_leave(self, _task: Any) -> None:
        """Raise what is no error."""
        sys.exit(3)

    def do_mumble(self, _task: Any) -> Any:
        """Return what JSON cannot say."""
        return {1, 2}

    def do_sleep(self, _task: Any, seconds: float) -> None:
        """Take no notice of anybody for a while."""
        time.sleep(seconds)

    def do_meet(self, _task: Any, others: int) -> int:
        """Wait until there were so many of these at once; return how many there were so far."""
        with self._met:
            self._now += 1
            self._peak = max(self._peak, self._now)
            self._met.notify_all()
            self._met.wait_for(lambda: self._peak >= others, timeout=15)
        time.sleep(0.1)
        with self._met:
            self._now -= 1
            return self._peak

    def do_step(self, task: Any, steps: int, seconds: float) -> str:
        """Go step by step."""
        for step in range(1, steps + 1):
            time.sleep(seconds)
            task.checkpoint(step, steps)
        return "done"

    def do_linger(self, task: Any) -> str:
        """Go on until nobody is interested, and succeed all the same."""
        while not task.cancelled:
            time.sleep(0.005)
        return "done"

    def do_break(self, task: Any) -> None:
        """Go on until nobody is interested, and fail with an error of our own."""
        self.do_linger(task)
        raise Failure("broken")

    def do_read(self, task: Any, length: int = 64) -> str:
        """Return what can be read from the descriptor."""
        return os.pread(task.fd, length, 0).decode()

    def do_descriptors(self, _task: Any) -> int:
        """Return how many descriptors there are."""
        return len(list(Path("/proc/self/fd").iterdir()))

    def do_bound(self, _task: Any) -> None:
        """Allow no further descriptors."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    def do_hold(self, _task: Any) -> None:
        """Never let go of the interpreter."""
        pow(3, 1 << 200_000, (1 << 200_000) - 1)

    def do_signal(self, _task: Any, number: int) -> None:
        """Send a signal to the process, and do not come back."""
        os.kill(os.getpid(), number)
        time.sleep(60)

    def do_say(self, _task: Any, data: str) -> None:
        """Write bytes that are no message."""
        os.write(int(sys.argv[1]), bytes.fromhex(data))

    def do_tell(self, _task: Any, name: str, fact: Any) -> None:
        """Tell what nobody asked for."""
        self._hear(name, fact)

    def do_note(self, _task: Any, path: str, closing: float = 0.0) -> None:
        """Have `close` leave a note, and take its time for that."""
        self._note, self._closing = Path(path), closing

    def do_finish(self, _task: Any, path: str, seconds: float) -> None:
        """Leave a note after a while."""
        self._seen.append("finish")
        time.sleep(seconds)
        with Path(path).open("a") as file:
            file.write("finished ")

    def do_set(self, _task: Any, name: str, value: Any) -> None:
        """Replace a bound of the script that serves us."""
        setattr(sys.modules["__main__"], name, value)
