"""From the thread of a link to the event loop: tasks in a queue, and a pipe that tells of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from storaged.libvirt.constants import VIR_EVENT_HANDLE_READABLE
from storaged.libvirt.eventloop import EventLoop


class Wakeup:
    """Runs tasks of other threads in an event loop, in their order.

    :param loop: the loop, which watches a pipe until `close`.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._tasks: deque[Callable[[], object]] = deque()
        self._loop = loop
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._closed = False
        self._watch = loop.add_handle(
            self._reading, VIR_EVENT_HANDLE_READABLE, lambda *_: self._run(), None
        )

    def post(self, task: Callable[[], object]) -> None:
        """Have *task* run by the loop. Any thread may call this."""
        self._tasks.append(task)
        # A full pipe is read anyhow; of a closed one nobody waits for the task.
        with suppress(OSError):
            os.write(self._writing, b"x")

    def _run(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
        for _ in range(len(self._tasks)):
            if not self._closed and self._tasks:
                self._tasks.popleft()()
        if self._tasks and not self._closed:  # one of them raised: the rest in the next turn
            self.post(lambda: None)

    def close(self) -> None:
        """Stop; tasks that did not run yet are forgotten."""
        if self._closed:
            return
        self._closed = True
        self._tasks.clear()
        self._loop.remove_handle(self._watch)
        os.close(self._reading)
        os.close(self._writing)
        self._writing = self._reading = -1
