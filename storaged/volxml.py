"""Volume documents: text to `VolumeDef` and back.

Source: libvirt's storage volume XML format; order, texts and white space as libvirt 9.0 has them.
"""

from __future__ import annotations

from enum import Enum
from itertools import groupby

from storaged import rules
from storaged.encryptionxml import read_encryption, write_encryption
from storaged.errors import ConfigUnsupported, StorageError, XMLError
from storaged.model import FEATURES, BackingStore, SourceExtent, Timestamps, VolumeDef, VolumeType
from storaged.schema import validate_volume
from storaged.target import Permissions
from storaged.traits import Traits, traits_of
from storaged.units import scaled
from storaged.xmlparts import read_permissions, write_permissions
from storaged.xmlread import Node, read
from storaged.xmlwrite import Writer


class CapacityRule(Enum):
    """Whether a volume's document must say its capacity."""

    REQUIRED = "required"
    #: not if it has a backing store, whose capacity it then takes
    OPTIONAL = "optional"
    #: not at all: a clone takes its source's
    NONE = "none"


def parse_volume(
    text: str | bytes,
    pool_type: str,
    *,
    capacity: CapacityRule = CapacityRule.REQUIRED,
    validate: bool = False,
) -> VolumeDef:
    """Return the volume that a document asks for.

    What only storage can tell is not read: physical size, times, extents. A capacity that is
    missing where it may be is 0; an allocation that is missing is None.

    :param pool_type: decides which formats there are.
    :param validate: check it against the schema first.
    :raise XMLSyntaxError: the document cannot be read.
    :raise XMLSchemaError: the schema refuses it.
    :raise XMLError: it breaks a rule; libvirt's order decides which one is reported.
    :raise ConfigUnsupported: an unknown type, format or feature.
    :raise InvalidArgument: an unknown unit.
    :raise Overflow: a size of 8 EiB or more.
    """
    root = read(text, "volume", "storage_volume_definition")
    if validate:
        validate_volume(root)
    with root.blame():
        return _read_volume(traits_of(pool_type), root, capacity)


def _read_volume(traits: Traits, root: Node, rule: CapacityRule) -> VolumeDef:
    name = rules.volume_name(root.text("name") or "")
    kind = _volume_type(root)
    backing = _backing(traits, root)
    capacity = _size(root, "capacity")
    if capacity is None:
        optional = rule is CapacityRule.OPTIONAL and backing is not None
        if rule is not CapacityRule.NONE and not optional:
            raise XMLError("missing capacity element", element="capacity")
        capacity = 0
    return VolumeDef(
        name=name,
        type=kind,
        key=root.text("key"),
        backing=backing,
        capacity=capacity,
        allocation=_size(root, "allocation"),
        path=root.text("target/path"),
        format=_format(traits, root, "target/format"),
        permissions=read_permissions(root.first("target/permissions")),
        encryption=read_encryption(root.first("target/encryption")),
        compat=_compat(root),
        nocow=root.first("target/nocow") is not None,
        cluster_size=_cluster_size(root),
        features=_features(root),
    )


def _volume_type(root: Node) -> VolumeType:
    kind = root.value(".", "type") or VolumeType.FILE
    try:
        return VolumeType(kind)
    except ValueError:
        raise ConfigUnsupported(f"unknown volume type '{kind}'") from None


def _backing(traits: Traits, root: Node) -> BackingStore | None:
    path = root.text("backingStore/path")
    if path is None:
        return None
    kind = _format(traits, root, "backingStore/format")
    return BackingStore(path, kind, read_permissions(root.first("backingStore/permissions")))


def _format(traits: Traits, root: Node, path: str) -> str | None:
    try:
        return traits.volume_format(root.value(path, "type"))
    except StorageError as err:
        (root.first(path) or root).locate(err)
        raise


def _size(root: Node, name: str) -> int | None:
    found = root.first(name)
    text = found.content() if found is not None else ""
    if found is None or not text:
        return None
    number = rules.decimal(text)
    if number is None or "-" in text or number > rules.MAX_UNSIGNED:
        raise found.error("malformed capacity element")  # libvirt's text for allocation as well
    with found.blame():
        return scaled(number, root.value(name, "unit") or "")


def _compat(root: Node) -> str | None:
    found = root.first("target/compat")
    if found is None:
        return None
    with found.blame():
        return rules.compat(found.content())


def _cluster_size(root: Node) -> int:
    path = "target/clusterSize"
    found = root.first(path)
    text = found.content() if found is not None else ""
    if found is None or not text:
        return 0
    number = rules.decimal(text)
    if number is None or "-" in text or number > rules.MAX_UNSIGNED:
        raise found.error(f"Invalid value '{text}' for element or attribute './{path}'")
    with found.blame():
        return scaled(number, root.value(path, "unit") or "", rules.MAX_UNSIGNED)


def _features(root: Node) -> frozenset[str] | None:
    found = root.all("target/features")
    for feature in (feature for node in found for feature in node.children()):
        if feature.name not in FEATURES:
            with feature.blame():
                raise ConfigUnsupported(f"unsupported feature {feature.name}")
    if not found:
        return None
    return frozenset(feature.name for node in found for feature in node.children())


def format_volume(definition: VolumeDef, pool_type: str) -> str:
    """Return the document of a volume, byte for byte as libvirt writes it.

    `storaged.xmlwrite` says what becomes of text that XML cannot hold. A wish for "no copy on
    write" is never printed, an allocation of None is printed as the capacity.

    :param pool_type: decides whether formats are printed.
    """
    traits = traits_of(pool_type)
    allocation = definition.allocation
    writer = Writer()
    with writer.element("volume", ("type", definition.type.value)):
        writer.text("name", definition.name)
        writer.text("key", definition.key)
        _write_extents(writer, definition.extents)
        writer.text("capacity", definition.capacity, ("unit", "bytes"))
        shown = definition.capacity if allocation is None else allocation
        writer.text("allocation", shown, ("unit", "bytes"))
        writer.text("physical", definition.physical or None, ("unit", "bytes"))
        with writer.element("target"):
            _write_place(writer, traits, definition.path, definition.format)
            _write_facts(writer, definition.permissions, definition.timestamps)
            write_encryption(writer, definition.encryption)
            writer.text("compat", definition.compat)
            writer.text("clusterSize", definition.cluster_size or None, ("unit", "B"))
            _write_features(writer, definition.features)
        backing = definition.backing
        if backing is not None:
            with writer.element("backingStore"):
                _write_place(writer, traits, backing.path, backing.format)
                _write_facts(writer, backing.permissions, backing.timestamps)
    return writer.finish()


def _write_extents(writer: Writer, extents: tuple[SourceExtent, ...]) -> None:
    if not extents:
        return
    with writer.element("source"):
        for path, run in groupby(extents, key=lambda extent: extent.path):
            with writer.element("device", ("path", path)):
                for extent in run:
                    writer.empty("extent", ("start", extent.start), ("end", extent.end))


def _write_place(writer: Writer, traits: Traits, path: str | None, kind: str | None) -> None:
    writer.text("path", path)
    if traits.volume_formats:
        writer.empty("format", ("type", kind or traits.volume_formats[0]))


def _write_facts(writer: Writer, permissions: Permissions, times: Timestamps | None) -> None:
    write_permissions(writer, permissions)
    if times is None:
        return
    with writer.element("timestamps"):
        for tag in ("atime", "mtime", "ctime", "btime"):
            writer.text(tag, _timestamp(getattr(times, tag)))


def _timestamp(nanoseconds: int | None) -> str | None:
    """Return seconds, with nine digits of a fraction where there is one."""
    if nanoseconds is None:
        return None
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{seconds}.{fraction:09}" if fraction else str(seconds)


def _write_features(writer: Writer, features: frozenset[str] | None) -> None:
    if features is None:
        return
    if not features:
        writer.empty("features")
        return
    with writer.element("features"):
        for feature in FEATURES:
            if feature in features:
                writer.empty(feature)
