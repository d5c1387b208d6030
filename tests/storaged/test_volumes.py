"""Volumes under work: listed while they are made, leased, and gone if it does not succeed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import StorageError, SystemFailure
from storaged.job import Job
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import Control, eventually, refused
from tests.storaged.conftest import Engine, driver_of, idle

IN_USE = "Requested operation is not valid: volume '{}' is still in use."
ALLOCATED = "Requested operation is not valid: volume '{}' is still being allocated."


@pytest.fixture
def directory(engine: Engine, pool: Pool) -> Path:
    return engine.directory / pool.name


# Under construction


def test_a_volume_is_listed_from_the_first_moment(
    pool: Pool, control: Control, directory: Path, storage: Storage
) -> None:
    control.hold("create", lively=True)
    job = pool.create("v", "1 GiB", wait=False)
    assert pool.names() == ["v"]
    volume = pool.volume("v")
    assert (volume.path, volume.key) == (f"{directory}/v", f"{directory}/v")
    assert storage.volume_by_path(f"{directory}/v") == volume
    control.wait_for("create")
    info = volume.info()
    assert (info.building, info.capacity, info.format) == (True, 1 << 30, "raw")
    eventually(lambda: volume.info().allocation > info.allocation)
    assert "<name>v</name>" in volume.xml()
    assert pool.infos()[0].building
    assert list(directory.iterdir()) == []
    control.release("create")
    assert job.result() == volume
    assert not volume.info().building
    assert idle(pool)


def test_nothing_half_made_is_seen_in_the_directory(pool: Pool, directory: Path) -> None:
    pool.create("first", 4096)  # which tries out how files are made here
    stop = threading.Event()
    seen: set[tuple[str, int]] = set()

    def watch() -> None:
        while not stop.is_set():
            seen.update((path.name, path.stat().st_size) for path in directory.iterdir())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(40):
        pool.create(f"raw{number}", 1 << 20, allocation=None)
        pool.create(f"qcow{number}", 1 << 30, format="qcow2")
    stop.set()
    watcher.join()
    assert seen <= {(path.name, path.stat().st_size) for path in directory.iterdir()}
    assert len(seen) > 10


@pytest.mark.parametrize("kind", ["create", "clone"])
def test_while_it_is_made_nobody_works_on_it(pool: Pool, control: Control, kind: str) -> None:
    base = pool.create("base", 4096)
    control.hold(kind, lively=True)
    job = pool.create("v", 4096, wait=False) if kind == "create" else base.clone_to("v", wait=False)
    control.wait_for(kind, 2 if kind == "create" else 1)
    volume = pool.volume("v")
    works: tuple[Callable[[], object], ...] = (
        volume.delete,
        lambda: volume.resize(8192),
        volume.wipe,
        volume.open_upload,
        volume.open_download,
        lambda: volume.clone_to("w"),
    )
    for work in works:
        with refused(55, ALLOCATED.format("v")) as caught:
            work()
        assert f"Job {job.id} ({kind}" in str(caught.value.advice)
    control.release(kind)
    job.result()
    volume.delete()
    assert idle(pool)


def test_what_is_wiped_or_cloned_is_in_use(pool: Pool, control: Control) -> None:
    base = pool.create("base", 4096)
    works: tuple[Callable[[], object], ...] = (base.delete, lambda: base.resize(8192), base.wipe)
    for kind in ("wipe", "clone"):
        control.hold(kind, lively=True)
        job: Job[Any] = base.wipe(wait=False) if kind == "wipe" else base.clone_to("c", wait=False)
        control.wait_for(kind)
        for work in works:
            with refused(55, IN_USE.format("base")):
                work()
        if kind == "clone":
            base.open_download().close()
        assert not base.info().building
        control.release(kind)
        job.result()
    assert idle(pool)


def test_a_name_is_given_once(pool: Pool, control: Control, directory: Path) -> None:
    base = pool.create("base", "1 GiB")
    taken = "storage volume 'base' exists already"
    used = "internal error: storage volume name '{}' already in use."
    with refused(90, taken) as caught:
        pool.create("base", 4096)
    assert caught.value.advice == f"It is at {directory}/base, with 1 GiB."
    with refused(1, used.format("base")):
        base.clone_to("base")
    (directory / "theirs").touch()
    with refused(90):
        pool.create("theirs", 4096)
    with refused(1, used.format("theirs")):
        base.clone_to("theirs")
    control.hold("create", lively=True)
    job = pool.create("v", 4096, wait=False)
    with refused(90, "storage volume 'v' exists already"):
        pool.create("v", 4096)
    with refused(1, used.format("v")):
        base.clone_to("v")
    control.release("create")
    job.result()
    control.hold("clone", lively=True)
    clone = base.clone_to("copy", wait=False)
    control.wait_for("clone")
    with refused(90, taken):  # also while somebody reads it
        pool.create("base", 4096)
    control.release("clone")
    clone.result()
    os.mkfifo(directory / "fifo")
    with refused(
        55,
        f"Requested operation is not valid: volume target path '{directory}/fifo' already exists",
    ):
        pool.create("fifo", 4096)
    assert pool.names() == ["base", "copy", "theirs", "v"]
    assert idle(pool)


@pytest.mark.parametrize("name", ["a/b", "", "\0", "x" * 300, ".storaged-h-1-1.part", "a\nb"])
def test_names_that_cannot_be(pool: Pool, name: str) -> None:
    with pytest.raises(StorageError) as caught:
        pool.create(name, 4096)
    assert caught.value.code in (8, 27, 35, 55)
    assert pool.names() == []
    assert idle(pool)


# Failures and cancels leave nothing


@pytest.mark.parametrize("kind", ["create", "clone", "wipe", "resize", "delete"])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_what_does_not_succeed_leaves_nothing(
    pool: Pool, control: Control, directory: Path, kind: str, how: str
) -> None:
    base = pool.create("base", 4096)
    before = control.calls[kind]
    control.hold(kind, lively=True)
    start: dict[str, Callable[[], Any]] = {
        "create": lambda: pool.create("v", 1 << 20, allocation=None, wait=False),
        "clone": lambda: base.clone_to("v", wait=False),
        "wipe": lambda: base.wipe(wait=False),
        "resize": lambda: base.resize(8192, wait=False),
        "delete": lambda: base.delete(wait=False),
    }
    job = start[kind]()
    control.wait_for(kind, before + 1)
    if how == "fails":
        control.fail(kind, SystemFailure("broken", 5))
        control.release(kind)
    else:
        job.cancel()
    with refused(38 if how == "fails" else 78):
        job.result()
    control.release(kind)
    control.mend(kind)
    assert pool.names() == ["base"] == [entry.name for entry in directory.iterdir()]
    assert (base.info().capacity, base.info().problem) == (4096, None)
    assert idle(pool)
    start[kind]().result()


def test_a_refusal_of_the_workers_leaves_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pool.create("base", 4096)
    workers = driver_of(pool)._table.by_ref(pool.ref).pool.workers

    def refuse(*_: object, **__: object) -> None:
        raise SystemFailure("no", 11)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "submit", refuse)
        works: tuple[Callable[[], object], ...] = (
            lambda: pool.create("v", 1), lambda: base.clone_to("v"), base.delete, base.wipe,
            lambda: base.resize(1 << 20), lambda: base.upload("/dev/null"), pool.stop,
        )  # fmt: skip
        for work in works:
            with refused(38):
                work()
            assert idle(pool)
    assert pool.active
    assert pool.names() == ["base"]
    pool.stop()
    assert not pool.active


def test_an_interrupted_wait_cancels_the_work(
    pool: Pool, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.hold("create", lively=True)
    plain = threading.Event.wait

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and timeout is None:
            raise KeyboardInterrupt
        return plain(event, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.create("v", 4096)
    eventually(lambda: idle(pool))
    assert pool.names() == []


def test_a_create_looks_at_its_name_once(pool: Pool, control: Control) -> None:
    """Planning it is that look; who has the name is found out where planning fails."""
    before = control.calls["look"]
    pool.create("v", 4096)
    assert control.calls["look"] == before


def test_that_a_volume_has_the_name_is_said_before_what_else_is_wrong(
    engine: Engine, storage: Storage
) -> None:
    pool = engine.pool("plain", "dir", storage)
    (engine.directory / "plain" / "found").write_bytes(b"x" * 512)
    for format in ("raw", "qed"):  # the latter cannot be created
        with refused(90, "storage volume 'found' exists already") as caught:
            pool.create("found", 4096, format=format)
        assert "with 512 bytes" in str(caught.value.advice)
    assert pool.names() == ["found"]
