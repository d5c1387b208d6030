"""What every connection begins with: opening, versions, features, identity."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from storaged.errors import Domain, InternalError
from storaged.rpc import remote
from storaged.rpc.errors import NoConnection
from storaged.rpc.identity import adopt
from storaged.rpc.record import Void
from storaged.rpc.remote import (
    Capabilities,
    Feature,
    FeatureArgs,
    FeatureRet,
    IdentityArgs,
    OpenArgs,
    Secure,
    Text,
    TypeRet,
    Version,
)
from storaged.service.handler import Handlers, Needs, Query, always, never

if TYPE_CHECKING:
    from storaged.service.session import Session

#: The flag of OPEN that has a meaning; clients send others, which have none.
_READ_ONLY: Final = 1
_FEATURES: Final = frozenset(Feature)

#: The drivers that clients may ask for; what is served is the same.
_DRIVERS: Final = ("storage", "secret")

#: RFC 3986, appendix B, with what no part of it may hold.
_URI: Final = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<server>[^/?#\s]*))?"
    r"(?P<path>[^?#\s]*)(?:\?(?P<query>[^#\s]*))?(?:#(?P<fragment>\S*))?"
)


def open_connection(session: Session, args: OpenArgs) -> Void:
    """Open the storage driver: the host's or the user's, whichever this engine is.

    It serves the calls on secrets too, also to clients that open it as the driver of secrets.

    :raise NoConnection: the URI is of another driver.
    :raise InternalError: it has another path, or there is none; or the connection is open.
    """
    session.require_new()
    if args.name is None:
        raise InternalError("connection not open", domain=Domain.RPC)
    kept = _checked(args.name, session="session" if session.driver.is_session else "system")
    session.opened(kept, readonly=bool(args.flags & _READ_ONLY))
    return Void()


def _checked(uri: str, *, session: str) -> str:
    """Return the URI as it is told to those who ask.

    :param session: the only path that is served, without its slash.
    """
    if not uri:
        raise NoConnection("<null>", domain=Domain.NONE)
    found = _URI.fullmatch(uri)
    if found is None or (found["scheme"] is None and ":" in found["path"].partition("/")[0]):
        raise InternalError(f"Unable to parse URI {uri}", domain=Domain.URI)
    scheme, server, path = found["scheme"], found["server"], found["path"]
    if scheme is None:
        raise NoConnection(f"URI '{uri}' does not include a driver name", domain=Domain.NONE)
    if scheme not in _DRIVERS or server:
        raise NoConnection(uri, domain=Domain.NONE)
    if path != f"/{session}":
        raise InternalError(
            f"unexpected {scheme} URI path '{path}', try {scheme}:///{session}",
            domain=Domain.NONE,
        )
    return f"{scheme}://{uri[found.start('path') :]}"  # as libvirt writes ``storage:/system``


def _type(session: Session, _args: Void) -> TypeRet:
    return TypeRet((session.uri or "").partition(":")[0])


def _capabilities(session: Session, _args: Void) -> Capabilities:
    return Capabilities(session.driver.driver_capabilities())


def _feature(session: Session, args: FeatureArgs) -> FeatureRet:
    if not session.is_open and args.feature != Feature.PROGRAM_KEEPALIVE:
        raise InternalError(Needs.OPEN.value, domain=Domain.RPC)
    return FeatureRet(int(args.feature in _FEATURES))


def _uri(session: Session, _args: Void) -> Text:
    return Text(session.uri or "")


def _secure(_session: Session, _args: Void) -> Secure:
    return Secure(1)


def _version(session: Session, _args: Void) -> Version:
    return Version(session.shared.level)


def _close_callback(_session: Session, _args: Void) -> Void:
    return Void()


def _set_identity(session: Session, args: IdentityArgs) -> Void:
    adopted = adopt(session.identity, args.params, session.shared.token)
    if adopted is not None and args.params:
        session.identity = adopted
        session.for_others = True
    return Void()


HANDLERS: Final[Handlers] = {
    remote.OPEN: Query(open_connection, always, Needs.NOTHING),
    remote.GET_TYPE: Query(_type, always, Needs.OPEN),
    # the first one imports the code of all types
    remote.GET_CAPABILITIES: Query(_capabilities, never, Needs.OPEN),
    remote.SUPPORTS_FEATURE: Query(_feature, always, Needs.NOTHING),
    remote.GET_URI: Query(_uri, always, Needs.OPEN),
    remote.IS_SECURE: Query(_secure, always, Needs.OPEN),
    remote.GET_LIB_VERSION: Query(_version, always, Needs.OPEN),
    remote.REGISTER_CLOSE_CALLBACK: Query(_close_callback, always, Needs.OPEN),
    remote.UNREGISTER_CLOSE_CALLBACK: Query(_close_callback, always, Needs.OPEN),
    remote.SET_IDENTITY: Query(_set_identity, always, Needs.OPEN),
}
