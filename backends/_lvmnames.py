"""Names in LVM: what a volume may be called, what device-mapper makes of it, marks of work.

Source: lvm(8), "VALID NAMES", and the names that lvcreate refuses as reserved.
"""

from __future__ import annotations

import os
import re
from typing import Final

from storaged.errors import InvalidArgument
from storaged.process import start_time, this_boot

#: The most characters of a name.
NAME_MAX: Final = 127

_NAME: Final = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
#: Names that LVM keeps for itself: how they begin, and what may not occur in them.
_RESERVED_STARTS: Final = ("snapshot", "pvmove")
_RESERVED_PARTS: Final = (
    *("_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_iorig", "_imeta", "_mimage", "_mlog"),
    *("_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig"),
)
#: How the tags begin of volumes that are not whole yet.
_MARK: Final = "storaged.building"


def check_name(name: str) -> None:
    """Refuse a name that LVM would refuse for a volume.

    :raise InvalidArgument: the text names the name and the rule.
    """
    _require(name, "logical volume", _why_not(name) or _why_reserved(name))


def check_group_name(name: str) -> None:
    """Refuse a name that LVM would refuse for a group; see `check_name`."""
    _require(name, "volume group", _why_not(name))


def _require(name: str, what: str, why_not: str | None) -> None:
    if why_not is not None:
        raise InvalidArgument(
            f"'{name}' cannot be the name of a {what}: {why_not}",
            advice="Letters, digits and + _ . - may be used, and a hyphen not at the beginning.",
        )


def _why_not(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "it is empty or only dots"
    if len(name) > NAME_MAX:
        return f"it has {len(name)} characters, and LVM takes {NAME_MAX}"
    if name.startswith("-"):
        return "it begins with a hyphen"
    if not _NAME.fullmatch(name):
        odd = next(char for char in name if not _NAME.fullmatch(f"a{char}"))
        return f"LVM takes no {odd!a}"
    return None


def _why_reserved(name: str) -> str | None:
    for start in _RESERVED_STARTS:
        if name.startswith(start):
            return f"LVM keeps names that begin with '{start}' for itself"
    for part in _RESERVED_PARTS:
        if part in name:
            return f"LVM keeps names with '{part}' for itself"
    return None


def mapped_prefix(group: str) -> str:
    """Return how device-mapper's names of a group's volumes begin; hyphens in it are doubled."""
    return f"{group.replace('-', '--')}-"


def mapped_name(group: str, name: str) -> str:
    """Return device-mapper's name of a volume of a group."""
    return f"{mapped_prefix(group)}{name.replace('-', '--')}"


def is_mapped(name: str, group: str) -> bool:
    """Tell whether a name of device-mapper is that of a volume of a group, or of a part of one."""
    prefix = mapped_prefix(group)
    rest = name[len(prefix) :]
    return name.startswith(prefix) and not rest.startswith("-") and bool(rest)


def building_mark(host: str, job: int) -> str:
    """Return the tag of a volume that a job of this process fills.

    Another process of the same host knows by it that the volume is not whole, and once this
    process is dead, that nobody will end what it began.
    """
    return f"{_MARK}/{host}/{os.getpid()}/{_birth(os.getpid())}/{job}"


def is_building(tags: tuple[str, ...], host: str | None = None) -> bool:
    """Tell whether the tags of a volume say that it is not whole.

    :param host: which is to make it; None: any.
    """
    start = f"{_MARK}/" if host is None else f"{_MARK}/{host}/"
    return any(tag.startswith(start) for tag in tags)


def is_abandoned(tags: tuple[str, ...], host: str) -> bool:
    """Tell whether a process of *host* that has died left a volume that is not whole."""
    return any(_is_dead(tag, host) for tag in tags)


def _is_dead(tag: str, host: str) -> bool:
    mark, *words = tag.split("/")
    if mark != _MARK or len(words) != 4 or words[0] != host or not words[1].isdecimal():
        return False
    return _birth(int(words[1])) != words[2]


def _birth(pid: int) -> str:
    """Return in which boot, and when in it, a process was started; empty if there is none."""
    started = start_time(pid)
    return "" if started is None else f"{this_boot()[:8]}.{started}"
