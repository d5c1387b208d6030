"""What the tests of the engine share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Who nobody is on every Linux.
NOBODY = 65534


@pytest.fixture
def ordinary_directory() -> Iterator[Path]:
    """A directory of an ordinary user, who this process is during the test."""
    directory = Path(tempfile.mkdtemp(prefix="storaged-test-"))
    was_root = os.geteuid() == 0
    try:
        if was_root:
            os.chown(directory, NOBODY, NOBODY)
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        yield directory
    finally:
        if was_root:
            os.seteuid(0)
            os.setegid(0)
        shutil.rmtree(directory)
