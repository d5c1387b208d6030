"""The values that everything else passes around: definitions, facts, enums. No I/O, no policy.

A `PoolDef` or `VolumeDef` that exists is valid: the constructors check the rules that do not need
the outside world, in libvirt's order and with its texts. Sizes are ints of bytes.

Source: libvirt's storage pool and volume XML formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from storaged import rules
from storaged.concerns import Concern
from storaged.errors import ConfigUnsupported, Unsupported, XMLError
from storaged.facts import PoolInfo, PoolRef, PoolState, Space, VolumeInfo, VolumeRef
from storaged.formats.image import ImageInfo
from storaged.source import (
    NO_SOURCE,
    Auth,
    FcHostAdapter,
    FreeExtent,
    PCIAddress,
    PoolSource,
    ScsiHostAdapter,
    SecretRef,
    SourceDevice,
    SourceHost,
    check_initiator,
    check_source,
    settle_names,
    settle_source,
    settle_target,
)
from storaged.target import (
    UNSET_PERMISSIONS,
    BackingStore,
    Cipher,
    Encryption,
    IVGen,
    Permissions,
    SourceExtent,
    Timestamps,
    settle_permissions,
)
from storaged.traits import PoolType, Target, VolumeType, traits_of

__all__ = [
    "UNSET_PERMISSIONS",
    "Auth",
    "BackingStore",
    "Cipher",
    "Encryption",
    "FcHostAdapter",
    "FreeExtent",
    "IVGen",
    "PCIAddress",
    "Permissions",
    "PoolDef",
    "PoolInfo",
    "PoolRef",
    "PoolSource",
    "PoolState",
    "PoolType",
    "ScsiHostAdapter",
    "SecretRef",
    "SourceDevice",
    "SourceExtent",
    "SourceHost",
    "Space",
    "Timestamps",
    "VolumeDef",
    "VolumeInfo",
    "VolumeRecord",
    "VolumeRef",
    "VolumeType",
]


@dataclass(frozen=True, slots=True)
class PoolDef:
    """What a pool is, as its XML says.

    *type* may also be the type of a plug-in, and *uuid* text. What the type has no use for is
    dropped, so that two definitions of the same pool are equal.

    :raise XMLError: a part is missing or malformed (the order of the checks is libvirt's).
    :raise Unsupported: copy-on-write control on a type without it.
    :raise ConfigUnsupported: an unknown format or refresh allocation, a missing initiator.
    """

    type: PoolType | str
    name: str = ""
    #: made at random if none is given
    uuid: UUID = None  # type: ignore[assignment]
    source: PoolSource = NO_SOURCE
    #: None for the network types; forced for logical and zfs
    target: str | None = None
    permissions: Permissions = UNSET_PERMISSIONS
    #: ``features/cow``
    cow: bool | None = None
    #: ``refresh/volume@allocation``: "default" or "capacity"
    refresh_allocation: str | None = None
    #: ``fs:mount_opts``
    mount_options: tuple[str, ...] = ()
    #: ``rbd:config_opts``
    config_options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check and complete, in the order in which libvirt does."""
        put = object.__setattr__
        kind = _pool_type(self.type)
        traits = traits_of(kind)
        source = settle_source(traits, self.source)
        name, source = settle_names(traits, self.name, source)
        put(self, "uuid", rules.pool_uuid(self.uuid))
        if self.cow is not None and kind not in (PoolType.FS, PoolType.DIR):
            raise Unsupported("cow feature may only be used for 'fs' and 'dir' pools")
        check_source(traits, source)
        put(self, "target", settle_target(traits, source, self.target))
        has_target = traits.target is not Target.NONE
        unset = UNSET_PERMISSIONS
        put(self, "permissions", settle_permissions(self.permissions) if has_target else unset)
        check_initiator(traits, source)
        put(self, "refresh_allocation", rules.refresh_allocation(self.refresh_allocation))
        put(self, "mount_options", _mount_options(kind, self.mount_options))
        put(self, "config_options", _config_options(kind, self.config_options))
        put(self, "type", kind)
        put(self, "name", name)
        put(self, "source", source)


def _pool_type(kind: str) -> PoolType | str:
    if not kind:
        raise rules.bad_value(kind, "type", "pool")
    try:
        return PoolType(kind)
    except ValueError:
        return kind


def _mount_options(kind: str, options: Iterable[str]) -> tuple[str, ...]:
    if kind not in (PoolType.FS, PoolType.NETFS):
        return ()
    kept = tuple(options)
    if not all(kept):
        raise XMLError("empty fs mount option name specified")
    return kept


def _config_options(kind: str, options: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if kind != PoolType.RBD:
        return ()
    kept = tuple((name, value) for name, value in options)
    for name, value in kept:
        if not name or not value:
            what = "value" if name else "name"
            raise XMLError(f"empty rbd option {what} specified")
    return kept


@dataclass(frozen=True, slots=True)
class VolumeDef:
    """What a volume is, as its XML says: asked for in a create, or found and printed.

    Sizes may also be given as people write them ("20 GiB"). Which formats a volume may have depends
    on its pool: `storaged.traits.Traits.volume_format` checks that.

    :raise XMLError: a part is missing or malformed.
    :raise ConfigUnsupported: an unknown type or feature.
    :raise InvalidArgument: a size that is none.
    :raise Overflow: a size that is too large.
    """

    name: str
    capacity: int = 0
    #: bytes to have on disk; None is "not said", which libvirt takes for all of *capacity*
    allocation: int | None = None
    format: str | None = None
    type: VolumeType = VolumeType.FILE
    key: str | None = None
    path: str | None = None
    #: 0 is "unknown" and not printed
    physical: int = 0
    permissions: Permissions = UNSET_PERMISSIONS
    timestamps: Timestamps | None = None
    encryption: Encryption | None = None
    #: qcow2: "0.10" is version 2, "1.1" version 3
    compat: str | None = None
    #: in bytes; 0 is "not given"
    cluster_size: int = 0
    #: None: no such element; else some of lazy_refcounts, extended_l2, data_file
    features: frozenset[str] | None = None
    #: asked for "no copy on write"; read, never printed
    nocow: bool = False
    backing: BackingStore | None = None
    extents: tuple[SourceExtent, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        rules.volume_name(self.name)
        if type(self.type) is not VolumeType:
            put(self, "type", _volume_type(self.type))
        put(self, "capacity", rules.size(self.capacity))
        if self.allocation is not None:
            put(self, "allocation", rules.size(self.allocation))
        if self.permissions is not UNSET_PERMISSIONS:
            put(self, "permissions", settle_permissions(self.permissions))
        put(self, "compat", rules.compat(self.compat))
        if self.cluster_size:
            put(self, "cluster_size", rules.size(self.cluster_size, rules.MAX_UNSIGNED))
        if self.features is not None:
            put(self, "features", _features(self.features))
            if self.compat is None:
                put(self, "compat", "1.1")


#: What `VolumeDef.features` may hold, in the order in which they are printed.
FEATURES = ("lazy_refcounts", "extended_l2", "data_file")


def _features(given: Iterable[str]) -> frozenset[str]:
    features = frozenset(given)
    for unknown in sorted(features.difference(FEATURES)):
        raise ConfigUnsupported(f"unsupported feature {unknown}")
    return features


def _volume_type(kind: str) -> VolumeType:
    try:
        return VolumeType(kind)
    except ValueError:
        raise ConfigUnsupported(f"unknown volume type '{kind}'") from None


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What a pool knows of one volume: small, immutable, shared with every reader.

    *key* and *path* are None where they are the pool's target path, a slash and the name (the file
    pools), so that 100,000 volumes do not carry 100,000 paths.
    """

    name: str
    capacity: int
    allocation: int
    physical: int = 0
    format: str | None = None
    type: VolumeType = VolumeType.FILE
    #: device, inode, size, mtime and ctime packed to 40 bytes; b"" where there is no file
    stamp: bytes = b""
    permissions: Permissions = UNSET_PERMISSIONS
    #: what the image's header says; None for raw
    image: ImageInfo | None = None
    key: str | None = None
    path: str | None = None
    #: what is wrong with this volume, for people; None if nothing is
    problem: str | None = None
    #: what speaks against trusting its image, the dangers first
    concerns: tuple[Concern, ...] = ()
    #: what only some types know (extents, origin, sparse), by field name of `VolumeDef`
    extra: Mapping[str, object] | None = field(default=None, compare=False)
