from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.cli import render


def test_a_table_is_aligned_and_has_no_trailing_blanks():
    text = render.table(
        ("Name", ">Size", "Note"), [("a", "1 KiB", ""), ("longer", "12.50 GiB", "x")]
    )
    assert text.splitlines() == [
        "Name         Size  Note",
        "a           1 KiB",
        "longer  12.50 GiB  x",
    ]


def test_an_empty_table_is_its_header():
    assert render.table(("Name", "State"), []) == "Name  State"


def test_wide_letters_count_twice():
    lines = render.table(("N", "X"), [("日本", "a"), ("abcd", "b"), ("e\u0301abc", "c")]).split(
        "\n"
    )
    assert [render.width(line) for line in lines[1:]] == [7, 7, 7]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("\x1b[2Jevil", "\\x1b[2Jevil"),
        ("two\nlines", "two\\x0alines"),
        ("byte\udcff", "byte\\xff"),
        ("\u202eback", "\\u202eback"),
        ("größe", "größe"),
    ],
)
def test_control_characters_never_reach_the_terminal(text: str, shown: str):
    assert render.clean(text) == shown


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_a_table_has_one_printable_line_a_row(rows):
    lines = render.table(("A", ">B"), rows).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


def test_fields_stand_where_virsh_has_them():
    text = render.fields([("Name", "default"), ("Capacity", "20 GiB")])
    assert text == "Name:           default\nCapacity:       20 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str):
    assert render.duration(seconds) == text


def test_sizes():
    assert render.size(21474836480) == "20 GiB"
    assert render.size(21474836480, exact=True) == "21474836480"
