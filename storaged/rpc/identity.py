"""Who a connection works for, and how a daemon tells another one for whom it calls.

Source: libvirt's identity parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from storaged.errors import ArgumentUnsupported, Domain, InvalidArgument
from storaged.rpc.typedparam import ParamType, TypedParam


class Identity(NamedTuple):
    """Who a connection works for; None is "not known".

    :param started: when the process began: field 22 of ``/proc/PID/stat``.
    :param trusted: the peer is the superuser, or another daemon that knew the system's token: it
        may speak for others.
    :param elevated: it is another daemon that knew the token, and calls for itself: it is told the
        values of private secrets.
    """

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    started: int | None = None
    user: str | None = None
    group: str | None = None
    selinux: str | None = None
    sasl_user: str | None = None
    trusted: bool = False
    elevated: bool = False


#: The parameters of an identity: their type, and the attribute of `Identity` they are kept in.
PARAMETERS: Final[dict[str, tuple[ParamType, str | None]]] = {
    "user-name": (ParamType.STRING, "user"),
    "unix-user-id": (ParamType.ULLONG, "uid"),
    "group-name": (ParamType.STRING, "group"),
    "unix-group-id": (ParamType.ULLONG, "gid"),
    "process-id": (ParamType.LLONG, "pid"),
    "process-time": (ParamType.ULLONG, "started"),
    "sasl-user-name": (ParamType.STRING, "sasl_user"),
    "x509-distinguished-name": (ParamType.STRING, None),
    "selinux-context": (ParamType.STRING, "selinux"),
    "system.token": (ParamType.STRING, None),
}


def parameters(identity: Identity, token: str | None = None) -> tuple[TypedParam, ...]:
    """Return what tells a daemon that we call for *identity*; what is not known is left out.

    :param token: the secret that the daemons of this host share, for who is elevated.
    """
    values: dict[str, Any] = {
        name: getattr(identity, attribute)
        for name, (_, attribute) in PARAMETERS.items()
        if attribute is not None
    }
    values["system.token"] = token
    return tuple(
        TypedParam(name, (PARAMETERS[name][0], value))
        for name, value in values.items()
        if value is not None
    )


def adopt(own: Identity, params: Iterable[TypedParam], token: str | None) -> Identity | None:
    """Return the identity that a peer asks for, or None if it may not speak for others.

    :param own: who the peer itself is.
    :param token: the secret that the daemons of this host share.
    :raise ArgumentUnsupported: an unknown parameter.
    :raise InvalidArgument: a parameter of the wrong type, or given twice.
    """
    given = _checked(params)
    elevated = _same(given.get("system.token"), token)
    if not (own.trusted or own.uid == 0 or elevated):
        return None
    kept: dict[str, Any] = {}
    for name, value in given.items():
        attribute = PARAMETERS[name][1]
        if attribute is not None:
            kept[attribute] = value
    return Identity(**kept, trusted=True, elevated=elevated)


def _checked(params: Iterable[TypedParam]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for param in params:
        kind, value = param.value
        expected = PARAMETERS.get(param.field)
        if expected is None:
            raise ArgumentUnsupported(
                f"parameter '{param.field}' not supported", domain=Domain.NONE
            )
        if kind is not expected[0]:
            raise InvalidArgument(
                f"invalid type '{kind.name.lower()}' for parameter '{param.field}', "
                f"expected '{expected[0].name.lower()}'",
                domain=Domain.NONE,
            )
        if param.field in given:
            raise InvalidArgument(
                f"parameter '{param.field}' occurs multiple times", domain=Domain.NONE
            )
        given[param.field] = value
    return given


def _same(given: str | None, token: str | None) -> bool:
    from hmac import compare_digest  # slow to import, and only daemons come here

    return (
        bool(token)
        and given is not None
        and token is not None
        and compare_digest(given.encode(errors="surrogateescape"), token.encode())
    )
