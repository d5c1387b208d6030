"""May a user get at a file? Who stops him where, and the one command that mends it.

A virtual machine's QEMU runs as a user of its own. That it cannot open an image shows only when the
machine starts, as "Permission denied" without a place; the place is often a directory far above.

Sources: path_resolution(7), acl(5).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from storaged.errors import InvalidArgument, SystemFailure, system_errors

_ACL = "system.posix_acl_access"
_ACL_VERSION = 2
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_MAX_LINKS = 40
_READ, _WRITE, _SEARCH = 4, 2, 1


class _Tag(IntEnum):
    """Whom an entry of an access list is for."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that stops the user.

    :param path: the directory or file that does it.
    :param doing: what cannot be done there: enter, read, write ...
    :param why: the permissions as they are.
    :param command: the smallest that gives the right; None if there is none.
    """

    path: str
    doing: str
    why: str
    command: str | None


@dataclass(frozen=True, slots=True)
class AccessReport:
    """Whether *user* can use the file at *path*, and if not, all that is in the way."""

    path: str
    user: str
    obstacles: tuple[Obstacle, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether nothing was found that stops the user."""
        return not self.obstacles

    def __str__(self) -> str:
        if self.allowed:
            return f"user {self.user} can use {self.path}"
        return "; ".join(
            f"user {self.user} cannot {one.doing} {one.path} ({one.why})"
            + (f": {one.command}" if one.command else "")
            for one in self.obstacles
        )


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    groups: frozenset[int]


def check_access(path: str, user: str | int, *, writing: bool = True) -> AccessReport:
    """Find out whether *user* can open the file at *path*, without becoming that user.

    What security modules and a server's own rules (NFS root_squash) add is not seen.

    :param path: absolute; links on the way are followed as the kernel would.
    :param user: name or number.
    :param writing: ask for reading and writing, not for reading alone.
    :raise InvalidArgument: there is no such user, or *path* is not absolute.
    :raise SystemFailure: there is no such file.
    """
    if not path.startswith("/"):
        raise InvalidArgument(f"path '{path}' is not absolute")
    who = _find_user(user)
    obstacles: list[Obstacle] = []
    *directories, final = _walk(path)
    for directory in dict.fromkeys(directories):
        obstacles += _check(directory, who, _SEARCH, "enter")
    with system_errors(f"cannot stat file '{final}'"):
        is_directory = stat.S_ISDIR(Path(final).stat().st_mode)
    wanted = _READ | (_WRITE if writing else 0) | (_SEARCH if is_directory else 0)
    obstacles += _check(final, who, wanted, "read and write" if writing else "read")
    if writing:
        obstacles += _check_mount(final)
    return AccessReport(path, who.name, tuple(obstacles))


def _find_user(user: str | int) -> _User:
    text = str(user)
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        if text.isdecimal():  # a number needs no name, but then has no groups
            return _User(text, int(text), frozenset())
        raise InvalidArgument(f"there is no user '{text}'") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return _User(entry.pw_name, entry.pw_uid, frozenset(groups))


def _walk(path: str) -> Iterator[str]:
    """Yield each directory that is searched on the way, then what the path leads to.

    :raise SystemFailure: a part is missing, is no directory, or the links go in circles.
    """
    doing = f"cannot stat file '{path}'"
    parts = path.split("/")[::-1]
    here, links = "/", 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        yield here
        there = Path(here).parent if part == ".." else Path(here, part)
        with system_errors(doing):
            kind = there.lstat().st_mode
            if stat.S_ISLNK(kind):
                links += 1
                if links > _MAX_LINKS:
                    raise SystemFailure(doing, errno.ELOOP)
                target = os.fspath(there.readlink())
                parts += target.split("/")[::-1]
                here = "/" if target.startswith("/") else here
                continue
            if any(parts) and not stat.S_ISDIR(kind):
                raise SystemFailure(doing, errno.ENOTDIR)
        here = os.fspath(there)
    yield here


def _check(path: str, user: _User, wanted: int, doing: str) -> Iterator[Obstacle]:
    """Yield what the permissions of one file or directory have against the user."""
    with system_errors(f"cannot stat file '{path}'"):
        status = Path(path).stat()
    entries, has_lists = _read_acl(path)
    if user.uid == 0:
        return
    tag, allowed = _rights(status, entries, user, wanted)
    if allowed & wanted == wanted:
        return
    mode = stat.S_IMODE(status.st_mode)
    why = f"owner {_user_name(status.st_uid)}, group {_group_name(status.st_gid)}, mode {mode:04o}"
    if entries:
        why += f", access list grants {_letters(allowed)}"
    letters = _letters(wanted).replace("-", "")
    who = {_Tag.USER_OBJ: "u", _Tag.GROUP_OBJ: "g", _Tag.GROUP: "g"}.get(tag, "o")
    if has_lists and tag is not _Tag.USER_OBJ:
        command = f"setfacl -m u:{user.name}:{letters} {shlex.quote(path)}"
    else:
        command = f"chmod {who}+{letters} {shlex.quote(path)}"
    yield Obstacle(path, doing, why, command)


def _check_mount(path: str) -> Iterator[Obstacle]:
    with suppress(OSError):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            yield Obstacle(path, "write", "its file system is mounted read-only", None)


def _rights(
    status: os.stat_result, entries: tuple[tuple[int, int, int], ...], user: _User, wanted: int
) -> tuple[_Tag, int]:
    """Return which entry decides about the user, and the rights that it gives.

    Without an access list, the three digits of the mode are one.
    """
    mode = status.st_mode
    if not entries:
        entries = (
            (_Tag.USER_OBJ, mode >> 6 & 7, 0),
            (_Tag.GROUP_OBJ, mode >> 3 & 7, 0),
            (_Tag.OTHER, mode & 7, 0),
        )
    by_tag = {tag: rights for tag, rights, _ in entries}
    if user.uid == status.st_uid:
        return _Tag.USER_OBJ, by_tag.get(_Tag.USER_OBJ, 0)
    mask = by_tag.get(_Tag.MASK, 7)
    for tag, rights, identity in entries:
        if tag == _Tag.USER and identity == user.uid:
            return _Tag.USER, rights & mask
    found = []
    for tag, rights, identity in entries:
        group = status.st_gid if tag == _Tag.GROUP_OBJ else identity
        if tag in (_Tag.GROUP_OBJ, _Tag.GROUP) and group in user.groups:
            found.append(rights & mask)
    if found:
        # One entry has to grant everything; several do not add up.
        enough = [rights for rights in found if rights & wanted == wanted]
        return _Tag.GROUP, (enough or found)[0]
    return _Tag.OTHER, by_tag.get(_Tag.OTHER, 0)


def _read_acl(path: str) -> tuple[tuple[tuple[int, int, int], ...], bool]:
    """Return the entries (tag, rights, id) of the access list, and whether lists are possible."""
    try:
        value = os.getxattr(path, _ACL)
    except OSError as err:
        return (), err.errno == errno.ENODATA
    if len(value) < _ACL_HEADER.size or _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return (), True
    body = value[_ACL_HEADER.size :]
    whole = len(body) - len(body) % _ACL_ENTRY.size
    return tuple(_ACL_ENTRY.iter_unpack(body[:whole])), True


def _letters(rights: int) -> str:
    return "".join(
        letter if rights & bit else "-"
        for letter, bit in (("r", _READ), ("w", _WRITE), ("x", _SEARCH))
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
