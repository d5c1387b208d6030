"""LUKS containers through QEMU's own driver, for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def create(path: Path, size: int | str, *options: str, passphrase: str = "word") -> Path:
    """Make a container with qemu-img, which times a key derivation and may fail at that."""
    command = [
        "qemu-img", "create", "-q", "--object", f"secret,id=s,data={passphrase}", "-f", "luks",
        "-o", ",".join(("key-secret=s", "iter-time=10", *options)), str(path), str(size),
    ]  # fmt: skip
    for _ in range(30):
        made = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if made.returncode == 0:
            return path
        assert "accurate CPU usage" in made.stderr, made.stderr
    pytest.skip("qemu-img cannot measure CPU time on this machine")


def io(path: Path, *commands: str, passphrase: str = "word") -> str:
    """Run commands of qemu-io on the plain data; all must succeed."""
    arguments = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "--object", f"secret,id=s,data={passphrase}", "--image-opts",
         f"driver=luks,key-secret=s,file.filename={path}", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    for word in ("error", "failed", "Invalid"):
        assert word not in output, output
    return output
