"""What ends with a connection: work that is bound to it, transfers; and what does not."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from storaged.errors import Cancelled, StorageError
from storaged.job import Job, Pending
from storaged.rpc import extension, remote
from storaged.rpc import storage as rpc
from storaged.rpc.extension import CallFlag
from storaged.rpc.program import AnyProcedure
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.rpc.typedparam import ParamType, TypedParam
from storaged.service import Identity, Service
from storaged.service.handler import Work
from tests.doubles import Control, eventually, promptly
from tests.service.conftest import Peer, volume_xml


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    """A started pool whose work can be held."""
    pool = peer.started("p", target, "double")
    peer.made(pool, "v")
    return pool


VOL = StorageVol("p", "v", "")
WORK: tuple[tuple[str, AnyProcedure, tuple[object, ...], bool], ...] = (
    ("create", rpc.VOL_CREATE_XML, (volume_xml("new"), 0), True),
    ("clone", rpc.VOL_CREATE_XML_FROM, (volume_xml("new"), VOL, 0), True),
    ("wipe", rpc.VOL_WIPE, (VOL, 0), True),
    ("wipe", rpc.VOL_WIPE_PATTERN, (VOL, 0, 0), True),
    ("resize", rpc.VOL_RESIZE, (VOL, 8192, 0), False),
    ("delete", rpc.VOL_DELETE, (VOL, 0), False),
    ("refresh", rpc.POOL_REFRESH, (0,), False),
    ("stop", rpc.POOL_DESTROY, (), False),
)


def begin(
    peer: Peer, pool: StoragePool, control: Control, work: int, *, flags: int | None = None
) -> Job[object]:
    """Begin held work in one of its ways and return the driver's job."""
    kind, procedure, rest, _ = WORK[work]
    args = rest if rest[:1] == (VOL,) else (pool, *rest)
    before = control.calls[kind]
    control.hold(kind, lively=True)
    if flags is None:
        peer.start(procedure, *args)
    else:
        packed = procedure.args(*args).pack()
        peer.call(extension.JOB_BEGIN, procedure.number, packed, flags)
    control.wait_for(kind, before + 1)
    scans = [job for v in peer.service.driver._table.volumes() for job in v.scans.under_way()]
    found = [job for job in (*peer.service.driver.jobs(), *scans) if job.kind == kind]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("work", range(len(WORK)), ids=[w[1].name for w in WORK])
@pytest.mark.parametrize("flags", [None, 0], ids=["called", "begun"])
def test_bound_work_is_cancelled(
    peer: Peer, pool: StoragePool, control: Control, work: int, flags: int | None
) -> None:
    job = begin(peer, pool, control, work, flags=flags)
    bound = WORK[work][3]
    with promptly():
        peer.session.close()
    if bound:
        eventually(lambda: job.ended)
        assert job.state == "cancelled"
    else:
        assert not job.wait(0.05)
        assert not job.cancelling
        control.release_all()
        job.result(20)


def test_detached_work_goes_on(peer: Peer, pool: StoragePool, control: Control) -> None:
    job = begin(peer, pool, control, 0, flags=int(CallFlag.DETACH))
    peer.session.close()
    assert not job.wait(0.05)
    control.release_all()
    assert job.result(20).name == "new"  # type: ignore[attr-defined]


def test_a_call_may_be_detached(peer: Peer, pool: StoragePool, control: Control) -> None:
    control.hold("create", lively=True)
    packed = rpc.VOL_CREATE_XML.args(pool, volume_xml("new"), 0).pack()
    call = extension.CALL.args(rpc.VOL_CREATE_XML.number, packed, int(CallFlag.DETACH))
    outcome = peer.session.call(extension.CALL, call)
    peer.session.close()
    control.release_all()
    assert isinstance(outcome, Pending)
    assert outcome.result(20).ret


def test_work_of_a_daemon_goes_on(service: Service, pool: StoragePool, control: Control) -> None:
    peer = Peer.of(service, identity=Identity(uid=0, trusted=True))
    who = (TypedParam("unix-user-id", (ParamType.ULLONG, 1000)),)
    peer.call(remote.SET_IDENTITY, who, 0)
    job = begin(peer, pool, control, 0)
    peer.session.close()
    assert not job.wait(0.05)
    control.release_all()
    job.result(20)


def test_work_of_a_superuser_is_cancelled(
    service: Service, pool: StoragePool, control: Control
) -> None:
    peer = Peer.of(service, identity=Identity(uid=0, trusted=True))
    job = begin(peer, pool, control, 0)
    peer.session.close()
    eventually(lambda: job.state == "cancelled")


def test_work_of_others_goes_on(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    job = begin(peer, pool, control, 0)
    Peer.of(service).session.close()
    assert not job.wait(0.05)
    control.release_all()
    job.result(20)


def test_work_of_a_daemon_that_begins_while_the_connection_ends(
    service: Service, pool: StoragePool, control: Control
) -> None:
    peer = Peer.of(service, identity=Identity(uid=0, trusted=True))
    who = (TypedParam("unix-user-id", (ParamType.ULLONG, 1000)),)
    peer.call(remote.SET_IDENTITY, who, 0)
    args = rpc.PoolXMLArgs(pool, volume_xml("new"), 0)
    admitted = peer.session.admit(rpc.VOL_CREATE_XML, args)
    peer.session.close()
    assert isinstance(admitted, Work)
    assert peer.session.begin(admitted, args).job.result(20).name == "new"


def test_work_that_begins_while_the_connection_ends(
    peer: Peer, pool: StoragePool, control: Control
) -> None:
    control.hold("create", lively=True)
    admitted = peer.session.admit(
        rpc.VOL_CREATE_XML, args := rpc.PoolXMLArgs(pool, volume_xml("new"), 0)
    )
    peer.session.close()
    job = peer.session.begin(admitted, args).job  # type: ignore[arg-type]
    eventually(lambda: job.state == "cancelled")


def test_a_search_for_sources_ends_with_who_asked(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    showmount = tmp_path / "showmount"
    showmount.write_text(f"#!/bin/sh\n: > {begun}\nexec sleep 60\n")
    showmount.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    codes: list[int] = []
    spec = "<source><host name='192.0.2.1'/></source>"
    asking = threading.Thread(
        target=lambda: codes.append(peer.error(rpc.FIND_POOL_SOURCES, "netfs", spec, 0).code)
    )
    asking.start()
    eventually(begun.exists)
    with promptly():
        peer.session.close()
        asking.join()
    assert codes == [Cancelled.code]
    assert not peer.session.jobs._bound


def test_nothing_is_kept_of_work_that_has_ended(peer: Peer, pool: StoragePool) -> None:
    for number in range(5):
        peer.made(pool, f"n{number}")
    eventually(lambda: not peer.session.jobs._bound)


# Transfers


def test_an_upload_is_ended_and_its_bytes_stay(
    peer: Peer, service: Service, pool: StoragePool, target: Path
) -> None:
    listener = Peer.of(service)
    listener.call(rpc.EVENT_REGISTER, 1, None)
    sink = peer.call(rpc.VOL_UPLOAD, VOL, 0, 0, 0).sink
    sink.write(b"x" * 100)
    assert len(peer.session.streams) == 1
    peer.session.close()
    eventually(lambda: len(listener.told) == 1)
    eventually(lambda: len(peer.session.streams) == 0)
    assert (target / "v").read_bytes()[:101] == b"x" * 100 + b"\0"
    for late in (lambda: sink.write(b"y"), lambda: sink.hole(1), sink.finish):
        with pytest.raises(StorageError, match="the transfer has ended"):
            late()
    sink.abort()
    listener.call(rpc.VOL_DELETE, VOL, 0)  # nobody holds it any more


def test_a_download_is_ended(peer: Peer, service: Service, pool: StoragePool) -> None:
    source = peer.call(rpc.VOL_DOWNLOAD, VOL, 0, 0, 0).source
    assert source.read(10) == b"\0" * 10
    peer.session.close()
    eventually(lambda: len(peer.session.streams) == 0)
    assert source.read(10) == b""
    source.close()
    Peer.of(service).call(rpc.VOL_DELETE, VOL, 0)


def test_ended_transfers_are_forgotten(peer: Peer, pool: StoragePool) -> None:
    for end in ("finish", "abort"):
        getattr(peer.call(rpc.VOL_UPLOAD, VOL, 0, 0, 0).sink, end)()
    peer.call(rpc.VOL_DOWNLOAD, VOL, 0, 0, 0).source.close()
    assert len(peer.session.streams) == 0


def test_a_transfer_that_opens_while_the_connection_ends(peer: Peer, pool: StoragePool) -> None:
    peer.session.streams.close()
    sink = peer.call(rpc.VOL_UPLOAD, VOL, 0, 0, 0).sink
    with pytest.raises(StorageError):
        sink.write(b"x")
    assert peer.call(rpc.VOL_DOWNLOAD, VOL, 0, 0, 0).source.read(1) == b""
    peer.call(rpc.VOL_DELETE, VOL, 0)


def test_a_write_that_hangs_is_not_waited_for(peer: Peer, pool: StoragePool) -> None:
    class Stuck:
        def __init__(self) -> None:
            self.entered, self.go = threading.Event(), threading.Event()
            self.log: list[str] = []

        def write(self, _data: object) -> None:
            self.entered.set()
            self.go.wait()
            self.log.append("wrote")

        def abort(self) -> None:
            self.log.append("aborted")

        hole = finish = write

    stuck = Stuck()
    sink = peer.session.streams.sink(stuck)  # type: ignore[arg-type]
    writer = threading.Thread(target=sink.write, args=(b"x",))
    writer.start()
    stuck.entered.wait()
    with promptly():
        peer.session.close()
    time.sleep(0.02)
    assert stuck.log == []  # not under the writer's hands
    stuck.go.set()
    writer.join()
    eventually(lambda: stuck.log == ["wrote", "aborted"])


def test_the_service_ends_its_sessions(service: Service, pool: StoragePool) -> None:
    peers = [Peer.of(service) for _ in range(3)]
    for peer in peers:
        peer.call(rpc.EVENT_REGISTER, 0, None)
    service.close()
    assert all(peer.session.closed for peer in peers)
    assert not service.driver.events._subscribers
    assert not service.driver.closed
