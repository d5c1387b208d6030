"""Going to the background: a second program in a session of its own, and the wait for its word.

The program that was started ends with status 0 once clients are served, and with the other's status
if that fails, which then has said why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import storaged
from storaged.command import spawn_detached
from storaged.daemon.options import Options

_READY = b"1"


def start(options: Options) -> int:
    """Start the daemon in the background; return the status to end with.

    :raise CommandFailed: it cannot be started.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    try:
        # -P: not whatever lies in the directory that root happens to be in.
        argv = [sys.executable, "-P", "-m", "storaged.daemon", *_arguments(options, tell)]
        process = spawn_detached(argv, _environment(), keep=(tell,))
    finally:
        os.close(tell)
    try:
        ready = os.read(told, 1) == _READY
    except BaseException:  # an impatient user: nobody would know of the daemon
        process.terminate()
        raise
    finally:
        os.close(told)
    if not ready:
        return abs(process.wait()) or 1
    process.returncode = 0  # it is nobody's child from now on
    return 0


def say_ready(fd: int) -> None:
    """Tell the program that started us that clients are served, and let go of its terminal."""
    os.write(fd, _READY)
    os.close(fd)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def _arguments(options: Options, tell: int) -> list[str]:
    found = ["--ready-fd", str(tell), "--timeout", str(options.timeout)]
    for name, value in (
        ("--config", options.config),
        ("--pid-file", options.pid_file),
        ("--root", options.root),
    ):
        if value is not None:
            found += [name, value]
    for name, wanted in (("--verbose", options.verbose), ("--session", options.session)):
        if wanted:
            found.append(name)
    return found


def _environment() -> dict[str, str]:
    """Return an environment in which this very package is found."""
    assert storaged.__file__ is not None  # noqa: S101 -- a package of files
    package = str(Path(storaged.__file__).absolute().parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
