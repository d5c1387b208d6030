"""Pool documents: text to `PoolDef` and back.

Source: libvirt's storage pool XML format; order, texts and white space as libvirt 9.0 has them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from storaged import rules
from storaged.errors import XMLError, XMLSyntaxError
from storaged.model import PoolDef, PoolType, Space
from storaged.schema import validate_pool
from storaged.source import settle_names
from storaged.sourcexml import format_sources, parse_source, read_source, write_source
from storaged.target import Permissions
from storaged.traits import Target, Traits, traits_of
from storaged.xmlparts import read_permissions, write_permissions
from storaged.xmlread import Node, read
from storaged.xmlwrite import Writer, yes_no

__all__ = ["define_rules", "format_pool", "format_sources", "parse_pool", "parse_source"]

_FS_SPACE = "http://libvirt.org/schemas/storagepool/fs/1.0"
_RBD_SPACE = "http://libvirt.org/schemas/storagepool/rbd/1.0"


def parse_pool(
    text: str | bytes,
    *,
    validate: bool = False,
    plugin_types: Container[str] = (),
    lenient: bool = False,
) -> PoolDef:
    """Return the pool that a document describes.

    :param validate: check it against the schema first; there is none for the types of plug-ins.
    :param plugin_types: types known besides libvirt's.
    :param lenient: for files of the engine's own directories: an unknown type, whose plug-in is not
        here now, is no error, and what such a pool has is kept.
    :raise XMLSyntaxError: the document cannot be read.
    :raise XMLSchemaError: the schema refuses it.
    :raise XMLError: it breaks a rule; libvirt's order decides which one is reported.
    :raise Unsupported: copy-on-write control on a type without it.
    :raise ConfigUnsupported: a word that libvirt does not know, or a missing initiator.
    """
    root = read(text, "pool", "storage_pool_definition")
    kind = root.attribute("type")
    plugin = bool(kind) and kind not in tuple(PoolType) and (lenient or kind in plugin_types)
    if validate and not plugin:
        validate_pool(root)
    kind = root.required("type")
    if not plugin and kind not in tuple(PoolType):
        with root.blame():
            raise rules.bad_value(kind, "type", "pool")
    with root.blame():
        return _read_pool(traits_of(kind), root)


def _read_pool(traits: Traits, root: Node) -> PoolDef:
    source = read_source(traits, root.first("source"))
    name, source = settle_names(traits, root.text("name"), source)
    uuid = rules.pool_uuid(root.text("uuid"))
    cow = root.first("features/cow")
    # All checks before those of the permissions, which therefore cannot be given here.
    checked = PoolDef(
        type=traits.type,
        name=name,
        uuid=uuid,
        source=source,
        target=root.text("target/path"),
        cow=cow.switch("state") if cow is not None else None,
    )
    permissions = Permissions()
    if traits.target is not Target.NONE:
        permissions = read_permissions(root.first("target/permissions"))
    refresh = root.value("refresh/volume", "allocation")
    with (root.first("refresh/volume") or root).blame():
        rules.refresh_allocation(refresh)
    return replace(
        checked,
        permissions=permissions,
        refresh_allocation=refresh,
        mount_options=_mount_options(traits, root),
        config_options=_config_options(traits, root),
    )


def _mount_options(traits: Traits, root: Node) -> tuple[str, ...]:
    if traits.type not in (PoolType.FS, PoolType.NETFS):
        return ()
    return tuple(
        _option(node, "name", "fs mount option")
        for node in root.all(f"{{{_FS_SPACE}}}mount_opts/{{{_FS_SPACE}}}option")
    )


def _config_options(traits: Traits, root: Node) -> tuple[tuple[str, str], ...]:
    if traits.type != PoolType.RBD:
        return ()
    return tuple(
        (_option(node, "name", "rbd option"), _option(node, "value", "rbd option"))
        for node in root.all(f"{{{_RBD_SPACE}}}config_opts/{{{_RBD_SPACE}}}option")
    )


def _option(node: Node, attribute: str, what: str) -> str:
    value = node.attribute(attribute)
    if not value:
        raise XMLError(
            f"{'no' if value is None else 'empty'} {what} {attribute} specified",
            element=node.name,
            line=node.line,
        )
    return value


def format_pool(
    definition: PoolDef, space: Space | None = None, *, permissions: Permissions | None = None
) -> str:
    """Return the document of a pool, byte for byte as libvirt writes it.

    `storaged.xmlwrite` says what becomes of text that XML cannot hold.

    :param space: the sizes to print; zeros if not given.
    :param permissions: of the target, as they are on disk; those of the definition if not given.
    """
    space = space or Space()
    traits = traits_of(definition.type)
    writer = Writer()
    spaces = (
        ("xmlns:fs", _FS_SPACE if definition.mount_options else None),
        ("xmlns:rbd", _RBD_SPACE if definition.config_options else None),
    )
    with writer.element("pool", ("type", str(definition.type)), *spaces):
        writer.text("name", definition.name)
        writer.text("uuid", str(definition.uuid))
        writer.text("capacity", space.capacity, ("unit", "bytes"))
        writer.text("allocation", space.allocation, ("unit", "bytes"))
        writer.text("available", space.available, ("unit", "bytes"))
        if definition.cow is not None:
            with writer.element("features"):
                writer.empty("cow", ("state", yes_no(definition.cow)))
        write_source(writer, traits, definition.source)
        if traits.target is not Target.NONE:
            shown = definition.permissions if permissions is None else permissions
            _write_target(writer, definition, shown)
        if definition.refresh_allocation is not None:
            with writer.element("refresh"):
                writer.empty("volume", ("allocation", definition.refresh_allocation))
        _write_options(writer, definition)
    return writer.finish()


def _write_target(writer: Writer, definition: PoolDef, permissions: Permissions) -> None:
    if definition.target is None and not permissions:
        return
    with writer.element("target"):
        writer.text("path", definition.target)
        write_permissions(writer, permissions)


def _write_options(writer: Writer, definition: PoolDef) -> None:
    if definition.mount_options:
        with writer.element("fs:mount_opts"):
            for option in definition.mount_options:
                writer.empty("fs:option", ("name", option))
    if definition.config_options:
        with writer.element("rbd:config_opts"):
            for name, value in definition.config_options:
                writer.empty("rbd:option", ("name", name), ("value", value))


def define_rules(definition: PoolDef) -> None:
    """Check what holds for a define and not for a create.

    :raise XMLSyntaxError: a newline in the name.
    """
    if "\n" in definition.name:
        raise XMLSyntaxError("invalid char in name: \n", element="name")
