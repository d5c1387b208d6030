"""What libvirt has no call for: jobs, problems, metrics, pages, policies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Figures
from storaged.errors import Domain, SystemFailure
from storaged.model import Space, VolumeRecord
from storaged.rpc import extension as rpc
from storaged.rpc import storage
from storaged.rpc.extension import CallFlag, Hello, JobEnded, JobFacts, JobRet, Metric, Policy
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Void
from storaged.rpc.remoteerror import describe_fully
from storaged.rpc.storage import PoolArgs, PoolFlagsArgs, PoolRet, StoragePool, StorageVol, VolRet
from storaged.service import Service
from storaged.version import VERSION
from tests.doubles import Control, eventually, refused
from tests.service.conftest import NOWHERE, Double, Peer, volume_xml


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    """A started pool whose work can be held."""
    return peer.started("p", target, "double")


def begin(peer: Peer, procedure: AnyProcedure, *args: Any, flags: int = 0) -> JobFacts:
    packed = procedure.args(*args).pack()
    begun: JobFacts = peer.call(rpc.JOB_BEGIN, procedure.number, packed, flags).job
    return begun


def inner(peer: Peer, procedure: AnyProcedure, *args: Any, flags: int = 0) -> Any:
    packed = procedure.args(*args).pack()
    return procedure.ret.unpack(peer.call(rpc.CALL, procedure.number, packed, flags).ret)


def ends(peer: Peer) -> list[JobEnded]:
    return [event for event in peer.events() if isinstance(event, JobEnded)]


def ended(peer: Peer) -> JobEnded:
    """Return the one end that is told."""
    eventually(lambda: bool(ends(peer)))
    return ends(peer)[0]


def test_hello(service: Service) -> None:
    peer = Peer.of(service, opened=False)
    answer = peer.call(rpc.HELLO, "storagectl")
    assert (answer.version, answer.level) == (VERSION, rpc.LEVEL)
    assert isinstance(Hello("x"), Hello)


# Calls


def test_calls(peer: Peer, pool: StoragePool) -> None:
    assert inner(peer, storage.POOL_LOOKUP_BY_NAME, "p") == PoolRet(pool)
    vol = inner(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0).vol
    assert vol.name == "v"
    assert inner(peer, storage.VOL_GET_INFO, vol).capacity == 4096
    assert inner(peer, storage.POOL_REFRESH, pool, 0) == Void()
    with refused(90, "storage volume 'v' exists already") as caught:
        inner(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0)
    told = describe_fully(caught.value)
    assert (told.str1, told.str2) == ("VolumeExists", "'v'")
    assert told.str3 is not None
    assert f"/{vol.name}" in told.str3


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (0, 39, "unknown procedure: 0"),
        (-7, 39, "unknown procedure: -7"),
        (370, 39, "unknown procedure: 370"),
        (273, 3, "virConnectListAllDomains"),
        (208, 3, "virStorageVolUpload within another call"),
        (66, 3, "virAuthList within another call"),
        (2, 3, "virConnectClose within another call"),
    ],
)
def test_calls_that_cannot_be_carried(peer: Peer, number: int, code: int, text: str) -> None:
    for procedure in (rpc.CALL, rpc.JOB_BEGIN):
        error = peer.error(procedure, number, b"", 0)
        assert (error.code, error.str2) == (code, text)


def test_calls_of_garbage(peer: Peer) -> None:
    for procedure in (rpc.CALL, rpc.JOB_BEGIN):
        assert peer.error(procedure, storage.POOL_CREATE.number, b"\xff" * 7, 0).code == 39
        assert peer.ready(procedure, storage.POOL_CREATE.number, b"\xff" * 7, 0)


def test_a_call_may_be_forced(peer: Peer, pool: StoragePool, target: Path) -> None:
    vol = peer.made(pool, "v", 1 << 20)
    (target / "v").write_bytes(b"x" * (1 << 20))
    packed = (storage.VOL_RESIZE.number, storage.VolResizeArgs(vol, 4096, 4).pack())
    assert peer.error(rpc.CALL, *packed, 0).code == 8  # data would be cut
    peer.call(rpc.CALL, *packed, int(CallFlag.FORCE))
    assert (target / "v").stat().st_size == 4096


# Jobs


def test_a_job(peer: Peer, pool: StoragePool) -> None:
    job = begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0)
    assert (job.kind, job.pool, job.volume, job.state) == ("create", "p", "v", "running")
    told = ended(peer)
    assert (told.job.id, told.job.state, told.error) == (job.id, "done", None)
    assert VolRet.unpack(told.ret).vol.name == "v"
    assert peer.error(rpc.JOB_GET, job.id).code == 8


def test_a_job_that_fails(peer: Peer, pool: StoragePool, control: Control) -> None:
    control.fail("create", SystemFailure("cannot write", 28, advice="Make room."))
    begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0)
    told = ended(peer)
    assert (told.job.state, told.ret) == ("failed", b"")
    assert told.error is not None
    assert (told.error.code, told.error.int1) == (38, 28)
    assert (told.error.str1, told.error.str3) == ("SystemFailure", "Make room.")


def test_what_is_no_job(peer: Peer, pool: StoragePool) -> None:
    error = peer.error(rpc.JOB_BEGIN, storage.POOL_GET_INFO.number, PoolArgs(pool).pack(), 0)
    assert (error.code, error.str2) == (3, "virStoragePoolGetInfo is not done as a job")


def test_a_job_that_does_not_begin(peer: Peer) -> None:
    args = PoolFlagsArgs(NOWHERE, 0).pack()
    assert peer.error(rpc.JOB_BEGIN, storage.POOL_REFRESH.number, args, 0).code == 49
    assert ends(peer) == []


def test_list_get_and_cancel(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    control.hold("create", lively=True)
    jobs = [begin(peer, storage.VOL_CREATE_XML, pool, volume_xml(n), 0) for n in "abc"]
    control.wait_for("create", 3)
    other = Peer.of(service)
    listed = other.call(rpc.JOB_LIST).jobs
    assert [job.id for job in listed] == [job.id for job in jobs]
    eventually(lambda: other.call(rpc.JOB_GET, jobs[0].id).job.total == 600 << 20)
    assert other.call(rpc.JOB_GET, jobs[0].id).job.done > 0
    assert other.call(rpc.JOB_CANCEL, jobs[1].id) == Void()
    told = ended(peer)
    assert (told.job.id, told.job.state) == (jobs[1].id, "cancelled")
    assert told.error is not None
    assert told.error.code == 78
    assert [job.id for job in other.call(rpc.JOB_LIST).jobs] == [jobs[0].id, jobs[2].id]
    assert ends(other) == []
    for unknown in (jobs[1].id, 0, 2**64 - 1):
        error = other.error(rpc.JOB_CANCEL, unknown)
        assert (error.code, error.domain) == (8, Domain.STORAGE)
    control.release_all()
    eventually(lambda: len(ends(peer)) == 3)


def progress(peer: Peer, job: int) -> list[JobFacts]:
    told = [event.job for event in peer.events() if isinstance(event, JobRet)]
    return [facts for facts in told if facts.id == job]


def test_following_a_job(service: Service, peer: Peer, pool: StoragePool, control: Control) -> None:
    control.hold("create", lively=True)
    job = begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0).id
    other = Peer.of(service)
    other.call(rpc.JOB_FOLLOW, job)
    other.call(rpc.JOB_FOLLOW, job)
    began = time.monotonic()
    eventually(lambda: len(progress(other, job)) >= 3)
    assert time.monotonic() - began > 0.35  # not more often than five times a second
    control.release_all()
    eventually(lambda: progress(other, job)[-1].state == "done")
    assert [facts.state for facts in progress(other, job)].count("done") == 1
    assert progress(peer, job) == []
    assert not other.session.jobs._followed
    assert other.error(rpc.JOB_FOLLOW, job).code == 8


def test_following_all_jobs(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    control.hold("create", lively=True)
    before = begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("before"), 0).id
    other = Peer.of(service)
    other.call(rpc.JOB_FOLLOW, 0)
    other.call(rpc.JOB_FOLLOW, 0)
    after = begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("after"), 0).id
    eventually(lambda: bool(progress(other, before) and progress(other, after)))
    control.release_all()
    eventually(lambda: all(progress(other, job)[-1].state == "done" for job in (before, after)))
    other.call(rpc.JOB_UNFOLLOW, 0)
    other.told.clear()
    peer.made(pool, "later")
    assert other.told == []
    assert not service.driver._services.feed._subscribers


def test_following_ends(service: Service, peer: Peer, pool: StoragePool, control: Control) -> None:
    control.hold("create", lively=True)
    job = begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0).id
    one, other = Peer.of(service), Peer.of(service)
    one.call(rpc.JOB_FOLLOW, job)
    other.call(rpc.JOB_FOLLOW, 0)
    eventually(lambda: bool(one.told and other.told))
    one.call(rpc.JOB_UNFOLLOW, job)
    one.call(rpc.JOB_UNFOLLOW, job)
    other.session.close()
    one.told.clear()
    other.told.clear()
    control.release_all()
    ended(peer)
    assert one.told == other.told == []


def test_a_scan_is_a_job_of_who_began_it(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    control.hold("refresh", lively=True)
    job = begin(peer, storage.POOL_REFRESH, pool, 0).id
    assert peer.call(rpc.JOB_GET, job).job.kind == "refresh"
    peer.call(rpc.JOB_FOLLOW, job)
    eventually(lambda: bool(progress(peer, job)))
    assert Peer.of(service).error(rpc.JOB_GET, job).code == 8
    peer.call(rpc.JOB_CANCEL, job)
    assert ended(peer).job.state == "cancelled"
    assert not peer.session.jobs._begun
    assert peer.call(storage.POOL_IS_ACTIVE, pool).num == 1


def test_no_end_is_told_to_who_has_gone(peer: Peer, pool: StoragePool, control: Control) -> None:
    control.hold("create", lively=True)
    begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("v"), 0, flags=int(CallFlag.DETACH))
    peer.session.close()
    control.release_all()
    eventually(lambda: not peer.service.driver.jobs())
    assert peer.told == []


# Problems, figures


def test_problems(service: Service, peer: Peer) -> None:
    assert peer.call(rpc.PROBLEMS).strings == ()
    service.driver._problems = ("one", "two")
    assert peer.call(rpc.PROBLEMS).strings == ("one", "two")


def test_metrics(
    service: Service, peer: Peer, pool: StoragePool, tmp_path: Path, control: Control
) -> None:
    peer.define("q", tmp_path / "q")
    peer.made(pool, "v")
    control.hold("wipe", lively=True)
    begin(peer, storage.VOL_WIPE, StorageVol("p", "v", ""), 0)
    service.add_metrics(lambda: [Metric("storaged_clients", None, 3.0)])
    found = {(m.name, m.pool): m.value for m in peer.call(rpc.METRICS).metrics}
    assert found['storaged_jobs_running{kind="wipe"}', None] == 1
    assert found['storaged_pools{state="running"}', None] == 1
    assert found['storaged_pools{state="inactive"}', None] == 1
    assert found["storaged_volumes_known", "p"] == 1
    assert found["storaged_workers_stuck", "p"] == 0
    assert found["storaged_pool_problems", "q"] == 0
    assert found["storaged_clients", None] == 3


# Pools


def test_pool_list(peer: Peer, pool: StoragePool, tmp_path: Path, target: Path) -> None:
    peer.define("a", tmp_path / "a")
    found = peer.call(rpc.POOL_LIST, 0).pools
    assert [(facts.pool.name, facts.type, facts.state) for facts in found] == [
        ("a", "dir", 0),
        ("p", "double", 2),
    ]
    assert (found[1].pool, found[1].target) == (pool, str(target))
    assert found[1].capacity > found[1].available > 0
    assert (found[1].persistent, found[1].autostart, found[1].problems) == (1, 0, ())
    assert [facts.pool.name for facts in peer.call(rpc.POOL_LIST, 1).pools] == ["a"]


def test_pool_facts(
    peer: Peer, pool: StoragePool, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags in (0, 1, 2, 3):
        facts = peer.call(rpc.POOL_FACTS, pool, flags).facts
        assert (facts.pool, facts.state, facts.type) == (pool, 2, "double")
    assert peer.error(rpc.POOL_FACTS, NOWHERE, 0).code == 49
    changed = Figures(Space(), problem="it is another file system")
    monkeypatch.setattr(double.backend, "measure", lambda _backend: changed)
    error = peer.error(rpc.POOL_FACTS, pool, 2)
    assert (error.code, error.str2) == (9, changed.problem)
    assert peer.call(rpc.POOL_FACTS, pool, 0).facts.problems == (error.str2,)


# Volumes


def test_pages(peer: Peer, target: Path) -> None:
    """More volumes than a list of libvirt's can carry."""
    pool = peer.started("p", target)
    total = 20_000
    records = {f"n{i:05}": VolumeRecord(f"n{i:05}", i, i) for i in range(total)}
    known = peer.service.driver._table.by_name("p").pool
    with known.lock:
        known.index = known.index.merged(dict(reversed(records.items())), ())
        known.measured(Space(), None)
    error = peer.error(storage.POOL_LIST_ALL_VOLUMES, pool, 1, 0)
    assert (error.code, error.domain) == (1, 7)
    assert error.str2 == "Too many storage_vols '20000' for limit '16384'"
    assert peer.error(storage.POOL_LIST_ALL_VOLUMES, pool, 0, 0) == error
    assert peer.call(storage.POOL_NUM_OF_VOLUMES, pool).num == total
    assert len(peer.call(storage.POOL_LIST_VOLUMES, pool, 16384).names) == 16384
    names: list[str] = []
    sizes = []
    more = 1
    while more:
        page = peer.call(rpc.VOL_PAGE, pool, names[-1] if names else None, 7_000)
        names += [facts.vol.name for facts in page.vols]
        sizes.append(len(page.vols))
        more = page.more
    assert names == sorted(records)
    assert sizes == [7000, 7000, 6000]
    whole = peer.call(rpc.VOL_PAGE, pool, None, 16384)
    assert (len(whole.vols), whole.more) == (16384, 1)
    assert peer.call(rpc.VOL_PAGE, pool, names[-1], 5) == rpc.VolPageRet((), 0)


@pytest.mark.parametrize("count", [0, 16385, 2**32 - 1])
def test_pages_of_a_wrong_size(peer: Peer, pool: StoragePool, count: int) -> None:
    assert peer.error(rpc.VOL_PAGE, pool, None, count).code == 8


def test_pages_of_a_pool_that_has_none(peer: Peer, pool: StoragePool) -> None:
    assert peer.call(rpc.VOL_PAGE, pool, None, 10) == rpc.VolPageRet((), 0)
    peer.call(storage.POOL_DESTROY, pool)
    assert peer.error(rpc.VOL_PAGE, pool, None, 10).code == 55


def test_volume_facts(peer: Peer, pool: StoragePool, target: Path, control: Control) -> None:
    vol = peer.made(pool, "v")
    (target / "v").write_bytes(b"x" * 65536)
    facts = peer.call(rpc.VOL_FACTS, vol).facts
    assert (facts.vol, facts.type, facts.format) == (vol, 0, "raw")
    assert (facts.capacity, facts.physical, facts.path) == (65536, 65536, f"{target}/v")
    assert (facts.problem, facts.building) == (None, 0)
    control.hold("create", lively=True)
    begin(peer, storage.VOL_CREATE_XML, pool, volume_xml("new"), 0)
    control.wait_for("create", 2)
    new = StorageVol("p", "new", "")
    eventually(lambda: peer.call(rpc.VOL_FACTS, new).facts.allocation > 0)
    assert peer.call(rpc.VOL_FACTS, new).facts.building == 1
    assert peer.error(rpc.VOL_FACTS, StorageVol("p", "no", "")).code == 50


def test_policies(peer: Peer, pool: StoragePool, target: Path) -> None:
    nothing, wanted = Policy(None, None, None), Policy(None, None, 0o640)
    assert peer.call(rpc.POLICY_GET, pool).policy == nothing
    assert peer.call(rpc.POLICY_SET, pool, wanted) == Void()
    assert peer.call(rpc.POLICY_GET, pool).policy == wanted
    peer.made(pool, "v")
    assert (target / "v").stat().st_mode & 0o777 == 0o640
    assert peer.error(rpc.POLICY_SET, pool, Policy(2**32 - 1, None, None)).code == 8
    assert peer.error(rpc.POLICY_SET, pool, Policy(None, None, 0o7777)).code == 8
    assert peer.error(rpc.POLICY_GET, NOWHERE).code == 49


def test_libvirts_calls_tell_of_no_jobs(peer: Peer, pool: StoragePool) -> None:
    peer.made(pool, "v")
    assert peer.told == []
