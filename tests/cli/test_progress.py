from __future__ import annotations

import io
import json
import threading

import pytest

from storaged.cli import progress
from storaged.errors import Cancelled, NoSuchVolume, Unsupported
from storaged.job import Job, JobState, Progress

GIB = 1 << 30


def at(elapsed: float, done: int, total: int = 4 * GIB, volume: str | None = "web2") -> Progress:
    return Progress(7, "clone", "default", volume, JobState.RUNNING, done, total, elapsed)


def test_the_rate_is_that_of_the_last_seconds():
    meter = progress.Meter(window=10)
    assert meter.rate(at(0, 0)) == 0
    assert meter.rate(at(1, 100)) == 100
    for second in range(2, 30):
        rate = meter.rate(at(second, 100))
    assert rate == 0


def test_a_rate_is_never_negative():
    meter = progress.Meter()
    meter.rate(at(0, 500))
    assert meter.rate(at(1, 0)) == 0


def test_words_for_figures():
    assert progress.describe(at(4, GIB), GIB / 4) == "25 %, 1 GiB of 4 GiB, 256 MiB/s, 12 s left"
    assert progress.describe(at(4, GIB), 0) == "25 %, 1 GiB of 4 GiB"
    assert progress.describe(at(4, 512, total=0), 128) == "512 bytes, 128 bytes/s"
    assert progress.title(at(0, 0)) == "clone web2"
    assert progress.title(at(0, 0, volume=None)) == "clone default"
    assert progress.title(at(0, 0, volume="\x1b[0m")) == "clone \\x1b[0m"


def test_lines_come_at_growing_intervals():
    stream = io.StringIO()
    lines = progress.Lines(stream, first=2, longest=60)
    for tick in range(3000):
        lines.show(at(tick / 5, tick))
    lines.close()
    written = stream.getvalue().splitlines()
    # after 2, 6, 14, 30, 62 s, and then every minute up to 600 s
    assert len(written) == 5 + 8
    assert written[0].startswith("clone web2: 0 %, 10 bytes of 4 GiB")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_short_job_writes_no_line():
    stream = io.StringIO()
    lines = progress.Lines(stream)
    lines.show(at(1.9, 5))
    assert stream.getvalue() == ""


def test_json_lines_are_objects():
    stream = io.StringIO()
    progress.JSONLines(stream).show(at(1.23456, 99))
    assert json.loads(stream.getvalue()) == {
        "progress": {
            "job": 7,
            "kind": "clone",
            "pool": "default",
            "volume": "web2",
            "done": 99,
            "total": 4 * GIB,
            "elapsed": 1.235,
        }
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_who_reports_depends_on_the_stream():
    assert isinstance(progress.reporter(io.StringIO(), as_json=False), progress.Lines)
    assert isinstance(progress.reporter(io.StringIO(), as_json=True), progress.JSONLines)
    bar = progress.reporter(Terminal(), as_json=False)
    assert type(bar).__name__ == "Bar"
    bar.close()


def test_the_bar_shows_share_rate_and_time_and_puts_the_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    bar = progress.reporter(stream, as_json=False)
    for second in range(3):
        bar.show(at(second, second * GIB))
    bar.close()
    text = stream.getvalue()
    assert "clone web2" in text
    assert "50 %, 2 GiB of 4 GiB, 1 GiB/s, 2 s left" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_follow_returns_what_the_work_returned(capsys):
    job: Job[int] = Job("clone", "default", "web2")
    job.finish(42)
    assert progress.follow(job) == 42
    assert capsys.readouterr() == ("", "")


def test_follow_raises_what_the_work_raised():
    job: Job[int] = Job("clone")
    job.fail(NoSuchVolume("no storage vol with matching name 'x'"))
    with pytest.raises(NoSuchVolume):
        progress.follow(job)


def test_follow_reports_while_it_waits(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress.JSONLines, "interval", 0.01)
    job: Job[str] = Job("wipe", "default", "old")
    job.checkpoint(10, 100)
    timer = threading.Timer(0.2, job.finish, ("done",))
    timer.start()
    assert progress.follow(job, as_json=True) == "done"
    timer.join()
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first["progress"]["done"] == 10


class InterruptedJob(Job[int]):
    """Its first wait is interrupted by Ctrl-C."""

    presses = 1

    def wait(self, timeout: float | None = None) -> bool:
        if self.presses:
            self.presses -= 1
            raise KeyboardInterrupt
        return super().wait(0)


def test_ctrl_c_cancels_the_job(capsys):
    job = InterruptedJob("wipe", "default", "old")
    job.on_cancel(lambda: job.fail(Cancelled("wipe was cancelled")))
    with pytest.raises(Cancelled):
        progress.follow(job)
    assert capsys.readouterr().err == "cancelling wipe old; Ctrl-C again leaves at once\n"


def test_work_that_ends_before_the_cancel_takes_hold_has_succeeded():
    job = InterruptedJob("wipe", "default", "old")
    job.on_cancel(lambda: job.finish(1))
    assert progress.follow(job) == 1


@pytest.mark.parametrize("presses", [1, 2], ids=["never-stops", "second-ctrl-c"])
def test_leaving_at_once(presses: int, monkeypatch):
    job = InterruptedJob("wipe", "default", "old")
    job.presses = presses

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        progress.follow(job)
    assert left.value.code == 130


def test_a_job_that_cannot_be_cancelled_is_left(monkeypatch, capsys):
    class Elsewhere(InterruptedJob):
        def cancel(self) -> None:
            raise Unsupported("a wipe cannot be cancelled there")

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        progress.follow(Elsewhere("wipe", "default", "old"))
    assert left.value.code == 130
    assert capsys.readouterr().err == "a wipe cannot be cancelled there, leaving it\n"


def test_watching_shows_and_leaves_alone(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    job = InterruptedJob("wipe", "default", "old")
    with pytest.raises(KeyboardInterrupt):
        progress.watch(job)
    assert not job.cancelling
    job.finish(42)
    job.presses = 0
    assert progress.watch(job) == 42
    assert capsys.readouterr() == ("", "")
