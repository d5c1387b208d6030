"""Who is let in: the authentication of each socket, its mode and group, and what is refused.

A daemon that changes storage as root must not answer to everybody. What is asked for and cannot be
had stops the start, and so does a socket that lets in whom nobody checks; also one that systemd
made.
"""

from __future__ import annotations

import errno
import grp
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storaged.daemon.config import Auth, Settings
from storaged.daemon.configfile import ConfigError
from storaged.errors import system_errors
from storaged.paths import printable
from storaged.server import polkit
from storaged.server.sockets import Bound

#: The least number that is no group's: chown takes it for "leave it as it is".
_NO_ID = 0xFFFFFFFF


#: An access control list as the kernel gives it: a version, then entries of tag, permissions, id.
_ACL_HEADER = 4
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP, _ACL_MASK = 0x02, 0x08, 0x10


@dataclass(frozen=True, slots=True)
class Admission:
    """How clients are let in.

    :param rw: the authentication of clients that may change things.
    :param ro: that of clients that only read.
    :param rw_mode: the mode of their socket, and so on.
    :param group: the id of the group that owns the sockets; None leaves the daemon's own.
    """

    rw: Auth
    ro: Auth
    rw_mode: int
    ro_mode: int
    admin_mode: int
    group: int | None = None


def decide(
    settings: Settings,
    *,
    privileged: bool,
    unavailable: Callable[[], str | None] = polkit.unavailable,
) -> Admission:
    """Return how clients are let in, by what is set and what this host has.

    Where nothing is set, the system's daemon asks polkit if it can, and else serves its owner
    alone; a user's daemon always does the latter.

    :param privileged: the system's daemon, run by root.
    :param unavailable: says why polkit cannot be asked.
    :raise ConfigError: polkit is asked for and not there, or the group is not known.
    """
    asked = Auth.POLKIT in (settings.auth_unix_rw, settings.auth_unix_ro)
    missing = None
    if asked or privileged:
        missing = unavailable()
    if asked and missing is not None:
        key = "auth_unix_rw" if settings.auth_unix_rw is Auth.POLKIT else "auth_unix_ro"
        raise ConfigError(
            f"{settings.where(key)}'{key}' asks for polkit: {missing}", advice=polkit.INSTALL
        )
    default = Auth.POLKIT if privileged and missing is None else Auth.NONE
    rw = settings.auth_unix_rw or default
    private = 0o777 if rw is Auth.POLKIT else 0o700
    mode = settings.unix_sock_rw_perms
    return Admission(
        rw=rw,
        ro=settings.auth_unix_ro or default,
        rw_mode=private if mode is None else mode,
        ro_mode=settings.unix_sock_ro_perms,
        admin_mode=settings.unix_sock_admin_perms,
        group=_group(settings),
    )


def require_closed_mode(path: Path, admission: Admission) -> None:
    """As `require_closed`, for a socket that is to be made: before anything is touched.

    :raise ConfigError: its mode would let in others.
    """
    if admission.rw is Auth.NONE:
        group = os.getegid() if admission.group is None else admission.group
        _require_private(printable(path), admission.rw_mode, group, admission)


def require_closed(bound: Bound, admission: Admission) -> None:
    """Make sure that a socket on which nobody proves who they are is not open to others.

    Its owner and the members of ``unix_sock_group`` may write to it, and nobody else, whether by
    its mode or by an access control list.

    :raise ConfigError: somebody else may, or it cannot be told.
    """
    if admission.rw is not Auth.NONE:
        return
    shown = printable(bound.path)
    if not bound.path.is_absolute():
        raise _open(f"the socket has no path ('{shown}'), so that everybody may connect to it")
    with system_errors(f"cannot look at the socket '{shown}'"):
        found = bound.path.stat()
        named = _named_writers(bound.path)
    if not stat.S_ISSOCK(found.st_mode):
        raise _open(f"'{shown}' is not the socket that was handed over")
    if found.st_uid != os.geteuid() and found.st_mode & stat.S_IWUSR:
        raise _open(f"the socket '{shown}' belongs to user {found.st_uid}")
    _require_private(shown, found.st_mode, found.st_gid, admission)
    for tag, number in named:
        if (tag, number) not in ((_ACL_USER, found.st_uid), (_ACL_GROUP, admission.group)):
            who = f"user {number}" if tag == _ACL_USER else f"group {_group_name(number)}"
            raise _open(f"the access control list of '{shown}' lets {who} write to the socket")


def _require_private(shown: str, mode: int, group: int, admission: Admission) -> None:
    """Raise if a mode lets in others than the owner and the group of the configuration."""
    if mode & stat.S_IWOTH:
        raise _open(f"everybody may write to the socket '{shown}' (mode {mode & 0o777:04o})")
    if mode & stat.S_IWGRP and group != admission.group:
        raise _open(
            f"group {_group_name(group)}, which unix_sock_group does not name, may write "
            f"to the socket '{shown}' (mode {mode & 0o777:04o})"
        )


def _named_writers(path: Path) -> list[tuple[int, int]]:
    """Return the users and groups that an access control list names and lets write: tag and id."""
    try:
        data = os.getxattr(path, "system.posix_acl_access")
    except OSError as err:
        if err.errno in (errno.ENODATA, errno.ENOTSUP):
            return []
        raise
    entries = list(_ACL_ENTRY.iter_unpack(data[_ACL_HEADER:]))
    mask = next((permissions for tag, permissions, _ in entries if tag == _ACL_MASK), 7)
    return [
        (tag, number)
        for tag, permissions, number in entries
        if tag in (_ACL_USER, _ACL_GROUP) and permissions & mask & 2
    ]


def _open(detail: str) -> ConfigError:
    return ConfigError(
        f'auth_unix_rw is "none" and {detail}',
        advice='Set unix_sock_rw_perms = "0700", or "0770" together with unix_sock_group (with '
        'socket activation: SocketMode= and SocketGroup=); or use auth_unix_rw = "polkit".',
    )


def _group(settings: Settings) -> int | None:
    name = settings.unix_sock_group
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < _NO_ID:
            return int(name)
        raise ConfigError(
            f"{settings.where('unix_sock_group')}there is no group '{printable(name)}'",
            advice=f"Create it: groupadd --system {printable(name)}",
        ) from None


def _group_name(number: int) -> str:
    try:
        return f"'{grp.getgrgid(number).gr_name}'"
    except KeyError:
        return str(number)
