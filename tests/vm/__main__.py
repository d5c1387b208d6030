"""Run the tests marked ``kernel`` in a guest: python -m tests.vm [OPTIONS] [-- PYTEST'S]."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.vm import cache
from tests.vm.packages import PreparationError
from tests.vm.run import Request, run_command, run_tests

ROOT = Path(__file__).parent.parent.parent
#: Seconds after which guests are ended from outside.
LIMIT = 2700
#: Guests side by side: no more, and each has this machine's memory to share with its like.
_MOST = 4
#: Less is not enough to boot and to end.
_LEAST = 120
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Return our own options, and what stands after ``--``."""
    own, _, others = _partition(words)
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="with pytest and storaged")
    parser.add_argument("--timeout", type=int, default=LIMIT, help="in seconds, for all of it")
    guests = min(os.cpu_count() or 1, _MOST)
    parser.add_argument("--guests", type=int, default=guests, help="side by side, at most")
    parser.add_argument(
        "--lacking", action="store_true", help="only what this machine's own kernel cannot run"
    )
    parser.add_argument("--results", type=Path, default=Path("build/vm"), help="a directory")
    parser.add_argument("--coverage", action="store_true", help="bring back .coverage.* as well")
    parser.add_argument("--command", action="store_true", help="after -- comes a command to run")
    parser.add_argument("--clean", action="store_true", help="only remove what is cached")
    options = parser.parse_args(own)
    if options.timeout < _LEAST:
        parser.error(f"--timeout takes a number of seconds, at least {_LEAST}")
    if options.guests < 1:
        parser.error("--guests takes a number of guests")
    if options.command and not others:
        parser.error("--command needs a command after --")
    return options, tuple(others)


def _partition(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    listed = list(words)
    if "--" not in listed:
        return listed, "", []
    at = listed.index("--")
    return listed[:at], "--", listed[at + 1 :]


def _end(number: int, frame: FrameType | None) -> None:
    """Leave through all clean-ups, which a second signal does not disturb."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(words: Sequence[str]) -> int:
    """Return the exit status."""
    options, others = parse(words)
    place = cache.default_directory(os.environ)
    if options.clean:
        cache.clean(place)
        return 0
    for number in _ENDING:
        signal.signal(number, _end)
    venv = options.venv if options.venv.is_absolute() else ROOT / options.venv
    request = Request(
        root=ROOT,
        python=venv / "bin" / "python",
        cache=place,
        results=ROOT / options.results,
        limit=options.timeout,
        guests=options.guests,
        lacking=options.lacking,
        coverage=options.coverage,
        arguments=others,
    )
    try:
        return run_command(request) if options.command else run_tests(request)
    except PreparationError as err:
        print(f"test-vm: {err}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
