"""Images in files, as the daemon's operations take them."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged.job import Job
from storaged.qsd import Image, ImageFile, create

needed = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None,
    reason="qemu-storage-daemon (package qemu-system-common) is not installed",
)
MIB = 1 << 20


@contextmanager
def opened(path: Path, *, writable: bool = True, locked: bool = True) -> Iterator[ImageFile]:
    fd = os.open(path, (os.O_RDWR | os.O_CREAT) if writable else os.O_RDONLY, 0o600)
    try:
        yield ImageFile(fd, writable, locked)
    finally:
        os.close(fd)


@contextmanager
def image(path: Path, format: str, *, writable: bool = True) -> Iterator[Image]:
    with opened(path, writable=writable) as file:
        yield Image(file, format)


def made(path: Path, format: str, capacity: int, **options: object) -> Path:
    """Make an image; its options are QEMU's, with ``_`` for ``-``."""
    with opened(path) as file:
        create(file, format, capacity, {name.replace("_", "-"): options[name] for name in options})
    return path


class Watched(Job[None]):
    """A job that remembers what it was told, and cancels itself when it is as far as that."""

    def __init__(self, cancel_at: int | None = None) -> None:
        super().__init__("clone", "pool", "volume")
        self.told: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self._cancel_at = cancel_at

    def checkpoint(self, done: int | None = None, total: int | None = None) -> None:
        self.threads.add(threading.get_ident())
        if done is not None and total is not None:
            self.told.append((done, total))
            if self._cancel_at is not None and done >= self._cancel_at:
                self.cancel()
        super().checkpoint(done, total)


def open_files(pid: int) -> set[str]:
    """Return what a process has open that has a name."""
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            links.add(str(link.readlink()))
    return {link for link in links if link.startswith("/")}


def children() -> set[int]:
    """Return the daemons that this process has started and that are still there.

    Other tests of the same run may have other children.
    """
    found: set[int] = set()
    for listed in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended: its children are another's now
            found.update(map(int, listed.read_text().split()))
    return {child for child in found if b"qemu-storage-daemon" in _command(child)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
