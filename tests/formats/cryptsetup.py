"""LUKS containers made by cryptsetup, for tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needed = pytest.mark.skipif(
    shutil.which("cryptsetup") is None, reason="cryptsetup is not installed"
)


def create(path: Path, size: int, *, version: int = 1) -> Path:
    """Make a file of *size* bytes that is a LUKS container; the passphrase is "word"."""
    path.write_bytes(bytes(size))
    subprocess.run(
        ["cryptsetup", "luksFormat", "--batch-mode", "--type", f"luks{version}", "--pbkdf",
         "pbkdf2", "--pbkdf-force-iterations", "1000", str(path), "-"],
        input=b"word", check=True,
    )  # fmt: skip
    return path
