"""Results in order, errors that end all, threads that do not stay."""

from __future__ import annotations

import gc
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.parallel import Ordered


@given(st.lists(st.integers(), max_size=60), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_results_come_in_order(items: list[int], threads: int) -> None:
    dice = random.Random(1)

    def work(item: int) -> int:
        time.sleep(dice.random() / 2000)
        return item + 1

    before = threading.active_count()
    results: list[int] = []
    ordered = Ordered([work] * threads, results.append)
    for item in items:
        ordered.put(item)
    ordered.drain()
    ordered.close()
    assert results == [item + 1 for item in items]
    assert threading.active_count() == before


def test_no_more_are_under_way_than_a_few() -> None:
    started: list[int] = []
    delivered: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item

    ordered = Ordered([work, work], delivered.append)
    for item in range(200):
        ordered.put(item)
        assert item + 1 - len(delivered) <= 8
    ordered.drain()
    ordered.close()
    assert delivered == list(range(200))
    assert sorted(started) == delivered


def test_each_function_has_its_thread() -> None:
    seen: list[set[int]] = [set(), set()]

    def function(number: int) -> None:
        seen[number].add(threading.get_ident())

    ordered = Ordered([lambda _item: function(0), lambda _item: function(1)], lambda _none: None)
    for item in range(50):
        ordered.put(item)
    ordered.drain()
    ordered.close()
    assert len(seen[0] | seen[1]) == len(seen[0]) + len(seen[1])
    assert threading.get_ident() not in seen[0] | seen[1]


def test_an_error_ends_all() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    before = threading.active_count()
    results: list[int] = []
    ordered = Ordered([work, work], results.append)

    def put_all() -> None:
        for item in range(100):
            ordered.put(item)
        ordered.drain()

    with pytest.raises(ValueError, match="five"):
        put_all()
    assert results == [0, 1, 2, 3, 4]
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="put after close"):
        ordered.put(1)


def test_closing_drops_what_waits() -> None:
    gate = threading.Event()
    results: list[bool] = []
    before = threading.active_count()
    ordered = Ordered([lambda _item: gate.wait(10)], results.append)
    for item in range(3):
        ordered.put(item)
    gate.set()
    ordered.close()
    ordered.close()
    assert results == []
    assert threading.active_count() == before


def test_forgotten_ones_end_their_threads() -> None:
    before = set(threading.enumerate())
    ordered = Ordered([str], lambda _text: None)
    ordered.put(1)
    ordered.drain()
    threads = set(threading.enumerate()) - before
    assert len(threads) == 1
    assert all(thread.daemon for thread in threads)
    del ordered
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_no_thread_before_there_is_work() -> None:
    before = threading.active_count()
    ordered = Ordered([str], lambda _text: None)
    ordered.drain()
    assert threading.active_count() == before
    ordered.close()
