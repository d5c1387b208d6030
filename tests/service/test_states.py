"""What pools and volumes allow in which state, code by code and event by event."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import SystemFailure
from storaged.events import Lifecycle
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Void
from storaged.rpc.storage import Count, LifecycleEvent, RefreshEvent, StoragePool, StorageVol
from storaged.service import Service
from tests.doubles import Control, eventually
from tests.service.conftest import Peer, pool_xml, volume_xml

INACTIVE, ACTIVE, STARTING, BUSY = "inactive", "active", "starting", "busy"
OK = 0


def told(peer: Peer) -> list[str]:
    """Return the events so far by name."""
    return [
        "REFRESH" if isinstance(e, RefreshEvent) else Lifecycle(e.event).name
        for e in peer.events()
        if isinstance(e, LifecycleEvent | RefreshEvent)
    ]


@pytest.fixture
def listening(peer: Peer) -> Peer:
    """The connection, with both events asked for."""
    peer.call(rpc.EVENT_REGISTER, 0, None)
    peer.call(rpc.EVENT_REGISTER, 1, None)
    return peer


Scene = Callable[[str], StoragePool]


@pytest.fixture
def scene(listening: Peer, service: Service, control: Control, target: Path) -> Scene:
    """A function that brings the pool p into a state and forgets the events of that."""

    def bring(state: str) -> StoragePool:
        pool = listening.define("p", target, "double")
        if state == STARTING:
            control.hold("start")
            listening.start(rpc.POOL_CREATE, pool, 0)
            control.wait_for("start")
        if state in (ACTIVE, BUSY):
            listening.call(rpc.POOL_CREATE, pool, 0)
            listening.made(pool, "v")
        if state == BUSY:
            control.hold("create", lively=True)
            listening.start(rpc.VOL_CREATE_XML, pool, volume_xml("new"), 0)
            control.wait_for("create", 2)
        eventually(lambda: state in (INACTIVE, STARTING) or "STARTED" in told(listening))
        listening.told.clear()
        return pool

    return bring


def _define(target: Path) -> tuple[AnyProcedure, Any]:
    return rpc.POOL_DEFINE_XML, target


#: code for each state, and the event of a success
MATRIX: dict[str, tuple[AnyProcedure, dict[str, int], str | None]] = {
    "start": (rpc.POOL_CREATE, {INACTIVE: OK, ACTIVE: 55, STARTING: 55, BUSY: 55}, "STARTED"),
    "build": (rpc.POOL_BUILD, {INACTIVE: OK, ACTIVE: 55, STARTING: 55, BUSY: 55}, "CREATED"),
    "stop": (rpc.POOL_DESTROY, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: 1}, "STOPPED"),
    "delete": (rpc.POOL_DELETE, {INACTIVE: OK, ACTIVE: 55, STARTING: 55, BUSY: 55}, "DELETED"),
    "undefine": (
        rpc.POOL_UNDEFINE,
        {INACTIVE: OK, ACTIVE: 55, STARTING: 55, BUSY: 55},
        "UNDEFINED",
    ),
    "refresh": (rpc.POOL_REFRESH, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, "REFRESH"),
    "set autostart": (
        rpc.POOL_SET_AUTOSTART,
        {INACTIVE: OK, ACTIVE: OK, STARTING: OK, BUSY: OK},
        None,
    ),
    "info": (rpc.POOL_GET_INFO, {INACTIVE: OK, ACTIVE: OK, STARTING: OK, BUSY: OK}, None),
    "xml": (rpc.POOL_GET_XML_DESC, {INACTIVE: OK, ACTIVE: OK, STARTING: OK, BUSY: OK}, None),
    "count": (rpc.POOL_NUM_OF_VOLUMES, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "names": (rpc.POOL_LIST_VOLUMES, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "list": (rpc.POOL_LIST_ALL_VOLUMES, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "look-up": (rpc.VOL_LOOKUP_BY_NAME, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "volume info": (rpc.VOL_GET_INFO, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "volume xml": (rpc.VOL_GET_XML_DESC, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "volume path": (rpc.VOL_GET_PATH, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "resize": (rpc.VOL_RESIZE, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "wipe": (rpc.VOL_WIPE, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "volume delete": (rpc.VOL_DELETE, {INACTIVE: 55, ACTIVE: OK, STARTING: 55, BUSY: OK}, None),
    "by volume": (
        rpc.POOL_LOOKUP_BY_VOLUME,
        {INACTIVE: OK, ACTIVE: OK, STARTING: OK, BUSY: OK},
        None,
    ),
    "by key": (rpc.VOL_LOOKUP_BY_KEY, {INACTIVE: 50, ACTIVE: OK, STARTING: 50, BUSY: OK}, None),
    "by path": (rpc.VOL_LOOKUP_BY_PATH, {INACTIVE: 50, ACTIVE: OK, STARTING: 50, BUSY: OK}, None),
    "by target": (
        rpc.POOL_LOOKUP_BY_TARGET_PATH,
        {INACTIVE: 49, ACTIVE: OK, STARTING: 49, BUSY: OK},
        None,
    ),
    "create": (rpc.VOL_CREATE_XML, {INACTIVE: 55, STARTING: 55, ACTIVE: OK}, None),
    "clone": (rpc.VOL_CREATE_XML_FROM, {INACTIVE: 55, STARTING: 55, ACTIVE: OK}, None),
    "upload": (rpc.VOL_UPLOAD, {INACTIVE: 55, STARTING: 55, ACTIVE: OK, BUSY: OK}, None),
    "download": (rpc.VOL_DOWNLOAD, {INACTIVE: 55, STARTING: 55, ACTIVE: OK, BUSY: OK}, None),
}


def arguments(operation: str, pool: StoragePool, target: Path) -> tuple[Any, ...]:
    vol = StorageVol("p", "v", "")
    special: dict[str, tuple[Any, ...]] = {
        "set autostart": (pool, 1),
        "names": (pool, 10),
        "list": (pool, 1, 0),
        "look-up": (pool, "v"),
        "resize": (vol, 8192, 0),
        "by key": (f"{target}/v",),
        "by path": (f"{target}/v",),
        "by target": (str(target),),
        "create": (pool, volume_xml("w"), 0),
        "clone": (pool, volume_xml("w"), vol, 0),
        "upload": (vol, 0, 0, 0),
        "download": (vol, 0, 0, 0),
    }
    if operation in special:
        return special[operation]
    procedure = MATRIX[operation][0]
    named = {"pool": pool, "vol": vol, "flags": 0}
    return tuple(named[field] for field in procedure.args._fields)


CASES = [(operation, state) for operation, (_, codes, _) in MATRIX.items() for state in codes]


@pytest.mark.parametrize(("operation", "state"), CASES)
def test_matrix(
    operation: str, state: str, scene: Scene, listening: Peer, target: Path, control: Control
) -> None:
    pool = scene(state)
    procedure, codes, event = MATRIX[operation]
    args = arguments(operation, pool, target)
    if codes[state] == OK:
        outcome = listening.call(procedure, *args)
        if operation in ("upload", "download"):
            (outcome.sink or outcome.source).abort()
            return  # the end of an upload is told as a refresh
        if event:
            eventually(lambda: told(listening) == [event])
        else:
            assert told(listening) == []
    else:
        error = listening.error(procedure, *args)
        assert (error.code, error.domain) == (codes[state], 18)
        assert told(listening) == []


def test_redefinition(listening: Peer, target: Path) -> None:
    pool = listening.define("p", target)
    again = pool_xml("p", target, uuid=pool.uuid)
    other = pool_xml("p", target.with_name("q"), uuid=pool.uuid)
    assert listening.call(rpc.POOL_DEFINE_XML, again, 0).pool == pool
    listening.call(rpc.POOL_CREATE, pool, 0)
    assert listening.call(rpc.POOL_DEFINE_XML, other, 0).pool == pool
    live, pending = (listening.call(rpc.POOL_GET_XML_DESC, pool, flag).xml for flag in (0, 1))
    assert f"<path>{target}</path>" in live
    assert f"<path>{target.with_name('q')}</path>" in pending
    listening.call(rpc.POOL_DESTROY, pool)
    assert "/q</path>" in listening.call(rpc.POOL_GET_XML_DESC, pool, 0).xml
    assert told(listening) == ["DEFINED", "DEFINED", "STARTED", "DEFINED", "STOPPED"]


def test_a_transient_pool(listening: Peer, target: Path) -> None:
    target.mkdir()
    pool = listening.call(rpc.POOL_CREATE_XML, pool_xml("p", target), 0).pool
    assert listening.call(rpc.POOL_IS_PERSISTENT, pool) == Count(0)
    for value in (0, 1):
        error = listening.error(rpc.POOL_SET_AUTOSTART, pool, value)
        assert (error.code, error.domain, error.str2) == (1, 18, "pool has no config file")
    again = pool_xml("p", target, uuid=pool.uuid)
    error = listening.error(rpc.POOL_CREATE_XML, again, 0)
    assert (error.code, error.str2) == (55, "pool is already active as 'p'")
    listening.call(rpc.POOL_DESTROY, pool)
    assert listening.error(rpc.POOL_GET_INFO, pool).code == 49
    assert told(listening) == ["STARTED", "STOPPED"]


def test_a_transient_pool_becomes_persistent(listening: Peer, target: Path) -> None:
    target.mkdir()
    pool = listening.call(rpc.POOL_CREATE_XML, pool_xml("p", target), 0).pool
    listening.call(rpc.POOL_DEFINE_XML, pool_xml("p", target, uuid=pool.uuid), 0)
    assert listening.call(rpc.POOL_IS_PERSISTENT, pool) == Count(1)
    assert listening.call(rpc.POOL_SET_AUTOSTART, pool, 7) == Void()
    assert listening.call(rpc.POOL_SET_AUTOSTART, pool, 7) == Void()
    assert listening.call(rpc.POOL_GET_AUTOSTART, pool) == Count(1)
    assert told(listening) == ["STARTED", "DEFINED"]


def test_a_failed_start(listening: Peer, scene: Scene, control: Control) -> None:
    pool = scene(INACTIVE)
    control.fail("start", SystemFailure("cannot mount", 5))
    error = listening.error(rpc.POOL_CREATE, pool, 0)
    assert (error.code, error.int1, error.message) == (38, 5, "cannot mount: Input/output error")
    assert listening.call(rpc.POOL_IS_ACTIVE, pool) == Count(0)
    assert told(listening) == []


def test_a_failed_refresh_stops(listening: Peer, scene: Scene, control: Control) -> None:
    pool = scene(ACTIVE)
    control.fail("refresh", SystemFailure("cannot read", 5))
    assert listening.error(rpc.POOL_REFRESH, pool, 0).code == 38
    eventually(lambda: told(listening) == ["STOPPED"])
    assert listening.call(rpc.POOL_GET_INFO, pool).state == 0


@pytest.mark.parametrize(
    ("flags", "code", "built"),
    [(0, 38, 0), (1, 0, 1), (2, 55, 1), (3, 55, 1), (4, 55, 1), (6, 55, 1), (7, 55, 1)],
)
def test_flags_of_a_start(
    listening: Peer, target: Path, control: Control, flags: int, code: int, built: int
) -> None:
    """With 2 or 4 a build is meant, and a directory has no device to format."""
    pool = listening.define("p", target, "double")
    target.rmdir()
    if code:
        assert listening.error(rpc.POOL_CREATE, pool, flags).code == code
    else:
        listening.call(rpc.POOL_CREATE, pool, flags)
        assert told(listening) == ["DEFINED", "STARTED"]
    assert control.calls["build"] == built


class TestVolumesUnderWork:
    """A volume that a job changes or reads refuses what would disturb it."""

    @pytest.fixture
    def pool(self, scene: Scene) -> StoragePool:
        return scene(ACTIVE)

    def refused(self, peer: Peer, pool: StoragePool, name: str, why: str) -> None:
        vol = StorageVol("p", name, "")
        for procedure, args in (
            (rpc.VOL_DELETE, (vol, 0)),
            (rpc.VOL_RESIZE, (vol, 8192, 0)),
            (rpc.VOL_WIPE, (vol, 0)),
            (rpc.VOL_UPLOAD, (vol, 0, 0, 0)),
        ):
            error = peer.error(procedure, *args)
            assert (error.code, error.str2) == (55, f"volume '{name}' is still {why}.")

    def test_being_created(self, listening: Peer, pool: StoragePool, control: Control) -> None:
        control.hold("create", lively=True)
        listening.start(rpc.VOL_CREATE_XML, pool, volume_xml("new"), 0)
        control.wait_for("create", 2)
        vol = listening.call(rpc.VOL_LOOKUP_BY_NAME, pool, "new").vol
        eventually(lambda: listening.call(rpc.VOL_GET_INFO, vol).allocation > 0)
        self.refused(listening, pool, "new", "being allocated")
        error = listening.error(rpc.VOL_DOWNLOAD, vol, 0, 0, 0)
        assert error.str2 == "volume 'new' is still being allocated."
        error = listening.error(rpc.VOL_CREATE_XML_FROM, pool, volume_xml("w"), vol, 0)
        assert error.str2 == "volume 'new' is still being allocated."

    def test_being_wiped(self, listening: Peer, pool: StoragePool, control: Control) -> None:
        control.hold("wipe", lively=True)
        listening.start(rpc.VOL_WIPE, StorageVol("p", "v", ""), 0)
        control.wait_for("wipe")
        self.refused(listening, pool, "v", "in use")

    def test_a_busy_pool_names_the_job(
        self, listening: Peer, pool: StoragePool, control: Control
    ) -> None:
        control.hold("wipe", lively=True)
        listening.start(rpc.VOL_WIPE, StorageVol("p", "v", ""), 0)
        error = listening.error(rpc.POOL_DESTROY, pool)
        assert error.message == "internal error: pool 'p' has asynchronous jobs running."
