"""Threads that can be lost: how many there are, what they take, and that nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.server.workers import Workers
from tests.doubles import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What the work of a test waits for; opened at its end."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_all_is_done_once() -> None:
    workers = Workers("t", least=2, most=4)
    done: list[int] = []
    for number in range(1000):
        workers.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    eventually(lambda: len(done) == 1000)
    assert sorted(done) == list(range(1000))
    assert workers.figures().workers <= 4
    workers.close()


def test_one_thread_keeps_the_order() -> None:
    workers = Workers("t", least=1, most=1)
    done: list[int] = []
    for number in range(200):
        workers.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    eventually(lambda: len(done) == 200)
    assert done == list(range(200))
    workers.close()


def test_figures_and_the_bound(gate: threading.Event) -> None:
    workers = Workers("t", least=1, most=3, priority=2)
    for _ in range(5):
        workers.submit(gate.wait)
    eventually(lambda: workers.busy == 3)
    figures = workers.figures()
    assert (figures.min_workers, figures.max_workers, figures.prio_workers) == (1, 3, 2)
    assert (figures.workers, figures.free_workers, figures.job_queue_depth) == (3, 0, 2)
    gate.set()
    eventually(lambda: workers.figures().job_queue_depth == 0 and not workers.busy)
    assert workers.figures().free_workers == 3
    workers.close()


def test_priority_has_threads_of_its_own(gate: threading.Event) -> None:
    workers = Workers("t", least=0, most=2, priority=1)
    for _ in range(4):
        workers.submit(gate.wait)
    eventually(lambda: workers.busy == 2)
    done: list[str] = []
    for _ in range(20):
        workers.submit(lambda: done.append("soon"), priority=True)
    eventually(lambda: len(done) == 20)
    workers.submit(lambda: done.append("ordinary"))
    time.sleep(0.05)
    assert "ordinary" not in done
    gate.set()
    eventually(lambda: "ordinary" in done)
    eventually(lambda: workers.figures().job_queue_depth == 0)
    workers.close()


def test_priority_is_done_by_all_who_are_free() -> None:
    workers = Workers("t", least=0, most=2)
    done: list[int] = []
    for number in range(50):
        workers.submit(lambda number=number: done.append(number), priority=True)  # type: ignore[misc]
    eventually(lambda: len(done) == 50)
    assert sorted(done) == list(range(50))
    workers.close()


def test_stuck_threads_are_replaced(gate: threading.Event) -> None:
    workers = Workers("t", least=0, most=2, stuck_after=0.05)
    for _ in range(2):
        workers.submit(gate.wait)
    eventually(lambda: workers.busy == 2)
    done = threading.Event()
    workers.submit(done.set)
    assert not done.wait(0.02)
    time.sleep(0.05)
    workers.relieve()
    assert done.wait(5)
    assert workers.figures().stuck_workers == 2
    gate.set()
    eventually(lambda: workers.figures().workers <= 2)
    assert workers.figures().stuck_workers == 0
    workers.close()


def test_idle_threads_end() -> None:
    workers = Workers("t", least=1, most=5, idle=0.05)
    barrier = threading.Barrier(5)
    for _ in range(5):
        workers.submit(lambda: barrier.wait(20))
    eventually(lambda: workers.figures().workers == 1)
    workers.close()
    eventually(lambda: workers.figures().workers == 0)


def test_resize(gate: threading.Event) -> None:
    workers = Workers("t", least=0, most=1)
    for _ in range(4):
        workers.submit(gate.wait)
    eventually(lambda: workers.busy == 1)
    workers.resize(0, 3)
    eventually(lambda: workers.busy == 3)
    workers.resize(0, 1, 0)
    gate.set()
    eventually(lambda: workers.figures().workers == 1)
    for bad in ((2, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="workers"):
            workers.resize(*bad)
    assert workers.figures().max_workers == 1
    workers.close()


def test_work_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers("t", least=0, most=1)
    done = threading.Event()
    workers.submit(lambda: 1 // 0)
    workers.submit(done.set)
    assert done.wait(5)
    assert "ZeroDivisionError" in caplog.text
    workers.close()


def test_closed_takes_nothing() -> None:
    workers = Workers("t", least=0, most=1)
    workers.close()
    workers.submit(lambda: pytest.fail("it was done"))
    assert workers.figures().job_queue_depth == 0


def test_stuck_thread_does_not_keep_the_process() -> None:
    script = (
        "import threading\n"
        "from storaged.server.workers import Workers\n"
        "workers = Workers('t', least=0, most=1)\n"
        "workers.submit(threading.Event().wait)\n"
        "while not workers.busy: pass\n"
    )
    before = time.monotonic()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=20)
    assert time.monotonic() - before < 10
