"""Threads that touch storage: counted, replaced when they are stuck, lost at the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from storaged.errors import OperationFailed
from storaged.job import Job, JobState
from storaged.worker import Limits, Workers
from tests.doubles import PATIENCE, eventually, promptly


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    """What stuck work waits for; opened at the end."""
    event = threading.Event()
    yield event
    event.set()


def given(number: int) -> Callable[[Job[int]], int]:
    """Return work that gives *number*."""
    return lambda _job: number


def is_stuck(workers: Workers, count: int) -> bool:
    return len(workers.stuck()) == count


def stick(workers: Workers, event: threading.Event, count: int) -> list[Job[Any]]:
    """Start work that shows no sign of life, and return when all of it counts as stuck."""
    jobs = []
    for number in range(count):
        jobs.append(workers.submit(Job("look", "p"), lambda _job: event.wait()))
        eventually(partial(is_stuck, workers, number + 1))
    return jobs


QUICK = Limits(threads=2, stuck_after=0.05, stuck=4, idle=0.05)


def threads_of(name: str) -> int:
    return sum(thread.name == f"storaged-{name}" for thread in threading.enumerate())


def test_the_outcome_of_the_work_is_the_jobs() -> None:
    workers = Workers("outcome")
    assert workers.submit(Job("x"), lambda job: job.kind * 2).result(PATIENCE) == "xx"
    failed: Job[Any] = workers.submit(Job("x"), lambda _job: {}["missing"])  # type: ignore[index]
    with pytest.raises(KeyError):
        failed.result(PATIENCE)
    assert failed.state is JobState.FAILED


def test_threads_are_used_again_and_end_when_idle() -> None:
    workers = Workers("again", Limits(idle=0.1))
    for number in range(50):
        assert workers.submit(Job("x"), given(number)).result(PATIENCE) == number
    assert 1 <= threads_of("again") <= 3
    eventually(lambda: threads_of("again") == 0)
    assert workers.submit(Job("x"), lambda _job: 7).result(PATIENCE) == 7


def test_a_burst_keeps_to_the_limit() -> None:
    workers = Workers("burst", Limits(threads=4, idle=0.05))
    at_work, most, lock = [0], [0], threading.Lock()

    def work(_job: Job[Any]) -> None:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.002)
        with lock:
            at_work[0] -= 1

    jobs = [workers.submit(Job("x"), work) for _ in range(200)]
    assert threads_of("burst") <= 4
    for job in jobs:
        job.result(PATIENCE)
    assert 1 < most[0] <= 4


def test_threads_that_are_not_needed_end_while_others_work() -> None:
    """The one that was at work last is given the next work, so the others become idle."""
    workers = Workers("spare", Limits(threads=4, idle=0.2))
    together = threading.Barrier(4)
    for job in [workers.submit(Job("x"), lambda _job: together.wait(PATIENCE)) for _ in range(4)]:
        job.result(PATIENCE)
    assert threads_of("spare") == 4

    def few_are_left() -> bool:
        workers.submit(Job("x"), lambda _job: None).result(PATIENCE)
        return threads_of("spare") <= 2

    eventually(few_are_left)


def test_nothing_of_the_last_work_is_kept_alive() -> None:
    workers = Workers("forgetful")

    class Result:
        pass

    job: Job[Result] = workers.submit(Job("x"), lambda _job: Result())
    alive = weakref.ref(job.result(PATIENCE))
    del job
    eventually(lambda: alive() is None)


def test_a_stuck_thread_is_replaced(opened: threading.Event) -> None:
    workers = Workers("replaced", QUICK)
    stick(workers, opened, 2)
    assert workers.submit(Job("x"), lambda _job: 1).result(PATIENCE) == 1
    assert not workers.inaccessible()


def test_work_that_waited_behind_stuck_threads_is_not_forgotten(opened: threading.Event) -> None:
    workers = Workers("behind", QUICK)
    for _ in range(2):
        workers.submit(Job("look"), lambda _job: opened.wait())
    waiting = [workers.submit(Job("x"), given(n)) for n in range(5)]
    eventually(lambda: len(workers.stuck()) == 2)
    workers.submit(Job("x"), lambda _job: None).result(PATIENCE)
    assert [job.result(PATIENCE) for job in waiting] == list(range(5))


def test_work_with_signs_of_life_is_not_stuck(opened: threading.Event) -> None:
    workers = Workers("alive", QUICK)

    def work(job: Job[Any]) -> None:
        while not opened.wait(0.005):
            job.checkpoint()

    job = workers.submit(Job("clone"), work)
    time.sleep(0.2)
    assert workers.stuck() == ()
    opened.set()
    job.result(PATIENCE)


def test_waiting_in_the_queue_is_not_being_stuck(opened: threading.Event) -> None:
    workers = Workers("queue", Limits(threads=1, stuck_after=0.2))

    def work(job: Job[Any]) -> None:
        while not opened.wait(0.005):
            job.checkpoint()

    workers.submit(Job("clone"), work)
    waiting = workers.submit(Job("look"), lambda _job: "came to it")
    time.sleep(0.3)
    assert workers.stuck() == ()
    opened.set()
    assert waiting.result(PATIENCE) == "came to it"


def test_four_stuck_refuse_new_work_at_once_and_recover(opened: threading.Event) -> None:
    workers = Workers("dead", QUICK)
    jobs = stick(workers, opened, 4)
    assert workers.inaccessible()
    with promptly(0.5), pytest.raises(OperationFailed) as caught:
        workers.submit(Job("create"), lambda _job: None)
    message = str(caught.value)
    assert message.startswith("operation failed: pool 'dead' does not answer: 4 operations (look)")
    assert caught.value.advice
    opened.set()
    for job in jobs:
        job.result(PATIENCE)
    assert not workers.inaccessible()
    assert workers.submit(Job("create"), lambda _job: 1).result(PATIENCE) == 1


def test_a_subscriber_that_raises_costs_no_thread() -> None:
    workers = Workers("subscribed", Limits(threads=1, idle=0.05))

    def bad(_progress: object) -> None:
        raise ValueError("bad")

    for _ in range(5):
        job: Job[Any] = Job("x")
        job.subscribe(bad)
        assert workers.submit(job, lambda job: job.checkpoint(1)).result(PATIENCE) is None


def test_what_ends_a_thread_elsewhere_is_an_outcome_here() -> None:
    workers = Workers("exits")

    def leave(_job: Job[Any]) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        workers.submit(Job("x"), leave).result(PATIENCE)
    assert workers.submit(Job("x"), lambda _job: 1).result(PATIENCE) == 1


def test_a_host_without_threads_refuses_and_forgets_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers("none")
    ran: list[int] = []

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OperationFailed, match="cannot work on pool 'none': can't start"):
            workers.submit(Job("x"), lambda _job: ran.append(1))
    assert workers.submit(Job("x"), lambda _job: 2).result(PATIENCE) == 2
    assert ran == []


HANGING = """
import sys, threading, time
from storaged.job import Job
from storaged.worker import Workers
workers = Workers("hanging")
began = threading.Event()
def hang(job):
    began.set()
    threading.Event().wait()
workers.submit(Job("look"), hang)
began.wait()
print("leaving")
"""


def test_a_worker_stuck_for_ever_does_not_keep_the_process() -> None:
    with promptly(PATIENCE):
        done = subprocess.run(
            [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout == "leaving\n"


def test_many_callers_at_once() -> None:
    workers = Workers("crowd", Limits(threads=8, idle=0.1))
    got: list[int] = []

    def call(base: int) -> None:
        got.extend(
            workers.submit(Job("x"), given(number)).result(PATIENCE)
            for number in range(base, base + 100)
        )

    callers = [threading.Thread(target=call, args=(100 * number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert sorted(got) == list(range(800))
    eventually(lambda: threads_of("crowd") == 0)
