"""Speed and memory, with bounds that a slow machine keeps as well."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from storaged.backend import Host
from tests.backends.conftest import Pool, make_pool
from tests.formats import qemu

COUNT = 3000


@pytest.fixture
def crowded(tmp_path: Path) -> Pool:
    """A pool with qcow2 and raw volumes in turn."""
    whole = qemu.create(tmp_path / "image", 10 << 30).read_bytes()
    target = tmp_path / "crowded"
    target.mkdir()
    for number in range(COUNT):
        with (target / f"volume-{number:06}.qcow2").open("wb") as file:
            file.write(whole.rstrip(b"\0") if number % 2 else b"raw" * 2000)
            file.truncate(len(whole))
    return make_pool(target)


def best(call: Callable[[], object]) -> float:
    """Return the best of three times, in milliseconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


@pytest.mark.slow
def test_scan(crowded: Pool) -> None:
    known = crowded.refresh()
    assert len(known) == COUNT
    # 10,000 take 120 and 45 ms on a quiet machine.
    assert best(crowded.refresh) < COUNT * 0.1
    assert best(lambda: crowded.refresh(known)) < COUNT * 0.03


@pytest.mark.slow
def test_memory(crowded: Pool) -> None:
    crowded.refresh()  # what is loaded at first use does not count
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        known = crowded.refresh()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(known) < 600


def test_create_does_not_depend_on_what_is_there(tmp_path: Path) -> None:
    """With everything brought to the disk; qemu-img alone takes 8 ms, without that."""
    pool = make_pool(tmp_path, host=Host("testhost"))
    numbers = iter(range(100))

    def create() -> None:
        for _ in range(10):
            pool.create(f"disk{next(numbers)}", 10 << 30, format="qcow2")

    assert best(create) / 10 < 20
