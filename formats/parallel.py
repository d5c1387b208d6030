"""Work on several threads whose results come back in order.

The threads are daemons of our own, so that a program's end waits for none of them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items under way for each thread: one is worked on, the others wait for it or for their turn.
_DEPTH = 4


class _Task(Generic[Item, Result]):
    """An item, and what comes of it. The lock is held until then."""

    __slots__ = ("error", "item", "lock", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.lock.acquire()


class Ordered(Generic[Item, Result]):
    """Calls functions for items on threads, and *deliver* with each result, in the items' order.

    Results are delivered on the thread that calls `put` and `drain`, so that *deliver* needs no
    locks. No more items are under way than a few a thread. After an error nothing more is
    delivered. The threads end with `close`, or when the object is forgotten.

    :param functions: one for each thread; only that thread calls it.
    """

    def __init__(
        self, functions: Sequence[Callable[[Item], Result]], deliver: Callable[[Result], object]
    ) -> None:
        self._functions = functions
        self._deliver = deliver
        self._todo: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
        self._tasks: deque[_Task[Item, Result]] = deque()
        self._threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _end, self._todo, self._threads)

    def put(self, item: Item) -> None:
        """Have *item* worked on; deliver what is ready, and wait where too much is under way.

        :raise BaseException: what a function or *deliver* raised for this or an earlier item.
        """
        if not self._threads:
            self._start()
        task: _Task[Item, Result] = _Task(item)
        self._tasks.append(task)
        self._todo.put(task)
        most = _DEPTH * len(self._functions)
        while self._tasks and (len(self._tasks) > most or not self._tasks[0].lock.locked()):
            self._take()

    def drain(self) -> None:
        """Return when the results of all items were delivered.

        :raise BaseException: what a function or *deliver* raised.
        """
        while self._tasks:
            self._take()

    def close(self) -> None:
        """End the threads; what was not delivered is dropped. Calling it again does nothing."""
        self._tasks.clear()
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        self._finalizer()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        if not self._finalizer.alive:
            raise ValueError("put after close")
        for number, function in enumerate(self._functions):
            thread = threading.Thread(
                target=_work, args=(function, self._todo), name=f"ordered-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _take(self) -> None:
        task = self._tasks.popleft()
        task.lock.acquire()
        if task.error is not None:
            self.close()
            raise task.error
        self._deliver(task.result)  # type: ignore[arg-type]


def _work(
    function: Callable[[Item], Result], todo: SimpleQueue[_Task[Item, Result] | None]
) -> None:
    while (task := todo.get()) is not None:
        try:
            task.result = function(task.item)
        except BaseException as error:
            task.error = error  # and raised where the result is taken
        task.lock.release()
        del task  # not kept while this thread waits


def _end(todo: SimpleQueue[_Task[Item, Result] | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        todo.put(None)
