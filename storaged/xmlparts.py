"""The elements that pools and volumes have in common: permissions and secrets."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from storaged import rules
from storaged.source import SecretRef
from storaged.target import UNSET_PERMISSIONS, Permissions
from storaged.xmlread import Node
from storaged.xmlwrite import Writer


def read_permissions(node: Node | None) -> Permissions:
    """Return what a ``permissions`` element says; all unset if there is none.

    An empty mode or label is unset, an empty owner or group is an error.

    :raise XMLError: "malformed octal mode", "malformed owner element", "malformed group element".
    """
    if node is None:
        return UNSET_PERMISSIONS
    return Permissions(
        mode=_mode(node),
        owner=_account(node, "owner"),
        group=_account(node, "group"),
        label=node.text("label"),
    )


def _mode(node: Node) -> int | None:
    found = node.first("mode")
    text = found.content() if found is not None else ""
    if found is None or not text:
        return None
    mode = rules.octal(text)
    with found.blame():
        return rules.file_mode(-1 if mode is None else mode)


def _account(node: Node, name: str) -> int | None:
    found = node.first(name)
    if found is None:
        return None
    number = rules.decimal(found.content())
    with found.blame():
        return rules.account(-2 if number is None else number, name)


def write_permissions(writer: Writer, permissions: Permissions) -> None:
    """Write a ``permissions`` element; nothing if nothing is set.

    Libvirt prints an owner from 2147483648 on as a negative number, which it then cannot read. Here
    it is the number that it is.
    """
    if not permissions:
        return
    with writer.element("permissions"):
        if permissions.mode is not None:
            writer.text("mode", f"0{permissions.mode:o}")
        writer.text("owner", permissions.owner)
        writer.text("group", permissions.group)
        writer.text("label", permissions.label)


def read_secret(node: Node) -> SecretRef:
    """Return what a ``secret`` element names.

    :raise XMLError: neither or both of uuid and usage, or a malformed uuid.
    """
    with node.blame():
        return SecretRef(
            uuid=cast("UUID | None", node.attribute("uuid")),  # text is checked and converted
            usage=node.attribute("usage"),
            type=node.attribute("type"),
        )


def write_secret(writer: Writer, secret: SecretRef) -> None:
    """Write a ``secret`` element."""
    uuid = None if secret.uuid is None else str(secret.uuid)
    writer.empty("secret", ("type", secret.type), ("uuid", uuid), ("usage", secret.usage))
