"""Who has a block device for himself: a file system, swap, or a device that is built on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storaged import imagelock, mounts
from storaged.errors import StorageError, VolumeBusy

_SYS = Path("/sys/dev/block")
_SWAPS = Path("/proc/swaps")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def holders(rdev: int) -> tuple[str, ...]:
    """Return in words what has a device, or a part of it, for itself; nothing if nothing is known.

    :param rdev: number of the device.
    """
    found = []
    for part in _parts(rdev):
        found += [*_mounted(part), *_swapped(part), *_built_on(part)]
    return tuple(dict.fromkeys(found))


def busy(name: str, named: tuple[str, ...], rdev: int | None = None) -> VolumeBusy:
    """Return the error for a volume whose device somebody has.

    :param named: what `holders` says.
    :param rdev: number of the device, to name the processes that have it open instead.
    """
    words = list(named)
    if not words and rdev is not None:
        words = [f"open by {user}" for user in writers(rdev)]
    how = "; ".join(words[:3]) or "in use by another program, which cannot be seen from here"
    return VolumeBusy(
        f"volume '{name}' is still in use.", advice=f"Its device is {how}. End that first."
    )


def _parts(rdev: int) -> Iterator[int]:
    """Yield a device and its partitions."""
    yield rdev
    with suppress(OSError):
        for entry in (_SYS / _numbers(rdev)).iterdir():
            if (entry / "partition").exists():
                major, _, minor = (entry / "dev").read_text().strip().partition(":")
                yield os.makedev(int(major), int(minor))


def _numbers(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _mounted(rdev: int) -> Iterator[str]:
    try:
        known = mounts.mounts()
    except StorageError:
        return
    for mount in known:
        # btrfs has device numbers of its own
        if mount.device == _numbers(rdev) or (
            mount.source.startswith("/dev/") and _is(mount.source, rdev)
        ):
            yield f"mounted at '{mount.point}'"


def _swapped(rdev: int) -> Iterator[str]:
    with suppress(OSError):
        for line in _SWAPS.read_text(errors="surrogateescape").splitlines()[1:]:
            path = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), line.split(maxsplit=1)[0])
            if _is(path, rdev):
                yield "in use as swap space"


def _built_on(rdev: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in sorted((_SYS / _numbers(rdev) / "holders").iterdir()):
            name = None
            with suppress(OSError):
                name = (entry / "dm/name").read_text().strip()
            yield f"a part of '{name or entry.name}'"


def _is(path: str, rdev: int) -> bool:
    try:
        return Path(path).stat().st_rdev == rdev
    except OSError:
        return False


def writers(rdev: int) -> list[str]:
    """Return in words the other processes that have a device open for writing."""
    with suppress(OSError):
        own = os.getpid()
        users = imagelock.device_users(rdev)
        return [str(user) for user in users if user.pid != own and user.writing]
    return []


def is_ours(rdev: int) -> bool:
    """Tell whether this process has a device open for writing."""
    with suppress(OSError):
        own = os.getpid()
        return any(user.pid == own and user.writing for user in imagelock.device_users(rdev))
    return False
