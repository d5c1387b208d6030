"""XML documents: read from files, and written from options as virsh writes them.

What is written here is a request, so it holds just what was asked for; the library checks it and
fills in the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storaged.errors import XMLSyntaxError, system_errors

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"})


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What ``define-as`` and ``create-as`` were told of a pool beside its name and type."""

    source_host: tuple[str, ...] = ()
    source_path: str | None = None
    source_dev: tuple[str, ...] = ()
    source_name: str | None = None
    target: str | None = None
    source_format: str | None = None
    auth_type: str | None = None
    auth_username: str | None = None
    secret_usage: str | None = None
    secret_uuid: str | None = None
    adapter_name: str | None = None
    adapter_wwnn: str | None = None
    adapter_wwpn: str | None = None
    adapter_parent: str | None = None
    adapter_parent_wwnn: str | None = None
    adapter_parent_wwpn: str | None = None
    adapter_parent_fabric_wwn: str | None = None
    source_initiator: str | None = None
    source_protocol_ver: str | None = None


@dataclass(frozen=True, slots=True)
class Element:
    """One element to be written; attributes that are None are left out."""

    name: str
    attributes: tuple[tuple[str, str | None], ...] = ()
    text: str | None = None
    children: tuple[Element, ...] = ()

    def lines(self, indent: str = "") -> Iterator[str]:
        """Yield the lines of this element and all below it."""
        given = "".join(
            f" {name}='{value.translate(_ESCAPES)}'"
            for name, value in self.attributes
            if value is not None
        )
        if self.children:
            yield f"{indent}<{self.name}{given}>"
            for child in self.children:
                yield from child.lines(indent + "  ")
            yield f"{indent}</{self.name}>"
        elif self.text is not None:
            yield f"{indent}<{self.name}{given}>{self.text.translate(_ESCAPES)}</{self.name}>"
        else:
            yield f"{indent}<{self.name}{given}/>"

    def document(self) -> str:
        """Return this element as a document, without a last newline."""
        return "\n".join(self.lines())


def read(place: str) -> str:
    """Return the document in the file *place*; ``-`` is standard input.

    :raise SystemFailure: it cannot be read.
    :raise XMLSyntaxError: it is not UTF-8.
    """
    with system_errors(f"cannot read '{place}'"):
        raw = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as err:
        raise XMLSyntaxError(
            f"'{place}' is not UTF-8: byte {err.start} is 0x{raw[err.start]:02x}"
        ) from err


def pool_document(kind: str, name: str, options: PoolOptions) -> str:
    """Return the ``<pool>`` that the options describe."""
    parts = [_text("name", name)]
    source = tuple(_source(options))
    if source:
        parts.append(Element("source", children=source))
    if options.target:
        # a definition outlives the directory that the command was given in
        target = os.path.abspath(options.target)  # noqa: PTH100 -- links stay as they are
        parts.append(Element("target", children=(_text("path", target),)))
    return Element("pool", (("type", kind),), children=tuple(parts)).document()


def source_document(host: str | None, port: str | None, initiator: str | None) -> str | None:
    """Return the ``<source>`` that says where to look for sources; None if nothing is given."""
    parts = []
    if host is not None:
        parts.append(Element("host", (("name", host), ("port", port))))
    if initiator is not None:
        parts.append(_initiator(initiator))
    return Element("source", children=tuple(parts)).document() if parts else None


def volume_document(name: str, capacity: int | None, wish: Mapping[str, Any]) -> str:
    """Return the ``<volume>`` that the options of ``vol create-as`` describe.

    :param wish: the keywords of `Pool.create`; *backing* is a volume or a path.
    """
    parts = [_text("name", name)]
    if capacity is not None:
        parts.append(_bytes("capacity", capacity))
    parts.append(_bytes("allocation", wish.get("allocation", 0)))
    parts.append(Element("target", children=tuple(_volume_target(wish))))
    if "backing" in wish:
        found = wish["backing"]
        backing = [_text("path", str(getattr(found, "path", found)))]
        if "backing_format" in wish:
            backing.append(Element("format", (("type", wish["backing_format"]),)))
        parts.append(Element("backingStore", children=tuple(backing)))
    return Element("volume", children=tuple(parts)).document()


def _host(text: str) -> Element:
    """Return the ``<host>`` for NAME or NAME:PORT; an IPv6 address with a port has brackets."""
    name, _, port = text.rpartition(":")
    if name and port.isdecimal() and port.isascii() and (":" not in name or name.endswith("]")):
        return Element("host", (("name", name), ("port", port)))
    return Element("host", (("name", text),))


def _source(options: PoolOptions) -> Iterator[Element]:
    for host in options.source_host:
        yield _host(host)
    if options.source_path:
        yield Element("dir", (("path", options.source_path),))
    for device in options.source_dev:
        yield Element("device", (("path", device),))
    if options.adapter_name or options.adapter_wwnn:
        yield _adapter(options)
    if options.auth_type:
        secret = (("uuid", options.secret_uuid), ("usage", options.secret_usage))
        yield Element(
            "auth",
            (("type", options.auth_type), ("username", options.auth_username)),
            children=(Element("secret", secret),),
        )
    if options.source_name:
        yield _text("name", options.source_name)
    if options.source_initiator:
        yield _initiator(options.source_initiator)
    if options.source_format:
        yield Element("format", (("type", options.source_format),))
    if options.source_protocol_ver:
        yield Element("protocol", (("ver", options.source_protocol_ver),))


def _adapter(options: PoolOptions) -> Element:
    if options.adapter_name:
        return Element("adapter", (("type", "scsi_host"), ("name", options.adapter_name)))
    return Element(
        "adapter",
        (
            ("type", "fc_host"),
            ("parent", options.adapter_parent),
            ("parent_wwnn", options.adapter_parent_wwnn),
            ("parent_wwpn", options.adapter_parent_wwpn),
            ("parent_fabric_wwn", options.adapter_parent_fabric_wwn),
            ("wwnn", options.adapter_wwnn),
            ("wwpn", options.adapter_wwpn),
        ),
    )


def _volume_target(wish: Mapping[str, Any]) -> Iterator[Element]:
    kind = wish.get("format", "raw")
    yield Element("format", (("type", kind),))
    permissions = tuple(
        _text(name, f"{wish[name]:04o}" if name == "mode" else str(wish[name]))
        for name in ("mode", "owner", "group")
        if name in wish
    )
    if permissions:
        yield Element("permissions", children=permissions)
    if kind == "qcow2" or "compat" in wish:
        yield _text("compat", wish.get("compat", "1.1"))
    if wish.get("cluster_size"):
        yield _bytes("clusterSize", wish["cluster_size"])
    features = [name for name in ("lazy_refcounts", "extended_l2") if wish.get(name)]
    if features:
        yield Element("features", children=tuple(Element(name) for name in features))
    if wish.get("nocow"):
        yield Element("nocow")


def _initiator(name: str) -> Element:
    return Element("initiator", children=(Element("iqn", (("name", name),)),))


def _text(name: str, text: str) -> Element:
    return Element(name, text=text)


def _bytes(name: str, count: int) -> Element:
    return Element(name, (("unit", "bytes"),), str(count))
