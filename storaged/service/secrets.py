"""The calls on secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

from storaged.errors import Domain, NoSuchSecret
from storaged.rpc import extension
from storaged.rpc import secret as rpc
from storaged.rpc.errors import RPCError
from storaged.rpc.extension import SecretListArgs, SecretListRet
from storaged.rpc.record import Void
from storaged.rpc.secret import (
    LIST_MAX,
    EventRegisterArgs,
    ListSecretsArgs,
    ListSecretsRet,
    MaxUuids,
    SecretArgs,
    SecretFlagsArgs,
    SecretRet,
    SetValueArgs,
    UsageArgs,
    Uuids,
    ValueRet,
)
from storaged.rpc.storage import XML, CallbackId, Count, Uuid, XMLArgs
from storaged.secrets.document import format_secret
from storaged.secrets.values import SecretDef, SecretFilter
from storaged.secrets.wirenames import kind_numbered, secret_record
from storaged.service.handler import (
    Handlers,
    Query,
    always,
    never,
    refuse_argument,
    refuse_unknown,
)
from storaged.service.pools import require_room

if TYPE_CHECKING:
    from storaged.service.session import Session

#: A flag of a definition.
_VALIDATE: Final = 1
_ALL_FILTERS: Final = int(sum(SecretFilter))


def _check_uuids(args: MaxUuids) -> None:
    if args.maxuuids < 0:
        raise RPCError("maxuuids must be non-negative")
    if args.maxuuids > LIST_MAX:
        raise RPCError("maxuuids > REMOTE_SECRET_LIST_MAX")


def _count(session: Session, _args: Void) -> Count:
    return Count(len(session.driver.secret_names(caller=session.identity)))


def _uuids(session: Session, args: MaxUuids) -> Uuids:
    found = session.driver.secret_names(caller=session.identity)[: args.maxuuids]
    return Uuids(tuple([str(each.uuid) for each in found]))


def _list(session: Session, args: ListSecretsArgs) -> ListSecretsRet:
    refuse_unknown(args.flags, _ALL_FILTERS, "secretConnectListAllSecrets", Domain.SECRET)
    found = session.driver.secret_names(SecretFilter(args.flags), caller=session.identity)
    require_room("secrets", len(found))
    kept = found if args.need_results else ()
    return ListSecretsRet(tuple([secret_record(each) for each in kept]), len(found))


def _definitions(session: Session, args: SecretListArgs) -> SecretListRet:
    refuse_unknown(args.flags, _ALL_FILTERS, "storagedSecretList", Domain.SECRET)
    found = session.driver.secrets(SecretFilter(args.flags), caller=session.identity)
    require_room("secrets", len(found))
    return SecretListRet(tuple([format_secret(each) for each in found]))


def _by_uuid(session: Session, args: Uuid) -> SecretRet:
    uuid = UUID(bytes=args.uuid)
    return _named(session.driver.secret_lookup_by_uuid(uuid, caller=session.identity))


def _by_usage(session: Session, args: UsageArgs) -> SecretRet:
    kind = kind_numbered(args.usage_type)
    if kind is None:
        text = f"no secret with matching usage '{args.usage_id}'"
        raise NoSuchSecret(text, domain=Domain.SECRET)
    found = session.driver.secret_lookup_by_usage(kind, args.usage_id, caller=session.identity)
    return _named(found)


def _named(secret: SecretDef) -> SecretRet:
    return SecretRet(secret_record(secret))


def _define(session: Session, args: XMLArgs) -> SecretRet:
    refuse_unknown(args.flags, _VALIDATE, "secretDefineXML", Domain.SECRET)
    validate = bool(args.flags)
    return _named(
        session.driver.secret_define_xml(args.xml, validate=validate, caller=session.identity)
    )


def _xml(session: Session, args: SecretFlagsArgs) -> XML:
    refuse_unknown(args.flags, 0, "secretGetXMLDesc", Domain.SECRET)
    return XML(session.driver.secret_xml(UUID(bytes=args.secret.uuid), caller=session.identity))


def _set_value(session: Session, args: SetValueArgs) -> Void:
    if not args.value:
        function = "virSecretSetValue"
        text = f"value in {function} must not be NULL"
        refuse_argument(text, function, "value", Domain.SECRET)
    refuse_unknown(args.flags, 0, "secretSetValue", Domain.SECRET)
    uuid = UUID(bytes=args.secret.uuid)
    session.driver.secret_set_value(uuid, args.value, caller=session.identity)
    return Void()


def _value(session: Session, args: SecretFlagsArgs) -> ValueRet:
    refuse_unknown(args.flags, 0, "secretGetValue", Domain.SECRET)
    uuid = UUID(bytes=args.secret.uuid)
    return ValueRet(session.driver.secret_value(uuid, caller=session.identity))


def _undefine(session: Session, args: SecretArgs) -> Void:
    session.driver.secret_undefine(UUID(bytes=args.secret.uuid), caller=session.identity)
    return Void()


def _register(session: Session, args: EventRegisterArgs) -> CallbackId:
    uuid = None if args.secret is None else UUID(bytes=args.secret.uuid)
    return CallbackId(session.secret_registrations.register(args.event_id, uuid))


def _deregister(session: Session, args: CallbackId) -> Void:
    session.secret_registrations.deregister(args.callback_id)
    return Void()


#: They may wait: where libvirt's daemon keeps the secrets, it is asked, in the client's name.
HANDLERS: Final[Handlers] = {
    rpc.NUM_OF_SECRETS: Query(_count, never),
    rpc.LIST_SECRETS: Query(_uuids, never, check=_check_uuids),
    rpc.LIST_ALL_SECRETS: Query(_list, never),
    extension.SECRET_LIST: Query(_definitions, never),
    rpc.LOOKUP_BY_UUID: Query(_by_uuid, never),
    rpc.LOOKUP_BY_USAGE: Query(_by_usage, never),
    rpc.DEFINE_XML: Query(_define, never),
    rpc.GET_XML_DESC: Query(_xml, never),
    rpc.SET_VALUE: Query(_set_value, never),
    rpc.GET_VALUE: Query(_value, never),
    rpc.UNDEFINE: Query(_undefine, never),
    rpc.EVENT_REGISTER: Query(_register, always),
    rpc.EVENT_DEREGISTER: Query(_deregister, always),
}
