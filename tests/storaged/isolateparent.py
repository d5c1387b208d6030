"""A program that has a child: run by the tests of `storaged.isolate` under several interpreters.

::

    python -m tests.storaged.isolateparent all|hang PYTHON NOTE

It prints the child's process, and leaves it alone at the end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from storaged.isolate import ChildDied, Isolated, ServiceError


def main(mode: str, python: str, note: str) -> None:
    """Do some of all that can be done."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs do that are used in pipes
    heard: list[tuple[str, object]] = []
    isolated = Isolated(
        python,
        "storaged.toyservice",
        greet=lambda session: session.begin("note", {"path": note}).take(20),
        hear=lambda name, fact: heard.append((name, fact)),
        package=Path(__file__).parent,
    )
    if mode == "all":
        exercise(isolated)
        isolated.call("tell", 20, name="ready", fact=[1])
        assert heard == [("ready", [1])]
    pid = isolated.call("echo", 20, value=isolated.session().pid)
    if mode == "hang":
        isolated.begin("finish", path=note, seconds=0.5)
        while not isolated.call("seen", 20):
            pass
    print(pid, flush=True)
    if mode == "hang":
        signal.pause()


def exercise(isolated: Isolated) -> None:
    """Call from many threads, fail, pass a descriptor, and have the child die."""
    right: list[int] = []

    def ask(number: int) -> None:
        right.extend(isolated.call("echo", 20, value=number) == number for _ in range(10))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 640
    fd = os.memfd_create("text")
    os.write(fd, b"text")
    assert isolated.begin("read", fd=fd).take(20) == "text"
    os.close(fd)
    assert failure(isolated, "fail") == ("ServiceError", 2)
    first = isolated.pid
    assert failure(isolated, "signal", number=signal.SIGABRT)[0] == "ChildDied"
    assert isolated.call("make", 20, again=True, size=10_000_000) == "x" * 10_000_000
    assert isolated.pid not in (None, first)
    session = isolated.session()
    os.kill(session.pid, signal.SIGKILL)
    try:
        while True:  # some of it is sent to nobody
            session.begin("echo", {})
    except ChildDied:
        assert not session.alive


def failure(isolated: Isolated, verb: str, **words: int) -> tuple[str, int | None]:
    """Return what a call fails with: class and error number."""
    try:
        isolated.begin(verb, **words).take(20)
    except (ServiceError, ChildDied) as err:
        return type(err).__name__, getattr(err, "errno", None)
    raise AssertionError(f"{verb} succeeds")


if __name__ == "__main__":
    main(*sys.argv[1:])
