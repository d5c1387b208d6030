"""Buffers are used again when, and only when, nobody holds them any more."""

from __future__ import annotations

import pytest

from storaged.server.buffers import SIZE, Buffers


def test_used_again_after_the_last_holder() -> None:
    buffers = Buffers()
    first = buffers.take()
    assert (len(first), len(buffers)) == (SIZE, 1)
    part = first[10:20]
    buffers.hold(part)
    buffers.release(first)
    second = buffers.take()
    assert second.obj is not first.obj
    buffers.release(part)
    assert len(buffers) == 1
    assert buffers.take().obj is first.obj


def test_what_is_not_held_is_not_released() -> None:
    buffers = Buffers()
    taken = buffers.take()
    buffers.release(taken)
    with pytest.raises(KeyError):
        buffers.release(taken)
    with pytest.raises(KeyError):
        buffers.hold(taken)


def test_few_unused_ones_are_kept() -> None:
    buffers = Buffers()
    taken = [buffers.take() for _ in range(100)]
    for each in taken:
        buffers.release(each)
    assert len(buffers) == 0
    assert len(buffers._free) < 50
