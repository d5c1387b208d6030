"""Programs that are talked to over a pair of sockets."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from storaged.command import environment, quote_command, start_connected
from storaged.errors import CommandFailed


def test_environment() -> None:
    given = {"HOME": "/h", "PATH": "/bin", "LANG": "xx", "SECRET": "s", "TERM": "vt"}
    assert environment(given) == {"HOME": "/h", "PATH": "/bin", "LC_ALL": "C.UTF-8"}
    assert environment(given, "TERM", "NONE") == {**environment(given), "TERM": "vt"}


def test_talk() -> None:
    child = start_connected(["cat"], environment(os.environ))
    child.socket.sendall(b"hello")
    assert child.socket.recv(100) == b"hello"
    assert child.wait(0) is None
    child.close()
    assert not Path(f"/proc/{child.pid}").exists()
    assert child.wait(0) == 0
    child.close()


def test_what_it_said() -> None:
    child = start_connected(
        ["sh", "-c", "echo $LC_ALL $SECRET >&2; seq 100000 >&2; echo ' last words ' >&2"],
        environment({**os.environ, "SECRET": "s"}),
    )
    assert child.wait(20) == 0
    assert child.said().endswith("100000\n last words")
    assert len(child.said()) <= 4096
    child.close()
    assert child.said().endswith("last words")


def test_no_such_program() -> None:
    with pytest.raises(CommandFailed, match="cannot run /nope/program: No such file") as caught:
        start_connected(["/nope/program", "a"], {})
    assert caught.value.argv == ("/nope/program", "a")


def test_program_that_does_not_end() -> None:
    child = start_connected(["sh", "-c", "trap '' TERM; echo x; while :; do sleep 0.1; done"], {})
    assert child.socket.recv(10) == b"x\n"
    started = time.monotonic()
    child.close(patience=0.1)
    assert time.monotonic() - started < 5
    assert child.wait(0) == -signal.SIGKILL


def test_quote() -> None:
    assert quote_command(["sh", "-c", "a 'b'"]) == """sh -c 'a '"'"'b'"'"''"""
