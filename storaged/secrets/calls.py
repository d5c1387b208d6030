"""The calls of the API that are about secrets.

Where libvirt's daemon of secrets keeps them, each call asks it over its socket, for at most five
seconds: whoever must not wait calls from a thread of its own. It is asked in the name of *caller*,
who is this process where nobody is given: what it may see and do is decided there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from storaged.errors import Domain, InvalidArgument, InvalidSecret
from storaged.events import Feed
from storaged.secrets.document import format_secret, parse_secret
from storaged.secrets.source import KeptSecrets
from storaged.secrets.values import (
    ALL,
    MAX_VALUE,
    SecretChange,
    SecretDef,
    SecretEvent,
    SecretFilter,
    SecretKind,
)

if TYPE_CHECKING:
    from storaged.rpc.identity import Identity


class SecretCalls:
    """The secrets of an engine."""

    def __init__(self, kept: KeptSecrets) -> None:
        self._kept = kept
        self._secret_events: Feed[SecretEvent] = Feed()

    @property
    def secret_events(self) -> Feed[SecretEvent]:
        """Where to subscribe to events of secrets that are changed through this engine."""
        return self._secret_events

    def secrets(
        self, wanted: SecretFilter = ALL, *, caller: Identity | None = None
    ) -> list[SecretDef]:
        """Return the secrets that pass a filter, in no order.

        :raise InvalidArgument: unknown bits.
        """
        _refuse_unknown(wanted)
        with self._kept.reading(caller) as keeper:
            return keeper.all(wanted)

    def secret_names(
        self, wanted: SecretFilter = ALL, *, caller: Identity | None = None
    ) -> list[SecretDef]:
        """Return uuid and use of the secrets that pass a filter, in no order.

        What else stands in these definitions need not be true: another keeper of the secrets is
        asked once for all of them, and tells no more than that.

        :raise InvalidArgument: unknown bits.
        """
        _refuse_unknown(wanted)
        with self._kept.reading(caller) as keeper:
            return keeper.names(wanted)

    def secret_lookup_by_uuid(self, uuid: UUID, *, caller: Identity | None = None) -> SecretDef:
        """Return a secret.

        :raise NoSuchSecret: there is none.
        """
        with self._kept.reading(caller) as keeper:
            return keeper.by_uuid(uuid)

    def secret_lookup_by_usage(
        self, kind: SecretKind, usage_id: str, *, caller: Identity | None = None
    ) -> SecretDef:
        """Return the secret for a thing.

        :raise NoSuchSecret: there is none.
        """
        with self._kept.reading(caller) as keeper:
            return keeper.by_usage(kind, usage_id)

    def secret_define_xml(
        self, text: str, *, validate: bool = False, caller: Identity | None = None
    ) -> SecretDef:
        """Keep the definition that a document holds; the value of an existing secret stays.

        :raise XMLError: the document breaks a rule.
        :raise InternalError: another secret is for the same thing, or an existing one would become
            for something else or public.
        :raise SystemFailure: it could not be written; nothing has changed.
        """
        secret = parse_secret(text, validate=validate)
        with self._kept.changing(caller) as keeper:
            keeper.define(secret)
        self._tell(secret, SecretChange.DEFINED)
        return secret

    def secret_set_value(self, uuid: UUID, value: bytes, *, caller: Identity | None = None) -> None:
        """Give a secret its value, of at most 65,536 bytes.

        :raise NoSuchSecret: there is none.
        :raise SystemFailure: it could not be written; the old value holds.
        """
        if len(value) > MAX_VALUE:
            raise InvalidArgument(
                f"a secret may have {MAX_VALUE} bytes, not {len(value)}", domain=Domain.SECRET
            )
        with self._kept.changing(caller) as keeper:
            secret = keeper.by_uuid(uuid)
            keeper.set_value(secret, value)
        self._tell(secret, SecretChange.VALUE_CHANGED)

    def secret_value(self, uuid: UUID, *, caller: Identity | None = None) -> bytes:
        """Return the value of a secret.

        :raise NoSuchSecret: there is none, or it has no value.
        :raise InvalidSecret: it is private, and the caller is none of the host's daemons.
        """
        with self._kept.reading(caller) as keeper:
            secret = keeper.by_uuid(uuid)
            if secret.private and not (caller is not None and caller.elevated):
                raise InvalidSecret("secret is private", domain=Domain.SECRET)
            return keeper.value(secret)

    def secret_undefine(self, uuid: UUID, *, caller: Identity | None = None) -> None:
        """Forget a secret and its value.

        :raise NoSuchSecret: there is none.
        """
        with self._kept.changing(caller) as keeper:
            secret = keeper.by_uuid(uuid)
            keeper.undefine(secret)
        self._tell(secret, SecretChange.UNDEFINED)

    def secret_xml(self, uuid: UUID, *, caller: Identity | None = None) -> str:
        """Return the XML of a secret, which never holds its value.

        :raise NoSuchSecret: there is none.
        """
        return format_secret(self.secret_lookup_by_uuid(uuid, caller=caller))

    def _tell(self, secret: SecretDef, change: SecretChange) -> None:
        self._secret_events.put(SecretEvent(secret, change))
        self._secret_events.deliver()


def _refuse_unknown(wanted: SecretFilter) -> None:
    unknown = int(wanted) & ~15
    if unknown:
        raise InvalidArgument(
            f"unsupported flags (0x{unknown:x}) in function secretConnectListAllSecrets",
            domain=Domain.SECRET,
        )
