"""The REMOTE program: what every connection begins with, and all procedures that are served.

Source: libvirt's protocol, by number, order and type.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from storaged.rpc import secret, storage
from storaged.rpc.program import Access, AnyProcedure, Procedure
from storaged.rpc.record import Nested, Record, Void
from storaged.rpc.typedparam import TypedParam
from storaged.rpc.xdr import INT, Array, Chars, Int, MaybeString, String, UHyper, UInt

AUTH_TYPES_MAX: Final = 20
SASL_DATA_MAX: Final = 65536
IDENTITY_PARAMS_MAX: Final = 20


class AuthType(IntEnum):
    """How a client proves who it is."""

    NONE = 0
    SASL = 1
    POLKIT = 2


class Feature(IntEnum):
    """What a peer may ask of the other side."""

    FD_PASSING = 8
    PROGRAM_KEEPALIVE = 10
    REMOTE_EVENT_CALLBACK = 14
    REMOTE_CLOSE_CALLBACK = 15


class OpenArgs(Record):
    """Which driver to open."""

    name: MaybeString
    flags: UInt = 0


class TypeRet(Record):
    """The name of the driver."""

    type: String


class Version(Record):
    """A version: major * 1,000,000 + minor * 1,000 + release."""

    version: UHyper


class Capabilities(Record):
    """A document."""

    capabilities: String


class Text(Record):
    """A host's name, or an URI."""

    text: String


class FeatureArgs(Record):
    """The number of a feature."""

    feature: Int


class FeatureRet(Record):
    """Whether it is there: 0 or 1."""

    supported: Int


class AuthListRet(Record):
    """The ways to prove who one is; exactly one of them is given."""

    types: Annotated[tuple[int, ...], Array(INT, AUTH_TYPES_MAX)]


class AuthPolkitRet(Record):
    """Whether the client is let in."""

    complete: Int


class SaslInitRet(Record):
    """The mechanisms there are."""

    mechlist: String


class SaslStartArgs(Record):
    """The first step of a mechanism; *nil* tells no data from empty ones."""

    mech: String
    nil: Int
    data: Annotated[bytes, Chars(SASL_DATA_MAX)]


class SaslStepArgs(Record):
    """A further step of a mechanism."""

    nil: Int
    data: Annotated[bytes, Chars(SASL_DATA_MAX)]


class SaslRet(Record):
    """The server's answer to a step."""

    complete: Int
    nil: Int
    data: Annotated[bytes, Chars(SASL_DATA_MAX)]


class Secure(Record):
    """Whether nobody else can read the connection: 0 or 1."""

    secure: Int


class IdentityArgs(Record):
    """On whose behalf the connection works."""

    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), IDENTITY_PARAMS_MAX)]
    flags: UInt = 0


class CloseReason(Record):
    """Why a connection of the daemon's own has ended."""

    reason: Int


_R: Final = Access.READER

OPEN: Final = Procedure(1, "virConnectOpen", OpenArgs, Void, _R, priority=True)
CLOSE: Final = Procedure(2, "virConnectClose", Void, Void, _R, priority=True)
GET_TYPE: Final = Procedure(3, "virConnectGetType", Void, TypeRet, _R, priority=True)
GET_CAPABILITIES: Final = Procedure(7, "virConnectGetCapabilities", Void, Capabilities, _R)
SUPPORTS_FEATURE: Final = Procedure(
    60, "virConnectSupportsFeature", FeatureArgs, FeatureRet, _R, priority=True
)
AUTH_LIST: Final = Procedure(66, "virAuthList", Void, AuthListRet, Access.ANYBODY, priority=True)
AUTH_SASL_INIT: Final = Procedure(
    67, "virAuthSaslInit", Void, SaslInitRet, Access.ANYBODY, priority=True
)
AUTH_SASL_START: Final = Procedure(
    68, "virAuthSaslStart", SaslStartArgs, SaslRet, Access.ANYBODY, priority=True
)
AUTH_SASL_STEP: Final = Procedure(
    69, "virAuthSaslStep", SaslStepArgs, SaslRet, Access.ANYBODY, priority=True
)
AUTH_POLKIT: Final = Procedure(
    70, "virAuthPolkit", Void, AuthPolkitRet, Access.ANYBODY, priority=True
)
GET_URI: Final = Procedure(110, "virConnectGetURI", Void, Text, _R, priority=True)
IS_SECURE: Final = Procedure(149, "virConnectIsSecure", Void, Secure, _R, priority=True)
GET_LIB_VERSION: Final = Procedure(157, "virConnectGetLibVersion", Void, Version, _R, priority=True)
REGISTER_CLOSE_CALLBACK: Final = Procedure(
    360, "virConnectRegisterCloseCallback", Void, Void, _R, priority=True
)
UNREGISTER_CLOSE_CALLBACK: Final = Procedure(
    361, "virConnectUnregisterCloseCallback", Void, Void, _R, priority=True
)
EVENT_CLOSED: Final = Procedure(
    362, "virConnectEventConnectionClosed", CloseReason, Void, Access.EVENT
)
SET_IDENTITY: Final = Procedure(419, "virConnectSetIdentity", IdentityArgs, Void, _R, priority=True)

GENERIC: Final = tuple(found for found in list(vars().values()) if isinstance(found, Procedure))

#: All that is served, by number.
PROCEDURES: Final[dict[int, AnyProcedure]] = {
    procedure.number: procedure for procedure in (*GENERIC, *storage.PROCEDURES, *secret.PROCEDURES)
}
