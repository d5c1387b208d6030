"""Records of iscsiadm's node database, read and written as iscsiadm does.

iscsiadm itself takes values only as arguments, where every user of the host can read them, and
starting it for each of the things that stand in a small file takes long.

Source: the layout of the database of open-iscsi 2.1.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storaged.atomic import read_file, remove_file, write_file
from storaged.backends._iscsiportal import Portal
from storaged.errors import InvalidArgument, SystemFailure

#: Where iscsiadm has its database: that is fixed when it is built.
ROOTS: Final = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))
#: Where the name of this host is: ``InitiatorName=IQN``.
INITIATOR_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")

#: The longest value that iscsiadm reads, in bytes.
VALUE_MAX: Final = 255
_FILE_MAX: Final = 1 << 20
_MADE: Final = "# made by storaged"
_END: Final = "# END RECORD"
_OWN_NAME = re.compile(r"^\s*InitiatorName\s*=\s*(\S+)", re.MULTILINE)


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

    def lines(self, names: Collection[str]) -> dict[str, str | None]:
        """Return the lines of some values, None for those that are not there.

        :raise SystemFailure: there is no such record, or it cannot be read.
        """
        lines = {_name_of(line): line for line in self._text().splitlines()}
        return {name: lines.get(name) for name in names}

    def change(self, lines: Mapping[str, str | None]) -> None:
        """Give some values other lines, or none, all in one step.

        :raise SystemFailure: the record cannot be read or written; it is as it was.
        """
        text = self._text()
        if (changed := with_lines(text, lines)) != text:
            _write(self.path, changed, self.root / "nodes")

    def remove(self) -> None:
        """Remove the record. iscsiadm refuses that while there is a session, which needs it not."""
        remove_file(self.path, durable=True)
        remove_file(
            self.root / "static" / f"{self.target},{self.portal.entry},{self.interface}",
            durable=False,
        )
        for directory in (self.path.parent, self.path.parent.parent):
            with suppress(OSError):  # others are in it
                directory.rmdir()

    def _text(self) -> str:
        text = _read(self.path)
        if not text:
            raise SystemFailure(f"cannot read file '{self.path}'", errno.ENOENT)
        return text


def with_lines(text: str, lines: Mapping[str, str | None]) -> str:
    """Return a record with other lines for some values; None takes a value out."""
    left, kept = dict(lines), []
    for line in text.splitlines():
        name = _name_of(line)
        if name not in lines:
            kept.append(line)
        elif (other := left.pop(name, None)) is not None:
            kept.append(other)
    end = kept.index(_END) if _END in kept else len(kept)
    kept[end:end] = [line for line in left.values() if line is not None]
    return "\n".join([*kept, ""])


def line_of(name: str, value: str) -> str:
    """Return the line of a value.

    :raise InvalidArgument: iscsiadm would not read it as it was written; it is not told.
    """
    plain = value.isprintable() and value == value.strip() and value
    if not plain or len(value.encode(errors="surrogateescape")) > VALUE_MAX:
        raise InvalidArgument(
            f"the value of {name} cannot be stored for iscsiadm",
            advice=f"It must be one line of 1 to {VALUE_MAX} bytes without spaces at its ends.",
        )
    return f"{name} = {value}"


def _name_of(line: str) -> str:
    """Return the name in a line ``NAME = VALUE``; that of a comment is no name of a value."""
    return line.partition("=")[0].strip()


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


def interface_of(initiator: str, roots: Sequence[Path] = ROOTS) -> str | None:
    """Return the interface that stands for a name of this host, None if there is none."""
    wanted = line_of("iface.initiatorname", initiator)
    for root in roots:
        for path in _listed(root / "ifaces"):
            with suppress(SystemFailure):  # it is no record
                if wanted in _read(path).splitlines():
                    return path.name
    return None


def mark_made(path: Path) -> None:
    """Note in the record of an interface that it is ours."""
    _write(path, f"{_MADE}\n{_read(path)}", path.parent)


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


def _write(path: Path, text: str, place: Path) -> None:
    """Replace a record.

    :param place: the directory of all records of its kind. It may be a link to another file system,
        and iscsiadm takes every file in it for a record: so the file is begun beside it.
    """
    data = text.encode(errors="surrogateescape")
    write_file(path, data, durable=True, begin=beside(place))


def beside(place: Path) -> Path:
    """Return the directory that a directory of the database really lies in."""
    return place.resolve().parent


def _read(path: Path) -> str:
    data = read_file(path, _FILE_MAX)
    return "" if data is None else data.decode(errors="surrogateescape")
