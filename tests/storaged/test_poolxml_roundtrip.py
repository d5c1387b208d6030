"""Properties: what is printed is read back, is well-formed, and stays the same from then on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from storaged.model import PoolDef, PoolSource, PoolType, Space
from storaged.poolxml import format_pool, format_sources, parse_pool, parse_source
from storaged.source import settle_source
from storaged.traits import traits_of
from storaged.xmlwrite import escape_attribute, escape_text
from tests import strategies

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@QUICK
@given(strategies.pools(), strategies.SPACES)
def test_what_is_printed_is_read_back(pool: PoolDef, space: Space) -> None:
    text = format_pool(pool, space)
    assert parse_pool(text, plugin_types={strategies.PLUGIN}) == pool
    assert parse_pool(text.encode(), lenient=True) == pool


@pytest.mark.parametrize("kind", [*PoolType, strategies.PLUGIN])
@settings(QUICK, max_examples=10)
@given(data=st.data())
def test_every_type_is_read_back(kind: str, data: st.DataObject) -> None:
    pool = data.draw(strategies.pools(kind))
    text = format_pool(pool)
    again = parse_pool(text, plugin_types={strategies.PLUGIN})
    assert again == pool
    assert format_pool(again) == text
    assert replace(pool) == pool


@QUICK
@given(data=st.data())
def test_sources_are_read_back(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(tuple(PoolType)))
    found = data.draw(st.lists(strategies.sources(kind), max_size=3))
    text = format_sources(kind, found)
    documents = [etree.tostring(element) for element in etree.fromstring(text)]
    traits = traits_of(kind)
    expected: list[PoolSource] = [settle_source(traits, source) for source in found]
    assert [parse_source(kind, document) for document in documents] == expected


@QUICK
@given(strategies.ODD_TEXTS)
def test_any_text_gives_well_formed_documents(text: str) -> None:
    name = text.replace("/", "_")
    pool = PoolDef(PoolType.DIR, name, target="/" + text, source=PoolSource(vendor=text))
    printed = format_pool(pool)
    once = parse_pool(printed.encode())
    assert format_pool(once) == printed
    assert len(once.name) >= len(name)


@QUICK
@given(strategies.TEXTS)
def test_legal_text_survives_in_text_and_attribute(text: str) -> None:
    document = f"<a b='{escape_attribute(text)}'>{escape_text(text)}</a>"
    element = etree.fromstring(document.encode())
    assert element.text == text
    assert element.get("b") == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a&b<c>d\"e'f", "a&amp;b&lt;c&gt;d&quot;e&apos;f"),
        ("bell\x07", r"bell\x07"),
        ("byte\udcff", r"byte\xff"),
        ("half\ud834", r"half\ud834"),
        ("none\ufffe", r"none\ufffe"),
        ("back\\slash", "back\\slash"),
        ("re\rturn", "re&#13;turn"),
        ("plain ü 漢 \x7f\x85", "plain ü 漢 \x7f\x85"),
    ],
)
def test_the_one_escape_rule(text: str, written: str) -> None:
    assert escape_text(text) == written
    assert escape_attribute(text) == written


def test_tab_and_newline_are_references_in_attributes_only() -> None:
    assert escape_text("a\tb\nc") == "a\tb\nc"
    assert escape_attribute("a\tb\nc") == "a&#9;b&#10;c"
