"""Counts of clusters and refcounts in bulk, against the plain way to do it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import qcow2
from storaged.formats.counts import MAX_CLUSTERS, STEP, Counts, make_plane
from storaged.formats.errors import UnsupportedFormat
from storaged.formats.qcow2_create import CreateOptions, create
from storaged.formats.qcow2_refcounts import Refcounts
from storaged.formats.qcow2_references import segments
from storaged.formats.tables import refcount, set_refcount, unpack_entries, unpack_refcounts
from tests.formats.memory import MemoryHandle

CLUSTERS = STEP + 1000
LONG = (1 << 24) + 2 * STEP
PLACE = st.integers(0, CLUSTERS - 1)
TIMES = st.sampled_from([1, 2, 100, 255, 256, 300, 70000])


@settings(max_examples=40, deadline=None)
@given(
    single=st.lists(st.tuples(st.lists(PLACE, max_size=5), TIMES), max_size=8),
    runs=st.lists(st.tuples(PLACE, st.integers(0, 900), TIMES), max_size=4),
)
def test_counts(single: list[tuple[list[int], int]], runs: list[tuple[int, int, int]]) -> None:
    counts, plain = Counts(CLUSTERS), Counter[int]()
    for places, times in single:
        counts.add(iter(places), times)
        for place in places:
            plain[place] += times
    for first, count, times in runs:
        count = min(count, CLUSTERS - first)
        counts.add_run(first, count, times)
        for place in range(first, first + count):
            plain[place] += times
    assert list(counts.used()) == sorted(plain)
    assert all(counts[place] == plain[place] for place in plain)
    assert counts.last() == max(plain, default=-1)
    ones = counts.ones()
    assert [place for place in range(CLUSTERS) if ones[place] == 1] == sorted(
        place for place in plain if plain[place] == 1
    )
    others = [place for place in range(CLUSTERS) if plain[place] != 1]
    assert list(counts.other_than_one(0, CLUSTERS)) == others
    assert list(counts.differing(Counts(CLUSTERS))) == sorted(plain)
    assert list(counts.differing(counts)) == []
    assert counts.is_zero(0, CLUSTERS) is not bool(plain)
    copy = Counts(CLUSTERS)
    copy.fill(0, [bytes(plane) for plane in counts.planes])
    assert list(copy.differing(counts)) == []


def test_long_planes_are_as_short_ones() -> None:
    counts = Counts(LONG)
    assert not isinstance(counts.planes[0], bytearray)
    counts.add([5, LONG - 1, 5], 200)
    counts.add_run(LONG // 2, 2)
    assert list(counts.used()) == [5, LONG // 2, LONG // 2 + 1, LONG - 1]
    assert counts[5] == 400
    assert counts.last() == LONG - 1
    assert bytes(make_plane(LONG)[:10]) == bytes(10)
    with pytest.raises(UnsupportedFormat, match="too long to be checked"):
        Counts(MAX_CLUSTERS + 1)


@given(order=st.integers(0, 6), data=st.data())
@settings(max_examples=50, deadline=None)
def test_unpacked_refcounts(order: int, data: st.DataObject) -> None:
    block = bytearray(512)
    most = (1 << (1 << order)) - 1
    values = data.draw(st.dictionaries(st.integers(0, (4096 >> order) - 1), st.integers(0, most)))
    for place, value in values.items():
        set_refcount(block, place, order, value)
    planes = unpack_refcounts(block, order)
    for place in range(4096 >> order):
        assert sum(plane[place] << 8 * number for number, plane in enumerate(planes)) == refcount(
            block, place, order
        )


def test_unpacked_entries() -> None:
    assert list(unpack_entries(b"\0\0\0\0\0\0\1\2" + b"\x80" + bytes(7) + b"cut")) == [258, 1 << 63]


@settings(max_examples=60, deadline=None)
@given(
    order=st.integers(0, 6),
    counted=st.lists(st.integers(0, 700), min_size=1, max_size=60),
    data=st.data(),
)
def test_lowered_refcounts(order: int, counted: list[int], data: st.DataObject) -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(1 << 20, cluster_size=512, refcount_bits=1 << order))
    counts = Refcounts(handle, qcow2.read_header(bytes(handle.data[:112])))
    most = (1 << (1 << order)) - 1
    values = [min(value, most) for value in counted]
    for cluster, value in enumerate(values):
        counts.set((cluster,), value)
    amounts = [data.draw(st.integers(0, min(value, 255))) for value in values]
    freed = counts.lower(0, bytes(amounts))
    for cluster, value in enumerate(values):
        assert counts.get(cluster) == value - amounts[cluster]
        assert freed[cluster] == (amounts[cluster] > 0 and value == amounts[cluster])


@settings(max_examples=100, deadline=None)
@given(tables=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=10))
def test_segments(tables: list[tuple[int, int]]) -> None:
    covered = Counter(
        place for offset, length in tables for place in range(offset, offset + length)
    )
    found: Counter[int] = Counter()
    for part in segments(tables):
        for place in range(part.start, part.stop):
            assert not found[place]
            found[place] = part.times
    assert found == covered
