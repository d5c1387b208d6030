"""Progress, pipes and Ctrl-C, with the real program on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ctl

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

PATIENCE = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def opened(process: subprocess.Popen[bytes], below: Path) -> bool:
    """Whether the process has a file open for work below a directory, named or not."""
    try:
        links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return False
    return any(below in link.parents for link in links)


def fill(path: Path, mebibytes: int) -> None:
    piece = os.urandom(1 << 20)
    with path.open("r+b") as file:
        for _ in range(mebibytes):
            file.write(piece)


@contextmanager
def running(pool: Ctl, *words: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        pool.argv(*words),
        env=pool.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Screen:
    """A process on a terminal of its own, and what it wrote there."""

    def __init__(self, pool: Ctl, *words: str) -> None:
        self._master, slave = pty.openpty()
        # setsid --ctty makes the terminal the one whose Ctrl-C reaches the process.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *pool.argv(*words)],
            env=pool.environment(TERM="xterm", COLUMNS="100"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, words: str) -> None:
        while words not in self.text:
            if not self._read():
                raise AssertionError(f"{words!r} did not come: {self.text!r}")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"silent after {self.text!r}"
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.text += piece.decode()
        return bool(piece)


@pytest.fixture
def screen(pool: Ctl) -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def start(*words: str) -> Screen:
        screens.append(Screen(pool, *words))
        return screens[-1]

    yield start
    for each in screens:
        each.close()


@pytest.mark.slow
def test_ctrl_c_on_a_terminal(pool: Ctl, screen: Callable[..., Screen]):
    pool.out("vol", "create-as", "t", "a", "64M")
    fill(pool.images / "a", 64)
    shown = screen("vol", "wipe", "t/a", "--algorithm", "gutmann")
    shown.read_until("/s")  # the bar has a rate
    shown.type(b"\x03")
    assert shown.end() == 130
    assert "wipe a" in shown.text
    assert " of " in shown.text
    assert "cancelling wipe a; Ctrl-C again leaves at once\r\n" in shown.text
    assert "error: operation aborted: wipe was cancelled\r\n" in shown.text
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
    assert [volume["name"] for volume in pool.json("vol", "list", "t")] == ["a"]
    assert pool.json("vol", "delete", "t/a")["action"] == "deleted"


def test_a_table_on_a_terminal_is_plain(pool: Ctl, screen: Callable[..., Screen]):
    shown = screen("pool", "list")
    assert shown.end() == 0
    assert shown.text == "Name  State   Autostart  Type\r\nt     active  yes        dir\r\n"


@pytest.mark.slow
def test_a_cancelled_clone_leaves_nothing(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1G")
    fill(pool.images / "a", 1024)
    with running(pool, "vol", "clone", "t", "a", "b") as clone:
        wait_for(lambda: opened(clone, pool.images))
        clone.send_signal(signal.SIGINT)
        said = clone.communicate(timeout=PATIENCE)
    assert clone.returncode == 130, said
    assert sorted(left.name for left in pool.images.iterdir()) == ["a"]
    assert [volume["name"] for volume in pool.json("vol", "list", "t")] == ["a"]


def test_a_second_ctrl_c_leaves_at_once(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    with running(pool, "vol", "upload", "t/a", "-") as upload:
        assert upload.stderr is not None
        wait_for(lambda: opened(upload, pool.images))
        time.sleep(0.2)
        upload.send_signal(signal.SIGINT)
        assert upload.stderr.readline() == b"cancelling upload a; Ctrl-C again leaves at once\n"
        assert upload.poll() is None  # it waits for its standard input
        upload.send_signal(signal.SIGINT)
        assert upload.wait(PATIENCE) == 130
    assert pool.out("vol", "upload", "t/a", "-", stdin=b"x") == "1 byte written to volume a\n"


@pytest.mark.slow
def test_a_pipe_gets_plain_lines(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    with running(pool, "vol", "upload", "t/a", "-") as upload:
        assert upload.stdin is not None
        assert upload.stderr is not None
        upload.stdin.write(b"x" * 4096)
        upload.stdin.flush()
        line = upload.stderr.readline().decode()
        out, err = upload.communicate(timeout=PATIENCE)
    assert line.startswith("upload a: ")
    assert line.isprintable() or line.rstrip("\n").isprintable()
    assert (out, err, upload.returncode) == (b"4 KiB written to volume a\n", b"", 0)


def test_json_in_a_pipe_gets_json_lines(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    with running(pool, "vol", "upload", "t/a", "-", "--json") as upload:
        assert upload.stderr is not None
        progress = json.loads(upload.stderr.readline())["progress"]
        out, _ = upload.communicate(timeout=PATIENCE)
    assert progress["kind"] == "upload"
    assert progress["volume"] == "a"
    assert json.loads(out)["bytes"] == 0
