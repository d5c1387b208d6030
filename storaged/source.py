"""Where the storage of a pool comes from: the values below ``source``, and the rules on them.

Source: libvirt's storage pool XML format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from storaged import rules
from storaged.errors import ConfigUnsupported, XMLError, XMLSyntaxError
from storaged.traits import PoolType, SourcePart, Target, Traits


@dataclass(frozen=True, slots=True)
class SourceHost:
    """A server; port 0 is "not given"."""

    name: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class FreeExtent:
    """A free stretch of a disk, in bytes; *end* is exclusive. Printed, never read."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SourceDevice:
    """A device a pool is made of."""

    path: str
    part_separator: bool | None = None
    free_extents: tuple[FreeExtent, ...] = ()


@dataclass(frozen=True, slots=True)
class PCIAddress:
    """Where the parent of a SCSI host sits.

    :raise XMLError: a part is out of its range.
    """

    domain: int = 0
    bus: int = 0
    slot: int = 0
    function: int = 0

    def __post_init__(self) -> None:
        for what, value, last in (("bus", self.bus, 0xFF), ("slot", self.slot, 0x1F)):
            if not 0 <= value <= last:
                raise self._out_of_range(f"{what}='0x{value:x}'", last)
        if not 0 <= self.function <= 7:
            raise self._out_of_range(f"function=0x{self.function:x}", 7)
        if not 0 <= self.domain < 2**32:
            raise self._out_of_range(f"domain='0x{self.domain:x}'", 2**32 - 1)

    @staticmethod
    def _out_of_range(what: str, last: int) -> XMLError:
        most = f"0x{last:X}" if last > 9 else str(last)
        return XMLError(
            f"Invalid PCI address {what}, must be <= {most}",
            element="source/adapter/parentaddr/address",
        )


@dataclass(frozen=True, slots=True)
class ScsiHostAdapter:
    """A SCSI host: by *name*, or by *parent* address and *unique_id*."""

    name: str | None = None
    parent: PCIAddress | None = None
    unique_id: int | None = None


@dataclass(frozen=True, slots=True)
class FcHostAdapter:
    """A virtual fibre channel host."""

    wwnn: str
    wwpn: str
    parent: str | None = None
    parent_wwnn: str | None = None
    parent_wwpn: str | None = None
    parent_fabric_wwn: str | None = None
    managed: bool | None = None


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Names a secret of libvirt's secret driver: by *uuid* or by *usage*, never both.

    :raise XMLError: neither or both are given, or *uuid* is no UUID.
    """

    uuid: UUID | None = None
    usage: str | None = None
    #: the attribute ``type`` as it was given; kept and printed
    type: str | None = None

    def __post_init__(self) -> None:
        if self.uuid is None and self.usage is None:
            raise XMLError("missing secret uuid or usage attribute", element="secret")
        if self.uuid is None:
            return
        if self.usage is not None:
            raise XMLError("either secret uuid or usage expected", element="secret")
        object.__setattr__(self, "uuid", rules.secret_uuid(self.uuid))


#: What `Auth.type` may be.
AUTH_TYPES = ("chap", "ceph")


@dataclass(frozen=True, slots=True)
class Auth:
    """How a pool proves itself to its source: *type* is ``chap`` or ``ceph``.

    :raise XMLError: there is no user name.
    :raise ConfigUnsupported: no type, or an unknown one.
    """

    type: str
    username: str
    secret: SecretRef

    def __post_init__(self) -> None:
        if not self.username:
            raise XMLError("missing username for auth", element="source/auth")
        if self.type in ("", "none"):
            raise ConfigUnsupported("storage pool missing auth type")
        if self.type not in AUTH_TYPES:
            raise ConfigUnsupported(f"unknown auth type '{self.type}'")


@dataclass(frozen=True, slots=True)
class PoolSource:
    """Where the storage of a pool comes from. Which parts count depends on the pool's type."""

    hosts: tuple[SourceHost, ...] = ()
    devices: tuple[SourceDevice, ...] = ()
    dir: str | None = None
    adapter: ScsiHostAdapter | FcHostAdapter | None = None
    name: str | None = None
    initiator: str | None = None
    #: the source format, such as ``nfs``; None is the default of the type
    format: str | None = None
    auth: Auth | None = None
    protocol: str | None = None
    vendor: str | None = None
    product: str | None = None


#: The source of the types that need none.
NO_SOURCE = PoolSource()


def settle_source(traits: Traits, source: PoolSource) -> PoolSource:
    """Return *source* as a pool of that type keeps it.

    Parts that the type does not have are dropped, the format gets its default, the directory is
    sanitised, empty texts become None.

    :raise XMLError: an rbd source without a name.
    :raise ConfigUnsupported: an unknown format, a protocol version where none may be.
    :raise XMLSyntaxError: a comma in the protocol version.
    """
    if traits.type == PoolType.RBD and not source.name and source != NO_SOURCE:
        raise nameless_rbd()
    kind = traits.source_format(source.format)
    protocol = check_protocol(traits, kind, source.protocol)
    parts = traits.parts
    path = (source.dir or None) if SourcePart.DIR in parts else None
    if path is None and traits.type == PoolType.GLUSTER:
        path = "/"
    return PoolSource(
        hosts=tuple(source.hosts) if SourcePart.HOST in parts else (),
        devices=tuple(source.devices) if SourcePart.DEVICE in parts else (),
        dir=rules.sanitise_path(path) if path else None,
        adapter=source.adapter if SourcePart.ADAPTER in parts else None,
        name=(source.name or None) if SourcePart.NAME in parts else None,
        initiator=(source.initiator or None) if SourcePart.INITIATOR in parts else None,
        format=kind,
        auth=source.auth,
        protocol=protocol,
        vendor=source.vendor or None,
        product=source.product or None,
    )


def nameless_rbd() -> XMLError:
    """Return the error for an rbd source that names no pool of the cluster."""
    return XMLError("element 'name' is mandatory for RBD pool", element="source")


def check_protocol(traits: Traits, kind: str | None, version: str | None) -> str | None:
    """Return the protocol version to keep.

    It may stand where the format is one of the first two of its type, and where there are none:
    libvirt looks at the number of the format alone.

    :param kind: the source format.
    :raise ConfigUnsupported: with any other format.
    :raise XMLSyntaxError: a comma in it, which would add mount options.
    """
    if not version:
        return None
    if kind in traits.source_formats[2:]:
        raise ConfigUnsupported(
            f"storage pool protocol ver unsupported for pool type '{kind}'",
            advice="Remove <protocol> or use the format nfs.",
        )
    if "," in version:
        raise XMLSyntaxError(
            f"storage pool protocol ver '{version}' must not contain ','",
            element="source/protocol",
        )
    return version


def check_source(traits: Traits, source: PoolSource) -> None:
    """Check that the parts are there without which a pool of that type cannot be.

    :raise XMLError: one is missing, or the adapter contradicts itself.
    :raise InternalError: a malformed WWN.
    """
    wanted = traits.mandatory
    if SourcePart.HOST in wanted and not source.hosts:
        raise XMLError("missing storage pool source host name", element="source/host")
    if SourcePart.DIR in wanted and not source.dir:
        raise XMLError("missing storage pool source path", element="source/dir")
    if SourcePart.ADAPTER in wanted and source.adapter is None:
        raise XMLError("missing storage pool source adapter", element="source/adapter")
    if isinstance(source.adapter, ScsiHostAdapter):
        _check_scsi_host(source.adapter)
    elif source.adapter is not None:
        _check_fc_host(source.adapter)
    if SourcePart.DEVICE in wanted and not source.devices:
        raise XMLError("missing storage pool source device name", element="source/device")


def check_initiator(traits: Traits, source: PoolSource) -> None:
    """Check that an initiator is named where the type needs one (after the target's checks).

    :raise ConfigUnsupported: it is not.
    """
    if SourcePart.INITIATOR in traits.mandatory and not source.initiator:
        raise ConfigUnsupported(
            "missing initiator IQN",
            advice="Add <initiator><iqn name='iqn...'/></initiator> to <source>.",
        )


def settle_target(traits: Traits, source: PoolSource, path: str | None) -> str | None:
    """Return the target path that a pool has where *path* was given.

    :raise XMLError: the type needs one, and there is none.
    """
    if traits.target is Target.NONE:
        return None
    if traits.target is Target.FORCED:
        path = f"{traits.target_prefix}{source.name}"
    if path:
        return rules.sanitise_path(path)
    if traits.target is Target.OPTIONAL:
        return None
    raise XMLError("missing storage pool target path", element="target/path")


def settle_names(traits: Traits, name: str | None, source: PoolSource) -> tuple[str, PoolSource]:
    """Return the pool's name, and the source: each lends its name to the other where one has none.

    :raise XMLError: neither has one, or it holds a slash.
    """
    has_name = SourcePart.NAME in traits.parts and not traits.generic
    found = rules.pool_name(name or (source.name if has_name else None) or "")
    if has_name and source.name is None:
        source = replace(source, name=found)
    return found, source


def _check_scsi_host(adapter: ScsiHostAdapter) -> None:
    element = "source/adapter"
    if adapter.name is None and adapter.parent is None:
        raise XMLError(
            "Either 'name' or 'parent' must be specified for the 'scsi_host' adapter",
            element=element,
        )
    if adapter.name is not None and adapter.parent is not None:
        raise XMLError(
            "Both 'name' and 'parent' cannot be specified for the 'scsi_host' adapter",
            element=element,
        )
    if adapter.parent is not None and (adapter.unique_id is None or adapter.unique_id < 0):
        raise XMLError("Missing or invalid scsi adapter 'unique_id' value", element=element)


def _check_fc_host(adapter: FcHostAdapter) -> None:
    element = "source/adapter"
    if not adapter.wwnn or not adapter.wwpn:
        raise XMLError(
            "'wwnn' and 'wwpn' must be specified for adapter type 'fchost'", element=element
        )
    rules.wwn(adapter.wwnn)
    rules.wwn(adapter.wwpn)
    pair = {"parent_wwnn": adapter.parent_wwnn, "parent_wwpn": adapter.parent_wwpn}
    for given, missing in (("parent_wwnn", "parent_wwpn"), ("parent_wwpn", "parent_wwnn")):
        if pair[given] is not None and pair[missing] is None:
            raise XMLError(
                f"when providing {given}='{pair[given]}', the {missing} must also be provided",
                element=element,
            )
    for value in (*pair.values(), adapter.parent_fabric_wwn):
        if value is not None:
            rules.wwn(value)
