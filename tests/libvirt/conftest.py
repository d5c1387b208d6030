"""The real libvirt-python, with which ours is compared."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
#: where Debian's python3-libvirt lives
SYSTEM_PYTHON = "/usr/bin/python3"


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
