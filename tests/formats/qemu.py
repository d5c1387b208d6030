"""qemu-img and qemu-io as the judges of our images."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storaged.formats.file import FileHandle

_TOO_BUSY = "Unable to get accurate CPU usage"
_TRIES = 30


def run(*argv: str | Path) -> str:
    """Run a tool, which must succeed; return what it printed.

    What measures how long a passphrase takes fails now and then on a busy machine, and is repeated.
    """
    for _ in range(_TRIES):
        result = subprocess.run(
            [os.fspath(word) for word in argv], capture_output=True, text=True, timeout=60
        )
        if _TOO_BUSY not in result.stderr:
            break
    assert result.returncode == 0, f"{argv}: {result.stdout}{result.stderr}"
    return result.stdout


def create(path: Path, size: int | str, *options: str, format: str = "qcow2") -> Path:
    arguments = [word for option in options for word in ("-o", option)]
    run("qemu-img", "create", "-q", "-f", format, *arguments, path, str(size))
    return path


def info(path: Path) -> Any:
    # -U: tests may still have the image open
    return json.loads(run("qemu-img", "info", "-U", "--output=json", path))


def mapping(path: Path) -> Any:
    return json.loads(run("qemu-img", "map", "-U", "--output=json", path))


def check(path: Path) -> None:
    """No errors, no leaks."""
    report = json.loads(run("qemu-img", "check", "-f", "qcow2", "--output=json", path))
    assert report["check-errors"] == 0
    assert report.get("corruptions", 0) == 0
    assert report.get("leaks", 0) == 0


def io(path: Path, *commands: str, format: str = "qcow2") -> None:
    arguments = [word for command in commands for word in ("-c", command)]
    output = run("qemu-io", "-f", format, *arguments, path)
    for word in ("error", "failed", "Invalid"):
        assert word not in output, output


def write_native(path: Path, write: Callable[[FileHandle], None]) -> Path:
    """Make or change a file through a `FileHandle`."""
    with open_native(path) as handle:
        write(handle)
    return path


def open_native(path: Path) -> FileHandle:
    return FileHandle(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
