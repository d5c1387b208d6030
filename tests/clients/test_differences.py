"""The table of wanted differences, and the comparison that reads it."""

from __future__ import annotations

import re

import pytest

from tests.clients.differences import DIFFERENCES, MASKS, Difference, compare, difference


def test_each_line_says_why() -> None:
    for line in DIFFERENCES:
        assert line.why
        for pattern in (line.where, line.theirs, line.ours):
            re.compile(pattern)
    for mask in MASKS:
        assert mask.why
        assert not re.fullmatch(mask.pattern, ""), "it would take out nothing"


def test_what_is_not_in_the_table_fails() -> None:
    compare("somewhere", {"a": [1, "x"]}, {"a": [1, "x"]})
    with pytest.raises(AssertionError, match=r"somewhere: a\[1\]"):
        compare("somewhere", {"a": [1, "x"]}, {"a": [1, "y"]})
    with pytest.raises(AssertionError, match="somewhere: b"):
        compare("somewhere", {}, {"b": 1})
    with pytest.raises(AssertionError, match="somewhere"):
        compare("somewhere", [1, 2], [1])


def test_a_line_covers_one_answer_only() -> None:
    line = Difference("here.*", "1", "2", "it was decided")
    assert line.covers("here: x", 1, 2)
    assert not line.covers("there", 1, 2)
    assert not line.covers("here", 2, 1)
    assert difference("wiping: 1 vol-wipe w --algorithm nnsa", "Vol w wiped\n", "no") is None
