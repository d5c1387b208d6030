"""What only a link within one process can do, or must not forget."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from storaged.client.link import RemoteFailure
from storaged.client.locallink import LocalLink
from storaged.client.opening import open_link
from storaged.rpc import extension, remote, storage
from storaged.rpc.program import Procedure
from storaged.rpc.record import Void
from storaged.rpc.storage import VolStreamArgs
from tests.client.conftest import PoolCalls
from tests.client.scripted import until


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The URI of an engine in this process."""
    return f"storage:///embed?root={tmp_path / 'root'}"


def test_engine_is_let_go(uri: str) -> None:
    for _ in range(2):
        with open_link(uri) as link:
            assert isinstance(link, LocalLink)
            driver = link._service.driver
        assert driver.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "storaged-link"]


def test_session(uri: str) -> None:
    with open_link(uri + "&session=1") as link:
        assert link.uri.endswith("session=1")
        assert link.call(remote.GET_URI, Void()).text == "storage:///session"
    with open_link(uri) as link:
        assert link.call(remote.GET_URI, Void()).text == "storage:///system"


def test_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RemoteFailure) as caught:
        open_link(f"storage:///embed?root={tmp_path}/file/root")
    assert caught.value.error.code == 38


def test_errors_of_our_own_program_carry_advice(link: LocalLink) -> None:
    facts = extension.PoolFactsArgs(storage.StoragePool("p", bytes(16)))
    with pytest.raises(RemoteFailure) as caught:
        link.call(extension.POOL_FACTS, facts)
    assert (caught.value.error.code, caught.value.error.str1) == (49, "NoSuchPool")


@pytest.mark.parametrize(("number", "code"), [(51, 3), (5000, 39), (370, 39)])
def test_what_is_not_served(link: LocalLink, number: int, code: int) -> None:
    procedure = Procedure(number, "virSomething", Void, Void)
    for call in (link.call, lambda *args: link.begin(*args).result(20)):
        with pytest.raises(RemoteFailure) as caught:
            call(procedure, Void())
        assert caught.value.error.code == code


def test_begin_what_may_wait(pool: PoolCalls) -> None:
    """A look-up that misses goes to the storage, so nobody's thread but its own may do that."""
    pending = pool.link.begin(storage.VOL_LOOKUP_BY_PATH, storage.Name(f"{pool.directory}/no"))
    with pytest.raises(RemoteFailure) as caught:
        pending.result(20)
    assert caught.value.error.code == 50
    volume = pool.create("v")
    info = pool.link.begin(storage.VOL_GET_INFO, storage.VolArgs(volume))
    assert info.result(20).capacity == 8 << 20


def test_time_is_over(pool: PoolCalls) -> None:
    volume = pool.create("v", 128)
    (pool.directory / "v").write_bytes(b"data" * (32 << 20))
    wipe = storage.VolWipePatternArgs(volume, 8, 0)
    with pytest.raises(RemoteFailure) as caught:
        pool.link.call(storage.VOL_WIPE_PATTERN, wipe, timeout=0.001)
    assert caught.value.error.code == 68
    pending = pool.link.begin(storage.POOL_LOOKUP_BY_NAME, storage.Name("p"))
    assert pending.wait(20)
    jobs = pool.link.call(extension.JOB_LIST, Void()).jobs
    for job in jobs:
        pool.link.call(extension.JOB_CANCEL, extension.JobId(job.id))
    until(lambda: not pool.link.call(extension.JOB_LIST, Void()).jobs)


def test_hole_in_a_stream_that_knows_none(pool: PoolCalls) -> None:
    volume = pool.create("v")
    stream = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 0))
    with pytest.raises(RemoteFailure, match="not sparse"):
        stream.send_hole(5)
    with pytest.raises(RemoteFailure, match="stream is not open"):
        stream.send(b"x")


def test_stream_that_nobody_holds_is_ended(pool: PoolCalls) -> None:
    volume = pool.create("v")
    stream = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 0))
    assert stream.writable
    assert not stream.readable
    stream.send(b"x")
    del stream
    pool.link.call(storage.VOL_DELETE, storage.VolFlagsArgs(volume, 0))


def test_streams_end_with_the_link(pool: PoolCalls) -> None:
    volume = pool.create("v")
    stream = pool.link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 0))
    stream.send(b"kept")
    pool.link.close()
    with suppress(RemoteFailure):  # it is ended beside us
        for _ in range(1000):
            stream.send(b"x")
            time.sleep(0.001)
        pytest.fail("the stream is still open")
    assert (pool.directory / "v").read_bytes()[:4] == b"kept"


def test_call_that_opens_no_stream(link: LocalLink) -> None:
    with pytest.raises(RemoteFailure, match="opens no stream"):
        link.open_stream(storage.NUM_OF_POOLS, Void())


def test_callbacks_that_fail_are_logged(pool: PoolCalls, caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def fail(*_: object) -> None:
        raise ValueError("boom")

    pool.link.on_event(fail)
    pool.link.on_event(lambda *_: told.set())
    pool.link.call(storage.EVENT_REGISTER, storage.EventRegisterArgs(1, None))
    for _ in range(2):
        pool.link.call(storage.POOL_REFRESH, storage.PoolFlagsArgs(pool.pool))
    assert told.wait(10)  # who fails comes before who is told
    pool.link.close()
    assert "boom" in caplog.text
