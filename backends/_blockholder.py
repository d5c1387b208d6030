"""Who has a block device for himself: a file system, swap, or a device that is built on it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from storaged import imagelock, mounts
from storaged.errors import StorageError, VolumeBusy

#: udev opens a new device for itself for a moment; so often, and so long, that is waited for.
TRIES = 20
MOMENT = 0.05

_SYS = Path("/sys/dev/block")
_SWAPS = Path("/proc/swaps")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class UseKind(Enum):
    """How something has a device for itself."""

    MOUNTED = "mounted"
    SWAP = "swap"
    PART = "part"


@dataclass(frozen=True, slots=True)
class Use:
    """Something that has a device for itself.

    :param name: the mount point, or the device that it is a part of; "" for swap.
    :param mapped: *name* is device-mapper's.
    :param writing: whether it writes to the device, as far as can be told.
    """

    kind: UseKind
    name: str
    mapped: bool = False
    writing: bool = True


def holders(rdev: int) -> tuple[str, ...]:
    """Return in words what has a device, or a part of it, for itself; nothing if nothing is known.

    :param rdev: number of the device.
    """
    return tuple(dict.fromkeys(map(_in_words, uses(rdev))))


def _in_words(use: Use) -> str:
    if use.kind is UseKind.MOUNTED:
        return f"mounted at '{use.name}'"
    return "in use as swap space" if use.kind is UseKind.SWAP else f"a part of '{use.name}'"


def uses(rdev: int) -> Iterator[Use]:
    """Yield what has a device, or a part of it, for itself."""
    for part in _parts(rdev):
        yield from _mounted(part)
        yield from _swapped(part)
        yield from _built_on(part)


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


def _mounted(rdev: int) -> Iterator[Use]:
    try:
        known = mounts.mounts()
    except StorageError:
        return
    for mount in known:
        # btrfs has device numbers of its own
        if mount.device == _numbers(rdev) or (
            mount.source.startswith("/dev/") and _is(mount.source, rdev)
        ):
            yield Use(UseKind.MOUNTED, mount.point, writing=not mount.read_only)


def _swapped(rdev: int) -> Iterator[Use]:
    with suppress(OSError):
        for line in _SWAPS.read_text(errors="surrogateescape").splitlines()[1:]:
            path = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), line.split(maxsplit=1)[0])
            if _is(path, rdev):
                yield Use(UseKind.SWAP, "")


def _built_on(rdev: int) -> Iterator[Use]:
    with suppress(OSError):
        for entry in sorted((_SYS / _numbers(rdev) / "holders").iterdir()):
            name = None
            with suppress(OSError):
                name = (entry / "dm/name").read_text().strip()
            # what it writes comes from those that have it in turn
            yield Use(UseKind.PART, name or entry.name, mapped=name is not None, writing=False)


def _stack(rdev: int) -> Iterator[int]:
    """Yield a device, its partitions, and what is built on them, and on that."""
    for part in _parts(rdev):
        yield part
        with suppress(OSError, ValueError):
            for entry in (_SYS / _numbers(part) / "holders").iterdir():
                major, _, minor = (entry / "dev").read_text().strip().partition(":")
                yield from _stack(os.makedev(int(major), int(minor)))


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


def lasting_writers(rdev: int) -> list[str]:
    """Return what `writers` does, without those that had the device open for a moment only.

    losetup opens every device that it comes by.
    """
    users = writers(rdev)
    for _ in range(TRIES - 1):
        if not users:
            break
        time.sleep(MOMENT)
        users = writers(rdev)
    return users


def require_unwritten(rdev: int, name: str) -> None:
    """Refuse to copy a device that changes meanwhile.

    :param rdev: number of the device.
    :param name: of the volume, for the message.
    :raise VolumeBusy: a file system on it is mounted for writing, or a program writes to it.
    """
    words = [_in_words(use) for above in _stack(rdev) for use in uses(above) if use.writing]
    words += [f"open by {user}" for user in lasting_writers(rdev)] if not words else []
    if words:
        raise VolumeBusy(
            f"volume '{name}' is still in use.",
            advice=f"Its device is {'; '.join(words[:3])}. End that first, or copy a snapshot.",
        )


def is_ours(rdev: int) -> bool:
    """Tell whether this process has a device open for writing."""
    with suppress(OSError):
        own = os.getpid()
        return any(user.pid == own and user.writing for user in imagelock.device_users(rdev))
    return False
