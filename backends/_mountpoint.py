"""What is mounted on a directory, found without touching anything that is mounted.

To look at the root of a file system whose server is dead may take for ever, so a name that stands
in the kernel's list of mount points is never looked at.

Source: proc(5), "/proc/pid/mountinfo".
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from storaged import mounts
from storaged.mounts import Mount

#: Links on the way of one path, as in the kernel.
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A directory that something may be mounted on.

    :param path: without links.
    :param top: what one sees there; None if nothing is mounted on it, or not to be seen.
    :param below: what else is mounted there, covered by *top* or by a mount further up.
    """

    path: str
    top: Mount | None
    below: tuple[Mount, ...] = ()


def mount_point(target: str) -> MountPoint:
    """Return what is mounted on *target*, all links followed.

    :raise SystemFailure: /proc is not there.
    """
    known = mounts.mounts()
    path = real_path(target, frozenset(mount.point for mount in known))
    here = [mount for mount in known if mount.point == path]
    top = next((mount for mount in reversed(here) if is_visible(mount, known)), None)
    return MountPoint(path, top, tuple(mount for mount in here if mount is not top))


def real_path(path: str, points: Collection[str]) -> str:
    """Return a path without links; one of *points* is not looked at when it is reached."""
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        path = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        if path in points:
            return path
        try:
            goal = os.readlink(path)  # noqa: PTH115 -- a Path would drop what ends in a dot
        except OSError:
            return path  # no link, or not there
        path = os.path.join(os.path.dirname(path), goal)  # noqa: PTH118, PTH120
    return path


def is_visible(mount: Mount, known: Collection[Mount]) -> bool:
    """Tell whether one sees a mount at its point: neither it nor its way there is covered."""
    by_id = {each.id: each for each in known}
    seen: set[int] = set()
    while mount.id not in seen:  # a root may be its own parent
        seen.add(mount.id)
        for other in known:
            if other.id in seen:
                continue
            if other.parent == mount.id and other.point == mount.point:
                return False
            beside = other.parent == mount.parent and other.id != mount.parent
            if beside and _is_above(other.point, mount.point):
                return False
        parent = by_id.get(mount.parent)
        if parent is None:
            return True
        mount = parent
    return True


def _is_above(point: str, other: str) -> bool:
    return point != other and other.startswith(point.rstrip("/") + "/")
