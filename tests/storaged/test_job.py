"""Jobs: progress, cancel, outcome, and what hears of them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Any

import pytest

from storaged import job as jobs
from storaged.errors import Cancelled, Timeout
from storaged.job import Job, JobState, Pending, Progress
from storaged.request import outcome
from tests.doubles import PATIENCE


@pytest.fixture
def job() -> Job[Any]:
    return Job("clone", "p", "v")


def test_progress_tells_who_and_how_far(job: Job[Any]) -> None:
    job.checkpoint(5, 20)
    job.checkpoint()
    job.checkpoint(7)
    told = job.progress()
    assert (told.kind, told.pool, told.volume, told.state) == ("clone", "p", "v", "running")
    assert (told.done, told.total) == (7, 20)
    assert told.elapsed >= 0


def test_ids_grow() -> None:
    assert Job("a").id < Job("b").id


def test_result_is_what_the_work_returned(job: Job[Any]) -> None:
    job.finish([1])
    assert job.result() == [1]
    assert job.state is JobState.DONE
    assert job.ended
    assert job.error is None


def test_result_raises_what_the_work_raised(job: Job[Any]) -> None:
    job.fail(error := KeyError("x"))
    assert job.error is error
    with pytest.raises(KeyError):
        job.result()
    assert job.state is JobState.FAILED


def test_only_the_first_end_counts(job: Job[Any]) -> None:
    job.finish(1)
    job.fail(ValueError())
    job.finish(2)
    assert job.result() == 1


def test_result_with_a_limit_leaves_the_job_going(job: Job[Any]) -> None:
    with pytest.raises(Timeout, match=r"clone has not ended within 0\.01 s"):
        job.result(0.01)
    job.finish(3)
    assert job.result(0.01) == 3


def test_giving_converts_the_result_for_who_started_it(job: Job[Any]) -> None:
    converted = job.giving(str)
    job.finish(5)
    assert converted is job
    assert converted.result() == "5"


def test_cancel_takes_hold_at_the_next_checkpoint(job: Job[Any]) -> None:
    job.checkpoint()
    job.cancel()
    assert job.cancelling
    assert not job.ended
    with pytest.raises(Cancelled, match="operation aborted: clone was cancelled"):
        job.checkpoint(9)
    assert job.done == 9


def test_cancelled_is_a_state_of_its_own(job: Job[Any]) -> None:
    job.fail(Cancelled("clone was cancelled"))
    assert job.state is JobState.CANCELLED


def test_cancel_after_the_end_does_nothing(job: Job[Any]) -> None:
    called: list[int] = []
    job.on_cancel(lambda: called.append(1))
    job.finish(None)
    job.cancel()
    assert (job.cancelling, called) == (False, [])


def test_cancel_hooks_are_called_once(job: Job[Any]) -> None:
    called: list[str] = []
    job.on_cancel(lambda: called.append("before"))
    take_back = job.on_cancel(lambda: called.append("taken back"))
    take_back()
    job.cancel()
    job.cancel()
    job.on_cancel(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_subscribers_hear_five_times_a_second_and_at_the_end(
    job: Job[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("storaged.job.time.monotonic", lambda: clock[0])
    heard: list[Progress] = []
    job.subscribe(heard.append)
    for step in range(1000):  # ten seconds of work
        clock[0] += 0.01
        job.checkpoint(step, 1000)
    assert 45 <= len(heard) <= 51
    job.checkpoint(1000)
    before = len(heard)
    job.finish(None)
    assert len(heard) == before + 1
    assert (heard[-1].state, heard[-1].done) == (JobState.DONE, 1000)


def test_a_subscription_can_be_ended(job: Job[Any]) -> None:
    heard: list[Progress] = []
    end = job.subscribe(heard.append)
    end()
    end()
    job.checkpoint(1)
    job.finish(None)
    assert heard == []


def test_who_subscribes_late_hears_of_the_end(job: Job[Any]) -> None:
    job.finish(None)
    heard: list[Progress] = []
    job.subscribe(heard.append)()
    assert [progress.state for progress in heard] == [JobState.DONE]


def test_a_subscriber_that_raises_harms_nobody(
    job: Job[Any], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Progress] = []
    ended: list[int] = []

    def bad(*_: object) -> None:
        raise ValueError("bad subscriber")

    job.subscribe(bad)
    job.subscribe(heard.append)
    job.on_end(bad)
    job.on_end(lambda: ended.append(1))
    with caplog.at_level(logging.ERROR, "storaged.job"):
        job.checkpoint(1)
        job.finish(4)
    assert job.result() == 4
    assert len(heard) == 2
    assert ended == [1]
    assert len(caplog.records) == 3
    job.on_end(bad)


def test_iterating_ends_with_the_last_progress(
    job: Job[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REPORT_INTERVAL", 0.01)

    def end() -> None:
        job.checkpoint(8, 8)
        job.finish(None)

    timer = threading.Timer(0.1, end)
    timer.start()
    told = list(job)
    timer.join()
    assert len(told) >= 2
    assert told[0].state is JobState.RUNNING
    assert (told[-1].state, told[-1].done) == (JobState.DONE, 8)


def test_silence_is_measured_from_the_last_sign_of_life(job: Job[Any]) -> None:
    job.beat = time.monotonic() - 50
    assert 49 < job.silent_for() < 60
    job.checkpoint()
    assert job.silent_for() < 10


def test_long_python_work_lets_others_run(job: Job[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    clock = itertools.count(int(time.monotonic() * 1e6), 100)  # each reading is 0.1 ms later
    monkeypatch.setattr("storaged.job.time.sleep", naps.append)
    monkeypatch.setattr("storaged.job.time.monotonic", lambda: next(clock) / 1e6)
    job = Job("work")
    for _ in range(20):
        job.checkpoint()
    assert naps == []  # short work is not interrupted
    for _ in range(1000):
        job.checkpoint()
    assert 200 <= len(naps) <= 340


def test_an_interrupt_cancels_what_was_waited_for(
    job: Job[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outcome(job, True)
    assert job.cancelling


def test_a_job_that_nobody_waits_for_is_given_back(job: Job[Any]) -> None:
    assert outcome(job, False) is job
    job.finish(1)
    assert outcome(job, True) == 1


def test_many_threads_wait_for_one_end(job: Job[Any]) -> None:
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(job.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    job.finish(6)
    for thread in threads:
        thread.join(PATIENCE)
    assert got == [6] * 8


def test_repr_names_the_job(job: Job[Any]) -> None:
    assert repr(job) == f"<Job {job.id} clone p/v running>"


def test_a_pending_result_costs_nothing_that_waits_until_somebody_does() -> None:
    pending: Pending[int] = Pending("look")
    told: list[int] = []
    pending.on_end(lambda: told.append(pending.result()))
    assert not pending.ended
    pending.finish(5)
    pending.fail(ValueError())
    pending.on_end(lambda: told.append(6))
    assert (pending.ended, pending.error, told) == (True, None, [5, 6])
    assert pending.wait(0)
    assert pending.giving(str).complete() == "5"
    assert pending._waited is None


def test_a_pending_result_is_waited_for() -> None:
    pending: Pending[int] = Pending("look")
    assert not pending.wait(0.01)
    with pytest.raises(Timeout, match=r"look has not ended within 0\.01 s"):
        pending.result(0.01)
    timer = threading.Timer(0.05, pending.fail, [KeyError("x")])
    timer.start()
    with pytest.raises(KeyError):
        pending.result(PATIENCE)
    timer.join()


def test_subscribers_hear_of_the_end_before_its_hooks_run(job: Job[Any]) -> None:
    order: list[str] = []
    job.on_end(lambda: order.append("hook"))
    job.subscribe(lambda progress: order.append(progress.state))
    job.finish(None)
    assert order == ["done", "hook"]
