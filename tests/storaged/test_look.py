"""Fresh looks: what other tools did is seen without a refresh; dead storage is not waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.job import Job
from storaged.model import PoolState
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.worker import Limits
from tests.doubles import Control, eventually, promptly, refused
from tests.storaged.conftest import Engine, driver_of

#: A query that waits for a look takes 250 ms; the rest is for a busy machine.
A_LOOK = 1.5


@pytest.fixture
def directory(engine: Engine, pool: Pool) -> Path:
    return engine.directory / pool.name


def test_a_grown_file_is_seen_without_a_refresh(pool: Pool, directory: Path) -> None:
    volume = pool.create("v", 4096)
    (directory / "v").write_bytes(b"x" * 65536)
    info = volume.info()
    assert (info.capacity, info.physical) == (65536, 65536)
    assert info.allocation >= 65536
    assert f"<capacity unit='bytes'>{65536}</capacity>" in volume.xml()
    assert pool.infos()[0].capacity == 65536


def test_a_new_file_is_found_by_name_key_and_path(
    pool: Pool, directory: Path, storage: Storage
) -> None:
    (directory / "new").write_bytes(b"x" * 512)
    assert pool.names() == []
    assert pool.volume("new").info().capacity == 512
    (directory / "newer").touch()
    assert storage.volume_by_path(f"{directory}//newer/").name == "newer"
    (directory / "newest").touch()
    assert storage.volume_by_key(f"{directory}/newest").pool == pool
    assert pool.names() == ["new", "newer", "newest"]


def test_a_vanished_file(pool: Pool, directory: Path) -> None:
    volume = pool.create("v", 4096)
    (directory / "v").unlink()
    text = f"Storage volume not found: no storage vol with matching path '{directory}/v'"
    for ask in (volume.info, volume.xml, volume.info):
        with refused(50, text) as caught:
            ask()
        assert caught.value.advice == "Somebody removed it since the last refresh."
    assert pool.infos()[0].problem == "it is gone: removed by somebody else since the last refresh"
    pool.create("v", 8192)
    assert volume.info().capacity == 8192
    assert pool.infos()[0].problem is None


def test_a_vanished_file_that_comes_back(pool: Pool, directory: Path) -> None:
    volume = pool.create("v", 4096)
    (directory / "v").rename(directory / "w")
    with refused(50):
        volume.info()
    (directory / "w").rename(directory / "v")
    assert (volume.info().capacity, volume.info().problem) == (4096, None)


def test_a_miss(pool: Pool, storage: Storage, directory: Path) -> None:
    text = "Storage volume not found: no storage vol with matching"
    with refused(50, f"{text} name 'x'") as caught:
        pool.volume("x")
    assert caught.value.advice == "Looked at pool 'p' just now: it has no such volume."
    with refused(50, f"{text} path '{directory}/x'"):
        storage.volume_by_path(directory / "x")
    with refused(50, f"{text} path '/no//such/x' (/no/such/x)") as caught:
        storage.volume_by_path("/no//such/x")
    assert caught.value.advice == "No pool has this directory as its target."
    with refused(50, f"{text} key /no//such"):
        storage.volume_by_key("/no//such")
    pool.stop()
    with refused(50) as caught:
        storage.volume_by_path(directory / "x")
    assert "storagectl pool start p" in str(caught.value.advice)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../p/v", "\0", "\x01"])
def test_names_that_lead_elsewhere_are_no_volumes(pool: Pool, name: str) -> None:
    with refused(50):
        pool.volume(name)


#: The two files that are not there are marks in the trace.
MISSES = """
import os, sys, storaged
with storaged.open(root=sys.argv[1], lock_timeout=0) as storage:
    assert storage.pool("plain").active
    def miss(number):
        try:
            storage.volume_by_path(f"/somewhere/else/{number}")
        except storaged.NoSuchVolume:
            return
        raise AssertionError("found")
    miss("once")
    os.access("/begin-of-misses", os.R_OK)
    for number in range(1000):
        miss(number)
    os.access("/end-of-misses", os.R_OK)
"""
#: What memory management and the end of an idle thread do.
HARMLESS = ("mmap(", "munmap(", "brk(", "madvise(", "mprotect(", "futex(", "exit(", "rt_sig", "+++")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (make setup)")
def test_misses_outside_of_every_pool_make_no_system_call(engine: Engine, tmp_path: Path) -> None:
    storage = engine.open(backends=None)
    engine.pool("plain", "dir")
    storage.close()
    trace = tmp_path / "trace"
    done = subprocess.run(
        ["strace", "-f", "-o", trace, sys.executable, "-c", MISSES, engine.root],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine does not let processes be traced")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    begin, end = (n for n, line in enumerate(lines) if "-of-misses" in line)
    calls = [line for line in lines[begin + 1 : end] if not any(c in line for c in HARMLESS)]
    assert calls == []


def test_a_look_that_hangs_gives_the_last_known_facts(
    pool: Pool, control: Control, directory: Path
) -> None:
    volume = pool.create("v", 4096)
    os.truncate(directory / "v", 8192)
    control.hold("look")
    with promptly(A_LOOK):
        info = volume.info()
    assert info.capacity == 4096
    assert info.problem == "the storage did not answer in time; these are the last known facts"
    with promptly(A_LOOK), refused(50) as caught:
        pool.volume("unknown")
    assert "did not answer in time" in str(caught.value.advice)
    time.sleep(1.1)  # from now on it is known to be slow, and nobody waits any more
    with promptly(0.2):
        volume.xml()
        for _ in range(50):
            volume.info()
    control.release("look")

    def is_fresh() -> bool:
        info = volume.info()  # the look at the other name may end a moment later
        return (info.capacity, info.problem) == (8192, None)

    eventually(is_fresh)


def test_two_who_ask_share_one_look(pool: Pool, control: Control) -> None:
    volume = pool.create("v", 4096)
    before = control.calls["look"]
    control.hold("look")
    threads = [threading.Thread(target=volume.info) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert control.calls["look"] == before + 1


def test_a_look_that_hung_before_a_stop_slows_nothing_after_it(
    pool: Pool, control: Control
) -> None:
    volume = pool.create("v", 4096)
    control.hold("look")
    volume.info()
    gate = control._gates.pop("look")
    time.sleep(1.1)
    pool.stop()
    pool.start()
    assert volume.info().problem is None
    pool.volume("v").delete()
    gate.opened.set()
    time.sleep(0.05)
    assert pool.names() == []


def test_a_deleted_volume_is_not_brought_back_by_a_slow_look(pool: Pool, control: Control) -> None:
    volume = pool.create("v", 4096)
    control.hold("describe")
    control.hold("look")
    assert volume.info().problem
    gate = control._gates.pop("look")
    volume.delete()
    gate.opened.set()
    eventually(lambda: not driver_of(pool)._table.by_ref(pool.ref).looks._under_way)
    assert pool.names() == []


def test_queries_of_dead_storage_never_wait(engine: Engine, control: Control) -> None:
    storage = engine.open(limits=Limits(stuck_after=0.1))
    pool, healthy = engine.pool("p", storage=storage), engine.pool("q", "dir", storage)
    volume, doomed = pool.create("v", 4096), pool.create("doomed", 4096)
    control.hold("")
    jobs: list[Job[Any]] = [pool.refresh(wait=False)]
    jobs += [volume.wipe(wait=False)]
    jobs += [pool.create(f"new{number}", 4096, wait=False) for number in range(2)]
    eventually(lambda: pool.info().state is PoolState.INACCESSIBLE)
    with promptly():
        for name in ("p", "q"):
            for _ in range(20):
                asked = storage.pool(name)
                asked.info(), asked.xml(), asked.definition(), asked.names(), asked.infos()
                storage.pools(active=True, types=["double"])
        volume.info(), volume.xml(), pool.volume("v")
        other = healthy.create("w", 4096)
        other.clone_to("copy")
        other.delete()
        healthy.refresh()
        healthy.stop()
        healthy.start()
    assert "4 operations wait for its storage" in pool.info().problems[0]
    with promptly(0.5):
        for work in (pool.refresh, doomed.delete, lambda: pool.create("x", 1)):
            with refused(9) as caught:
                work()
            assert "pool 'p' does not answer" in str(caught.value)
        with refused(1):
            pool.stop()
    control.release_all()
    for job in jobs:
        job.result(20)
    assert pool.info().state is PoolState.RUNNING
    assert pool.info().problems == ()
    assert pool.names() == ["doomed", "new0", "new1", "v"]


def test_the_figures_of_a_pool_are_read_at_first_need(
    pool: Pool, storage: Storage, engine: Engine, control: Control
) -> None:
    storage.close()
    again = engine.open().pool("p")
    control.hold("measure")
    with promptly(A_LOOK):
        assert again.info().space.capacity == 0
    control.release("measure")
    eventually(lambda: again.info().space.capacity > 0)
    assert control.calls["refresh"] == 1


def test_figures_that_cannot_be_read_are_a_problem(
    pool: Pool, storage: Storage, engine: Engine, directory: Path
) -> None:
    storage.close()
    directory.rmdir()
    again = engine.open().pool("p")
    text = f"its figures cannot be read: cannot open directory '{directory}': No such file"
    assert again.info().problems[0].startswith(text)
    directory.mkdir()
    assert again.info().problems == ()


def test_a_description_that_hangs_is_asked_for_once(pool: Pool, control: Control) -> None:
    volume = pool.create("v", 4096)
    control.hold("describe")
    with promptly(3 * A_LOOK):
        for _ in range(6):
            assert "<name>v</name>" in volume.xml()
    assert control.calls["describe"] == 1
    control.release("describe")
    eventually(lambda: "<timestamps>" in volume.xml())
