"""Validation against RELAX NG schemas, where somebody asks for it.

The schemas are ours, written from libvirt's documentation of its formats. They are stricter than
the parsers: unknown elements, relative paths and odd characters are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from lxml import etree

from storaged.errors import Domain, XMLSchemaError
from storaged.xmlread import Node

_EXTRA = re.compile(r"Extra element (\S+) in interleave")


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled schema. It remembers the errors of its last run, so runs take turns."""

    grammar: etree.RelaxNG
    turn: Lock


def validate_pool(root: Node) -> None:
    """Check a pool's document.

    :raise XMLSchemaError: it is refused; names the element and its line.
    """
    _validate(root, "storagepool.rng")


def validate_volume(root: Node) -> None:
    """Check a volume's document.

    :raise XMLSchemaError: it is refused; names the element and its line.
    """
    _validate(root, "storagevol.rng")


def validate_secret(root: Node) -> None:
    """Check a secret's document.

    :raise XMLSchemaError: it is refused; names the element and its line.
    """
    _validate(root, "secret.rng")


def validate_capabilities(root: Node) -> None:
    """Check a document of `storaged.capabilities.pool_capabilities`.

    :raise XMLSchemaError: it is refused; names the element and its line.
    """
    _validate(root, "storagepoolcaps.rng")


def _validate(root: Node, name: str) -> None:
    schema = _schema(name)
    with schema.turn:
        if schema.grammar.validate(root.element):
            return
        errors = list(schema.grammar.error_log)
    message, element, line = _fault(root, errors)
    raise XMLSchemaError(
        f"Unable to validate doc against {name}: {message}",
        element=element,
        line=line,
        domain=Domain.XML,
    )


def _fault(root: Node, errors: list[etree._LogEntry]) -> tuple[str, str, int]:
    """Return message, path and line of the error that says most.

    What encloses the element at fault is reported as well: the deepest path is that of the fault.
    An optional element that does not fit is only called "extra", by its name and without a line.
    """
    for error in errors:
        extra = _EXTRA.fullmatch(error.message)
        found = next(root.element.iter(f"{{*}}{extra[1]}"), None) if extra else None
        if found is not None:
            path = root.element.getroottree().getelementpath(found)
            return error.message, path, Node(found).line
    fault = max(errors, key=lambda error: (error.path or "").count("/"))
    path = "/".join((fault.path or "").split("/")[2:])
    return fault.message, path or root.name, max(fault.line, 1)


@cache
def _schema(name: str) -> Schema:
    # importlib.resources is slow to import, and most engines never validate
    from importlib.resources import as_file, files

    with as_file(files("storaged") / "schemas") as folder:
        return Schema(etree.RelaxNG(etree.parse(Path(folder, name))), Lock())
