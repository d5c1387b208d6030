"""Links of one process that share an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import storaged
from storaged import libvirt
from storaged.client.embedded import Engines
from storaged.client.link import Link, RemoteFailure
from storaged.client.locallink import LocalLink
from storaged.client.opening import open_link
from storaged.driver import Driver
from storaged.rpc import remote, storage
from storaged.rpc.record import Record, Void
from tests.client.scripted import until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def uri(root: Path) -> str:
    return f"storage:///embed?root={root}"


def driver_of(link: Link) -> Driver:
    assert isinstance(link, LocalLink)
    return link._service.driver


def define(link: Link, name: str) -> storage.StoragePool:
    xml = f"<pool type='dir'><name>{name}</name><target><path>/nope/{name}</path></target></pool>"
    return link.call(storage.POOL_DEFINE_XML, storage.XMLArgs(xml)).pool


def defined(link: Link) -> int:
    return link.call(storage.NUM_OF_DEFINED_POOLS, Void()).num


def test_engine_ends_with_the_last_link(uri: str) -> None:
    first, second = open_link(uri), open_link(uri)
    driver = driver_of(first)
    assert driver_of(second) is driver
    define(first, "p")
    assert defined(second) == 1
    first.close()
    first.close()  # counts once
    assert not driver.closed
    assert defined(second) == 1
    with pytest.raises(RemoteFailure, match="closed"):
        defined(first)
    second.close()
    assert driver.closed
    with open_link(uri) as again:
        assert driver_of(again) is not driver
        assert defined(again) == 1


def test_each_way_to_a_root_is_the_same(uri: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    others = (f"{tmp_path}/link", f"{root}/", f"{tmp_path}/./root/../root")
    with open_link(uri) as link:
        for other in others:
            with open_link(f"storage:///embed?root={other}") as same:
                assert driver_of(same) is driver_of(link)
        with open_link(f"storage:///embed?root={tmp_path}/other") as foreign:
            assert driver_of(foreign) is not driver_of(link)


def test_events_reach_the_links_that_asked(uri: str) -> None:
    told: list[tuple[str, Record]] = []

    def listener(name: str) -> Callable[[object, Record], None]:
        return lambda _, record: told.append((name, record))

    with open_link(uri) as first, open_link(uri) as second, open_link(uri) as third:
        for name, link in (("first", first), ("second", second), ("third", third)):
            link.on_event(listener(name))
            if link is not third:
                link.call(storage.EVENT_REGISTER, storage.EventRegisterArgs(0, None))
        define(third, "p")
        until(lambda: len(told) >= 2)
    assert sorted(name for name, _ in told) == ["first", "second"]


def test_readers_share_with_a_writer(uri: str) -> None:
    with open_link(uri) as writer, open_link(uri, readonly=True) as reader:
        assert driver_of(reader) is driver_of(writer)
        define(writer, "p")
        assert defined(reader) == 1
        with pytest.raises(RemoteFailure) as caught:
            define(reader, "q")
        assert caught.value.error.code == 29
        writer.close()
        assert defined(reader) == 1


def test_reader_keeps_no_writer_out(uri: str, root: Path) -> None:
    reader = open_link(uri, readonly=True)
    assert not root.exists()
    with open_link(uri, readonly=True) as another:
        assert driver_of(another) is driver_of(reader)
    with open_link(uri) as writer:
        define(writer, "p")
        with open_link(uri, readonly=True) as late:
            assert driver_of(late) is driver_of(writer)
        with pytest.raises(RemoteFailure):
            define(reader, "q")
    reader.close()
    assert driver_of(reader).closed


def test_failure_keeps_nobody_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.touch()
    uri = f"storage:///embed?root={root}"
    for _ in range(2):
        with pytest.raises(RemoteFailure) as caught:
            open_link(uri)
        assert caught.value.error.code == 38
    root.unlink()
    with open_link(uri) as link:
        assert defined(link) == 0


def test_one_refused_link_leaves_the_engine(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_link(uri) as link:
        monkeypatch.setattr(remote, "OPEN", remote.GET_TYPE)  # a session that was not opened
        with pytest.raises(RemoteFailure):
            open_link(uri)
        monkeypatch.undo()
        assert defined(link) == 0
    assert driver_of(link).closed


def test_many_threads(uri: str) -> None:
    """However links come and go, one engine is open at a time, and none at the end."""
    drivers: list[Driver] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                with open_link(uri) as link:
                    drivers.append(driver_of(link))
                    defined(link)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(drivers) == 90
    assert all(driver.closed for driver in drivers)


def test_registry_keeps_nothing(root: Path) -> None:
    engines = Engines()
    for readonly in (False, True):
        engine, service = engines.join(str(root), session=False, readonly=readonly)
        assert list(engines._found.values()) == [engine]
        engine.leave()
        assert service.driver.closed
    del engine
    assert not engines._found


def test_the_library_has_an_engine_of_its_own(uri: str, root: Path) -> None:
    with open_link(uri), pytest.raises(storaged.errors.ResourceBusy):
        storaged.open(root, lock_timeout=0)


def test_both_faces_share_it(uri: str) -> None:
    with storaged.connect(uri) as here, libvirt.open(uri) as there:
        made = there.storagePoolDefineXML(
            "<pool type='dir'><name>p</name><target><path>/nope</path></target></pool>"
        )
        assert [pool.name for pool in here.pools()] == [made.name()]
        with storaged.connect(uri, readonly=True) as reader:
            assert [pool.name for pool in reader.pools()] == ["p"]


CHILD = """
import os, sys
from storaged.client.opening import open_link
from storaged.client.link import RemoteFailure
link = open_link(sys.argv[1])
child = os.fork()
if not child:
    from storaged import driver
    opening = driver.open_driver
    driver.open_driver = lambda *args, **named: opening(*args, **named, lock_timeout=0)
    try:
        open_link(sys.argv[1])
    except RemoteFailure as err:
        print(err)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
link.close()
"""


def test_forked_child_has_no_part_in_it(uri: str) -> None:
    """It has none of the engine's threads: to it the engine is another process's."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, uri],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    assert "is still in use by process" in done.stdout, done.stderr
