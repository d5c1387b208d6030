"""Secrets as the wire protocol names them, for both of its ends."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from storaged.rpc.secret import Secret
from storaged.secrets.values import SecretChange, SecretDef, SecretKind

#: In the order of libvirt's numbers.
KINDS: Final = tuple(SecretKind)
#: Libvirt's numbers of the two events of a secret's life; that of a new value has none.
LIFECYCLE: Final = {SecretChange.DEFINED: 0, SecretChange.UNDEFINED: 1}


def secret_record(secret: SecretDef) -> Secret:
    """Return what names a secret on the wire."""
    return Secret(secret.uuid.bytes, secret.usage.number, secret.usage_id or "")


def secret_named(record: Secret) -> SecretDef:
    """Return what a record tells of a secret: what it is and what it is for, and nothing else.

    A kind of usage that is not known here counts as none.
    """
    kind = kind_numbered(record.usage_type) or SecretKind.NONE
    usage_id = None if kind is SecretKind.NONE else record.usage_id
    return SecretDef(UUID(bytes=record.uuid), kind, usage_id)


def kind_numbered(number: int) -> SecretKind | None:
    """Return the kind of usage with a number, None if there is none."""
    return KINDS[number] if 0 <= number < len(KINDS) else None
