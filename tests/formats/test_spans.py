"""Stretches put together to whole units: nothing lost, nothing twice, no unit in two spans."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.formats.convert import convert
from storaged.formats.disk import Kind, Stretch
from storaged.formats.errors import FormatError
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.raw_writer import RawWriter
from storaged.formats.spans import Cutter, Span, part
from tests.formats import contents, qemu
from tests.formats.contents import MIB
from tests.formats.memory import MemoryHandle

UNIT = 8
FILE = MemoryHandle()
KINDS = {"d": Kind.DATA, "c": Kind.COMPRESSED, "z": Kind.ZERO, "a": Kind.ABSENT}


def stretches(text: str) -> list[Stretch]:
    """Make stretches of a disk whose every byte is a letter: ``ddzzaa``."""
    found = []
    offset = 0
    for letter, group in itertools.groupby(text):
        length = len(list(group))
        kind = KINDS[letter]
        file = FILE if kind is Kind.DATA else None
        host = 1000 - offset if file else 0
        found.append(Stretch(offset, length, kind, 0, file, host))
        offset += length
    return found


def cut(text: str, *, zeros: bool = False, absent: bool = False) -> list[Span]:
    cutter = Cutter(
        UNIT, len(text), zeros=zeros, absent=absent, movable=lambda piece: piece.kind is Kind.DATA
    )
    return list(cutter.cut(stretches(text)))


def units(text: str) -> Iterator[tuple[int, set[str]]]:
    for start in range(0, len(text), UNIT):
        yield start, set(text[start : start + UNIT])


runs = st.tuples(st.sampled_from("dcza"), st.integers(1, 3 * UNIT))
texts = st.lists(runs, max_size=12).map(
    lambda found: "".join(kind * count for kind, count in found)
)


@given(texts, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_unit_is_where_it_belongs(text: str, zeros: bool, absent: bool) -> None:
    spans = cut(text, zeros=zeros, absent=absent)
    given_at: dict[int, Span] = {}
    reached = 0
    for span in spans:
        assert reached <= span.offset < span.end <= len(text)
        assert span.offset % UNIT == 0
        assert span.end % UNIT == 0 or span.end == len(text)
        reached = span.end
        given_at |= dict.fromkeys(range(span.offset, span.end, UNIT), span)
        for before, after in itertools.pairwise(span.pieces):
            assert before.offset + before.length <= after.offset
    for start, kinds in units(text):
        there = given_at.get(start)
        if kinds & {"d", "c"}:
            assert there is not None
            assert there.pieces
            assert there.moves or "d" not in kinds
        elif not zeros or (absent and kinds == {"a"}):
            assert there is None
        else:
            assert there is not None
            assert there.pieces or not (absent and "a" in kinds)


@given(texts, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_byte_is_in_a_piece(text: str, zeros: bool, absent: bool) -> None:
    found = ["z" if zeros else "-"] * len(text)
    for span in cut(text, zeros=zeros, absent=absent):
        for piece in span.pieces:
            letter = next(letter for letter, kind in KINDS.items() if kind is piece.kind)
            assert piece.kind is not Kind.DATA or piece.host == _host(text, piece.offset)
            found[piece.offset : piece.offset + piece.length] = letter * piece.length
    for start, kinds in units(text):
        unit = text[start : start + UNIT]
        if kinds & {"d", "c"} or (zeros and not kinds <= {"a"}):
            expected = unit if zeros else unit.replace("z", "-").replace("a", "-")
            if not absent:
                expected = expected.replace("a", "z" if zeros else "-")
            assert "".join(found[start : start + UNIT]) == expected


def _host(text: str, offset: int) -> int:
    piece = next(
        piece for piece in stretches(text) if piece.offset <= offset < piece.offset + piece.length
    )
    return piece.host + offset - piece.offset


def test_what_is_moved_and_what_is_read() -> None:
    text = "d" * 16 + "c" * 8 + "d" * 12 + "c" * 4 + "c" * 8
    spans = cut(text)
    assert [(span.offset, span.end, span.moves) for span in spans] == [
        (0, 16, True),
        (16, 24, False),
        (24, 32, True),
        (32, 48, True),
    ]


def test_spans_stay_short() -> None:
    """However many pieces there are: a span has about a thousand, also within one huge unit."""
    many = [Stretch(place * 2, 1, Kind.DATA, 0, FILE, place * 7) for place in range(20_000)]
    for unit in (8, 1 << 13):
        cutter = Cutter(unit, 40_000, zeros=False, absent=False, movable=lambda _piece: True)
        spans = list(cutter.cut(many))
        assert max(len(span.pieces) for span in spans) <= 1024 + unit
        assert sum(len(span.pieces) for span in spans) == 20_000


def test_part_of_a_stretch() -> None:
    stretch = Stretch(100, 50, Kind.DATA, 0, FILE, 1000)
    assert part(stretch, 0, 1000) is stretch
    assert part(stretch, 110, 120) == Stretch(110, 10, Kind.DATA, 0, FILE, 1010)


# Hostile sources


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small image with plain, packed and zero clusters."""
    place = tmp_path_factory.mktemp("hostile")
    path = qemu.create(place / "image", MIB, "cluster_size=4096")
    qemu.io(path, "write -c -P 3 0 65536", "write -P 5 131072 100000", "write -z 600000 100000")
    return path.read_bytes()


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_images(tmp_path: Path, image: bytes, flips: list[tuple[float, int]]) -> None:
    """A conversion ends: with content of the right length, or with an error of the format."""
    data = bytearray(image)
    for where, value in flips:
        data[int(where * (len(data) - 1)) if where > 0.2 else int(where * 5 * 0x7000)] = value
    (tmp_path / "raw").unlink(missing_ok=True)
    try:
        disk = Qcow2Disk(MemoryHandle(bytes(data)))
        size = min(disk.size(), 4 * MIB)
        with qemu.open_native(tmp_path / "raw") as target:
            convert(disk, RawWriter(target, size), size=size)
    except FormatError:
        return
    assert (tmp_path / "raw").stat().st_size == size


def test_raw_to_nothing(tmp_path: Path) -> None:
    raw = contents.raw(tmp_path / "raw", 0, [])
    with qemu.open_native(raw) as source:
        contents.to_raw(source, tmp_path / "r", 0)
        contents.to_qcow2(source, tmp_path / "q", 0)
    assert (tmp_path / "r").stat().st_size == 0
    qemu.check(tmp_path / "q")
