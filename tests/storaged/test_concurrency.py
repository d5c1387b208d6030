"""Many at once: no refusal, no loss, no wait for what is not one's own."""

from __future__ import annotations

import io
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from storaged.errors import NoSuchVolume, StorageError
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import PATIENCE, PROMPT, Control, eventually, promptly, refused
from tests.storaged.conftest import Engine, driver_of, idle


@contextmanager
def at_once(*works: Callable[[], object]) -> Iterator[None]:
    """Run all *works* on threads beside the block, and fail with the first error of one."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(6 * PATIENCE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns much more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("switching")
def test_creates_and_deletes_during_a_thousand_refreshes(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    done = threading.Event()

    def churn(number: int) -> None:
        chance = random.Random(number)
        mine: list[str] = []
        for turn in range(10_000):
            if done.is_set():
                break
            if mine and chance.random() < 0.48:
                pool.volume(mine.pop(chance.randrange(len(mine)))).delete()
            else:
                name = f"t{number}-{turn}"
                assert pool.create(name, 4096).info().capacity == 4096
                mine.append(name)

    with at_once(*(partial(churn, n) for n in range(8))):
        try:
            for _ in range(1000):
                pool.refresh()
        finally:
            done.set()
    directory = engine.directory / "p"
    assert pool.names() == sorted(entry.name for entry in directory.iterdir())
    assert idle(pool)
    before = pool.infos()
    pool.refresh()
    assert pool.infos() == before


def test_thirty_two_clients_without_one_refusal(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    base = pool.create("base", 65536)
    base.upload(io.BytesIO(b"b" * 65536))

    def client(number: int) -> None:
        for turn in range(4):
            name = f"c{number}-{turn}"
            volume = pool.create(name, 65536)
            volume.upload(io.BytesIO(bytes([number]) * 4096))
            pool.refresh()
            copy = volume.clone_to(f"{name}-copy")
            base.clone_to(f"{name}-base")
            assert Path(copy.path).read_bytes()[:4096] == bytes([number]) * 4096
            volume.resize(1 << 20)
            assert volume.info().capacity == 1 << 20
            copy.delete()
            pool.refresh()

    with at_once(*(partial(client, n) for n in range(32))):
        pass
    expected = {
        f"c{n}-{t}{suffix}" for n in range(32) for t in range(4) for suffix in ("", "-base")
    }
    assert set(pool.names()) == expected | {"base"}
    assert idle(pool)


def test_a_long_clone_delays_nobody(pool: Pool, control: Control) -> None:
    base = pool.create("base", 65536)
    control.hold("clone", lively=True)
    clone = base.clone_to("copy", wait=False)
    control.wait_for("clone")
    with promptly():
        for number in range(20):
            pool.create(f"v{number}", 4096).resize(8192)
        pool.refresh()
        pool.volume("v0").delete()
        assert pool.volume("copy").info().building
    text = "internal error: pool 'p' has asynchronous jobs running."
    with promptly(), refused(1, text) as caught:
        pool.stop()
    assert caught.value.advice == (
        f"It is busy with job {clone.id}: clone copy. Wait for the end, or cancel it."
    )
    assert not clone.ended
    control.release("clone")
    clone.result()
    pool.stop()


def test_a_hanging_refresh_delays_no_query_and_no_other_pool(
    engine: Engine, storage: Storage, control: Control
) -> None:
    pool, other = engine.pool("p"), engine.pool("q", "dir")
    volume = pool.create("v", 4096)
    control.hold("refresh")
    job = pool.refresh(wait=False)
    control.wait_for("refresh", 2)
    with promptly():
        for _ in range(10):
            assert [found.name for found in storage.pools()] == ["p", "q"]
            assert pool.info().active
            assert (pool.names(), len(pool.infos()), len(pool.volumes())) == (["v"], 1, 1)
            assert pool.xml()
            assert volume.info().capacity == 4096
            assert volume.xml()
            assert storage.volume_by_path(volume.path) == volume
            with refused(50):
                pool.volume("nothing")
        other.create("w", 4096).clone_to("x")
        other.refresh()
        other.stop()
        pool.create("beside", 4096).delete()
    assert not job.ended
    control.release("refresh")
    job.result()


@pytest.mark.usefixtures("switching")
def test_starts_stops_and_definitions_at_once(engine: Engine, storage: Storage) -> None:
    """Whoever comes second is told so; whatever is told, the pool stays whole."""
    definition = engine.definition()
    allowed = (1, 9, 49, 55)

    def trouble(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            works: tuple[Callable[[], object], ...] = (
                lambda: storage.define_pool(definition),
                lambda: storage.create_pool(definition),
                lambda: storage.pool("p").start(),
                lambda: storage.pool("p").stop(),
                lambda: storage.pool("p").undefine(),
                lambda: storage.pool("p").refresh(),
                lambda: storage.pool("p").create(f"v{chance.random()}", 1),
            )
            try:
                chance.choice(works)()
            except StorageError as err:
                assert err.code in allowed, repr(err)  # noqa: PT017

    with at_once(*(partial(trouble, n) for n in range(6))):
        pass
    with suppress(StorageError):
        storage.pool("p").stop()
    pool = storage.define_pool(definition)
    assert storage.pools() == [pool]
    assert idle(pool)
    pool.start()
    names = pool.names()
    assert names == sorted(entry.name for entry in (engine.directory / "p").iterdir())
    config = engine.root / "etc/libvirt/storage/p.xml"
    assert config.exists()
    pool.stop()
    pool.undefine()
    assert not config.exists()
    assert storage.pools() == []


@pytest.mark.usefixtures("switching")
def test_defining_a_transient_pool_while_it_stops_loses_nothing(
    engine: Engine, storage: Storage
) -> None:
    for _ in range(40):
        definition = engine.definition()
        pool = storage.create_pool(definition)
        with at_once(pool.stop, partial(storage.define_pool, definition)):
            pass
        assert storage.pool("p").persistent
        assert not storage.pool("p").active
        storage.pool("p").undefine()


@pytest.mark.usefixtures("switching")
def test_look_ups_while_volumes_come_and_go(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for number in range(5):
                with suppress(NoSuchVolume):
                    volume = pool.volume(f"v{number}")
                    try:
                        info = volume.info()
                    except StorageError as err:
                        assert err.code in (38, 50)  # noqa: PT017
                    else:
                        assert info.capacity == 4096
            pool.infos()

    with at_once(*[ask] * 4):
        try:
            for turn in range(300):
                name = f"v{turn % 5}"
                pool.create(name, 4096)
                pool.volume(name).delete()
        finally:
            stop.set()
    assert pool.names() == []


def test_one_of_many_gets_a_name(pool: Pool) -> None:
    outcomes: list[int] = []

    def take() -> None:
        try:
            pool.create("v", 4096)
        except StorageError as err:
            outcomes.append(err.code)
        else:
            outcomes.append(0)

    with at_once(*[take] * 24):
        pass
    assert sorted(outcomes) == [0] + [90] * 23


@pytest.mark.slow
def test_handing_work_over_is_quick(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    pool.create("warm", 1 << 20)
    taken = []
    for number in range(300):
        before = time.perf_counter()
        pool.create(f"v{number}", 1 << 20)
        taken.append(time.perf_counter() - before)
    taken.sort()
    assert taken[len(taken) // 2] < 0.002  # about 0.3 ms on an idle machine


def test_a_create_costs_the_same_beside_many_volumes(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    directory = engine.directory / "p"
    for number in range(5000):
        (directory / f"f{number}").touch()
    pool.refresh()
    index = driver_of(pool)._table.by_ref(pool.ref).pool.index
    pool.create("v", 4096)
    assert driver_of(pool)._table.by_ref(pool.ref).pool.index is index  # nothing was copied
    with promptly(PROMPT):
        for number in range(100):
            pool.create(f"v{number}", 4096)
    eventually(lambda: idle(pool))
