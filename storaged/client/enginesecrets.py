"""The calls on secrets, for an engine behind a connection."""

# ruff: noqa: D102 -- what the calls do is said once, at those of the driver

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from storaged.client.enginepeer import Peer
from storaged.errors import Domain, InvalidArgument, NoSuchSecret
from storaged.rpc import secret, storage
from storaged.secrets.values import ALL, SecretDef, SecretFilter, SecretKind
from storaged.secrets.wirenames import secret_named, secret_record

if TYPE_CHECKING:
    from storaged.client.engineevents import RemoteSecretEvents

_VALIDATE = 1


class RemoteSecrets:
    """The calls on secrets; `storaged.secrets.calls` says what each does."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._secret_events: RemoteSecretEvents | None = None

    @property
    def secret_events(self) -> RemoteSecretEvents:
        if self._secret_events is None:
            from storaged.client.engineevents import RemoteSecretEvents

            self._secret_events = RemoteSecretEvents(self._peer.link)
        return self._secret_events

    def secrets(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        documents = self._peer.secret_documents(int(wanted))
        if documents is not None:
            return [_parsed(text) for text in documents]
        found = []
        for named in self.secret_names(wanted):
            with suppress(NoSuchSecret):  # it has gone since it was listed
                found.append(self._read(secret_record(named)))
        return found

    def secret_names(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        wish = secret.ListSecretsArgs(1, int(wanted))
        return [secret_named(one) for one in self._peer.call(secret.LIST_ALL_SECRETS, wish).secrets]

    def secret_lookup_by_uuid(self, uuid: UUID) -> SecretDef:
        wish = storage.Uuid(uuid.bytes)
        return self._read(self._peer.call(secret.LOOKUP_BY_UUID, wish).secret)

    def secret_lookup_by_usage(self, kind: SecretKind, usage_id: str) -> SecretDef:
        wish = secret.UsageArgs(kind.number, usage_id)
        return self._read(self._peer.call(secret.LOOKUP_BY_USAGE, wish).secret)

    def secret_define_xml(self, text: str, *, validate: bool = False) -> SecretDef:
        wish = storage.XMLArgs(text, _VALIDATE if validate else 0)
        return self._read(self._peer.call(secret.DEFINE_XML, wish).secret)

    def secret_set_value(self, uuid: UUID, value: bytes) -> None:
        if len(value) > secret.VALUE_MAX:
            raise InvalidArgument(
                f"a secret may have {secret.VALUE_MAX} bytes, not {len(value)}",
                domain=Domain.SECRET,
            )
        self._peer.call(secret.SET_VALUE, secret.SetValueArgs(_record(uuid), value))

    def secret_value(self, uuid: UUID) -> bytes:
        return self._peer.call(secret.GET_VALUE, secret.SecretFlagsArgs(_record(uuid))).value

    def secret_undefine(self, uuid: UUID) -> None:
        self._peer.call(secret.UNDEFINE, secret.SecretArgs(_record(uuid)))

    def secret_xml(self, uuid: UUID) -> str:
        return self._xml(_record(uuid))

    def _read(self, record: secret.Secret) -> SecretDef:
        """Return the definition of a secret; on the wire stands only what it is for."""
        return _parsed(self._xml(record))

    def _xml(self, record: secret.Secret) -> str:
        return self._peer.call(secret.GET_XML_DESC, secret.SecretFlagsArgs(record)).xml


def _parsed(text: str) -> SecretDef:
    from storaged.secrets.document import parse_secret  # XML is slow to load

    return parse_secret(text)


def _record(uuid: UUID) -> secret.Secret:
    """Return what names a secret on the wire: its uuid alone decides."""
    return secret_record(SecretDef(uuid))
