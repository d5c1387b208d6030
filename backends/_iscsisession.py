"""The iSCSI sessions of this host, as the kernel tells of them in sysfs.

Nothing here waits or asks a program: sysfs answers also while a target does not.

Source: the attributes of the kernel's iSCSI transport class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from storaged.backends._iscsiportal import Portal
from storaged.backends._iscsireach import addresses

#: A session whose target answers.
LOGGED_IN: Final = "LOGGED_IN"
#: The interface of iscsiadm that has the host's own initiator name.
DEFAULT: Final = "default"

_SESSION = re.compile(r"session(\d+)")
_HOST = re.compile(r"/host(\d+)/")
#: How the kernel writes that there is nothing.
_NOTHING = frozenset({"(null)", "<NULL>", "<empty>"})


@dataclass(frozen=True, slots=True)
class Session:
    """One session at one moment.

    :param id: its number, not used again until the kernel's module is loaded anew.
    :param initiator: the name this host has in it.
    :param interface: iscsiadm's name for how it was made.
    :param state: ``LOGGED_IN``, ``FAILED`` or ``FREE``.
    :param portals: host and port of each end of its connections: what was asked for, and where it
        went.
    :param host: number of its SCSI host.
    :param device: its directory in sysfs; the targets with their units are below it.
    """

    id: int
    target: str
    initiator: str
    interface: str
    state: str
    portals: tuple[tuple[str, int], ...]
    host: int
    device: str


def read_sessions(sysfs: str = "/sys") -> tuple[Session, ...]:
    """Return all sessions, the oldest first; one that ends meanwhile is left out."""
    directory = f"{sysfs}/class/iscsi_session"
    with suppress(OSError):
        numbers = sorted(
            int(found[1])
            for name in os.listdir(directory)  # noqa: PTH208 -- names are all it needs
            if (found := _SESSION.fullmatch(name))
        )
        sessions = (read_session(number, sysfs) for number in numbers)
        return tuple(session for session in sessions if session is not None)
    return ()


def read_session(number: int, sysfs: str = "/sys") -> Session | None:
    """Return the session of a number, None if there is none."""
    directory = f"{sysfs}/class/iscsi_session/session{number}"
    try:
        target = read_attribute(f"{directory}/targetname")
        state = read_attribute(f"{directory}/state")
        device = os.path.realpath(f"{directory}/device")
    except OSError:
        return None
    host = _HOST.search(f"{device}/")
    if host is None or not target:
        return None
    return Session(
        number,
        target,
        _optional(f"{directory}/initiatorname"),
        _optional(f"{directory}/ifacename"),
        state,
        tuple(_ends(device)),
        int(host[1]),
        device,
    )


def matching(
    sessions: Iterable[Session], target: str, portal: Portal, initiator: str, *, own: bool
) -> Session | None:
    """Return the session of a target at a portal by an initiator.

    :param own: *initiator* is this host's own name: every session of iscsiadm's default interface
        is by it.
    """
    alike = [
        session
        for session in sessions
        if session.target == target
        and (session.initiator == initiator or (own and session.interface in (DEFAULT, "")))
    ]
    for session in alike:
        if any(portal.is_at(*end) for end in session.portals):
            return session
    places = [portal.at(address) for address in addresses(portal)] if alike else []
    for session in alike:
        if any(place.is_at(*end) for place in places for end in session.portals):
            return session
    return None


def _ends(device: str) -> Iterable[tuple[str, int]]:
    """Yield host and port of what the connections of a session were asked for, and lead to."""
    with suppress(OSError):
        for name in sorted(os.listdir(device)):  # noqa: PTH208
            if not name.startswith("connection"):
                continue
            directory = f"{device}/{name}/iscsi_connection/{name}"
            for prefix in ("persistent_", ""):
                with suppress(OSError, ValueError):
                    host = read_attribute(f"{directory}/{prefix}address")
                    if host not in _NOTHING:
                        yield host, int(read_attribute(f"{directory}/{prefix}port"))


def _optional(path: str) -> str:
    try:
        value = read_attribute(path)
    except OSError:
        return ""
    return "" if value in _NOTHING else value


def read_attribute(path: str) -> str:
    """Return the text of an attribute of sysfs without its end of line.

    :raise OSError: it is not there, or what it belongs to has just gone.
    """
    with open(path, "rb") as file:  # noqa: PTH123 -- called for each attribute
        return file.read(4096).decode(errors="replace").strip()
