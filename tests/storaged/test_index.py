"""The index of volumes: single steps, derived and own keys, merges with scans."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.index import VolumeIndex
from storaged.model import Permissions, VolumeRecord


def record(name: str, capacity: int = 1, **own: str) -> VolumeRecord:
    return VolumeRecord(name, capacity, 0, **own)  # type: ignore[arg-type]


def index(*records: VolumeRecord) -> VolumeIndex:
    return VolumeIndex({record.name: record for record in records})


def test_put_get_remove() -> None:
    found = index()
    found.put(one := record("a"))
    assert found.get("a") is one
    assert "a" in found
    assert (len(found), found.names(), found.records()) == (1, ["a"], [one])
    assert found.remove("a") is one
    assert found.remove("a") is None
    assert len(found) == 0


def test_own_keys_and_paths_lead_to_their_record() -> None:
    found = index(one := record("a", key="k1", path="/p1"), record("b"))
    assert found.by_key("k1") is one
    assert found.by_path("/p1") is one
    assert found.by_key("/p1") is None
    assert found.by_path("") is None


def test_own_keys_are_found_wherever_they_stand_among_derived_ones() -> None:
    found = index(record("a"), record("b", key="k"))
    assert found.by_key("k") is not None


def test_a_new_key_replaces_the_old_one() -> None:
    found = index(record("a", key="old"))
    found.put(record("a", key="new"))
    assert found.by_key("old") is None
    assert found.by_key("new") is not None


def test_removing_one_of_two_with_the_same_key_leaves_the_other() -> None:
    found = index(record("a", key="k"), record("b", key="k"))
    found.remove("a")
    assert found.by_key("k") is found.get("b")
    found.remove("b")
    assert found.by_key("k") is None


def test_a_scan_replaces_what_nobody_touched() -> None:
    found = index(record("gone"), record("grown", 1))
    merged = found.merged({"grown": record("grown", 9), "new": record("new")}, ())
    assert sorted(merged.names()) == ["grown", "new"]
    grown = merged.get("grown")
    assert grown is not None
    assert grown.capacity == 9
    assert sorted(found.names()) == ["gone", "grown"]


def test_what_was_touched_wins_over_the_scan() -> None:
    found = index(record("made"), record("changed", 5))
    scanned = {"changed": record("changed", 1), "deleted": record("deleted")}
    merged = found.merged(scanned, {"made", "changed", "deleted"})
    assert sorted(merged.names()) == ["changed", "made"]
    changed = merged.get("changed")
    assert changed is not None
    assert changed.capacity == 5


names = st.sampled_from("abcdef")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, st.integers(0, 3)),
    st.dictionaries(names, st.integers(4, 7)),
    st.sets(names),
)
def test_merge_is_the_scan_but_for_what_was_touched(
    before: dict[str, int], scanned: dict[str, int], touched: set[str]
) -> None:
    found = index(*(record(name, value, key=f"k{name}") for name, value in before.items()))
    merged = found.merged(
        {name: record(name, value, key=f"k{name}") for name, value in scanned.items()}, touched
    )
    expected = {name: value for name, value in scanned.items() if name not in touched}
    expected |= {name: value for name, value in before.items() if name in touched}
    assert {one.name: one.capacity for one in merged.records()} == expected
    assert all(merged.by_key(f"k{name}") is merged.get(name) for name in expected)


def test_readers_see_whole_states_while_others_write() -> None:
    found = index()
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            wrong.extend(one for one in found.records() if one.key is None)
            found.names()
            known = found.by_key("k7")
            if known is not None and known.name != "v7":
                wrong.append(known)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(20_000):
        name = f"v{number % 50}"
        if number % 3:
            found.put(record(name, number, key=f"k{number % 50}"))
        else:
            found.remove(name)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


@pytest.mark.slow
def test_a_hundred_thousand_volumes_stay_small() -> None:
    permissions = Permissions(0o600, 0, 0)
    template = VolumeRecord("", 1 << 30, 0, 1 << 30, "raw", permissions=permissions)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = VolumeIndex(
            {
                name: replace(template, name=name, capacity=(1 << 30) + number, stamp=bytes(40))
                for number in range(100_000)
                for name in (f"volume-{number:06}.img",)
            }
        )
        each = (tracemalloc.get_traced_memory()[0] - before) / len(found)
    finally:
        tracemalloc.stop()
    assert each < 600
