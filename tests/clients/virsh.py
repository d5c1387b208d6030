"""virsh: many commands in one run, each with what it printed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.clients.daemons import Served

_MARK = "==end-of-command=="
#: virsh names what it reads files and figures of time from.
_TOOK = re.compile(r"\(Time: [\d.]+ ms\)")


@dataclass(frozen=True)
class Printed:
    """What a command of virsh printed; *failed* if it reported an error."""

    output: str
    errors: str

    @property
    def failed(self) -> bool:
        return "error:" in self.errors


def start(
    served: Served, *words: str, uri: str | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start virsh on a daemon; its output and errors are pipes."""
    return subprocess.Popen(
        ["virsh", "-c", uri or served.uri, *served.inward(words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EDITOR": "true", **(environ or {})},
    )


def alone(served: Served, *words: str) -> tuple[int, Printed]:
    """Run one command as a process of its own; return its exit status too."""
    process = start(served, *words)
    output, errors = process.communicate(timeout=60)
    return process.returncode, _printed(served, output, errors)


def begin(
    served: Served,
    commands: Iterable[str],
    *options: str,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start one virsh that runs all *commands*; `end` waits for it."""
    marked = "".join(f"{command}; echo {_MARK}; echo --err {_MARK}; " for command in commands)
    return start(served, *options, marked, environ=environ)


def end(served: Served, process: subprocess.Popen[str], commands: Iterable[str]) -> list[Printed]:
    """Return what each of the commands printed, in their order."""
    output, errors = process.communicate(timeout=120)
    pieces = zip(output.split(f"{_MARK}\n"), errors.split(f"error: {_MARK}\n"), strict=True)
    printed = [_printed(served, *piece) for piece in pieces]
    names = list(commands)
    assert len(printed) == len(names) + 1, f"{served.name}: {output}\n{errors}"
    return printed[:-1]


def _printed(served: Served, output: str, errors: str) -> Printed:
    output, errors = (_TOOK.sub("", served.outward(text)) for text in (output, errors))
    return Printed(f"{output.strip()}\n", errors)  # virsh puts an empty line after each command
