"""The administration of a daemon, by virt-admin and by calls of our own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged.client.opening import open_link
from storaged.errors import (
    AccessDenied,
    ArgumentUnsupported,
    BadArgument,
    InternalError,
    InvalidArgument,
    OperationUnsupported,
    StorageError,
)
from storaged.rpc import admin as proto
from storaged.rpc import extension
from storaged.rpc.errors import NoSuchClient, NoSuchServer, RPCError
from storaged.rpc.identity import Identity
from storaged.rpc.program import ADMIN, REMOTE
from storaged.rpc.record import Record, Void
from storaged.rpc.typedparam import ParamType, TypedParam
from storaged.server.admin import Admin, AdminSession
from storaged.server.administered import ClientView
from storaged.server.limits import ServerLimits
from storaged.server.workers import WorkerFigures
from tests.daemon.running import Daemon, storaged_daemon

MAIN = proto.Server("virtstoraged")


class Double:
    """A server with two clients."""

    def __init__(self) -> None:
        self.limits = ServerLimits()
        self.views = [
            ClientView(3, 1000, False, Identity(uid=0, gid=0, pid=11, user="known", group="too")),
            ClientView(4, 2000, True, Identity(uid=4294967294, gid=0, selinux="a:b")),
        ]

    def set_limits(self, limits: ServerLimits) -> None:
        self.limits = limits

    def worker_figures(self) -> WorkerFigures:
        return WorkerFigures(1, 2, 3, 4, 5, 6, 7)

    def clients(self) -> list[ClientView]:
        return self.views

    def anonymous(self) -> int:
        return 1

    def close_client(self, number: int) -> bool:
        before = len(self.views)
        self.views = [view for view in self.views if view.id != number]
        return len(self.views) < before


class DoubleLog:
    """A log that keeps what it is told."""

    filters: str | None = "1:rpc"
    outputs: str | None = "1:stderr 2:journald"

    def filters_text(self) -> str:
        return self.filters or ""

    def outputs_text(self) -> str:
        return self.outputs or ""

    def set_filters(self, text: str | None) -> None:
        self.filters = text

    def set_outputs(self, text: str | None) -> None:
        self.outputs = text


class Peer:
    """A client of the administration, opened, and what it administers."""

    def __init__(self) -> None:
        self.server = Double()
        self.log = DoubleLog()
        self.timeouts: list[int] = []
        admin = Admin(
            {"admin": Double(), "virtstoraged": self.server}, self.log, self.timeouts.append
        )
        self.session: AdminSession = admin.session(Identity(uid=os.geteuid()))
        self.other = admin.session(Identity(uid=os.geteuid() + 1))
        self.call(1, 0)

    def call(self, number: int, *values: object) -> Record:
        procedure = self.session.procedure(ADMIN, number)
        args = procedure.args(*values)
        answer = self.session.call(procedure, args)
        # what is answered can be sent
        assert type(answer) is procedure.ret
        return answer

    def fails(self, number: int, *values: object) -> StorageError:
        with pytest.raises(StorageError) as caught:
            self.call(number, *values)
        return caught.value


@pytest.fixture
def peer() -> Peer:
    return Peer()


def uints(**values: int) -> tuple[TypedParam, ...]:
    return tuple(TypedParam(name, (ParamType.UINT, value)) for name, value in values.items())


def params(answer: Record) -> dict[str, object]:
    return {param.field: param.value[1] for param in answer.params}  # type: ignore[attr-defined]


def test_every_procedure_is_served(peer: Peer) -> None:
    assert sorted(proto.PROCEDURES) == list(range(1, 20))
    for number in (0, 20, -1):
        with pytest.raises(RPCError, match=r"^unknown procedure"):
            peer.session.procedure(ADMIN, number)
    with pytest.raises(RPCError):
        peer.session.procedure(REMOTE, 1)


def test_who_may_call(peer: Peer) -> None:
    assert isinstance(peer.fails(1, 0), InternalError)  # open already
    with pytest.raises(AccessDenied):
        peer.other.call(proto.OPEN, proto.OPEN.args(0))
    fresh = Peer().session
    fresh._opened = False
    with pytest.raises(InternalError, match="not open"):
        fresh.call(proto.GET_LIB_VERSION, Void())


def test_servers(peer: Peer) -> None:
    assert peer.call(3).version == 9_000_000  # type: ignore[attr-defined]
    names = proto.Server("admin"), MAIN
    assert peer.call(4, 1, 0) == proto.ListServersRet(names, 2)
    assert peer.call(4, 0, 0) == proto.ListServersRet((), 2)
    assert peer.call(5, "admin", 0) == proto.ServerRet(proto.Server("admin"))
    error = peer.fails(5, "libvirtd", 0)
    assert isinstance(error, NoSuchServer)
    assert error.message == "Server not found: No server named 'libvirtd'"
    for number in (6, 12, 18):
        assert isinstance(peer.fails(number, proto.Server("x"), 0), NoSuchServer)
    assert isinstance(peer.fails(4, 1, 1), BadArgument)
    assert isinstance(peer.fails(18, MAIN, 0), OperationUnsupported)


def test_worker_pools(peer: Peer) -> None:
    assert params(peer.call(6, MAIN, 0)) == {
        "minWorkers": 1,
        "maxWorkers": 2,
        "nWorkers": 3,
        "freeWorkers": 4,
        "prioWorkers": 5,
        "jobQueueDepth": 6,
    }
    peer.call(7, MAIN, uints(maxWorkers=9, minWorkers=8, prioWorkers=7), 0)
    limits = peer.server.limits
    assert (limits.min_workers, limits.max_workers, limits.prio_workers) == (8, 9, 7)
    assert isinstance(peer.fails(7, MAIN, uints(minWorkers=10), 0), InvalidArgument)
    assert isinstance(peer.fails(7, MAIN, uints(minWorkers=0, maxWorkers=0), 0), InvalidArgument)
    assert isinstance(peer.fails(7, MAIN, uints(nWorkers=1), 0), ArgumentUnsupported)
    twice = uints(maxWorkers=10) * 2
    assert "multiple times" in peer.fails(7, MAIN, twice, 0).message
    wrong = (TypedParam("maxWorkers", (ParamType.INT, 10)),)
    assert "expected 'uint'" in peer.fails(7, MAIN, wrong, 0).message
    assert peer.server.limits == limits


def test_limits(peer: Peer) -> None:
    assert params(peer.call(12, MAIN, 0)) == {
        "nclients_max": 5000,
        "nclients": 2,
        "nclients_unauth_max": 20,
        "nclients_unauth": 1,
    }
    peer.call(13, MAIN, uints(nclients_max=100, nclients_unauth_max=100), 0)
    assert peer.server.limits.max_clients == 100
    assert isinstance(peer.fails(13, MAIN, uints(nclients_max=99), 0), InvalidArgument)
    assert isinstance(peer.fails(13, MAIN, uints(nclients=9), 0), ArgumentUnsupported)


def test_clients(peer: Peer) -> None:
    third, fourth = proto.Client(MAIN, 3, 1000, 0), proto.Client(MAIN, 4, 2000, 0)
    assert peer.call(8, MAIN, 1, 0) == proto.ListClientsRet((third, fourth), 2)
    assert peer.call(8, MAIN, 0, 0) == proto.ListClientsRet((), 2)
    assert peer.call(9, MAIN, 4, 0) == proto.ClientRet(fourth)
    assert params(peer.call(10, third, 0)) == {
        "readonly": False,
        "unix_user_id": 0,
        "unix_user_name": "known",
        "unix_group_id": 0,
        "unix_group_name": "too",
        "unix_process_id": 11,
    }
    other = params(peer.call(10, fourth, 0))
    assert (other["readonly"], other["unix_user_id"], other["selinux_context"]) == (True, -2, "a:b")
    peer.call(11, fourth, 0)
    for number, values in ((9, (MAIN, 4, 0)), (10, (fourth, 0)), (11, (fourth, 0))):
        error = peer.fails(number, *values)
        assert isinstance(error, NoSuchClient)
        assert error.message == "Client not found: No client with requested ID '4'"


def test_log_and_timeout(peer: Peer) -> None:
    assert peer.call(14, 0) == proto.LogOutputsRet("1:stderr 2:journald", 2)
    assert peer.call(15, 0) == proto.LogFiltersRet("1:rpc", 1)
    peer.call(16, "3:stderr", 0)
    peer.call(17, None, 0)
    assert (peer.log.outputs, peer.log.filters) == ("3:stderr", None)
    peer.call(19, 60, 0)
    assert peer.timeouts == [60]


# virt-admin


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    if shutil.which("virt-admin") is None:
        pytest.skip("virt-admin is not installed")
    # The paths of libvirt's clients have room for 107 bytes.
    with tempfile.TemporaryDirectory() as name, storaged_daemon(Path(name)) as found:
        yield found


def virt_admin(daemon: Daemon, *words: str, fails: bool = False) -> str:
    done = subprocess.run(
        ["virt-admin", "-c", daemon.admin_uri, *words], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def table(text: str) -> dict[str, str]:
    """Return what ``name : value`` lines, or lines of two columns, say."""
    lines = [re.split(r"\s*:\s*|\s\s+", line.strip(), maxsplit=1) for line in text.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


@contextmanager
def idle_virsh(daemon: Daemon) -> Iterator[subprocess.Popen[str]]:
    """Run a virsh that is connected and waits."""
    process = subprocess.Popen(
        ["virsh", "-r", "-c", daemon.uri(readonly=True)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write("uri\n")
        process.stdin.flush()
        while "storage:///system" not in process.stdout.readline():
            assert process.poll() is None
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def test_virt_admin_sees_servers_and_clients(daemon: Daemon) -> None:
    assert re.search(r"0\s+admin\n\s*1\s+virtstoraged", virt_admin(daemon, "srv-list"))
    assert "storaged" in virt_admin(daemon, "uri")
    with idle_virsh(daemon) as virsh:
        (line,) = virt_admin(daemon, "client-list", "virtstoraged").splitlines()[2:3]
        number, transport, *_ = line.split()
        assert transport == "unix"
        info = table(virt_admin(daemon, "client-info", "virtstoraged", number))
        assert info["readonly"] == "yes"
        assert int(info["unix_process_id"]) == virsh.pid
        assert int(info["unix_user_id"]) == os.getuid()
        assert "unix_user_name" in info
        figures = table(virt_admin(daemon, "srv-clients-info", "virtstoraged"))
        assert (figures["nclients"], figures["nclients_max"]) == ("1", "5000")
        virt_admin(daemon, "client-disconnect", "virtstoraged", number)
        assert "No client with requested ID" in virt_admin(
            daemon, "client-info", "virtstoraged", number, fails=True
        )
    assert "nobody" in virt_admin(daemon, "client-list", "nobody", fails=True)


def test_virt_admin_changes_limits(daemon: Daemon) -> None:
    virt_admin(
        daemon, "srv-threadpool-set", "virtstoraged", "--max-workers", "40", "--min-workers", "2"
    )
    figures = table(virt_admin(daemon, "srv-threadpool-info", "virtstoraged"))
    assert (figures["minWorkers"], figures["maxWorkers"]) == ("2", "40")
    assert figures["prioWorkers"] == "5"
    virt_admin(
        *(daemon, "srv-clients-set", "virtstoraged"),
        *("--max-clients", "7", "--max-unauth-clients", "3"),
    )
    figures = table(virt_admin(daemon, "srv-clients-info", "virtstoraged"))
    assert (figures["nclients_max"], figures["nclients_unauth_max"]) == ("7", "3")
    virt_admin(daemon, "srv-clients-set", "virtstoraged", "--max-clients", "2", fails=True)


def test_virt_admin_changes_the_log(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "new.log"
    assert "3:stderr" in virt_admin(daemon, "daemon-log-outputs")
    virt_admin(daemon, "daemon-log-outputs", "--outputs", f"1:file:{file}")
    virt_admin(daemon, "daemon-log-filters", "--filters", "1:rpc 2:daemon")
    assert "1:rpc 2:daemon" in virt_admin(daemon, "daemon-log-filters")
    assert str(file) in virt_admin(daemon, "daemon-log-outputs")
    virt_admin(daemon, "daemon-log-outputs", "--outputs", "1:what", fails=True)
    assert str(file) in virt_admin(daemon, "daemon-log-outputs")
    daemon.stop()
    assert "SIGTERM: ending" in file.read_text()


def test_virt_admin_ends_an_idle_daemon(daemon: Daemon) -> None:
    virt_admin(daemon, "daemon-timeout", "--timeout", "1")
    assert daemon.process.wait(20) == 0


def test_figures_of_the_servers_stand_beside_those_of_the_engine(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as daemon:
        link = open_link(daemon.uri())
        try:
            found = {one.name: one.value for one in link.call(extension.METRICS, Void()).metrics}
        finally:
            link.close()
    assert found['storaged_pools{state="running"}'] == 0
    assert found['storaged_clients{server="virtstoraged"}'] == 1
    assert found['storaged_clients{server="admin"}'] == 0
    assert found['storaged_clients_accepted_total{server="virtstoraged"}'] >= 1
    assert found['storaged_calls_total{server="virtstoraged"}'] >= 2
