"""Who keeps a file system from being unmounted, as far as ``/proc`` tells within a moment.

Only names are read, no file is looked at: it may lie on a server that is dead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storaged import mounts
from storaged.backends._inuse import loop_files
from storaged.paths import printable

#: How long to look, in seconds, and how many are named.
_SECONDS = 2.0
_NAMED = 5


def holders(point: str, *, others: bool = False) -> tuple[str, ...]:
    """Return what uses the file system mounted on *point*, in words; at most a handful.

    :param others: leave us and our children out.
    """
    found: dict[str, None] = {}
    for what in _all(point, others=others):
        # anybody who may make a file there has chosen its name
        found["".join(c if c.isprintable() else "?" for c in printable(what))] = None
        if len(found) >= _NAMED:
            break
    return tuple(found)


def _all(point: str, *, others: bool) -> Iterator[str]:
    for mount in mounts.mounts():
        if mount.point != point and _is_below(mount.point, point):
            yield f"{mount.type} of {mount.source} is mounted on '{mount.point}'"
    for name, file in loop_files():
        if _is_below(file, point):
            yield f"/dev/{name} has '{file}' as its backing file"
    deadline = time.monotonic() + _SECONDS
    for place in Path("/proc").iterdir():
        if time.monotonic() > deadline:
            return
        if not place.name.isdigit() or (others and _is_ours(place)):
            continue
        if used := _used(place, point):
            yield f"process {place.name} ({_name(place)}) uses '{used}'"


def _is_ours(process: Path) -> bool:
    """Tell whether a process is this one, or one that it has started."""
    own = os.getpid()
    with suppress(OSError, ValueError, IndexError):
        # the name stands in brackets before the parent, and may hold anything
        parent = (process / "stat").read_bytes().rpartition(b")")[2].split()[1]
        return own in (int(process.name), int(parent))
    return False


def _used(process: Path, point: str) -> str | None:
    """Return one path below *point* that a process uses, None if it uses none."""
    links = [process / "cwd", process / "root", process / "exe"]
    with suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with suppress(OSError):
            path = str(link.readlink())
            if _is_below(path, point):
                return path
    return None


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()  # cut in a character
    except OSError:
        return "gone by now"


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
