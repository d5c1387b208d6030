"""Tools that are run to their end: what they print, their bounds, and how they are ended."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from storaged import tool
from storaged.command import User
from storaged.errors import Cancelled, CommandFailed, CommandTimeout, MissingProgram
from storaged.job import Job
from tests.doubles import eventually


def test_output() -> None:
    found = tool.run(["sh", "-c", "printf 'a\\377b'; echo oops >&2"], timeout=20)
    assert found.stdout == b"a\xffb"
    assert found.text == "a\udcffb"
    assert found.stderr == "oops"
    assert found.status == 0


def test_large_output() -> None:
    found = tool.run(["seq", "200000"], timeout=20)
    assert found.stdout.splitlines()[-1] == b"200000"


def test_output_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the memory of the host; what was cut off is never taken for the whole."""
    monkeypatch.setattr(tool, "_ROOM", 1 << 16)
    with pytest.raises(CommandFailed, match="it printed more than"):
        tool.run(["yes"], timeout=20, accept=())
    # after another program of the tool's has printed some of it
    assert tool.run(["sh", "-c", "echo a; echo b; sh -c 'echo c'"], timeout=20).text == "a\nb\nc\n"


def test_input() -> None:
    assert tool.run(["cat"], timeout=20, stdin=b"hello").stdout == b"hello"
    assert tool.run(["cat"], timeout=20).stdout == b""


def test_status() -> None:
    with pytest.raises(CommandFailed, match="unexpected exit status 3: bad") as caught:
        tool.run(["sh", "-c", "echo bad >&2; exit 3"], timeout=20)
    assert caught.value.status == 3
    assert tool.run(["sh", "-c", "exit 3"], timeout=20, accept=(0, 3)).status == 3
    assert tool.run(["sh", "-c", "exit 7"], timeout=20, accept=()).status == 7


def test_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    said = tool.run(["env"], timeout=20).text
    assert "LC_ALL=C.UTF-8" in said
    assert "LANGUAGE" not in said


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storaged.command._PROGRAMS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgram, match="lvm is not installed") as caught:
        tool.run(["lvm", "version"], timeout=20)
    assert caught.value.advice == "On Debian: apt-get install lvm2."


def test_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(CommandTimeout, match=r"it took more than 0\.2 s\. busy"):
        tool.run(["sh", "-c", "echo busy >&2; exec sleep 100"], timeout=0.2)
    assert time.monotonic() - started < 10


def test_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not listen is killed, and reaped."""
    monkeypatch.setattr(tool, "_PATIENCE", 0.2)
    with pytest.raises(CommandTimeout):
        tool.run(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], timeout=0.3)


def test_cancel() -> None:
    job: Job[None] = Job("look", "p")
    threading.Timer(0.2, job.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        tool.run(["sleep", "100"], timeout=50, job=job)
    assert time.monotonic() - started < 10


def test_cancel_lets_a_change_end(tmp_path: Path) -> None:
    done = tmp_path / "done"
    job: Job[None] = Job("build", "p")
    threading.Timer(0.2, job.cancel).start()
    found = tool.run(["sh", "-c", f"sleep 1; touch {done}"], timeout=50, job=job, changes=True)
    assert found.status == 0
    assert done.exists()
    with pytest.raises(Cancelled):
        job.checkpoint()


def test_a_change_is_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lvm may have suspended devices when it hangs; nothing would resume them."""
    monkeypatch.setattr(tool, "_GRACE", 0.1)
    job: Job[None] = Job("build", "p")
    job.cancel()
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(Cancelled):
        tool.run(["sh", "-c", f"sleep 0.7; touch {first}"], timeout=50, job=job, changes=True)
    with pytest.raises(CommandTimeout, match="and goes on as process"):
        tool.run(["sh", "-c", f"sleep 0.7; touch {second}"], timeout=0.1, changes=True)
    eventually(lambda: first.exists() and second.exists())


def test_what_a_tool_has_started_ends_with_it(tmp_path: Path) -> None:
    """As mount.nfs does below mount: else it mounts when nobody expects it any more."""
    late = tmp_path / "late"
    with pytest.raises(CommandTimeout):
        tool.run(["sh", "-c", f"sh -c 'sleep 1; touch {late}'; true"], timeout=0.2)
    time.sleep(1.2)
    assert not late.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs programs as somebody else")
def test_user() -> None:
    found = tool.run(["id"], timeout=20, user=User(1234, 2345))
    assert found.text.split()[:2] == ["uid=1234", "gid=2345"]
    assert "groups=2345\n" in found.text
