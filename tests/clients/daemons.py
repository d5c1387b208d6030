"""Storaged's daemon and libvirt's, side by side, for clients that do not know which they talk to.

Each has a directory of its own: a small file system in memory, so that the figures of both pools
agree to the byte. In what a client is told and in what it answers it is called ``$DIR``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.running import storaged_daemon
from tests.storaged.libvirtd import libvirtd

#: The Python for which distributions package libvirt's binding.
SYSTEM_PYTHON = "/usr/bin/python3"
#: How large the file system of each daemon's pools is.
SPACE = 512 << 20

_TIMESTAMPS = re.compile(r"<timestamps>.*?</timestamps>", re.DOTALL)
#: Only identities that somebody drew; those of the tests begin with zeros.
_DRAWN = re.compile(r"\b(?!00000000-)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


@dataclass(frozen=True)
class Served:
    """A daemon as its clients see it.

    :param root: its configuration and state lie below it.
    :param directory: where its pools are.
    :param driver: the one that clients open.
    """

    name: str
    root: Path
    socket: Path
    pid: int
    directory: Path
    driver: str = "storage"

    @property
    def uri(self) -> str:
        return f"{self.driver}:///system?socket={self.socket}"

    def inward(self, value: Any) -> Any:
        """Put the daemon's own directory into what a client is given."""
        if isinstance(value, (list, tuple)):
            return [self.inward(item) for item in value]
        return value.replace("$DIR", str(self.directory)) if isinstance(value, str) else value

    def outward(self, value: Any) -> Any:
        """Take what cannot be the same on two daemons out of what a client answered."""
        if isinstance(value, (list, tuple)):
            return [self.outward(item) for item in value]
        if isinstance(value, dict):
            return {self.outward(key): self.outward(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        value = value.replace(str(self.directory), "$DIR").replace(str(self.socket), "$SOCKET")
        return _DRAWN.sub("$UUID", _TIMESTAMPS.sub("<timestamps/>", value))


@dataclass(frozen=True)
class Daemons:
    """Libvirt's daemon and storaged's."""

    theirs: Served
    ours: Served

    def __iter__(self) -> Iterator[Served]:
        return iter((self.theirs, self.ours))


@contextmanager
def serve_libvirtd(base: Path, directory: Path) -> Iterator[Served]:
    """Run libvirt's daemon on a state of its own."""
    with libvirtd(base / "libvirt") as daemon:
        yield Served("libvirtd", daemon.root, daemon.socket, daemon.pid, directory)


@contextmanager
def serve_storaged(base: Path, directory: Path, *arguments: str) -> Iterator[Served]:
    """Run storaged's daemon on a state of its own."""
    with storaged_daemon(base / "storaged", *arguments) as daemon:
        yield Served("storaged", daemon.root, daemon.socket, daemon.pid, directory)


@contextmanager
def file_system(directory: Path) -> Iterator[Path]:
    """Mount a small file system in memory, or skip where that cannot be had."""
    directory.mkdir()
    options = f"size={SPACE},mode=755,noatime"
    mount = ["mount", "-t", "tmpfs", "-o", options, "storaged-test", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system in memory")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def open_daemons(base: Path) -> Iterator[Daemons]:
    """Run both daemons on states and directories of their own below *base*."""
    with ExitStack() as stack:
        places = [stack.enter_context(file_system(base / f"pools-{side}")) for side in "ab"]
        theirs = stack.enter_context(serve_libvirtd(base, places[0]))
        ours = stack.enter_context(serve_storaged(base, places[1]))
        yield Daemons(theirs, ours)


def require_binding() -> None:
    """Skip where libvirt's own Python binding is missing."""
    command = [SYSTEM_PYTHON, "-c", "import libvirt"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("libvirt's Python binding is not installed (Debian: python3-libvirt)")
