"""Programs that the fixtures run, with a bound each; waiting that allows for a slow guest."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

#: Where mkfs, lvm and their like are; not in every user's path.
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

#: The variable that tells tests that they run in the guest of `make test-vm`.
GUEST_VARIABLE = "VMTEST"

T = TypeVar("T")


def in_guest() -> bool:
    """Tell whether this is the guest of `make test-vm`: all is there, all may be changed."""
    return os.environ.get(GUEST_VARIABLE) == "1"


def patience(seconds: float) -> float:
    """Return how long to wait for what takes *seconds* at most natively: the guest is emulated."""
    return seconds * 10 if in_guest() else seconds


def run(*argv: str | os.PathLike[str], check: bool = True, timeout: float = 30) -> str:
    """Run a program and return what it printed, with its errors.

    :param timeout: in seconds on a native machine.
    :raise AssertionError: it failed; the text is all that it said.
    """
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=patience(timeout),
        env={**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"},
        check=False,
    )
    words = " ".join(os.fspath(word) for word in argv)
    assert not check or done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def eventually(ask: Callable[[], T | None], seconds: float = 10, what: str = "") -> T:
    """Ask until the answer is true, and return it.

    :raise AssertionError: it was not within *seconds* (of a native machine).
    """
    deadline = time.monotonic() + patience(seconds)
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"waited in vain for {what or ask}"
        time.sleep(0.05)
    return answer
