"""From an URI to a link.

Source: libvirt's behaviour: environment, settings and parameters that its clients know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from storaged.client.config import config_path, is_root, read_config
from storaged.client.link import Link, RemoteFailure
from storaged.client.uri import URI
from storaged.errors import Domain, InvalidArgument, Unsupported
from storaged.rpc.errors import NoConnection

if TYPE_CHECKING:
    from storaged.client.transport import Transport

#: Drivers of libvirt's that live in its client library; nobody listens for them.
_IN_CLIENT: Final = frozenset(("test", "esx", "gsx", "vpx", "hyperv", "openvz", "vmwarews"))
_IN_CLIENT_TOO: Final = frozenset(("vmwareplayer", "vmwarefusion"))


def open_link(
    uri: str | None = None,
    *,
    readonly: bool = False,
    aliases: bool = True,
    environ: Mapping[str, str] | None = None,
) -> Link:
    """Open a connection.

    :param uri: ``storage:///system`` and the like, ``storage+ssh://host/system``,
        ``storage:///embed?root=DIR`` for an engine in this process, or an alias of the settings.
        Without one, ``LIBVIRT_DEFAULT_URI``, the default of the settings, or what answers here.
    :param aliases: whether *uri* may be an alias.
    :param environ: instead of the environment of this process.
    :raise RemoteFailure: there is no connection to be had.
    """
    environ = os.environ if environ is None else environ
    parsed = URI(resolve(uri, environ, aliases=aliases))
    if parsed.driver == "storage" and parsed.path == "/embed" and not parsed.transport:
        return _open_embedded(parsed, readonly)
    if parsed.driver in _IN_CLIENT | _IN_CLIENT_TOO and not parsed.transport:
        raise RemoteFailure.of(NoConnection(parsed.text, domain=Domain.NONE))
    transport = parsed.transport or ("tls" if parsed.host else "unix")
    if transport not in ("unix", "ssh"):
        raise RemoteFailure.of(_unserved(parsed, transport))
    if parsed.get("proxy") not in (None, "auto", "netcat", "native"):
        text = f"Unnkown proxy type '{parsed.get('proxy')}'"  # as libvirt spells it
        raise RemoteFailure.of(InvalidArgument(text, domain=Domain.REMOTE))

    if not hasattr(os, "geteuid"):
        error = Unsupported("sockets and child processes of this platform", domain=Domain.REMOTE)
        raise RemoteFailure.of(error)

    from storaged.client.socketlink import SocketLink

    connected = _connect(parsed, transport, environ, readonly)
    return SocketLink(connected, parsed.name, uri=parsed.text, readonly=readonly)


def _connect(uri: URI, transport: str, environ: Mapping[str, str], readonly: bool) -> Transport:
    if transport == "ssh":
        from storaged.client.ssh import connect_ssh

        return connect_ssh(uri, environ, readonly=readonly)
    from storaged.client.sockets import connect

    if uri.host:
        text = f"using unix socket and remote server '{uri.host}' is not supported."
        raise RemoteFailure.of(InvalidArgument(text, domain=Domain.REMOTE))
    return connect(uri, environ, readonly=readonly)


def resolve(uri: str | None, environ: Mapping[str, str], *, aliases: bool = True) -> str:
    """Return the URI to open: for an alias what it stands for, for none the default.

    :raise RemoteFailure: the file of settings is malformed (code 33).
    """
    if uri and not aliases:
        return uri
    if uri and "://" in uri:
        return uri
    config = read_config(config_path(environ))
    if uri:
        return config.resolve(uri)
    given = environ.get("LIBVIRT_DEFAULT_URI") or config.default
    if given:
        return config.resolve(given) if aliases else given
    return _probe(environ)


def _probe(environ: Mapping[str, str]) -> str:
    """Return the URI of what listens on this host: machines before storage alone."""
    from storaged.client.sockets import candidates, exists

    path = "/system" if is_root() else "/session"
    machines = URI(f"qemu://{path}")
    if any(exists(each) for each in candidates(machines, environ)):
        return machines.text
    return f"storage://{path}"


def _unserved(uri: URI, transport: str) -> Unsupported:
    text = f"transport '{transport}' of URI '{uri.text}'"
    advice = f"Use ssh: {uri.driver}+ssh://{uri.host or 'HOST'}{uri.path}"
    return Unsupported(text, advice=advice, domain=Domain.REMOTE)


def _open_embedded(uri: URI, readonly: bool) -> Link:
    from storaged.client.embedded import open_embedded

    return open_embedded(uri, readonly=readonly)
