"""The ``encryption`` element of a volume.

Source: libvirt's storage encryption XML format.
"""

from __future__ import annotations

from storaged import rules
from storaged.errors import ConfigUnsupported
from storaged.source import SecretRef
from storaged.target import ENCRYPTION_FORMATS, Cipher, Encryption, IVGen
from storaged.xmlparts import read_secret, write_secret
from storaged.xmlread import Node
from storaged.xmlwrite import Writer


def read_encryption(node: Node | None) -> Encryption | None:
    """Return what an ``encryption`` element says, checked in libvirt's order.

    :raise XMLError: a part is missing or malformed.
    :raise ConfigUnsupported: an unknown format or kind of secret.
    """
    if node is None:
        return None
    kind = node.value(".", "format")
    if kind is None:
        raise node.error("unknown volume encryption format")
    engine = node.attribute("engine")
    with node.blame():
        if kind not in ENCRYPTION_FORMATS:
            raise ConfigUnsupported(f"unknown volume encryption format type {kind}")
        if engine is not None:
            rules.one_of(engine, ("qemu", "librbd"), "engine", "encryption")
        return Encryption(
            format=kind,
            engine=engine,
            secrets=tuple(map(_secret, node.all("secret"))),
            cipher=_cipher(node.first("cipher")) if kind == "luks" else None,
            ivgen=_ivgen(node.first("ivgen")) if kind == "luks" else None,
        )


def _secret(node: Node) -> SecretRef:
    kind = node.attribute("type")
    if not kind:
        raise node.error("unknown volume encryption secret type")
    with node.blame():
        if kind != "passphrase":
            raise ConfigUnsupported(f"unknown volume encryption secret type {kind}")
    return read_secret(node)


def _cipher(node: Node | None) -> Cipher | None:
    if node is None:
        return None
    name = node.attribute("name")
    if name is None:
        raise node.error("cipher info missing 'name' attribute")
    node.required("size")
    return Cipher(name, node.unsigned("size") or 0, node.attribute("mode"), node.attribute("hash"))


def _ivgen(node: Node | None) -> IVGen | None:
    if node is None:
        return None
    name = node.attribute("name")
    if name is None:
        raise node.error("missing ivgen info name string")
    return IVGen(name, node.attribute("hash"))


def write_encryption(writer: Writer, encryption: Encryption | None) -> None:
    """Write an ``encryption`` element; its tags stand on two lines also when it is empty."""
    if encryption is None:
        return
    attributes = ("format", encryption.format), ("engine", encryption.engine)
    with writer.element("encryption", *attributes):
        for secret in encryption.secrets:
            write_secret(writer, secret)
        cipher, ivgen = encryption.cipher, encryption.ivgen
        if cipher is not None:
            writer.empty(
                "cipher",
                ("name", cipher.name),
                ("size", cipher.size),
                ("mode", cipher.mode),
                ("hash", cipher.hash),
            )
        if ivgen is not None:
            writer.empty("ivgen", ("name", ivgen.name), ("hash", ivgen.hash))
