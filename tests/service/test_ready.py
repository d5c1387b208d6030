"""What may run where nothing may wait: only what memory answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storaged.driver import Driver
from storaged.errors import StorageError, SystemFailure
from storaged.job import Job, Pending
from storaged.rpc import extension, remote
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.service import Service
from tests.doubles import Control, promptly
from tests.service.conftest import NOWHERE, Peer, pool_xml, volume_xml
from tests.service.test_access import SERVED, anything

GONE = StorageVol("p", "gone", "")
V = StorageVol("p", "v", "")
ELSEWHERE = StorageVol("nowhere", "v", "")


@pytest.fixture
def held(
    peer: Peer, target: Path, tmp_path: Path, control: Control
) -> Iterator[dict[str, StoragePool]]:
    """Pools in several states over storage that does not answer any more.

    p is started and scanned; fresh was loaded as active, and nobody has looked at it yet.
    """
    pools = {
        "p": peer.started("p", target, "double"),
        "inactive": peer.define("inactive", tmp_path / "inactive", "double"),
        "fresh": peer.started("fresh", tmp_path / "fresh", "double"),
    }
    peer.made(pools["p"], "v")
    fresh = peer.service.driver._table.by_name("fresh").pool
    with fresh.lock:
        fresh.scanned = False
        fresh._space = None
    control.hold("")
    yield pools
    control.release_all()


#: procedure, arguments with the names of pools, whether it is ready
TRUTH: tuple[tuple[AnyProcedure, tuple[Any, ...], bool], ...] = (
    (remote.GET_TYPE, (), True),
    (remote.GET_CAPABILITIES, (), False),
    (remote.SUPPORTS_FEATURE, (14,), True),
    (remote.GET_URI, (), True),
    (rpc.NUM_OF_POOLS, (), True),
    (rpc.LIST_POOLS, (100,), True),
    (rpc.LIST_DEFINED_POOLS, (100,), True),
    (rpc.LIST_ALL_POOLS, (1, 0), True),
    (rpc.LIST_ALL_POOLS, (1, 1 << 31), True),
    (rpc.POOL_LOOKUP_BY_NAME, ("p",), True),
    (rpc.POOL_LOOKUP_BY_NAME, ("none",), True),
    (rpc.POOL_LOOKUP_BY_VOLUME, (GONE,), True),
    (rpc.POOL_LOOKUP_BY_TARGET_PATH, ("/none",), True),
    (rpc.POOL_GET_INFO, ("p",), True),
    (rpc.POOL_GET_INFO, ("inactive",), True),
    (rpc.POOL_GET_INFO, ("nowhere",), True),
    (rpc.POOL_GET_INFO, ("fresh",), False),
    (rpc.POOL_GET_XML_DESC, ("p", 0), True),
    (rpc.POOL_GET_XML_DESC, ("fresh", 0), False),
    (rpc.POOL_GET_AUTOSTART, ("fresh",), True),
    (rpc.POOL_IS_ACTIVE, ("fresh",), True),
    (rpc.POOL_IS_PERSISTENT, ("fresh",), True),
    (rpc.POOL_SET_AUTOSTART, ("p", 1), False),
    (rpc.POOL_NUM_OF_VOLUMES, ("p",), True),
    (rpc.POOL_NUM_OF_VOLUMES, ("inactive",), True),
    (rpc.POOL_NUM_OF_VOLUMES, ("fresh",), False),
    (rpc.POOL_LIST_VOLUMES, ("p", 10), True),
    (rpc.POOL_LIST_VOLUMES, ("fresh", 10), False),
    (rpc.POOL_LIST_ALL_VOLUMES, ("p", 1, 0), True),
    (rpc.POOL_LIST_ALL_VOLUMES, ("inactive", 1, 0), True),
    (rpc.POOL_LIST_ALL_VOLUMES, ("fresh", 1, 0), False),
    (rpc.VOL_LOOKUP_BY_NAME, ("p", "v"), True),
    (rpc.VOL_LOOKUP_BY_NAME, ("p", "gone"), False),
    (rpc.VOL_LOOKUP_BY_NAME, ("inactive", "v"), True),
    (rpc.VOL_LOOKUP_BY_NAME, ("fresh", "v"), False),
    (rpc.VOL_LOOKUP_BY_PATH, ("/elsewhere/v",), True),
    (rpc.VOL_LOOKUP_BY_PATH, ("",), True),
    (rpc.VOL_LOOKUP_BY_PATH, ("TARGET/v",), True),
    (rpc.VOL_LOOKUP_BY_PATH, ("TARGET//v/",), True),
    (rpc.VOL_LOOKUP_BY_PATH, ("TARGET/gone",), False),
    (rpc.VOL_LOOKUP_BY_KEY, ("TARGET/v",), True),
    (rpc.VOL_LOOKUP_BY_KEY, ("TARGET/gone",), False),
    (rpc.VOL_LOOKUP_BY_KEY, ("none",), True),
    (rpc.VOL_GET_PATH, (V,), True),
    (rpc.VOL_GET_PATH, (GONE,), False),
    (rpc.VOL_GET_PATH, (ELSEWHERE,), True),
    (rpc.VOL_GET_INFO, (V,), True),
    (rpc.VOL_GET_INFO, (GONE,), False),
    (rpc.VOL_GET_INFO, (ELSEWHERE,), True),
    (rpc.VOL_GET_INFO_FLAGS, (V, 1), True),
    (rpc.VOL_GET_XML_DESC, (V, 0), True),
    (rpc.VOL_GET_XML_DESC, (GONE, 0), False),
    (rpc.EVENT_REGISTER, (0, None), True),
    (rpc.EVENT_DEREGISTER, (99,), True),
    (rpc.POOL_DEFINE_XML, ("", 0), False),
    (rpc.POOL_UNDEFINE, ("inactive",), False),
    (rpc.POOL_CREATE_XML, ("", 0), False),
    (rpc.POOL_CREATE, ("inactive", 0), True),
    (rpc.POOL_BUILD, ("p", 0), True),
    (rpc.POOL_REFRESH, ("p", 0), True),
    (rpc.POOL_DESTROY, ("fresh",), True),
    (rpc.POOL_DELETE, ("p", 0), True),
    (rpc.VOL_CREATE_XML, ("p", "", 0), True),
    (rpc.VOL_CREATE_XML, ("p", "", 4), False),
    (rpc.VOL_CREATE_XML, ("p", "x" * 20000, 0), False),
    (rpc.VOL_CREATE_XML_FROM, ("p", "", V, 0), False),
    (rpc.VOL_DELETE, (V, 0), True),
    (rpc.VOL_DELETE, (GONE, 0), False),
    (rpc.VOL_RESIZE, (GONE, 1, 0), False),
    (rpc.VOL_WIPE, (V, 0), True),
    (rpc.VOL_WIPE_PATTERN, (V, 0, 0), True),
    (rpc.VOL_UPLOAD, (V, 0, 0, 0), False),
    (rpc.VOL_DOWNLOAD, (V, 0, 0, 0), False),
    (rpc.FIND_POOL_SOURCES, ("dir", None, 0), False),
    (rpc.GET_POOL_CAPABILITIES, (0,), False),
    (extension.HELLO, ("x",), True),
    (extension.JOB_LIST, (), True),
    (extension.JOB_FOLLOW, (0,), True),
    (extension.POOL_FACTS, ("fresh", 0), True),
    (extension.POOL_FACTS, ("fresh", 1), False),
    (extension.POOL_FACTS, ("p", 1), True),
    (extension.POOL_FACTS, ("p", 2), False),
    (extension.VOL_FACTS, (V,), True),
    (extension.VOL_FACTS, (GONE,), False),
    (extension.VOL_PAGE, ("p", None, 1), False),
)


def filled(
    procedure: AnyProcedure, args: tuple[Any, ...], pools: dict[str, StoragePool], target: Path
) -> tuple[Any, ...]:
    """Put pools and paths in the places of their names."""
    found: list[Any] = []
    for name, value in zip(procedure.args._fields, args, strict=True):
        if name == "pool" and isinstance(value, str):
            found.append(pools.get(value, NOWHERE))
        else:
            found.append(value.replace("TARGET", str(target)) if isinstance(value, str) else value)
    return tuple(found)


@contextmanager
def waiting_for_nothing() -> Iterator[None]:
    """Fail if this thread waits for a job, be it as short as for a look."""

    def wait(job: Job[Any], timeout: float | None = None) -> bool:
        raise AssertionError(f"it waits for {job} for {timeout} s")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "wait", wait)
        yield


@pytest.mark.parametrize(
    ("procedure", "args", "expected"), TRUTH, ids=lambda v: v.name if hasattr(v, "name") else None
)
def test_truth(
    peer: Peer,
    held: dict[str, StoragePool],
    target: Path,
    procedure: AnyProcedure,
    args: tuple[Any, ...],
    expected: bool,
) -> None:
    sent = filled(procedure, args, held, target)
    assert peer.ready(procedure, *sent) is expected
    if expected:
        # Nothing answers here: what is ready comes back all the same, or has begun a job.
        with promptly(), waiting_for_nothing():
            try:
                outcome = peer.start(procedure, *sent)
            except StorageError:
                return
        if isinstance(outcome, Pending) and outcome.kind == "look":
            with promptly():
                outcome.result(2)  # the last known facts


def test_ready_never_raises(peer: Peer) -> None:
    for procedure in SERVED:
        assert isinstance(peer.ready(procedure, *anything(procedure)), bool)


def test_ready_takes_no_lock(
    peer: Peer, pool: StoragePool, vol: StorageVol, driver: Driver
) -> None:
    known = driver._table.by_name("p").pool
    asked: list[tuple[AnyProcedure, tuple[Any, ...]]] = [
        (rpc.POOL_GET_INFO, (pool,)),
        (rpc.VOL_GET_INFO, (vol,)),
        (rpc.VOL_LOOKUP_BY_PATH, (vol.key,)),
        (rpc.POOL_LIST_ALL_VOLUMES, (pool, 1, 0)),
    ]
    done = threading.Event()

    def ask() -> None:
        for procedure, args in asked:
            peer.ready(procedure, *args)
        done.set()

    with known.lock, driver._definitions:
        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(5)


def test_long_lists_are_not_ready(peer: Peer, pool: StoragePool, target: Path) -> None:
    for number in range(257):
        (target / f"n{number}").touch()
        if number == 255:
            peer.call(rpc.POOL_REFRESH, pool, 0)
            assert peer.ready(rpc.POOL_LIST_ALL_VOLUMES, pool, 1, 0)
    peer.call(rpc.POOL_REFRESH, pool, 0)
    assert not peer.ready(rpc.POOL_LIST_ALL_VOLUMES, pool, 1, 0)
    assert not peer.ready(rpc.POOL_LIST_VOLUMES, pool, 1)
    assert peer.ready(rpc.POOL_NUM_OF_VOLUMES, pool)


def test_pools_with_paths_of_their_own(peer: Peer, tmp_path: Path) -> None:
    """Where keys are not paths below the target, only a scan can tell."""
    peer.started("shelf", tmp_path / "shelf", "shelf")
    assert peer.ready(rpc.VOL_LOOKUP_BY_KEY, "key-of-one")
    known = peer.service.driver._table.by_name("shelf").pool
    with known.lock:
        known.scanned = False
    assert not peer.ready(rpc.VOL_LOOKUP_BY_KEY, "key-of-one")
    assert peer.call(rpc.VOL_LOOKUP_BY_KEY, "key-of-one").vol.name == "one"
    assert peer.call(rpc.VOL_LOOKUP_BY_PATH, "shelf://two").vol.name == "two"


def test_inner_calls(peer: Peer, held: dict[str, StoragePool]) -> None:
    for procedure, args, expected in (
        (rpc.POOL_GET_INFO, (held["p"],), True),
        (rpc.POOL_GET_INFO, (held["fresh"],), False),
        (rpc.VOL_CREATE_XML, (held["p"], volume_xml("x"), 0), True),
        (rpc.POOL_DEFINE_XML, (pool_xml("x", Path("/x")), 0), False),
    ):
        packed = procedure.args(*args).pack()
        assert peer.ready(extension.CALL, procedure.number, packed, 0) is expected
    assert not peer.ready(extension.CALL, 999, b"", 0)
    assert not peer.ready(extension.CALL, rpc.POOL_GET_INFO.number, b"x" * 5000, 0)


class TestLooks:
    """A look at one volume is a job that ends in time by itself."""

    def test_in_time(self, peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
        (target / "v").write_bytes(b"x" * 8192)
        outcome = peer.start(rpc.VOL_GET_INFO, vol)
        assert isinstance(outcome, Pending)
        assert outcome.result(10).capacity == 8192
        outcome = peer.start(rpc.VOL_GET_XML_DESC, vol, 0)
        assert "<timestamps>" in outcome.result(10).xml  # type: ignore[union-attr]

    def test_of_storage_that_does_not_answer(
        self, peer: Peer, held: dict[str, StoragePool]
    ) -> None:
        for procedure, args in (
            (rpc.VOL_GET_INFO, (V,)),
            (rpc.VOL_GET_INFO_FLAGS, (V, 1)),
            (rpc.VOL_GET_XML_DESC, (V, 0)),
            (extension.VOL_FACTS, (V,)),
        ):
            with promptly(2):
                peer.call(procedure, *args)

    def test_of_storage_that_hangs_at_the_second_step(
        self, peer: Peer, target: Path, control: Control
    ) -> None:
        pool = peer.started("p", target, "double")
        peer.made(pool, "v")
        control.hold("describe")
        with promptly(2):
            xml = peer.call(rpc.VOL_GET_XML_DESC, V, 0).xml
        assert "<capacity unit='bytes'>4096</capacity>" in xml
        assert "<timestamps>" not in xml

    def test_that_fail(self, service: Service, peer: Peer, target: Path, control: Control) -> None:
        pool = peer.started("p", target, "double")
        peer.made(pool, "v")
        control.fail("describe", SystemFailure("cannot read", 5))
        assert peer.error(rpc.VOL_GET_XML_DESC, V, 0).int1 == 5
        control.fail("look", SystemFailure("cannot stat", 5))
        for procedure, args in ((rpc.VOL_GET_INFO, (V,)), (rpc.VOL_GET_XML_DESC, (V, 0))):
            assert peer.error(procedure, *args).int1 == 5
        assert service.driver.known.volume("p", "v")
