"""Secret documents, without any daemon."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.errors import Domain, InternalError, StorageError, XMLSchemaError, XMLSyntaxError
from storaged.secrets import SecretDef, SecretFilter, SecretKind, format_secret, parse_secret
from tests.secrets.conftest import document, numbered

_TEXT = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"
    ),
    min_size=1,
)
_BOUND = st.tuples(st.sampled_from([*SecretKind][1:]), _TEXT)
_USES = st.one_of(st.just((SecretKind.NONE, None)), _BOUND)


@settings(max_examples=150, deadline=None)
@given(_USES, st.uuids(), st.booleans(), st.booleans(), st.none() | _TEXT)
def test_what_is_written_is_read(
    use: tuple[SecretKind, str | None], uuid: object, ephemeral: bool, private: bool, note: str
) -> None:
    secret = SecretDef(uuid, *use, ephemeral, private, note)  # type: ignore[arg-type]
    assert parse_secret(format_secret(secret)) == secret


def test_the_uuid_is_drawn_where_there_is_none() -> None:
    first, second = parse_secret("<secret/>"), parse_secret("<secret/>")
    assert first.uuid != second.uuid
    assert first.uuid.version == 4
    assert format_secret(first) == (
        f"<secret ephemeral='no' private='no'>\n  <uuid>{first.uuid}</uuid>\n</secret>\n"
    )


def test_errors_point_at_their_place() -> None:
    text = "<secret>\n <uuid>1</uuid>\n</secret>"
    with pytest.raises(InternalError, match="malformed uuid element") as caught:
        parse_secret(text)
    assert caught.value.domain is Domain.SECRET
    assert caught.value.advice == "See <uuid> in line 2."
    with pytest.raises(XMLSyntaxError) as broken:
        parse_secret("<secret>")
    assert broken.value.domain is Domain.SECRET
    assert broken.value.message.startswith("(definition_of_secret):1: ")


@pytest.mark.parametrize(
    "text",
    [
        "<secret ephemeral='yes' private='no'/>",
        document(1, "/a"),
        f"<secret><usage type='iscsi'><target>t</target></usage><uuid>{numbered(1)}</uuid>"
        "</secret>",
        "<secret><usage type='vtpm'><name>t</name></usage><description>d</description></secret>",
        "<secret><usage type='none'/></secret>",
    ],
)
def test_the_schema_takes_what_is_right(text: str) -> None:
    assert parse_secret(text, validate=True).usage in SecretKind


@pytest.mark.parametrize(
    "text",
    [
        "<secret foo='x'/>",
        "<secret><bar/></secret>",
        "<secret><uuid>x</uuid></secret>",
        "<secret ephemeral=''/>",
        "<secret><usage type='volume'><name>x</name></usage></secret>",
        "<secret><usage type='none'/><usage type='none'/></secret>",
    ],
)
def test_the_schema_refuses(text: str) -> None:
    with pytest.raises(XMLSchemaError, match=r"validate doc against secret\.rng"):
        parse_secret(text, validate=True)


@pytest.mark.parametrize("text", ["<!DOCTYPE secret><secret/>", "<secret>\0</secret>", b"\xff"])
def test_hostile_documents_are_refused(text: str | bytes) -> None:
    with pytest.raises(StorageError):
        parse_secret(text)


def test_filters() -> None:
    plain, hidden = SecretDef(numbered(1)), SecretDef(numbered(2), private=True)
    assert SecretFilter(0).passes(plain)
    assert not SecretFilter.PRIVATE.passes(plain)
    assert SecretFilter.PRIVATE.passes(hidden)
    assert not SecretFilter.EPHEMERAL.passes(hidden)
    assert (SecretFilter.PRIVATE | SecretFilter.NO_PRIVATE).passes(plain)
    assert not (SecretFilter.NO_PRIVATE | SecretFilter.NO_EPHEMERAL).passes(hidden)


def test_the_numbers_of_the_wire() -> None:
    assert [kind.number for kind in SecretKind] == [0, 1, 2, 3, 4, 5]
