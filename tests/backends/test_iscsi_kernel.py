"""Pool type iscsi against real targets: tgtd, and the one of the kernel."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import storaged
from storaged.backend import Host, WipeAlgorithm
from storaged.backends._iscsiloan import read_loans
from storaged.backends._iscsilogin import REPLACEMENT_TIMEOUT
from storaged.backends._iscsisession import read_sessions
from storaged.backends._scsiid import read_serial
from storaged.backends._scsiunits import scsi_id
from storaged.backends.iscsi import Iscsi
from storaged.errors import (
    AccessDenied,
    NoSuchSecret,
    OperationFailed,
    StorageError,
    Timeout,
    VolumeBusy,
)
from storaged.job import Job
from storaged.mechanism import SecretUsage
from storaged.model import (
    Auth,
    PoolDef,
    PoolSource,
    SecretRef,
    SourceDevice,
    SourceHost,
    VolumeRecord,
    VolumeType,
)
from tests.kernel.fixtures import ScsiHosts
from tests.kernel.iscsi import Chap, Initiator, Lio, Tgtd
from tests.kernel.programs import eventually, patience, run

pytestmark = pytest.mark.kernel("iscsi", "tgt", "lio", "udev")

IQN = "iqn.2026-01.test.storaged:disks"
OTHER = "iqn.2026-01.test.storaged:more"
BY_PATH = "/dev/disk/by-path"
SECRET = "hush-secret-4711"
NODES = Path("/etc/iscsi/nodes")
IFACES = Path("/etc/iscsi/ifaces")


@dataclass
class Secrets:
    """One secret, or none."""

    secret: bytes | None = SECRET.encode()
    asked: list[SecretUsage] = field(default_factory=list)

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        self.asked.append(usage)
        if self.secret is None:
            raise NoSuchSecret(f"no secret with matching usage '{ref.usage}'")
        return self.secret

    def find(self, usage: SecretUsage, name: str) -> UUID | None:
        return None


def source(
    portal: str, target: str = IQN, *, initiator: str | None = None, chap: bool = False
) -> PoolSource:
    host, _, port = portal.rpartition(":")
    return PoolSource(
        hosts=(SourceHost(host, int(port)),),
        devices=(SourceDevice(target),),
        initiator=initiator,
        auth=Auth("chap", "bob", SecretRef(usage="san")) if chap else None,
    )


def backend(where: PoolSource, secrets: Secrets | None = None) -> Iscsi:
    definition = PoolDef("iscsi", "san", source=where, target=BY_PATH)
    return Iscsi(definition, Host(id="test", secrets=secrets or Secrets()))


def job() -> Job[Any]:
    return Job("test", "san")


@contextmanager
def started(pool: Iscsi) -> Iterator[dict[str, VolumeRecord]]:
    pool.start(job())
    try:
        yield volumes(pool)
    finally:
        pool.stop_by_force(job())


def volumes(pool: Iscsi, known: dict[str, VolumeRecord] | None = None) -> dict[str, VolumeRecord]:
    found = pool.refresh(known or {}, job())
    assert found.problems == ()
    assert found.space.capacity == sum(each.capacity for each in found.volumes.values())
    assert (found.space.allocation, found.space.available) == (found.space.capacity, 0)
    return found.volumes


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "disk", mebibytes: int = 16) -> Path:
        path = tmp_path / f"{name}.img"
        path.write_bytes(b"")
        os.truncate(path, mebibytes << 20)
        return path

    return make


def assert_nothing_is_left() -> None:
    assert read_sessions() == ()
    assert not NODES.exists() or not list(NODES.iterdir())
    assert not IFACES.exists() or not list(IFACES.iterdir())
    assert read_loans() == ()


def test_the_luns_of_a_target_are_volumes(
    lio: Lio, initiator: Initiator, image: Callable[..., Path]
) -> None:
    first, second = image("a"), image("b", 24)
    group = lio.add(IQN, [first])
    pool = backend(source(lio.portal))
    assert not pool.check()
    with started(pool) as found:
        assert pool.check()
        assert list(found) == ["unit:0:0:0"]
        volume = found["unit:0:0:0"]
        assert volume.type is VolumeType.BLOCK
        assert volume.capacity == volume.allocation == 16 << 20
        assert volume.path == f"{BY_PATH}/ip-{lio.portal}-iscsi-{IQN}-lun-0"
        printed = run(
            scsi_id(), "--replace-whitespace", "--whitelisted", "--device", volume.path
        ).strip()
        assert volume.key == printed
        assert read_serial(unit_directory(pool)) == printed
        assert volume.extra == {"label": "unknown"}
        assert volumes(pool, found)["unit:0:0:0"] is volume
        assert pool.look("unit:0:0:0", None) == volume
        assert pool.look("unit:0:0:7", None) is None
        described = pool.describe(volume)
        assert (described.type, described.key, described.path) == (
            VolumeType.BLOCK,
            printed,
            volume.path,
        )

        bytes_go_in_and_out(pool, volume, first)

        add_lun(lio, group, second)
        more = volumes(pool, found)
        assert sorted(more) == ["unit:0:0:0", "unit:0:0:1"]
        assert more["unit:0:0:1"].capacity == 24 << 20
        assert len({each.key for each in more.values()}) == 2

        (group / "lun/lun_1/store").unlink()
        gone = pool.refresh(more, job()).volumes["unit:0:0:1"]
        assert gone.problem is not None, "a LUN that is taken away is told, not hidden"
    assert_nothing_is_left()


def unit_directory(pool: Iscsi) -> str:
    (unit,) = pool.units()
    return unit.device


def add_lun(lio: Lio, group: Path, image: Path) -> None:
    lun = lio._make(group / "lun/lun_1")
    (lun / "store").symlink_to(lio._store(image))


def bytes_go_in_and_out(pool: Iscsi, volume: VolumeRecord, image: Path) -> None:
    data = os.urandom(1 << 20)
    sink = pool.upload(volume, 4096, len(data))
    sink.write(data)
    sink.finish()
    with closing(pool.open_image(volume)) as handle:
        assert handle.pread(len(data), 4096) == data
    content = bytearray()
    with closing(pool.download(volume, 4096, len(data))) as stream:
        while piece := stream.read(1 << 18):
            assert isinstance(piece, bytes)
            content += piece
    assert content == data
    assert image.read_bytes()[4096 : 4096 + len(data)] == data
    after = pool.wipe(volume, WipeAlgorithm.ZERO, job())
    assert after.capacity == volume.capacity
    os.sync()
    assert not image.read_bytes().strip(b"\0")


def test_chap(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tgtd.add(IQN, [image()], chap=Chap("bob", SECRET))
    where = source(tgtd.portal, chap=True)
    with watched_arguments() as seen:
        for secret, kind in ((b"wrong-secret-123", AccessDenied), (None, NoSuchSecret)):
            with pytest.raises(kind) as caught:
                backend(where, Secrets(secret)).start(job())
            assert "wrong-secret" not in repr(caught.value) + str(caught.value.advice)
            assert_nothing_is_left()
        with pytest.raises(AccessDenied):
            backend(source(tgtd.portal)).start(job())
        assert_nothing_is_left()
        pool = backend(where)
        with started(pool) as found:
            assert list(found) == ["unit:0:0:1"]
            assert not NODES.exists() or not list(NODES.iterdir()), "no secret stays"
    assert_nothing_is_left()
    assert any("iscsiadm" in words for words in seen), "the watcher saw the calls"
    assert not any(SECRET in words or "wrong-secret" in words for words in seen)
    assert SECRET not in caplog.text


@contextmanager
def watched_arguments() -> Iterator[set[str]]:
    """Collect the arguments of all programs that we start meanwhile, and of most others.

    Those of others are seen if they run long enough.
    """
    seen: set[str] = set()
    done = threading.Event()
    begin = subprocess.Popen.__init__

    def note(self: subprocess.Popen[bytes], argv: Sequence[str], *more: Any, **named: Any) -> None:
        seen.add(" ".join(map(os.fsdecode, argv)))
        begin(self, argv, *more, **named)

    def watch() -> None:
        while not done.wait(0.002):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(path.read_bytes().decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess.Popen, "__init__", note)
            yield seen
    finally:
        done.set()
        thread.join()


def test_what_was_there_is_left_as_it_was(
    lio: Lio, initiator: Initiator, image: Callable[..., Path]
) -> None:
    lio.add(IQN, [image("a")])
    words = ["iscsiadm", "-m", "node", "-T", IQN, "-p", f"{lio.portal},1", "-I", "default"]
    run(*words, "-o", "new")
    (record,) = NODES.glob("*/*/default")
    before = record.read_bytes()
    pool = backend(source(lio.portal))
    with started(pool) as found:  # a record that was there
        assert found
        assert record.read_bytes() == before
    assert read_sessions() == ()
    assert record.read_bytes() == before
    run(*words, "--login")
    (session,) = read_sessions()
    pool = backend(source(lio.portal))
    assert pool.check()
    with started(pool) as found:  # a session that was there
        assert found
        anchor = pool.anchor()
        assert anchor == {"session": session.id, "ours": 0}
    assert read_sessions() == (session,)
    other = backend(source(lio.portal))
    other.hold(anchor)
    other.stop(job())
    assert read_sessions() == (session,)
    run("iscsiadm", "-m", "session", "-r", str(session.id), "--logout")
    run(*words, "-o", "delete")


def test_initiators_share_an_interface_and_clear_it_up(
    lio: Lio, initiator: Initiator, image: Callable[..., Path]
) -> None:
    me = "iqn.2026-01.test.storaged:me"
    lio.add(IQN, [image("a")])
    lio.add(OTHER, [image("b")])
    pools = [backend(source(lio.portal, initiator=me))]
    pools += [backend(source(lio.portal, OTHER))]
    second_portal = f"127.0.0.2:{lio.port}"
    lio._make(Path("/sys/kernel/config/target/iscsi", IQN, "tpgt_1/np", second_portal))
    pools += [backend(source(second_portal, initiator=me))]
    errors: list[BaseException] = []

    def start(pool: Iscsi) -> None:
        try:
            pool.start(job())
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=start, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    names = sorted((session.initiator, session.portals[0][0]) for session in read_sessions())
    own = Path("/etc/iscsi/initiatorname.iscsi").read_text().split("InitiatorName=")[1].split()[0]
    assert names == sorted([(me, "127.0.0.1"), (own, "127.0.0.1"), (me, "127.0.0.2")])
    assert len(list(IFACES.iterdir())) == 1, "one interface for one initiator"
    for pool in pools:
        (volume,) = volumes(pool).values()
        assert volume.path is not None
        assert pool.definition.source.hosts[0].name in volume.path
    again = backend(pools[0].definition.source)
    again.hold(pools[0].anchor())  # as after a restart of the engine
    again.stop(job())
    assert len(read_sessions()) == 2
    assert len(list(IFACES.iterdir())) == 1, "another pool uses it"
    for pool in pools:
        pool.stop(job())
    assert_nothing_is_left()


def answers(pool: Iscsi) -> bool:
    """Tell what the pool is told of its target."""
    try:
        pool.watch()
    except OperationFailed:
        return False
    return True


def test_a_target_that_dies_and_comes_back(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path]
) -> None:
    disk = image()
    tgtd.add(IQN, [disk])
    pool = backend(source(tgtd.portal))
    with started(pool) as found:
        (volume,) = found.values()
        pool.watch()
        tgtd.kill()

        eventually(lambda: not answers(pool), 2)
        with pytest.raises(OperationFailed, match="does not answer"):
            pool.refresh(found, job())
        begun = time.monotonic()
        with closing(pool.open_image(volume)) as handle, pytest.raises((OSError, StorageError)):
            handle.pread(4096, 0)
        assert time.monotonic() - begun < REPLACEMENT_TIMEOUT + 15
        tgtd.start()
        tgtd.add(IQN, [disk])
        eventually(lambda: answers(pool), 10, "the target to be back")
        again = volumes(pool, found)
        assert list(again) == list(found)
        with closing(pool.open_image(again[volume.name])) as handle:
            assert handle.pread(512, 0) == bytes(512)
        tgtd.kill()
        eventually(lambda: not answers(pool), 2)
        begun = time.monotonic()
        pool.stop_by_force(job())
        assert time.monotonic() - begun < patience(10)
    assert_nothing_is_left()


def test_a_lun_that_is_mounted_is_not_taken_away(
    lio: Lio, initiator: Initiator, image: Callable[..., Path], tmp_path: Path
) -> None:
    lio.add(IQN, [image(mebibytes=32)])
    pool = backend(source(lio.portal))
    point = tmp_path / "point"
    point.mkdir()
    with started(pool) as found:
        (volume,) = found.values()
        assert volume.path is not None
        run("mkfs.ext4", "-q", volume.path)
        run("mount", volume.path, point)
        try:
            with pytest.raises(VolumeBusy) as caught:
                pool.stop(job())
            assert str(point) in (caught.value.advice or "")
            assert read_sessions() != ()
        finally:
            run("umount", point)
        pool.stop(job())
        assert_nothing_is_left()


def test_sources_are_found_and_dead_portals_are_not_waited_for(
    lio: Lio, initiator: Initiator, image: Callable[..., Path], black_hole: str
) -> None:
    lio.add(IQN, [image("a")])
    lio.add(OTHER, [image("b")])
    lio._make(Path("/sys/kernel/config/target/iscsi", IQN, "tpgt_1/np", f"[::1]:{lio.port}"))
    host = Host(id="test")
    found = Iscsi.find_sources(
        PoolSource(hosts=(SourceHost("127.0.0.1", lio.port),)), host, Job("find-sources")
    )
    assert sorted(each.devices[0].path for each in found) == [IQN, OTHER]
    assert {each.hosts for each in found} == {(SourceHost("127.0.0.1", lio.port),)}
    found = Iscsi.find_sources(
        PoolSource(hosts=(SourceHost("::1", lio.port),)), host, Job("find-sources")
    )
    assert [each.devices[0].path for each in found] == [IQN] or len(found) == 2
    assert not NODES.exists() or not list(NODES.iterdir())
    with pytest.raises(OperationFailed, match="no iSCSI interface defined for IQN"):
        Iscsi.find_sources(
            PoolSource(hosts=(SourceHost("127.0.0.1", lio.port),), initiator="iqn.x:y"),
            host,
            Job("find-sources"),
        )
    begun = time.monotonic()
    with pytest.raises(Timeout, match="does not answer"):
        Iscsi.find_sources(PoolSource(hosts=(SourceHost(black_hole),)), host, Job("find-sources"))
    with pytest.raises(OperationFailed, match="Connection refused"):
        Iscsi.find_sources(
            PoolSource(hosts=(SourceHost("127.0.0.1", 9),)), host, Job("find-sources")
        )
    assert time.monotonic() - begun < 10
    with pytest.raises(OperationFailed, match="has no target") as caught:
        backend(source(lio.portal, "iqn.2026-01.test.storaged:none")).start(job())
    assert IQN in (caught.value.advice or "")
    with started(backend(source(f"::1:{lio.port}"))) as volumes_by_ipv6:
        assert len(volumes_by_ipv6) == 1
    assert_nothing_is_left()


def test_a_login_that_was_killed_leaves_no_password_and_is_ours(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path]
) -> None:
    tgtd.add(IQN, [image()], chap=Chap("bob", SECRET))
    script = (
        "import os\n"
        "from storaged.backends import _iscsiadm as iscsiadm, _iscsilogin as login\n"
        "from storaged.backends._iscsiportal import Portal\n"
        "from storaged.job import Job\n"
        "real = iscsiadm.login\n"
        "iscsiadm.login = lambda *words: (real(*words), os._exit(9))\n"
        f"where = login.Login({IQN!r}, Portal('127.0.0.1', {tgtd.port}))\n"
        f"where.log_in(login.Credentials('bob', {SECRET.encode()!r}), Job('test'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == 9
    assert len(read_sessions()) == 1
    assert SECRET in next(NODES.glob("*/*/default")).read_text()
    Iscsi.recover()
    assert not list(NODES.iterdir())
    pool = backend(source(tgtd.portal, chap=True))
    assert pool.check_proves
    with started(pool):
        assert pool.anchor()["ours"] == 1
    assert_nothing_is_left()


def test_a_target_may_send_a_login_elsewhere(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path]
) -> None:
    other = Tgtd("127.0.0.2")
    other.start()
    try:
        other.add(IQN, [image()])
        tid = str(tgtd.add(IQN, []))
        for name, value in (
            ("RedirectAddress", "127.0.0.2"),
            ("RedirectPort", str(other.port)),
            ("RedirectReason", "Temporary"),
        ):
            update = ("--op", "update", "--mode", "target", "--tid", tid)
            tgtd.admin(*update, "--name", name, "--value", value)
        pool = backend(source(tgtd.portal))
        with started(pool) as found:
            assert list(found) == ["unit:0:0:1"]
            (session,) = read_sessions()
            assert set(session.portals) == {("127.0.0.1", tgtd.port), ("127.0.0.2", other.port)}
            again = backend(source(tgtd.portal))
            assert again.check(), "it is known by what was asked for"
            again.hold(pool.anchor())
            again.stop(job())
            assert read_sessions() == ()
    finally:
        other.kill()
    assert_nothing_is_left()


def test_a_target_that_hangs_is_not_waited_for_without_end(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path]
) -> None:
    tgtd.add(IQN, [image()])
    pool = backend(source(tgtd.portal))
    tgtd.freeze()
    begun = time.monotonic()
    with pytest.raises((Timeout, OperationFailed)):
        pool.start(job())
    assert time.monotonic() - begun < 60
    assert_nothing_is_left()
    tgtd.thaw()
    with started(pool) as found:
        tgtd.freeze()
        begun = time.monotonic()
        eventually(lambda: not answers(pool), 6)
        assert time.monotonic() - begun < 30, "the kernel's pings tell"
        with pytest.raises(OperationFailed, match="does not answer"):
            pool.refresh(found, job())
        tgtd.thaw()
        eventually(lambda: answers(pool), 10)
        assert list(volumes(pool, found)) == list(found)
    assert_nothing_is_left()


def test_an_engine_remembers_its_login(
    lio: Lio, initiator: Initiator, image: Callable[..., Path], tmp_path: Path
) -> None:
    lio.add(IQN, [image("a")])
    definition = PoolDef("iscsi", "san", source=source(lio.portal), target=BY_PATH)
    with storaged.open(root=tmp_path / "root") as storage:
        pool = storage.define_pool(definition)
        pool.start()
        assert [volume.name for volume in pool.volumes()] == ["unit:0:0:0"]
    with storaged.open(root=tmp_path / "root") as storage:
        pool = storage.pool("san")
        assert pool.active
        (volume,) = pool.volumes()
        assert volume.info().capacity == 16 << 20
        assert storage.find_sources(
            "iscsi", f"<source><host name='127.0.0.1' port='{lio.port}'/></source>"
        ).count(IQN)
        pool.stop()
    assert_nothing_is_left()


def test_an_engine_logs_in_with_a_secret_and_sees_luns_grow_and_come(
    tgtd: Tgtd, initiator: Initiator, image: Callable[..., Path], tmp_path: Path
) -> None:
    disk = image("a")
    tid = tgtd.add(IQN, [disk], chap=Chap("bob", SECRET))
    usage = "<usage type='iscsi'><target>san</target></usage>"
    definition = (
        "<pool type='iscsi'><name>san</name><source>"
        f"<host name='127.0.0.1' port='{tgtd.port}'/><device path='{IQN}'/>"
        "<auth type='chap' username='bob'><secret usage='san'/></auth></source>"
        f"<target><path>{BY_PATH}</path></target></pool>"
    )
    with storaged.open(root=tmp_path / "root", watch=True) as storage:
        pool = storage.define_pool(definition)
        with pytest.raises(NoSuchSecret):
            pool.start()
        secret = storage.secrets.define(f"<secret ephemeral='no' private='yes'>{usage}</secret>")
        secret.set_value(SECRET.encode())
        with watched_arguments() as seen:
            pool.start()
        assert any("--login" in words for words in seen)
        assert not any(SECRET in words for words in seen)
        assert not NODES.exists() or not list(NODES.iterdir())
        assert SECRET not in pool.xml()
        (volume,) = pool.volumes()
        assert volume.info().capacity == 16 << 20

        os.truncate(disk, 24 << 20)
        tgtd.remove_lun(tid, 1)
        tgtd.add_lun(tid, 1, disk)
        pool.refresh()
        assert volume.info().capacity == pool.info().space.capacity == 24 << 20

        tgtd.add_lun(tid, 2, image("b"))
        run("iscsiadm", "-m", "session", "-R")  # whoever does this, the kernel tells of the disk
        names = ["unit:0:0:1", "unit:0:0:2"]
        eventually(lambda: sorted(each.name for each in pool.volumes()) == names)
        pool.stop()
    assert_nothing_is_left()


@pytest.mark.kernel("scsi_debug")
def test_a_serial_is_what_scsi_id_prints(scsi_hosts: ScsiHosts) -> None:
    for node in scsi_hosts(dev_size_mb=8, max_luns=3):
        printed = run(scsi_id(), "--replace-whitespace", "--whitelisted", "--device", node)
        assert read_serial(f"/sys/block/{Path(node).name}/device") == printed.strip()
