"""What systemd and a service say to each other: readiness, the watchdog, sockets handed over.

Sources: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3); their protocols are a datagram
of ``KEY=VALUE`` lines and a few environment variables.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass

from storaged.errors import InternalError
from storaged.server.sockets import Bound, adopt

#: The first descriptor that is handed over.
_FIRST = 3

#: By which unit names a socket is known: libvirt's and our own.
_UNITS = {
    "virtstoraged.socket": "rw",
    "virtstoraged-ro.socket": "ro",
    "virtstoraged-admin.socket": "admin",
    "storaged.socket": "rw",
    "storaged-ro.socket": "ro",
    "storaged-admin.socket": "admin",
}


class Notifier:
    """The way to the supervisor; without one, all calls do nothing.

    :param address: ``NOTIFY_SOCKET``: a path, or a name in the abstract namespace after ``@``.
    :param watchdog: within how many seconds a sign of life is expected; 0 for never.
    """

    def __init__(self, address: str | None = None, watchdog: float = 0.0) -> None:
        self._address = address
        self.watchdog = watchdog

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Return the notifier that the environment asks for.

        The variables are taken out: they are not for the programs that we start.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        usec, pid = environ.pop("WATCHDOG_USEC", "0"), environ.pop("WATCHDOG_PID", None)
        if address is not None and address[:1] not in ("/", "@"):
            address = None
        watched = address is not None and pid in (None, str(os.getpid())) and usec.isdigit()
        return cls(address, int(usec) / 1e6 if watched else 0.0)

    def ready(self, status: str) -> None:
        """Say that clients are served; also that a reload has ended."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that a reload has begun. `ready` must follow."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=Reading the configuration again")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send("STOPPING=1\nSTATUS=Ending the work under way")

    def alive(self) -> None:
        """Give the watchdog its sign of life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in a line what is going on."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        name = self._address
        name = "\0" + name[1:] if name.startswith("@") else name
        # A supervisor that is gone or does not read is no reason to fail.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(errors="surrogateescape"), name)


@dataclass(frozen=True, slots=True)
class Activated:
    """The sockets that were handed over, listening; None for those that were not."""

    rw: Bound | None = None
    ro: Bound | None = None
    admin: Bound | None = None

    def __bool__(self) -> bool:
        return any((self.rw, self.ro, self.admin))


def activated(environ: MutableMapping[str, str]) -> Activated:
    """Take over the sockets that the environment tells of.

    The variables are taken out, and programs that we start do not inherit the descriptors.

    :raise InternalError: a descriptor has no name that we know, or two have one: a socket that
        nobody serves would let clients wait for ever.
    :raise SystemFailure: one is no UNIX socket that listens.
    """
    pid = environ.pop("LISTEN_PID", None)
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) == 0:
        return Activated()
    if not names:
        raise InternalError("sockets were handed over without LISTEN_FDNAMES, their unit names")
    called = names.split(":")
    if len(called) != int(count):
        raise InternalError(f"{count} sockets were handed over with {len(called)} names: {names}")
    found: dict[str, Bound] = {}
    for fd, name in enumerate(called, _FIRST):
        kind = _UNITS.get(name)
        if kind is None:
            known = ", ".join(_UNITS)
            raise InternalError(
                f"socket {fd} was handed over as '{name}', which nobody serves",
                advice=f"Known names (FileDescriptorName= in the socket unit): {known}",
            )
        if kind in found:
            raise InternalError(f"socket '{name}' was handed over twice")
        found[kind] = adopt(fd)
    return Activated(**found)
