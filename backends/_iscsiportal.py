"""What iSCSI calls its ends: portals, and the names of targets and initiators.

Source: RFC 7143 (names, portal groups), and what iscsiadm of open-iscsi prints and takes.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final

from storaged.errors import InvalidArgument
from storaged.model import SourceHost

#: The port of a target where none is given.
PORT: Final = 3260
#: The longest name of a target or an initiator, in bytes.
_NAME_MAX: Final = 223
#: What no name may hold, because it would be more than one word, or lead to another directory.
_NO_NAME = re.compile(r"[\s/\x00-\x1f\x7f]|^[-.]")
#: The same for a host; a comma ends it in the node database.
_NO_HOST = re.compile(r"[\s/,\x00-\x1f\x7f\[\]]|^[-.]")
#: ``ADDRESS:PORT,GROUP``, the address of IPv6 in brackets.
_PORTAL = re.compile(r"(?:\[([^\]]+)\]|([^\[\]:,]+)):(\d{1,5})(?:,(-?\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Portal:
    """Where a target can be reached.

    :param host: a name or an address, without brackets.
    :param group: the portal group's tag; None is "not known".
    :raise InvalidArgument: the host cannot be one.
    """

    host: str
    port: int = PORT
    group: int | None = 1

    def __post_init__(self) -> None:
        if not self.host or _NO_HOST.search(self.host) or not self.host.isascii():
            raise InvalidArgument(f"'{self.host!a}' is no name of an iSCSI host")
        if not 0 < self.port < 65536:
            raise InvalidArgument(f"{self.port} is no port of an iSCSI host")

    @classmethod
    def of_host(cls, host: SourceHost) -> Portal:
        """Return the portal that a definition names; libvirt always asks for group 1."""
        name = host.name
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        return cls(name, host.port or PORT)

    @property
    def address(self) -> str:
        """Host and port, as people write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def entry(self) -> str:
        """Its name in the node database: without brackets."""
        group = "" if self.group is None else f",{self.group}"
        return f"{self.host},{self.port}{group}"

    def __str__(self) -> str:
        """Return what iscsiadm takes as ``--portal``."""
        return self.address if self.group is None else f"{self.address},{self.group}"

    def in_group(self, group: int | None) -> Portal:
        """Return the same place, in another portal group."""
        return replace(self, group=group)

    def at(self, host: str) -> Portal:
        """Return the same port and group of another host."""
        return replace(self, host=host)

    def is_at(self, host: str, port: int) -> bool:
        """Tell whether this is the place that *host* and *port* name; no name is resolved."""
        return self.port == port and _plain(self.host) == _plain(host)


def parse_portal(text: str) -> Portal | None:
    """Return the portal that iscsiadm prints, None if it is none.

    >>> parse_portal("[fe80::1]:3260,2")
    Portal(host='fe80::1', port=3260, group=2)
    """
    found = _PORTAL.fullmatch(text)
    if found is None:
        return None
    group = None if found[4] is None else int(found[4])
    try:
        # iscsiadm prints -1, or that as 16 bits, for a group that it does not know
        return Portal(found[1] or found[2], int(found[3]), None if group in (-1, 65535) else group)
    except InvalidArgument:
        return None


def parse_discovery(text: str) -> tuple[tuple[Portal, str], ...]:
    """Return portal and name of each target that a discovery printed; other lines are skipped."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and (portal := parse_portal(words[0])) and is_name(words[1]):
            found.append((portal, words[1]))
    return tuple(found)


def is_name(name: str) -> bool:
    """Tell whether a target or an initiator can have this name."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < length <= _NAME_MAX and _NO_NAME.search(name) is None


def check_name(name: str, what: str) -> str:
    """Return a name that can be one.

    :param what: whose name it is: ``target`` or ``initiator``.
    :raise InvalidArgument: it cannot be one.
    """
    if not is_name(name):
        raise InvalidArgument(
            f"{name!a} is no name of an iSCSI {what}",
            advice="A name is one word, such as iqn.2026-01.com.example:disks.",
        )
    return name


def _plain(host: str) -> str:
    """Return one spelling for all that a host's address can have."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".").lower()
