"""Every inhabitant of the zoo gets the answer it deserves, by all three ways of asking."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from storaged.formats import probe
from storaged.formats.image import ImageState
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import cases
from tests.formats.zoo_case import Case

ZOO = cases()


def test_names_are_unique() -> None:
    names = [case.name for case in ZOO]
    assert len(set(names)) == len(names)
    assert len(names) > 170


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_answer(case: Case) -> None:
    handle = MemoryHandle(case.data)
    info = probe.probe(handle)
    assert (info.format, info.state) == (case.format, case.state), info
    expected = len(case.data) if case.capacity is None else case.capacity
    assert info.capacity == expected
    assert bool(info.reasons) == (info.state is not ImageState.OK)
    assert re.search(case.reason, "; ".join(info.reasons)), info.reasons
    assert all(reason.isprintable() for reason in info.reasons)
    for offset, length in handle.reads:
        in_head = offset + length <= 33280
        in_tail = offset >= len(case.data) - 1024 and length <= 1024
        assert in_head or in_tail


def test_a_scan_gives_the_same_answers(tmp_path: Path) -> None:
    """One prober for all, twice, so that the second round is answered from memory."""
    prober = probe.Prober()
    path = tmp_path / "image"
    for case in ZOO * 2:
        path.write_bytes(case.data)
        expected = probe.probe(MemoryHandle(case.data))
        fd = os.open(path, os.O_RDONLY)
        try:
            seen = prober.probe_fd(fd, len(case.data))
            alone = probe.probe_fd(fd, len(case.data))
        finally:
            os.close(fd)
        assert seen == alone
        if seen is None:
            assert (expected.format, expected.state) == ("raw", ImageState.OK)
            assert expected.encryption is None
        else:
            assert seen == expected, case.name
