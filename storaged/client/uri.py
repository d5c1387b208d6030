"""The URIs of connections, taken apart as libvirt does: ``driver[+transport]://host/path?parameters``.

Source: libvirt's behaviour; which parameters concern the client, and so are not told to the daemon.
"""

from __future__ import annotations

from typing import Final

from storaged.client.link import RemoteFailure
from storaged.errors import Domain, InvalidArgument, StorageError
from storaged.rpc.errors import NoConnection

#: Parameters that are for the client alone.
_OURS: Final = frozenset(
    (
        *("name", "socket", "mode", "proxy", "netcat", "command", "auth", "sshauth"),
        *("keyfile", "pkipath", "known_hosts", "known_hosts_verify", "tls_priority"),
        *("no_verify", "no_sanity", "no_tty"),
    )
)
_TRANSPORTS: Final = ("tls", "unix", "ssh", "ext", "tcp", "libssh2", "libssh")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
#: What stands as it is in a parameter; all else is percent-encoded.
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")


class URI:
    """A connection URI.

    :param text: as it was given.
    :raise RemoteFailure: it has no driver in front (code 5), or what stands there has no meaning
        (code 8).
    """

    __slots__ = (
        "driver",
        "fragment",
        "host",
        "params",
        "path",
        "port",
        "text",
        "transport",
        "user",
    )

    def __init__(self, text: str) -> None:
        self.text = text = text.partition("\0")[0]
        rest, _, self.fragment = text.partition("#")
        rest, _, query = rest.partition("?")
        scheme, colon, rest = rest.partition(":")
        if not colon or not _is_scheme(scheme):
            _refuse(
                NoConnection(f"URI '{text}' does not include a driver name", domain=Domain.NONE)
            )
        self.driver, _, self.transport = scheme.partition("+")
        authority = ""
        if rest.startswith("//"):
            authority, slash, rest = rest[2:].partition("/")
            rest = slash + rest
        self.user, self.host, self.port = _split_authority(authority, text)
        self.path = unquote(rest)
        self.params = _split_query(query)
        if self.transport and self.transport not in _TRANSPORTS:
            names = "|".join(_TRANSPORTS)
            _refuse(
                InvalidArgument(
                    f"remote_open: transport in URL not recognised (should be {names})",
                    domain=Domain.REMOTE,
                )
            )

    def get(self, name: str) -> str | None:
        """Return a parameter of the client's, the last one of that name; None if it is missing."""
        found = None
        for each, value in self.params:
            if each == name:
                found = value
        return found

    def get_flag(self, name: str) -> bool:
        """Return a parameter that is 0 or 1, and 0 where it is missing.

        :raise RemoteFailure: it is no number.
        """
        value = self.get(name) or "0"
        if not value.removeprefix("-").isdecimal():
            _refuse(
                InvalidArgument(
                    f"Failed to parse value of URI component {name}", domain=Domain.REMOTE
                )
            )
        return int(value) != 0

    @property
    def name(self) -> str:
        """The URI as the daemon is to see it: without transport, host, and our parameters."""
        given = self.get("name")
        if given is not None:
            return given
        query = "&".join(
            f"{quote(name)}={quote(value)}" for name, value in self.params if name not in _OURS
        )
        fragment = "#" + self.fragment if self.fragment else ""
        path = quote(self.path, "/:@&=+$,;")
        return f"{self.driver}://{path}{'?' if query else ''}{query}{fragment}"


def unquote(text: str) -> str:
    """Return a text with its percent-encoded bytes put in place; what is no such code stays.

    A NUL ends it, as in C.
    """
    if "%" not in text:
        return text
    first, *others = text.split("%")
    data = bytearray(first.encode(errors="surrogateescape"))
    for part in others:
        code, rest = part[:2], part[2:]
        if len(code) == 2 and _HEX.issuperset(code):
            data.append(int(code, 16))
        else:
            data += b"%" + code.encode(errors="surrogateescape")
        data += rest.encode(errors="surrogateescape")
    return data.partition(b"\0")[0].decode(errors="surrogateescape")


def quote(text: str, more: str = "") -> str:
    """Return a text as it may stand in a query.

    :param more: what else may stand there as it is.
    """
    plain = _PLAIN.union(more)
    if plain.issuperset(text):
        return text
    return "".join(
        chr(byte) if chr(byte) in plain else f"%{byte:02X}"
        for byte in text.encode(errors="surrogateescape")
    )


def _is_scheme(text: str) -> bool:
    return text[:1].isalpha() and text.isascii() and not text.strip(_SCHEME)


_SCHEME: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-."


def _split_authority(authority: str, text: str) -> tuple[str | None, str | None, int | None]:
    """Return user, host and port; None for each that is missing."""
    user, at, place = authority.rpartition("@")
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    if port and not (port.isdecimal() and port.isascii() and int(port) < 65536):
        _refuse(InvalidArgument(f"Unable to parse URI {text}", domain=Domain.URI))
    return (
        (unquote(user) or None) if at else None,
        unquote(host) or None,
        int(port) if port else None,
    )


def _split_query(query: str) -> tuple[tuple[str, str], ...]:
    pairs = (each.partition("=") for each in query.replace(";", "&").split("&"))
    return tuple((unquote(name), unquote(value)) for name, _, value in pairs if name)


def _refuse(error: StorageError) -> None:
    raise RemoteFailure.of(error)
