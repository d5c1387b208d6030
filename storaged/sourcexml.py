"""The ``source`` element of a pool, alone and as part of a pool's document.

Source: libvirt's storage pool XML format; order and texts as libvirt 9.0 has them.
"""

from __future__ import annotations

from collections.abc import Iterable

from storaged import rules
from storaged.errors import ConfigUnsupported, XMLError
from storaged.source import (
    AUTH_TYPES,
    NO_SOURCE,
    Auth,
    FcHostAdapter,
    PCIAddress,
    PoolSource,
    ScsiHostAdapter,
    SourceDevice,
    SourceHost,
    check_protocol,
    nameless_rbd,
    settle_source,
)
from storaged.traits import PoolType, Traits, traits_of
from storaged.xmlparts import read_secret, write_secret
from storaged.xmlread import Node, read
from storaged.xmlwrite import Writer, yes_no


def parse_source(pool_type: str, text: str | bytes) -> PoolSource:
    """Return what a ``source`` document says: the specification of a search for sources.

    :param pool_type: whose rules hold; an unknown one is taken for that of a plug-in.
    :raise XMLSyntaxError: the document cannot be read.
    :raise XMLError: it breaks a rule.
    :raise ConfigUnsupported: an unknown format or kind of authentication.
    """
    root = read(text, "source", "storage_source_specification")
    return read_source(traits_of(pool_type), root)


def format_sources(pool_type: str, sources: Iterable[PoolSource]) -> str:
    """Return the ``sources`` document that answers a search."""
    traits = traits_of(pool_type)
    writer = Writer()
    with writer.element("sources"):
        for source in sources:
            write_source(writer, traits, settle_source(traits, source))
    return writer.finish()


def read_source(traits: Traits, node: Node | None) -> PoolSource:
    """Return what a ``source`` element says, checked in libvirt's order.

    All parts are checked, also those that the type does not have; these are then dropped.
    """
    if node is None:
        return settle_source(traits, NO_SOURCE)
    name = node.text("name")
    if name is None and traits.type == PoolType.RBD:
        with node.blame():
            raise nameless_rbd()
    with (node.first("format") or node).blame():
        kind = traits.source_format(node.value("format", "type"))
    source = PoolSource(
        name=name,
        format=kind,
        hosts=tuple(map(_host, node.all("host"))),
        initiator=node.value("initiator/iqn", "name"),
        devices=tuple(map(_device, node.all("device"))),
        dir=node.value("dir", "path"),
        adapter=_adapter(node.first("adapter")),
        auth=_auth(node.first("auth")),
        protocol=_protocol(traits, kind, node),
        vendor=node.value("vendor", "name"),
        product=node.value("product", "name"),
    )
    return settle_source(traits, source)


def _host(node: Node) -> SourceHost:
    name = node.attribute("name")
    if name is None:
        raise node.error("missing storage pool host name")
    return SourceHost(name, node.integer("port") or 0)


def _device(node: Node) -> SourceDevice:
    path = node.attribute("path")
    if path is None:
        raise node.error("missing storage pool source device path")
    return SourceDevice(path, node.switch("part_separator"))


def _protocol(traits: Traits, kind: str | None, node: Node) -> str | None:
    version = node.value("protocol", "ver")
    with (node.first("protocol") or node).blame():
        return check_protocol(traits, kind, version)


def _auth(node: Node | None) -> Auth | None:
    if node is None:
        return None
    username, kind = node.value(".", "username"), node.value(".", "type")
    if username is None:
        raise node.error("missing username for auth")
    secret = node.first("secret")
    with node.blame():
        if kind is not None and kind != "none" and kind not in AUTH_TYPES:
            raise ConfigUnsupported(f"unknown auth type '{kind}'")
        if secret is None:
            raise XMLError("Missing <secret> element in auth")
        return Auth(kind or "", username, read_secret(secret))


def _adapter(node: Node | None) -> ScsiHostAdapter | FcHostAdapter | None:
    if node is None:
        return None
    kind = node.attribute("type")
    if kind is None:
        return _legacy_adapter(node)
    with node.blame():
        rules.one_of(kind, ("scsi_host", "fc_host"), "type", "adapter")
    if kind == "fc_host":
        return _fc_host(node)
    parent = node.first("parentaddr")
    name = node.attribute("name")
    if parent is None:
        return ScsiHostAdapter(name)
    address = parent.first("address")
    if address is None:
        raise parent.error("Missing scsi_host PCI address element")
    place = _pci_address(address)
    unique = rules.decimal(parent.attribute("unique_id") or "")
    if unique is None or not 0 <= unique < 2**31:
        raise parent.error("Missing or invalid scsi adapter 'unique_id' value")
    return ScsiHostAdapter(name, place, unique)


def _legacy_adapter(node: Node) -> ScsiHostAdapter | None:
    if any(node.attribute(name) is not None for name in ("wwnn", "wwpn", "parent")):
        raise node.error(
            "Use of 'wwnn', 'wwpn', and 'parent' attributes requires use of the adapter 'type'"
        )
    if node.first("parentaddr") is not None:
        raise node.error("Use of 'parentaddr' element requires use of the adapter 'type'")
    name = node.attribute("name")
    return None if name is None else ScsiHostAdapter(name)


def _fc_host(node: Node) -> FcHostAdapter:
    return FcHostAdapter(
        managed=node.switch("managed"),
        wwnn=node.attribute("wwnn") or "",
        wwpn=node.attribute("wwpn") or "",
        parent=node.attribute("parent"),
        parent_wwnn=node.attribute("parent_wwnn"),
        parent_wwpn=node.attribute("parent_wwpn"),
        parent_fabric_wwn=node.attribute("parent_fabric_wwn"),
    )


def _pci_address(node: Node) -> PCIAddress:
    domain, bus, slot, function = (
        node.unsigned(part, any_base=True) or 0 for part in ("domain", "bus", "slot", "function")
    )
    with node.blame():
        return PCIAddress(domain, bus, slot, function)


def write_source(writer: Writer, traits: Traits, source: PoolSource) -> None:
    """Write a ``source`` element; its tags stand on two lines also when it is empty.

    :param source: as `settle_source` leaves it.
    """
    with writer.element("source"):
        for host in source.hosts:
            writer.empty("host", ("name", host.name), ("port", host.port or None))
        for device in source.devices:
            _write_device(writer, device)
        if source.dir is not None:
            writer.empty("dir", ("path", source.dir))
        _write_adapter(writer, source.adapter)
        writer.text("name", source.name)
        if source.initiator is not None:
            with writer.element("initiator"):
                writer.empty("iqn", ("name", source.initiator))
        if source.format is not None:
            writer.empty("format", ("type", source.format))
        if source.auth is not None:
            auth = source.auth
            with writer.element("auth", ("type", auth.type), ("username", auth.username)):
                write_secret(writer, auth.secret)
        if source.protocol is not None:
            writer.empty("protocol", ("ver", source.protocol))
        for tag, name in (("vendor", source.vendor), ("product", source.product)):
            if name is not None:
                writer.empty(tag, ("name", name))


def _write_device(writer: Writer, device: SourceDevice) -> None:
    attributes = ("path", device.path), ("part_separator", yes_no(device.part_separator))
    if not device.free_extents:
        writer.empty("device", *attributes)
        return
    with writer.element("device", *attributes):
        for extent in device.free_extents:
            writer.empty("freeExtent", ("start", extent.start), ("end", extent.end))


def _write_adapter(writer: Writer, adapter: ScsiHostAdapter | FcHostAdapter | None) -> None:
    if isinstance(adapter, FcHostAdapter):
        writer.empty(
            "adapter",
            ("type", "fc_host"),
            ("parent", adapter.parent),
            ("parent_wwnn", adapter.parent_wwnn),
            ("parent_wwpn", adapter.parent_wwpn),
            ("parent_fabric_wwn", adapter.parent_fabric_wwn),
            ("managed", yes_no(adapter.managed)),
            ("wwnn", adapter.wwnn),
            ("wwpn", adapter.wwpn),
        )
    elif adapter is not None and adapter.parent is None:
        writer.empty("adapter", ("type", "scsi_host"), ("name", adapter.name))
    elif adapter is not None and adapter.parent is not None:
        place = adapter.parent
        with (
            writer.element("adapter", ("type", "scsi_host")),
            writer.element("parentaddr", ("unique_id", adapter.unique_id)),
        ):
            writer.empty(
                "address",
                ("domain", f"0x{place.domain:04x}"),
                ("bus", f"0x{place.bus:02x}"),
                ("slot", f"0x{place.slot:02x}"),
                ("function", f"0x{place.function:x}"),
            )
