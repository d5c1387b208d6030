"""Which monitors of a cluster answer, and how they are to be spoken to.

librados tries for as long as its time-out says, and tells no difference between a network that is
down and a key that is wrong. So all monitors are looked at first. Each says by itself which version
of the protocol it speaks on a port; told that, librados gives up at once where a key is wrong.

Source: Ceph's messenger protocols, versions 1 and 2: the banner that the server sends first.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

#: Where monitors listen by default: version 2 of the protocol, which is preferred, and version 1.
PORTS = (3300, 6789)
_BANNERS = ((b"ceph v2\n", "v2"), (b"ceph v0", "v1"))
#: How long the others may take when one has answered, in seconds; or as long again as that took.
_GRACE = 0.1

Host = tuple[str, int]
#: One that is looked at: the place of its host in the list, address and port.
_Place = tuple[int, str, int]


class Unreachable(Exception):
    """No monitor answers; the text names each one and why."""


def addresses(hosts: Sequence[Host], timeout: float) -> str:
    """Return those monitors that answer as librados takes them (``mon_host``).

    From the first that it reaches it learns of all others, so those that are silent may be missing.

    :param hosts: name and port of each; port 0 is "the default ones".
    :param timeout: for all of them together, in seconds.
    :raise Unreachable: none answers.
    """
    looks = _Looks(hosts, timeout)
    found = looks.wait()
    if not found:
        raise Unreachable(looks.complaint())
    return ",".join(found)


class _Looks:
    """Looks at all monitors at once, each on a thread."""

    def __init__(self, hosts: Sequence[Host], timeout: float) -> None:
        self._began = time.monotonic()
        self._timeout = timeout
        self._names = [name.strip("[]") for name, _ in hosts]
        self._news = threading.Condition()
        self._pending = 0
        self._found: dict[_Place, str] = {}
        self._why: dict[_Place, str] = {}
        for number, (_, port) in enumerate(hosts):
            self._begin(self._resolve, (number, "", port))

    def wait(self) -> list[str]:
        """Return the addresses of those who answer, for each host the one of the best protocol."""
        with self._news:
            self._news.wait_for(lambda: self._found or not self._pending, self._timeout)
            took = time.monotonic() - self._began
            self._news.wait_for(lambda: not self._pending, min(max(took, _GRACE), self._timeout))
            best: dict[tuple[int, str], str] = {}
            for place in sorted(self._found):
                best.setdefault(place[:2], self._found[place])
            return list(best.values())

    def complaint(self) -> str:
        """Return what is wrong with each."""
        with self._news:
            said = [
                f"{shown(self._names[number], port)}: {why}"
                for (number, _, port), why in sorted(self._why.items())
            ]
        return "; ".join(dict.fromkeys(said))

    def _begin(self, look: Callable[..., None], place: _Place, *more: Any) -> None:
        with self._news:
            self._pending += 1
            self._why[place] = f"no answer within {self._timeout:g} s"
        threading.Thread(target=self._run, args=(look, place, *more), daemon=True).start()

    def _run(self, look: Callable[..., None], place: _Place, *more: Any) -> None:
        why = None
        try:
            look(place, *more)
        except TimeoutError:
            pass
        except OSError as err:
            why = err.strerror or str(err)
        except (OverflowError, ValueError) as err:  # what can be no name or no port at all
            why = str(err)
        with self._news:
            if why is not None:
                self._why[place] = why
            self._pending -= 1
            self._news.notify_all()

    def _resolve(self, place: _Place) -> None:
        number, _, port = place
        found = socket.getaddrinfo(self._names[number], None, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            for wanted in (port,) if port else PORTS:
                where = (address[0], wanted, *address[2:])
                self._begin(self._ask, (number, str(address[0]), wanted), family, where)
        with self._news:
            del self._why[place]

    def _ask(self, place: _Place, family: int, where: Any) -> None:
        _, address, port = place
        with socket.socket(family, socket.SOCK_STREAM) as peer:
            peer.settimeout(max(self._began + self._timeout - time.monotonic(), 0.001))
            peer.connect(where)
            protocol = _protocol(peer)
        with self._news:
            if protocol:
                self._found[place] = f"{protocol}:{shown(address, port)}"
            else:
                self._why[place] = "what answers there is no Ceph monitor"


def shown(name: str, port: int) -> str:
    """Return a host and its port as they are written together."""
    bracketed = f"[{name}]" if ":" in name and not name.startswith("[") else name
    return f"{bracketed}:{port}" if port else bracketed


def _protocol(peer: socket.socket) -> str:
    """Return which protocol the other end speaks, "" if it is no monitor."""
    said = b""
    while True:
        data = peer.recv(16)
        said += data
        for banner, protocol in _BANNERS:
            if said.startswith(banner):
                return protocol
        if not data or not any(banner.startswith(said) for banner, _ in _BANNERS):
            return ""
