"""What is mounted where, as the kernel tells it in ``/proc/self/mountinfo``.

Nothing here touches a mounted file system, so that a dead server cannot hold anybody up.

Source: proc(5), "/proc/pid/mountinfo".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from storaged.errors import InternalError, system_errors

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
#: Fields before the optional ones, and after the lone dash that ends those.
_FIELDS_BEFORE = 6
_FIELDS_AFTER = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount.

    :param id: the kernel's number of it, as in ``/proc/self/fdinfo``.
    :param device: ``major:minor`` as the kernel writes it.
    :param root: which directory of the file system is mounted: not ``/`` for bind mounts and
        subvolumes.
    :param point: where it is mounted.
    :param options: of this mount, such as ``ro``.
    :param type: the file system, such as ``ext4``.
    :param source: a device, ``server:/export``, or a word without meaning.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    type: str
    source: str
    super_options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through it."""
        return "ro" in self.options or "ro" in self.super_options


def parse(text: bytes) -> tuple[Mount, ...]:
    """Return the mounts of a mountinfo file, in its order; lines of another shape are left out."""
    found = (_parse_line(line) for line in text.split(b"\n"))
    return tuple(mount for mount in found if mount is not None)


def mounts() -> tuple[Mount, ...]:
    """Return all mounts of this process's namespace, the topmost of one point last.

    :raise SystemFailure: /proc is not there.
    """
    with system_errors(f"cannot read '{_MOUNTINFO}'"):
        return parse(_MOUNTINFO.read_bytes())


def mount_of(fd: int) -> Mount:
    """Return the mount through which a file was opened, also if another now covers it.

    :raise SystemFailure: /proc is not there.
    :raise InternalError: the mount was detached since.
    """
    with system_errors(f"cannot read '/proc/self/fdinfo/{fd}'"):
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    identity = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), None)
    for mount in mounts():
        if str(mount.id) == identity:
            return mount
    raise InternalError(f"the file system of '{_opened(fd)}' is detached")


def is_mount_point(fd: int, mount: Mount) -> bool:
    """Tell whether the open directory is where *mount*, its own mount, is mounted."""
    with system_errors(f"cannot read '/proc/self/fd/{fd}'"):
        return str(_opened(fd)) == mount.point


def _opened(fd: int) -> Path:
    """Return the path of an open file, as the kernel sees it by now."""
    return Path(f"/proc/self/fd/{fd}").readlink()


def _parse_line(line: bytes) -> Mount | None:
    before, dash, after = line.partition(b" - ")
    left = before.split(b" ")
    right = after.split(b" ")
    if not dash or len(left) < _FIELDS_BEFORE or len(right) < _FIELDS_AFTER:
        return None
    if not (left[0].isdigit() and left[1].isdigit()):
        return None
    return Mount(
        id=int(left[0]),
        parent=int(left[1]),
        device=left[2].decode(),
        root=_unescape(left[3]),
        point=_unescape(left[4]),
        options=_words(left[5]),
        type=_unescape(right[0]),
        source=_unescape(right[1]),
        super_options=_words(right[2]),
    )


def _words(field: bytes) -> tuple[str, ...]:
    return tuple(_unescape(field).split(","))


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\040`` for a blank and its like; names are bytes, so not as text."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
