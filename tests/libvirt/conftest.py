"""The real libvirt-python, with which ours is compared."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
#: where Debian's python3-libvirt lives
SYSTEM_PYTHON = "/usr/bin/python3"


def printed(python: str, program: Path, *words: str, seconds: float = 120) -> list[list[object]]:
    """Run a program of this directory to its good end; return the lines that it prints, as values.

    It finds our modules, and nothing of this environment.
    """
    done = subprocess.run(
        [python, str(program), *words],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def binding() -> str:
    """The Python that has libvirt-python."""
    done = subprocess.run([SYSTEM_PYTHON, "-c", "import libvirt"], capture_output=True)
    if done.returncode:
        pytest.skip("python3-libvirt is not installed")
    return SYSTEM_PYTHON


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory below which libvirt's clients can connect: they take 107 bytes at most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
