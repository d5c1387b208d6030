"""Records of iscsiadm's node database, changed for one login and put back after it.

A password must not be an argument of a program, where every user of the host can read it; so what
one login needs is written into the record, as iscsiadm would write it, and taken out afterwards.
What stood there before is kept in comments of the record meanwhile, which iscsiadm passes over: so
also after a crash in the middle the record can be put back, and it is known whose login it was.

A record that was made for a login is removed after it: iscsid keeps what it needs, and asks the
kernel for it when it is started anew; a record without the password would be in its way then.

Source: the layout of the database of open-iscsi 2.1.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from storaged.atomic import read_file, remove_file, sweep, write_file
from storaged.backends._iscsiportal import Portal
from storaged.errors import InvalidArgument, SystemFailure, Timeout, system_errors

if TYPE_CHECKING:
    from storaged.job import Job

#: Where iscsiadm has its database: that is fixed when it is built.
ROOTS: Final = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))
#: Where the name of this host is: ``InitiatorName=IQN``.
INITIATOR_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")

#: The longest value that iscsiadm reads, in bytes.
VALUE_MAX: Final = 255
_FILE_MAX: Final = 1 << 20
_MADE: Final = "# made by storaged"
_WAS: Final = "# storaged was: "
_NONE: Final = "# storaged none: "
_NOTES: Final = (_MADE, _WAS, _NONE)
_OWN_NAME = re.compile(r"^\s*InitiatorName\s*=\s*(\S+)", re.MULTILINE)
#: How long another login of ours may keep the database to itself, in seconds.
_PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """A record: how to log in to a target at a portal through an interface.

    :param root: of the database that it is in.
    :param path: its file.
    :param portal: with the portal group that the record is for.
    """

    root: Path
    path: Path
    target: str
    portal: Portal
    interface: str

    @property
    def is_lent(self) -> bool:
        """Whether a login is under way with it, or was when somebody was killed."""
        return any(line.startswith(_NOTES) for line in _read(self.path).splitlines())

    def lend(self, values: Mapping[str, str], *, made: bool = False) -> None:
        """Write what one login needs into the record.

        :param made: the record was made for this, and `settle` removes it.
        :raise InvalidArgument: a value cannot stand in a record; it is not told.
        :raise SystemFailure: the record cannot be read or written; it is as it was.
        """
        for name, value in values.items():
            _check(name, value)
        text = settled(_read(self.path))
        if not text:
            raise SystemFailure(f"cannot read file '{self.path}'", errno.ENOENT)
        made = made or is_made(self.path)
        text = lent(text, values, () if made else values.keys())
        if made and not is_made(self.path):
            text = f"{_MADE}\n{text}"
        _write(self.path, text, self.root)

    def settle(self) -> None:
        """Put back what `lend` changed, or remove what was made for it. Twice is no error.

        :raise SystemFailure: the record cannot be read or written.
        """
        text = _read(self.path)
        if _MADE in text.splitlines():
            self._remove()
        elif (back := settled(text)) != text:
            _write(self.path, back, self.root)

    def _remove(self) -> None:
        """Remove the record. iscsiadm refuses that while there is a session, which needs it not."""
        remove_file(self.path, durable=True)
        remove_file(
            self.root / "static" / f"{self.target},{self.portal.entry},{self.interface}",
            durable=False,
        )
        for directory in (self.path.parent, self.path.parent.parent):
            with suppress(OSError):  # others are in it
                directory.rmdir()


def lent(text: str, values: Mapping[str, str], undo: Collection[str]) -> str:
    """Return a record with other values.

    :param undo: the names whose values `settled` puts back.
    """
    lines, journal, left = [], [], dict(values)
    for line in text.splitlines():
        name = _name_of(line)
        if name in values:
            if name in undo:
                journal.append(f"{_WAS}{line}")
            if name not in left:
                continue
            line = f"{name} = {left.pop(name)}"
        lines.append(line)
    end = lines.index("# END RECORD") if "# END RECORD" in lines else len(lines)
    lines[end:end] = [f"{name} = {value}" for name, value in left.items()]
    journal += [f"{_NONE}{name}" for name in left if name in undo]
    return "\n".join([*journal, *lines, ""])


def settled(text: str) -> str:
    """Return a record as it was before `lent`."""
    was, none, lines = {}, set(), []
    for line in text.splitlines():
        if line.startswith(_WAS):
            was[_name_of(line.removeprefix(_WAS))] = line.removeprefix(_WAS)
        elif line.startswith(_NONE):
            none.add(line.removeprefix(_NONE))
        else:
            lines.append(line)
    if not was and not none:
        return text
    kept = [was.get(_name_of(line), line) for line in lines if _name_of(line) not in none]
    return "\n".join([*kept, ""])


def _name_of(line: str) -> str:
    """Return the name in a line ``NAME = VALUE``; that of a comment is no name of a value."""
    return line.partition("=")[0].strip()


def _check(name: str, value: str) -> None:
    """Refuse what iscsiadm would not read as it was written, without telling what it is."""
    plain = value.isprintable() and value == value.strip() and value
    if not plain or len(value.encode(errors="surrogateescape")) > VALUE_MAX:
        raise InvalidArgument(
            f"the value of {name} cannot be stored for iscsiadm",
            advice=f"It must be one line of 1 to {VALUE_MAX} bytes without spaces at its ends.",
        )


def find_node(
    target: str, portal: Portal, interface: str, roots: Sequence[Path] = ROOTS
) -> Node | None:
    """Return the record of a target at a portal, whatever its portal group; None: there is none.

    The group of *portal* is preferred.
    """
    found = [
        node
        for node in _nodes(target, roots)
        if node.interface == interface and portal.is_at(node.portal.host, node.portal.port)
    ]
    found.sort(key=lambda node: node.portal.group != portal.group)
    return found[0] if found else None


def interface_is_used(interface: str, roots: Sequence[Path] = ROOTS) -> bool:
    """Tell whether any record is for an interface."""
    return any(
        record.name == interface
        for root in roots
        for target in _listed(root / "nodes")
        for portal in _listed(target)
        for record in _listed(portal)
    )


def _nodes(target: str, roots: Sequence[Path]) -> Iterator[Node]:
    for root in roots:
        for place in _listed(root / "nodes" / target):
            host, _, rest = place.name.partition(",")
            port, _, group = rest.partition(",")
            try:
                portal = Portal(host, int(port), int(group) if group else None)
            except (InvalidArgument, ValueError):
                continue
            for path in _listed(place):
                yield Node(root, path, target, portal, path.name)
            if place.is_file():  # the record of an unknown group, for the default interface
                yield Node(root, place, target, portal, "default")


def _listed(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def find_interface(name: str, roots: Sequence[Path] = ROOTS) -> Path | None:
    """Return the record of an interface, None if it has none."""
    return next(
        (path for root in roots for path in _listed(root / "ifaces") if path.name == name), None
    )


def mark_made(path: Path) -> None:
    """Note in the record of an interface that it is ours."""
    _write(path, f"{_MADE}\n{_read(path)}", path.parent.parent)


def is_made(path: Path) -> bool:
    """Tell whether a record carries our note."""
    return _MADE in _read(path).splitlines()


def own_initiator(path: Path = INITIATOR_FILE) -> str | None:
    """Return the name of this host as an initiator, None if it has none.

    :raise SystemFailure: its file cannot be read.
    """
    data = read_file(path, _FILE_MAX)
    found = _OWN_NAME.search(data.decode(errors="replace")) if data is not None else None
    return found[1] if found else None


@contextmanager
def alone(job: Job[Any] | None, roots: Sequence[Path] = ROOTS) -> Iterator[None]:
    """Keep all others of us from changing the database meanwhile, and clear up after the killed.

    :raise Timeout: somebody else does so for too long.
    """
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        yield
        return
    with system_errors(f"cannot lock '{root}'"):
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(directory, root, job)
        for each in roots:
            sweep(each)  # who holds the lock is the only one to have begun a file there
        yield
    finally:
        os.close(directory)


def _lock(directory: int, root: Path, job: Job[Any] | None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EACCES):
                with system_errors(f"cannot lock '{root}'"):
                    raise
        else:
            return
        if time.monotonic() > deadline:
            raise Timeout(f"somebody else works on the node database in '{root}'")
        if job is not None:
            job.checkpoint()
        time.sleep(0.02)


def _write(path: Path, text: str, root: Path) -> None:
    """Replace a record; iscsiadm takes every file beside it for a record too."""
    write_file(path, text.encode(errors="surrogateescape"), durable=True, begin=root)


def _read(path: Path) -> str:
    data = read_file(path, _FILE_MAX)
    return "" if data is None else data.decode(errors="surrogateescape")
