"""Documents of somebody who means harm: refused quickly, with a line, in little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from storaged.errors import XMLError, XMLSyntaxError
from storaged.xmlread import MAX_DOCUMENT, Node, read

LAUGHS = "<!DOCTYPE pool [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 10}'>"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refused(text: str | bytes) -> XMLSyntaxError:
    started = time.monotonic()
    with pytest.raises(XMLSyntaxError) as caught:
        read(text, "pool", "storage_pool_definition")
    assert time.monotonic() - started < 5
    assert caught.value.code == 35
    assert caught.value.line is not None
    assert str(caught.value).startswith(f"(storage_pool_definition):{caught.value.line}: ")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("\n\n<pool", 3),
        ("<pool>\n<a>\n</b></pool>", 3),
        ("<pool/>\n<pool/>", 2),
        ("<pool>&nbsp;</pool>", 1),
        ("<pool>\n&#1;</pool>", 2),
        ("<pool>\n\x1b</pool>", 2),
        ("<pool a='1' a='2'/>", 1),
        ("<pool>\n\0</pool>", 2),
        (b"<pool>\n\n\xff</pool>", 3),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?>\n<pool>\xe9</pool>", 2),
        ("<pool>ü</pool>".encode("utf-16"), 1),
        ("<pool>\n\udcff</pool>", 2),
        ("<pool unbound:a='1'/>", 1),
    ],
)
def test_not_well_formed(text: str | bytes, line: int) -> None:
    assert refused(text).line == line


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE pool><pool/>",
        "<!DOCTYPE pool [<!ENTITY a 'b'>]><pool>&a;</pool>",
        "<?xml version='1.0'?> <!-- > --> <?a b?> <!DOCTYPE pool SYSTEM 'http://x/'><pool/>",
        "<!DOCTYPE pool [<!ENTITY % d SYSTEM 'file:///etc/passwd'> %d;]><pool/>",
        "<!DOCTYPE pool [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><pool>&f;</pool>",
        LAUGHS + "]><pool>&i;</pool>",
        "\ufeff<!DOCTYPE pool><pool/>",
    ],
)
def test_document_type_is_refused(text: str) -> None:
    assert "document type" in str(refused(text))


@pytest.mark.parametrize(
    "text", ["<!-- <!DOCTYPE a> --><pool/>", "<pool><![CDATA[<!DOCTYPE]]></pool>"]
)
def test_mention_of_a_document_type_is_not_one(text: str) -> None:
    assert read(text, "pool", "x").name == "pool"


@pytest.mark.parametrize(
    "text",
    [
        "<a>" * (10 * 1024 * 1024 // 3),
        "<pool>" + "<a>" * 100_000,
        "<pool>" + "<a>" * 300 + "</a>" * 300 + "</pool>",
        "<pool>" + "x" * MAX_DOCUMENT + "</pool>",
        "<!--" * 200_000,
        "<!---->" * 140_000,
        "<?a" * 200_000,
        " " * (MAX_DOCUMENT - 1),
        "<pool " + "a='1' " * 100_000,
    ],
    ids=range(9),
)
def test_large_and_deep_documents(text: str) -> None:
    refused(text)


def test_memory_stays_flat() -> None:
    """A fresh process reads hostile documents and must not have grown by more than 64 MiB."""
    script = f"""
import resource
from storaged.xmlread import read
from storaged.errors import XMLError
read("<pool/>", "pool", "x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for text in ({LAUGHS + "]><pool>&i;</pool>"!r}, "<pool>" + "<a>" * 300_000, "<b/>" * 250_000,
             "<pool>" + "<a/>" * 250_000 + "</pool>", "<pool a='" + "&lt;" * 250_000 + "'/>"):
    try:
        read(text, "pool", "x")
    except XMLError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert int(run.stdout) < 64 * 1024


def test_encoding_of_the_declaration_does_not_count() -> None:
    text = "<?xml version='1.0' encoding='ISO-8859-1'?><pool>é</pool>"
    assert read(text, "pool", "x").content() == "é"
    assert read("\ufeff<pool>é</pool>".encode(), "pool", "x").content() == "é"


def test_root_is_checked_by_its_local_name() -> None:
    assert read("<p:pool xmlns:p='urn:p'/>", "pool", "x").name == "pool"
    with pytest.raises(XMLError, match="expecting root element of 'pool', not 'xi'"):
        read("<xi/>", "pool", "x")


@pytest.fixture
def node() -> Node:
    return read(
        "<pool><empty/><text a='' b='x'> t<!-- c --><i>u</i>v </text><text a='second'>w</text>"
        "<n signed=' -5' hex='0x1F' oct='017' big='4294967296' junk='5 '/></pool>",
        "pool",
        "x",
    )


def test_read_by_path_empty_is_absent(node: Node) -> None:
    assert node.text("empty") is None
    assert node.text("none") is None
    assert node.text("text") == " tuv "
    assert node.value("text", "a") is None
    assert node.value("text", "b") == "x"
    assert node.value("text", "c") is None


def test_read_as_property_empty_is_kept(node: Node) -> None:
    first = node.all("text")[0]
    assert first.attribute("a") == ""
    assert first.attribute("c") is None
    assert first.required("a") == ""
    with pytest.raises(XMLError, match="Missing required attribute 'c' in element 'text'"):
        first.required("c")


def test_numbers(node: Node) -> None:
    number = node.first("n")
    assert number is not None
    assert number.integer("signed") == -5
    assert number.unsigned("hex", any_base=True) == 31
    assert number.unsigned("oct", any_base=True) == 15
    assert number.unsigned("oct") == 17
    assert number.integer("none") is None
    for attribute in ("big", "junk", "hex", "signed"):
        with pytest.raises(XMLError, match="Expected non-negative integer value"):
            number.unsigned(attribute)


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ("<a>\n\t<b c=d/></a>", "\n\t<b c=d/></a>\n\t-----^"),
        ("<a>\r\n\u00fc</b>\r\n", "\n\u00fc</b>\n------^"),
        ("", "\n(null)\n^"),
        ("<a>" + "x" * 5000 + "</b>", ""),
    ],
)
def test_the_line_at_fault_is_shown(document: str, shown: str) -> None:
    _, newline, rest = str(refused(document)).partition("\n")
    assert newline + rest == shown


REPEATED = """<r><a><x/></a><a><b k=''>1</b><b k='2'>2</b></a><c><a><b>no</b></a></c><a><b>3</b></a>
<d>one<e>two</e>three</d><f>four<!-- gone -->five<![CDATA[six]]></f></r>"""


@pytest.mark.parametrize("path", ["a", "a/b", "a/x", "c/a/b", "b", "a/x/y", "d", "e", "d/e"])
def test_elements_are_found_as_lxml_finds_them(path: str) -> None:
    root = read(REPEATED, "r", "x")
    found = root.first(path)
    assert (found.element if found else None) is root.element.find(path)
    values = [node.get("k") for node in root.element.iterfind(path)]
    assert root.value(path, "k") == (next((v for v in values if v is not None), None) or None)


def test_text_is_all_there_is() -> None:
    root = read(REPEATED, "r", "x")
    assert root.text("d") == "onetwothree"
    assert root.text("f") == "fourfivesix"
    assert root.text("a/x") is None
