"""Where the daemons listen.

Source: libvirt's behaviour: each driver has a daemon of its own with its own socket, and one old
daemon serves all of them on another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from storaged.client.config import is_root
from storaged.client.link import RemoteFailure
from storaged.client.transport import Transport, connect_unix
from storaged.client.uri import URI
from storaged.errors import Domain, InvalidArgument

#: The daemon of each driver.
_DAEMONS: Final = {
    "storage": "virtstoraged",
    "qemu": "virtqemud",
    "ch": "virtchd",
    "lxc": "virtlxcd",
    "vbox": "virtvboxd",
    "vz": "virtvzd",
    "xen": "virtxend",
    "bhyve": "virtbhyved",
    "network": "virtnetworkd",
    "interface": "virtinterfaced",
    "nodedev": "virtnodedevd",
    "nwfilter": "virtnwfilterd",
    "secret": "virtsecretd",
}
#: The daemon of all drivers.
_LEGACY: Final = "libvirt"
_MODES: Final = ("auto", "legacy", "direct")


class NoSocket(RemoteFailure):
    """Nobody listens where a daemon would.

    :param tried: the sockets that were looked for, the best first.
    """

    def __init__(self, failure: RemoteFailure, tried: tuple[str, ...]) -> None:
        super().__init__(failure.error)
        self.tried = tried


def candidates(uri: URI, environ: Mapping[str, str], *, readonly: bool = False) -> tuple[str, ...]:
    """Return the sockets of this host that serve an URI, the best first.

    :raise RemoteFailure: the parameter *mode* is none (code 8).
    """
    session = is_session(uri) and not is_root()
    names = socket_names(uri, readonly=readonly and not session)
    given = uri.get("socket")
    if given is not None:
        return (given,)
    directory = session_directory(environ) if session else "/run/libvirt"
    return tuple(f"{directory}/{name}" for name in names)


def is_session(uri: URI) -> bool:
    """Tell whether an URI is about the daemons of a user, which the superuser has none of."""
    return uri.path == "/session"


def socket_names(uri: URI, *, readonly: bool = False) -> tuple[str, ...]:
    """Return the names of the sockets that serve an URI, the best first.

    :param readonly: those for who only reads; the daemons of a user have none.
    :raise RemoteFailure: the parameter *mode* is none (code 8).
    """
    mode = uri.get("mode") or "auto"
    if mode not in _MODES:
        error = InvalidArgument(f"Unknown remote mode '{mode}'", domain=Domain.REMOTE)
        raise RemoteFailure.of(error)
    direct = _DAEMONS.get(uri.driver, _LEGACY)
    names = {"auto": (direct, _LEGACY), "direct": (direct,), "legacy": (_LEGACY,)}[mode]
    suffix = "-sock-ro" if readonly else "-sock"
    return tuple(name + suffix for name in dict.fromkeys(names))


def session_directory(environ: Mapping[str, str]) -> str:
    """Return where the daemons of this user listen."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/libvirt" if runtime else f"{environ.get('HOME', '')}/.cache/libvirt"


def exists(path: str) -> bool:
    """Tell whether something is at a path; without `pathlib`, which takes long to load."""
    return os.access(path, os.F_OK)


def connect(uri: URI, environ: Mapping[str, str], *, readonly: bool = False) -> Transport:
    """Connect to the daemon of this host that serves an URI.

    :raise NoSocket: nobody listens; the text names the first socket that exists, or would.
    """
    paths = candidates(uri, environ, readonly=readonly)
    chosen = next((path for path in paths if exists(path)), paths[0])
    try:
        return connect_unix(chosen)
    except RemoteFailure as err:
        raise NoSocket(err, paths) from err
