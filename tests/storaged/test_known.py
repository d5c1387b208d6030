"""What is answered from memory, and what bounds the looks that are not."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.driver import Driver, open_driver
from storaged.errors import NoSuchVolume, OperationInvalid
from storaged.events import JobFeed
from storaged.job import Job
from storaged.model import PoolDef, PoolRef, VolumeDef
from storaged.paths import Paths
from storaged.worker import Deadlines
from tests.doubles import eventually


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    with open_driver(Paths.below(tmp_path / "root"), lock_timeout=0) as opened:
        yield opened


@pytest.fixture
def ref(driver: Driver, tmp_path: Path) -> PoolRef:
    """A started pool with the volumes a, b and c."""
    (tmp_path / "p").mkdir()
    ref = driver.pool_define(PoolDef("dir", "p", target=str(tmp_path / "p")))
    driver.pool_start(ref).result(20)
    for name in "bca":
        driver.volume_create(ref, VolumeDef(name, 4096, 0)).result(20)
    return ref


def test_known(driver: Driver, ref: PoolRef, tmp_path: Path) -> None:
    known = driver.known
    assert known.pools() == 1
    assert known.figures(ref)
    assert known.scanned(ref)
    assert known.scanned(ref, most=3)
    assert not known.scanned(ref, most=2)
    assert known.volume_of(ref, "a")
    assert not known.volume_of(ref, "d")
    assert known.volume("p", "a")
    assert not known.volume("p", "d")
    assert known.path(f"{tmp_path}//p/a/")
    assert not known.key(f"{tmp_path}/p/d")
    assert known.key("/elsewhere/d")


def test_known_of_what_fails_at_once(driver: Driver, ref: PoolRef) -> None:
    driver.pool_stop(ref).result(20)
    known = driver.known
    assert known.figures(ref)
    assert known.scanned(ref, most=0)
    assert known.volume_of(ref, "d")
    assert known.volume("p", "d")
    assert known.volume("none", "d")
    with pytest.raises(OperationInvalid):
        driver.require_active(ref)
    driver.require_inactive(ref, "build")


def test_keys_and_pages(driver: Driver, ref: PoolRef, tmp_path: Path) -> None:
    found, keys = driver.volume_keys(ref)
    assert found == ref
    assert sorted(keys) == [(name, f"{tmp_path}/p/{name}") for name in "abc"]
    pages = []
    after: str | None = None
    while True:
        infos, more = driver.volume_page(ref, after, 2)
        pages.append([info.ref.name for info in infos])
        after = pages[-1][-1]
        if not more:
            break
    assert pages == [["a", "b"], ["c"]]


def test_jobs_of_looks(driver: Driver, ref: PoolRef, tmp_path: Path) -> None:
    volume = driver.volume_lookup_by_name(ref, "a")
    assert driver.volume_info_job(volume).result(10) == driver.volume_info(volume)
    assert driver.volume_xml_job(volume).result(10) == driver.volume_xml(volume)
    (tmp_path / "p" / "a").unlink()
    for job in (driver.volume_info_job(volume), driver.volume_xml_job(volume)):
        with pytest.raises(NoSuchVolume):
            job.result(10)


def test_overviews(driver: Driver, ref: PoolRef) -> None:
    (overview,) = driver.overviews()
    assert (overview.info, overview.volumes, overview.stuck) == (driver.pool_state(ref), 3, 0)


def test_jobs_are_told_as_they_begin(driver: Driver, ref: PoolRef) -> None:
    told: list[str] = []
    end = driver.on_job(lambda job: told.append(job.kind))
    driver.volume_create(ref, VolumeDef("d", 4096, 0)).result(20)
    driver.pool_stop(ref).result(20)
    end()
    end()
    driver.pool_start(ref).result(20)
    assert told == ["create", "stop"]


def test_a_feed_outlives_who_fails_to_listen(caplog: pytest.LogCaptureFixture) -> None:
    feed = JobFeed()
    told: list[Job[Any]] = []

    def fail(_job: Job[Any]) -> None:
        raise ValueError("a fault")

    feed.subscribe(fail)
    ends = [feed.subscribe(told.append), feed.subscribe(told.append)]
    job: Job[Any] = Job("x")
    feed.tell(job)
    assert told == [job, job]
    assert "a subscriber failed" in caplog.text
    ends[0]()
    feed.tell(job)
    assert told == [job] * 3


def test_deadlines() -> None:
    deadlines = Deadlines(0.1)
    late: list[Job[Any]] = []
    quick, slow = Job[None]("quick"), Job[None]("slow")
    began = time.monotonic()
    for job in (quick, slow):
        deadlines.add(job, lambda job=job: late.append(job))  # type: ignore[misc]
    quick.finish(None)
    eventually(lambda: bool(late))
    assert time.monotonic() - began >= 0.1
    assert late == [slow]
    assert not deadlines._pending


def test_deadlines_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host has no thread left, nobody waits."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    deadlines = Deadlines(10)
    late: list[str] = []
    deadlines.add(Job("slow"), lambda: late.append("at once"))
    assert late == ["at once"]
    assert not deadlines._watched
