"""What a secret is, without its value.

The value itself is never part of a definition: it travels as bytes, from where it is kept to where
it is used, and nowhere else.

Source: libvirt's secret XML format, its flags for lists and its events of secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag, StrEnum
from typing import Final
from uuid import UUID

#: The longest value of a secret, in bytes.
MAX_VALUE: Final = 65536


class SecretKind(StrEnum):
    """What a secret is for; the place of each stands on the wire."""

    NONE = "none"
    VOLUME = "volume"
    CEPH = "ceph"
    ISCSI = "iscsi"
    TLS = "tls"
    VTPM = "vtpm"

    @property
    def number(self) -> int:
        """Its number on the wire."""
        return list(SecretKind).index(self)


@dataclass(frozen=True, slots=True)
class SecretDef:
    """A secret's definition.

    :param usage_id: which thing of the kind *usage* it is for: a path, a target, a name; None for
        `SecretKind.NONE`.
    :param ephemeral: never written to a disk: gone with whoever keeps it.
    :param private: its value is told to nobody, other than libvirt's own daemons.
    """

    uuid: UUID
    usage: SecretKind = SecretKind.NONE
    usage_id: str | None = None
    ephemeral: bool = False
    private: bool = False
    description: str | None = None


class SecretFilter(IntFlag):
    """Which secrets to list. Of each pair one or both; no bit of a pair means both."""

    EPHEMERAL = 1
    NO_EPHEMERAL = 2
    PRIVATE = 4
    NO_PRIVATE = 8

    def passes(self, secret: SecretDef) -> bool:
        """Tell whether a secret is wanted."""
        return self._allows(secret.ephemeral, 1) and self._allows(secret.private, 4)

    def _allows(self, value: bool, bit: int) -> bool:
        pair = int(self) & (bit | bit << 1)
        return not pair or bool(pair & (bit if value else bit << 1))


#: Lets every secret pass.
ALL: Final = SecretFilter(0)


class SecretChange(Enum):
    """What happened to a secret."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    VALUE_CHANGED = "value changed"


@dataclass(frozen=True, slots=True)
class SecretEvent:
    """One event of a secret; for an undefined one, *secret* is what it was."""

    secret: SecretDef
    change: SecretChange
