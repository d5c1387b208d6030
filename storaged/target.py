"""What a target may carry besides its path: permissions, times, encryption, what lies below.

Source: libvirt's storage volume and storage encryption XML formats.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from storaged import rules
from storaged.errors import ConfigUnsupported, XMLError
from storaged.source import SecretRef


@dataclass(frozen=True, slots=True)
class Permissions:
    """Owner, group, mode and label of a target; None is "unset": not printed, not applied.

    The values are checked where they become part of a definition, not here: one of these is made
    for every file of a scan.
    """

    mode: int | None = None
    owner: int | None = None
    group: int | None = None
    label: str | None = None

    def __bool__(self) -> bool:
        return self != UNSET_PERMISSIONS

    @classmethod
    def of_file(cls, stat: os.stat_result, label: str | None = None) -> Permissions:
        """Return what a file has; of the mode only the nine bits that libvirt knows."""
        return cls(stat.st_mode & 0o777, stat.st_uid, stat.st_gid, label)


UNSET_PERMISSIONS = Permissions()


def settle_permissions(given: Permissions) -> Permissions:
    """Return permissions as a definition keeps them: -1 and empty text are "unset".

    :raise XMLError: a mode outside 0 to 0777, or an owner or group that no account can have.
    """
    if not given:
        return UNSET_PERMISSIONS
    return Permissions(
        rules.file_mode(given.mode),
        rules.account(given.owner, "owner"),
        rules.account(given.group, "group"),
        given.label or None,
    )


@dataclass(frozen=True, slots=True)
class Cipher:
    """The cipher of a LUKS volume; *size* in bits."""

    name: str
    size: int
    mode: str | None = None
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class IVGen:
    """The generator of initial vectors of a LUKS volume."""

    name: str
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Encryption:
    """How a volume is encrypted: *format* is default, qcow, luks or luks2.

    Cipher and generator belong to ``luks`` and are dropped for the other formats.

    :raise XMLError: no format, an unknown engine, a generator without a cipher.
    :raise ConfigUnsupported: an unknown format, or a secret that is no passphrase.
    """

    format: str
    secrets: tuple[SecretRef, ...] = ()
    cipher: Cipher | None = None
    ivgen: IVGen | None = None
    #: ``qemu`` or ``librbd``; kept and printed, nothing else
    engine: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not self.format:
            raise XMLError("unknown volume encryption format", element="target/encryption")
        if self.format not in ENCRYPTION_FORMATS:
            raise ConfigUnsupported(f"unknown volume encryption format type {self.format}")
        if self.engine is not None:
            rules.one_of(self.engine, ("qemu", "librbd"), "engine", "encryption")
        put(self, "secrets", tuple(map(_passphrase, self.secrets)))
        if self.format != "luks":
            put(self, "cipher", None)
            put(self, "ivgen", None)
        elif self.ivgen is not None and self.cipher is None:
            raise XMLError(
                "ivgen element found, but cipher is missing", element="target/encryption/ivgen"
            )


#: What `Encryption.format` may be.
ENCRYPTION_FORMATS = ("default", "qcow", "luks", "luks2")


def _passphrase(secret: SecretRef) -> SecretRef:
    if secret.type == "passphrase":
        return secret
    if secret.type is not None:
        raise ConfigUnsupported(f"unknown volume encryption secret type {secret.type}")
    return replace(secret, type="passphrase")


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Times of a file in nanoseconds since the epoch; None where unknown."""

    atime: int
    mtime: int
    ctime: int
    btime: int | None = None


@dataclass(frozen=True, slots=True)
class BackingStore:
    """What a volume is an overlay of. *path* as the image or the XML names it."""

    path: str
    format: str | None = None
    permissions: Permissions = UNSET_PERMISSIONS
    timestamps: Timestamps | None = None


@dataclass(frozen=True, slots=True)
class SourceExtent:
    """A stretch of a device that a volume lies on, in bytes; *end* is exclusive."""

    path: str
    start: int
    end: int
