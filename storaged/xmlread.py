"""Reading XML from anybody: a parser that trusts nothing, and typed access to what it read.

A document may be 1 MiB long and 256 elements deep. A document type declaration is refused, with it
every entity but the five of XML; nothing is ever fetched. Text must be UTF-8.

There are two kinds of "empty", as in libvirt. What is read by path (`Node.text`, `Node.value`) is
absent when it is empty; what is read as a property of an element at hand (`Node.attribute` and the
typed ones) is kept when it is empty. Where an element repeats, the first one counts; what is not
known is ignored.

Every error carries the path of the element and its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from lxml import etree

from storaged import rules
from storaged.errors import Domain, StorageError, XMLError, XMLSyntaxError, where

#: The longest document that is read, in bytes. Libvirt's own are a few KiB.
MAX_DOCUMENT = 1024 * 1024

#: What may stand before the root, without going back once it has matched, then a doctype.
_DOCTYPE = re.compile(rb"(?>\s+|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)
#: The longest line of a document that an error message shows, in characters.
_MAX_EXCERPT = 4096
#: What lxml puts behind a message; the line stands before it already.
_PLACE = re.compile(r", line \d+, column \d+$")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Node:
    """An element of a document, and its path below the root for error messages."""

    element: etree._Element
    path: str = ""

    @property
    def line(self) -> int:
        """The line of the start tag, counted from 1."""
        line = cast("int | None", self.element.sourceline)  # the stubs know no type for it
        return line or 1

    def first(self, path: str) -> Node | None:
        """Return the first element at *path*, or None."""
        found = _first(self.element, path)
        return None if found is None else Node(found, self._below(path))

    def all(self, path: str) -> list[Node]:
        """Return all elements at *path*, in the order of the document."""
        below = self._below(path)
        return [Node(found, below) for found in self.element.iterfind(path)]

    def children(self) -> list[Node]:
        """Return the elements directly below this one."""
        found = self.element.iterchildren(tag=etree.Element)
        return [Node(child, self._below(str(child.tag))) for child in found]

    @property
    def name(self) -> str:
        """The name of the element, without its namespace."""
        return etree.QName(self.element).localname

    def content(self) -> str:
        """Return all text in this element; it may be empty."""
        if len(self.element) == 0:
            return self.element.text or ""
        return "".join(map(str, self.element.itertext()))

    def text(self, path: str) -> str | None:
        """Return the text of the first element at *path*; None if there is none or no text."""
        found = self.first(path)
        return (found.content() or None) if found is not None else None

    def value(self, path: str, attribute: str) -> str | None:
        """Return an attribute of the first element at *path* that has it; None if it is empty.

        :param path: "." is this element.
        """
        for found in (self.element,) if path == "." else _at(self.element, path):
            value = found.get(attribute)
            if value is not None:
                return value or None
        return None

    def attribute(self, name: str) -> str | None:
        """Return an attribute of this element; an empty one is kept."""
        return self.element.get(name)

    def required(self, name: str) -> str:
        """Return an attribute that must be there.

        :raise XMLError: it is not.
        """
        value = self.attribute(name)
        if value is None:
            raise self.error(
                f"Missing required attribute '{name}' in element '{self.name}'", domain=Domain.XML
            )
        return value

    def switch(self, name: str) -> bool | None:
        """Return a yes/no attribute; None if it is not there.

        :raise XMLError: it holds something else.
        """
        value = self.attribute(name)
        if value is None:
            return None
        with self.blame():
            return rules.one_of(value, ("yes", "no"), name, self.name) == "yes"

    def integer(self, name: str) -> int | None:
        """Return a signed 32-bit attribute; None if it is not there.

        :raise XMLError: it holds something else.
        """
        value = self.attribute(name)
        if value is None:
            return None
        number = rules.decimal(value)
        if number is None or not -(2**31) <= number < 2**31:
            with self.blame():
                raise rules.bad_value(value, name, self.name, "Expected integer value")
        return number

    def unsigned(self, name: str, *, any_base: bool = False) -> int | None:
        """Return an unsigned 32-bit attribute; None if it is not there.

        :param any_base: also hexadecimal (``0x1f``) and octal (``037``).
        :raise XMLError: it holds something else.
        """
        value = self.attribute(name)
        if value is None:
            return None
        number = rules.number(value) if any_base else rules.decimal(value)
        if number is None or not 0 <= number < 2**32:
            with self.blame():
                raise rules.bad_value(value, name, self.name, "Expected non-negative integer value")
        return number

    def error(self, detail: str, *, domain: Domain = Domain.STORAGE) -> XMLError:
        """Return an error that points at this element."""
        return XMLError(detail, element=self.path or self.name, line=self.line, domain=domain)

    def blame(self) -> Blame:
        """Make every error of the block that knows no line point into this element.

        It points at the element that the error names if that is below this one, else at this one.
        """
        return Blame(self)

    def locate(self, err: StorageError) -> None:
        """Make an error point into this element, if it does not point anywhere yet."""
        if isinstance(err, XMLError):
            if err.line is None:
                self._point(err)
        elif not (err.advice or "").startswith("See <"):
            place = where(self.path or self.name, self.line)
            err.advice = f"{place} {err.advice}" if err.advice else place

    def _point(self, err: XMLError) -> None:
        plain = err.advice == where(err.element, None)
        found, err.line = self, self.line
        relative = (err.element or "").removeprefix(self.path).strip("/")
        for step in relative.split("/") if relative and ":" not in relative else ():
            child = found.first(step)
            if child is None:
                break
            found, err.line = child, child.line
        if err.element is None or self.path.endswith(err.element):
            err.element = self.path or self.name
        if err.advice is None or plain:
            err.advice = where(err.element, err.line)

    def _below(self, path: str) -> str:
        return f"{self.path}/{path}" if self.path else path


class Blame:
    """A block whose errors point into a node; see `Node.blame`."""

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, StorageError):
            self._node.locate(err)


def _first(element: etree._Element, path: str) -> etree._Element | None:
    """Return the first element of `_at`."""
    step, _, rest = path.partition("/")
    for child in element.iterchildren(step):
        found = _first(child, rest) if rest else child
        if found is not None:
            return found
    return None


def _at(element: etree._Element, path: str) -> Iterator[etree._Element]:
    """Yield the elements at a path of plain names, in the order of the document.

    So does lxml's ``iterfind``, which takes six times as long for the small documents here.
    """
    step, _, rest = path.partition("/")
    if not rest:
        yield from element.iterchildren(step)
        return
    for child in element.iterchildren(step):
        yield from _at(child, rest)


def read(text: str | bytes, root: str, what: str) -> Node:
    """Parse a document and return its root.

    :param root: what the root element must be called.
    :param what: names the document in errors, such as ``storage_pool_definition``.
    :raise XMLSyntaxError: it is not well-formed, too long, too deep, not UTF-8, or declares a
        document type.
    :raise XMLError: the root is called otherwise.
    """
    data = _checked(text, what)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
        collect_ids=False,
    )
    try:
        element = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as err:
        line = err.lineno or 1
        message = _PLACE.sub("", err.msg or "Document is empty")
        raise _syntax_error(what, line, message + _excerpt(data, line, err.offset or 0)) from err
    if element.getroottree().docinfo.internalDTD is not None:
        raise _syntax_error(what, 1, "a document type declaration is not allowed")
    node = Node(element)
    if node.name != root:
        raise node.error(
            f"expecting root element of '{root}', not '{node.name}'", domain=Domain.XML
        )
    return node


def _checked(text: str | bytes, what: str) -> bytes:
    if isinstance(text, str):
        try:
            data = text.encode()
        except UnicodeEncodeError as err:
            line = text.count("\n", 0, err.start) + 1
            raise _syntax_error(what, line, "a character that XML does not have") from err
    else:
        data = bytes(text)
        try:
            data.decode()
        except UnicodeDecodeError as err:
            line = data.count(b"\n", 0, err.start) + 1
            raise _syntax_error(what, line, "Input is not proper UTF-8") from err
    if len(data) > MAX_DOCUMENT:
        raise _syntax_error(what, 1, f"document is longer than {MAX_DOCUMENT} bytes")
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise _syntax_error(what, line, "a NUL is not allowed")
    data = data.removeprefix(_BOM)
    doctype = _DOCTYPE.match(data)
    if doctype is not None:
        line = data.count(b"\n", 0, doctype.end()) + 1
        raise _syntax_error(what, line, "a document type declaration is not allowed")
    return data


def _excerpt(data: bytes, line: int, column: int) -> str:
    """Return the line at fault and a mark below its *column*, as libvirt puts them into its text.

    A line of unreasonable length is left out.
    """
    text = data.decode().split("\n")[line - 1].rstrip("\r")
    if len(text) > _MAX_EXCERPT:
        return ""
    if not text:
        return "\n(null)\n^"
    # libvirt counts bytes, and leaves tabs so that the mark stands right on a terminal
    mark = "".join("\t" if sign == "\t" else "-" * len(sign.encode()) for sign in text[:column])
    return f"\n{text}\n{mark}^"


def _syntax_error(what: str, line: int, message: str) -> XMLSyntaxError:
    return XMLSyntaxError(f"({what}):{line}: {message}", line=line)
