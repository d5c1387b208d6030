"""Events: in order, once, whoever raises."""

from __future__ import annotations

import logging
import threading
from typing import Any
from uuid import uuid4

import pytest

from storaged.events import Event, Events, Lifecycle
from storaged.model import PoolRef
from storaged.storage import Storage
from tests.doubles import PATIENCE
from tests.storaged.conftest import Engine

REF = PoolRef("p", uuid4())


def test_the_numbers_are_libvirts() -> None:
    assert [kind.name for kind in sorted(Lifecycle)] == [
        "DEFINED", "UNDEFINED", "STARTED", "STOPPED", "CREATED", "DELETED"
    ]  # fmt: skip
    assert sorted(Lifecycle) == [0, 1, 2, 3, 4, 5]


def test_nothing_is_told_before_delivery() -> None:
    events = Events()
    told: list[Any] = []
    events.subscribe(told.append)
    events.post(REF, Lifecycle.STARTED)
    assert told == []
    events.deliver()
    events.deliver()
    assert told == [Event(REF, Lifecycle.STARTED)]


def test_what_a_subscriber_causes_is_told_after_what_it_hears() -> None:
    events = Events()
    told: list[Any] = []

    def first(event: Event) -> None:
        if event.lifecycle is Lifecycle.STOPPED:
            events.post(REF, Lifecycle.UNDEFINED)
            events.deliver()

    events.subscribe(first)
    events.subscribe(lambda event: told.append(event.lifecycle))
    events.post(REF, Lifecycle.STOPPED)
    events.deliver()
    assert told == [Lifecycle.STOPPED, Lifecycle.UNDEFINED]


def test_a_subscriber_that_raises_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    told: list[Any] = []

    def bad(_event: Event) -> None:
        raise ValueError("bad")

    events.subscribe(bad)
    events.subscribe(told.append)
    events.post(REF, None)
    events.post(REF, Lifecycle.STOPPED)
    with caplog.at_level(logging.ERROR, "storaged.events"):
        events.deliver()
    assert [event.lifecycle for event in told] == [None, Lifecycle.STOPPED]
    assert len(caplog.records) == 2


def test_one_function_subscribed_twice_hears_twice() -> None:
    events = Events()
    told: list[Any] = []
    end = events.subscribe(told.append)
    events.subscribe(told.append)
    events.post(REF, None)
    events.deliver()
    end()
    end()
    events.post(REF, None)
    events.deliver()
    assert len(told) == 3


def test_order_and_number_under_load() -> None:
    events = Events()
    refs = [PoolRef(f"p{number}", uuid4()) for number in range(4)]
    told: dict[PoolRef, list[int | None]] = {ref: [] for ref in refs}
    inside, nested = threading.Lock(), []

    def hear(event: Event) -> None:
        if not inside.acquire(blocking=False):
            nested.append(event)
            return
        told[event.pool].append(event.lifecycle)
        inside.release()

    events.subscribe(hear)
    sequence = [kind for _ in range(500) for kind in (Lifecycle.STARTED, None, Lifecycle.STOPPED)]

    def work(ref: PoolRef) -> None:
        for kind in sequence:
            events.post(ref, kind)
            events.deliver()

    threads = [threading.Thread(target=work, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert nested == []
    assert all(told[ref] == sequence for ref in refs)


def test_a_subscriber_may_use_the_pool_it_hears_of(engine: Engine, storage: Storage) -> None:
    seen: list[tuple[str, bool]] = []

    def look(event: Event) -> None:
        if event.lifecycle in (Lifecycle.STARTED, Lifecycle.STOPPED):
            seen.append((event.lifecycle.name, storage.pool(event.pool.name).active))

    storage.subscribe(look)
    pool = engine.pool()
    pool.stop()
    assert seen == [("STARTED", True), ("STOPPED", False)]


def test_a_transient_pool_is_gone_when_its_stop_is_told(engine: Engine, storage: Storage) -> None:
    left: list[int] = []
    pool = storage.create_pool(engine.definition())
    storage.subscribe(lambda event: left.append(len(storage.pools())))
    pool.stop()
    assert left == [0]
