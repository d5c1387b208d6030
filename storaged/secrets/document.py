"""Secret documents: text to `SecretDef` and back.

Source: libvirt's secret XML format; order, texts and white space as libvirt 9.0 has them.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from storaged import rules
from storaged.errors import ConfigUnsupported, Domain, InternalError, StorageError, XMLSyntaxError
from storaged.schema import validate_secret
from storaged.secrets.values import SecretDef, SecretKind
from storaged.xmlread import Node, read
from storaged.xmlwrite import Writer, yes_no

#: The element that names the thing a secret is for, and what libvirt says if it is not there.
_PARTS: Final = {
    SecretKind.VOLUME: ("volume", "volume usage specified, but volume path is missing"),
    SecretKind.CEPH: ("name", "Ceph usage specified, but name is missing"),
    SecretKind.ISCSI: ("target", "iSCSI usage specified, but target is missing"),
    SecretKind.TLS: ("name", "TLS usage specified, but name is missing"),
    SecretKind.VTPM: ("name", "vTPM usage specified, but name is missing"),
}


def parse_secret(text: str | bytes, *, validate: bool = False) -> SecretDef:
    """Return the secret that a document describes; its uuid is a random one if none is given.

    :param validate: check it against the schema first.
    :raise XMLSyntaxError: the document cannot be read.
    :raise XMLSchemaError: the schema refuses it.
    :raise XMLError: it breaks a rule; libvirt's order decides which one is reported.
    :raise ConfigUnsupported: a kind of use that libvirt does not know.
    :raise InternalError: the uuid is malformed, or what the secret is for is not named.
    """
    try:
        root = read(text, "secret", "definition_of_secret")
    except XMLSyntaxError as err:
        err.domain = Domain.SECRET
        raise
    if validate:
        validate_secret(root)
    ephemeral, private = _switch(root, "ephemeral"), _switch(root, "private")
    uuid = _uuid(root)
    description = root.text("description")
    usage, usage_id = _usage(root)
    return SecretDef(uuid, usage, usage_id, ephemeral, private, description)


def _switch(root: Node, name: str) -> bool:
    value = root.value(".", name)
    if value not in (None, "yes", "no"):
        raise root.error(f"invalid value of '{name}'", domain=Domain.SECRET)
    return value == "yes"


def _uuid(root: Node) -> UUID:
    try:
        return rules.parse_uuid(root.text("uuid")) or uuid4()
    except ValueError:
        raise _blamed(root, "uuid", InternalError("malformed uuid element")) from None


def _usage(root: Node) -> tuple[SecretKind, str | None]:
    node = root.first("usage")
    if node is None:
        return SecretKind.NONE, None
    word = root.value("usage", "type")
    if word is None:
        raise node.error("unknown secret usage type", domain=Domain.SECRET)
    if word not in tuple(SecretKind):
        error = ConfigUnsupported(f"unknown secret usage type {word}")
        raise _blamed(root, "usage", error)
    kind = SecretKind(word)
    if kind is SecretKind.NONE:
        return kind, None
    element, missing = _PARTS[kind]
    usage_id = root.text(f"usage/{element}")
    if usage_id is None:
        raise _blamed(root, "usage", InternalError(missing))
    return kind, usage_id


def _blamed(root: Node, path: str, error: StorageError) -> StorageError:
    """Return an error of libvirt's secret driver that points at an element."""
    error.domain = Domain.SECRET
    (root.first(path) or root).locate(error)
    return error


def format_secret(secret: SecretDef) -> str:
    """Return the document of a secret, which never holds its value."""
    writer = Writer()
    ephemeral, private = yes_no(secret.ephemeral), yes_no(secret.private)
    with writer.element("secret", ("ephemeral", ephemeral), ("private", private)):
        writer.text("uuid", str(secret.uuid))
        writer.text("description", secret.description)
        if secret.usage is not SecretKind.NONE:
            with writer.element("usage", ("type", secret.usage)):
                writer.text(_PARTS[secret.usage][0], secret.usage_id)
    return writer.finish()
