"""Leases: many readers or one writer, never waited for."""

from __future__ import annotations

from typing import Any

import pytest

from storaged.errors import VolumeBusy
from storaged.job import Job
from storaged.lease import Leases


def a_job(kind: str, pool: str = "p", volume: str = "v") -> Job[Any]:
    return Job(kind, pool, volume)


@pytest.fixture
def leases() -> Leases:
    return Leases()


def test_many_may_read(leases: Leases) -> None:
    first, second = a_job("clone"), a_job("download")
    leases.read("v", first)
    leases.read("v", second)
    assert leases.held("v")
    assert leases.writer("v") is None
    leases.release("v", first)
    assert leases.held("v")
    leases.release("v", second)
    assert len(leases) == 0


def test_nobody_writes_what_is_read(leases: Leases) -> None:
    reader = a_job("clone", "p", "copy")
    reader.checkpoint(61, 100)
    leases.read("v", reader)
    with pytest.raises(VolumeBusy) as caught:
        leases.write("v", a_job("delete"))
    assert str(caught.value) == "Requested operation is not valid: volume 'v' is still in use."
    assert caught.value.advice == (
        f"Job {reader.id} (clone, 61 % done) works on it; wait for it or cancel it."
    )


@pytest.mark.parametrize(
    ("kind", "how"),
    [("create", "being allocated"), ("clone", "being allocated"), ("wipe", "in use"),
     ("resize", "in use"), ("delete", "in use")],
)  # fmt: skip
def test_nobody_uses_what_is_written(leases: Leases, kind: str, how: str) -> None:
    leases.write("v", Job(kind))
    for take in (leases.read, leases.write):
        with pytest.raises(VolumeBusy, match=f"volume 'v' is still {how}\\.$"):
            take("v", a_job("upload"))


def test_names_are_apart(leases: Leases) -> None:
    job = a_job("wipe")
    leases.write("a", job)
    leases.write("b", a_job("wipe"))
    leases.read("c", a_job("clone"))
    assert leases.written() == {"a", "b"}
    assert leases.writer("a") is job


def test_giving_back_what_is_not_held_does_nothing(leases: Leases) -> None:
    writer = a_job("wipe")
    leases.release("v", writer)
    leases.write("v", writer)
    leases.release("v", a_job("wipe"))
    assert leases.writer("v") is writer
    leases.release("v", writer)
    leases.release("v", writer)
    assert not leases.held("v")


def test_a_refused_lease_leaves_nothing(leases: Leases) -> None:
    reader = a_job("clone")
    leases.read("v", reader)
    with pytest.raises(VolumeBusy):
        leases.write("v", a_job("delete"))
    leases.release("v", reader)
    assert len(leases) == 0
