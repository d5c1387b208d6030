"""Where the harness keeps what it fetched and built: outside the tree, safe for runs side by side.

    debs/       packages as they were downloaded
    vm-KEY/     a kernel and a layer of packages, for one state of this machine
    run-XXXX/   a run under way: its disks and its results
    accel       how this machine runs guests, asked once a boot

What is in use is locked; what a killed run left is removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return where the cache of this user is, by the XDG rules."""
    base = environ.get("XDG_CACHE_HOME") or ""
    home = Path(environ.get("HOME") or Path.home())
    return (Path(base) if base.startswith("/") else home / ".cache") / "storaged" / "vm"


@contextmanager
def locked(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is made if need be; waits for others."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def run_directory(cache: Path) -> Iterator[Path]:
    """Give a directory that goes at the end; if we are killed, at the start of the next run."""
    with locked(cache):
        remove_unused(cache, "run-*")
        place = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
        lock = _try_lock(place)
    if lock is None:
        raise RuntimeError(f"{place} is locked although it is new")
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.close()


def remove_unused(cache: Path, pattern: str, keep: Path | None = None) -> list[Path]:
    """Remove the directories of a kind that nobody has locked; return them."""
    removed = []
    for place in sorted(cache.glob(pattern)):
        if place == keep or not place.is_dir():
            continue
        lock = _try_lock(place)
        if lock is None:
            continue
        with lock:
            shutil.rmtree(place)
        removed.append(place)
    return removed


def clean(cache: Path) -> None:
    """Remove all of it that no run uses at the moment."""
    if not cache.is_dir():
        return
    with locked(cache):
        for pattern in ("run-*", "vm-*"):
            remove_unused(cache, pattern)
        shutil.rmtree(cache / "debs", ignore_errors=True)
        (cache / "accel").unlink(missing_ok=True)
        in_use = any(cache.glob("*-*"))
    if not in_use:
        shutil.rmtree(cache)


def _try_lock(directory: Path) -> IO[str] | None:
    file = (directory / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    os.set_inheritable(file.fileno(), False)
    return file
