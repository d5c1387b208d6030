"""The secret calls of the REMOTE program: twelve procedures, two events, and their records.

On the wire a secret is found by its uuid alone; what it is for stands beside it for clients, which
answer questions about that without another call.

Source: libvirt's protocol, by number, order and type.
"""

from __future__ import annotations

from typing import Annotated, Final

from storaged.rpc.program import Access, Procedure
from storaged.rpc.record import Nested, Record, Secretive, Void
from storaged.rpc.storage import XML, CallbackId, Count, Uuid, XMLArgs
from storaged.rpc.xdr import STRING, Array, Int, Maybe, Opaque, String, UInt, UuidBytes

#: The most secrets that a list can carry.
LIST_MAX: Final = 16384
#: The longest value, in bytes.
VALUE_MAX: Final = 65536


class Secret(Record):
    """Names a secret.

    *usage_type* is libvirt's number of what it is for, *usage_id* the thing of that kind, such as
    the path of a volume.
    """

    uuid: UuidBytes
    usage_type: Int
    usage_id: String


class MaxUuids(Record):
    """How many uuids the caller has room for."""

    maxuuids: Int


class Uuids(Record):
    """Uuids of secrets, as text."""

    uuids: Annotated[tuple[str, ...], Array(STRING, LIST_MAX)]


class UsageArgs(Record):
    """What a secret is for."""

    usage_type: Int
    usage_id: String


class SecretArgs(Record):
    """A secret."""

    secret: Secret


class SecretFlagsArgs(Record):
    """A secret and flags."""

    secret: Secret
    flags: UInt = 0


class SetValueArgs(Secretive):
    """A secret and its new value."""

    secret: Secret
    value: Annotated[bytes, Opaque(VALUE_MAX)]
    flags: UInt = 0


class ValueRet(Secretive):
    """The value of a secret."""

    value: Annotated[bytes, Opaque(VALUE_MAX)]


class ListSecretsArgs(Record):
    """Which secrets to list."""

    need_results: Int
    flags: UInt = 0


class ListSecretsRet(Record):
    """Secrets, and how many there are."""

    secrets: Annotated[tuple[Secret, ...], Array(Nested(Secret), LIST_MAX)]
    ret: UInt


class SecretRet(Record):
    """A secret."""

    secret: Secret


class EventRegisterArgs(Record):
    """Which events to send: of one secret, or of all."""

    event_id: Int
    secret: Annotated[Secret | None, Maybe(Nested(Secret))]


class LifecycleEvent(Record):
    """A secret was defined (0) or undefined (1)."""

    callback_id: Int
    secret: Secret
    event: Int
    detail: Int = 0


class ValueChangedEvent(Record):
    """A secret has a new value."""

    callback_id: Int
    secret: Secret


_R: Final = Access.READER

# Libvirt has a worker that is kept for what ends soon serve these too. Here they may take as long
# as its daemon of secrets does.

NUM_OF_SECRETS: Final = Procedure(139, "virConnectNumOfSecrets", Void, Count, _R)
LIST_SECRETS: Final = Procedure(140, "virConnectListSecrets", MaxUuids, Uuids, _R)
LOOKUP_BY_UUID: Final = Procedure(141, "virSecretLookupByUUID", Uuid, SecretRet, _R)
DEFINE_XML: Final = Procedure(142, "virSecretDefineXML", XMLArgs, SecretRet)
GET_XML_DESC: Final = Procedure(143, "virSecretGetXMLDesc", SecretFlagsArgs, XML, _R)
SET_VALUE: Final = Procedure(144, "virSecretSetValue", SetValueArgs, Void)
#: No change, but nothing for who may only look.
GET_VALUE: Final = Procedure(145, "virSecretGetValue", SecretFlagsArgs, ValueRet)
UNDEFINE: Final = Procedure(146, "virSecretUndefine", SecretArgs, Void)
LOOKUP_BY_USAGE: Final = Procedure(147, "virSecretLookupByUsage", UsageArgs, SecretRet, _R)
LIST_ALL_SECRETS: Final = Procedure(
    287, "virConnectListAllSecrets", ListSecretsArgs, ListSecretsRet, _R
)
EVENT_REGISTER: Final = Procedure(
    380, "virConnectSecretEventRegisterAny", EventRegisterArgs, CallbackId, _R, priority=True
)
EVENT_DEREGISTER: Final = Procedure(
    381, "virConnectSecretEventDeregisterAny", CallbackId, Void, _R, priority=True
)
EVENT_LIFECYCLE: Final = Procedure(
    382, "virConnectSecretEventLifecycle", LifecycleEvent, Void, Access.EVENT
)
EVENT_VALUE_CHANGED: Final = Procedure(
    383, "virConnectSecretEventValueChanged", ValueChangedEvent, Void, Access.EVENT
)

PROCEDURES: Final = tuple(found for found in list(vars().values()) if isinstance(found, Procedure))
