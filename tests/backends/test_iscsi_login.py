"""Logins that are killed, cancelled, hang or talk rubbish: with an iscsiadm that does so."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged import tool
from storaged.backend import Host
from storaged.backends import _iscsiadm, _iscsireach, _scsiunits, iscsi
from storaged.backends._iscsiloan import Loan, read_loans
from storaged.backends._iscsilogin import Credentials, Login
from storaged.backends._iscsiportal import Portal
from storaged.backends._scsi import Unit
from storaged.errors import (
    AccessDenied,
    Cancelled,
    CommandFailed,
    CommandTimeout,
    OperationFailed,
    StorageError,
    Timeout,
)
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, SourceDevice, SourceHost
from tests.backends.iscsidoubles import ASKING, NUMBER, San, play
from tests.kernel.programs import eventually

IQN = "iqn.2026-01.test.storaged:login"
SECRET = "hush-secret-4711"
CHAP = Credentials("bob", SECRET.encode())

ENGINE = """
import os, signal, sys, storaged
from storaged.state import StateStore
from tests.backends.iscsidoubles import play
sysfs, root, where, xml = sys.argv[1:]
play(sysfs)
if where.startswith("write"):
    setattr(StateStore, where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
with storaged.open(root=root) as storage:
    (storage.create_pool if where == "transient" else storage.define_pool)(xml).start()
"""


#: What an iscsiadm finds in the record; and an engine that dies while iscsiadm goes on. What it has
#: left may be put right at once: any engine of this host that is opened does so.
SEEN = f"cat /etc/iscsi/nodes/{IQN}/*/default > seen"
DIES = (SEEN, "kill -9 $PPID")


def job() -> Job[Any]:
    return Job("test", "san")


@pytest.fixture
def san(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[San]:
    if os.geteuid() != 0 or not Path("/etc/iscsi").is_dir():
        pytest.skip("needs root and the database of open-iscsi")
    if Path("/sys/class/iscsi_transport").exists():
        pytest.skip("the kernel has its part of iSCSI")
    for module in ASKING:  # what is played for the test is undone after it
        for name in {"read_session", "read_sessions", "own_initiator"} & vars(module).keys():
            monkeypatch.setattr(module, name, getattr(module, name))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = San(tmp_path, IQN, listening.getsockname()[1])
        play(os.fspath(found.sysfs))
        monkeypatch.setenv("PATH", f"{found.bin}:{os.environ['PATH']}")
        yield found
    for loan in own_loans():
        loan.path.unlink()
    shutil.rmtree(Path("/etc/iscsi/nodes", IQN), ignore_errors=True)


def own_loans() -> list[Loan]:
    return [loan for loan in read_loans() if loan.target == IQN]


def login_to(san: San) -> Login:
    return Login(IQN, Portal("127.0.0.1", san.port))


def backend(san: San) -> iscsi.Iscsi:
    source = PoolSource(hosts=(SourceHost("127.0.0.1", san.port),), devices=(SourceDevice(IQN),))
    definition = PoolDef("iscsi", "san", source=source, target="/dev/disk/by-path")
    return iscsi.Iscsi(definition, Host(id="test"))


def xml_of(san: San, auth: str = "") -> str:
    return (
        "<pool type='iscsi'><name>san</name><source>"
        f"<host name='127.0.0.1' port='{san.port}'/><device path='{IQN}'/>{auth}</source>"
        "<target><path>/dev/disk/by-path</path></target></pool>"
    )


AUTH = "<auth type='chap' username='bob'><secret usage='san'/></auth>"


def define_secret(storage: storaged.Storage) -> None:
    text = "<secret ephemeral='no' private='yes'><usage type='iscsi'><target>san</target></usage>"
    storage.secrets.define(f"{text}</secret>").set_value(SECRET.encode())


def test_a_login_leaves_only_what_says_whose_it_is(san: San) -> None:
    san.on("login", SEEN, san.comes)
    login = login_to(san)
    session = login.log_in(CHAP, job())
    assert session.id == NUMBER
    assert f"node.session.auth.password = {SECRET}\n" in (san.place / "seen").read_text()
    assert san.records() == []
    (loan,) = own_loans()
    assert loan.is_of(session)
    assert not loan.is_abandoned
    assert SECRET not in loan.path.read_text()
    assert not any(SECRET in call for call in san.calls())
    login.conclude()
    assert own_loans() == []


def killed(san: San, root: Path, where: str, xml: str) -> None:
    """Start a pool in an engine that is killed on the way."""
    words = [sys.executable, "-c", ENGINE, os.fspath(san.sysfs), os.fspath(root), where, xml]
    ended = subprocess.run(words, check=False)
    assert ended.returncode == -signal.SIGKILL
    eventually(san.has_session)


@pytest.mark.parametrize("where", ["login", "write_anchor", "write_live"])
def test_after_a_kill_the_next_engine_shows_the_truth(san: San, tmp_path: Path, where: str) -> None:
    root = tmp_path / "root"
    if where == "login":
        san.on("login", *DIES, san.comes)
    with storaged.open(root=root) as storage:
        define_secret(storage)
    killed(san, root, where, xml_of(san, AUTH))
    with storaged.open(root=root) as storage:
        assert san.records() == [], "the opening has taken the password away"
        pool = storage.pool("san")
        assert pool.active
        pool.refresh()
        pool.stop()
        assert not san.has_session(), "the session was ours"
    assert own_loans() == []
    assert san.records() == []


def test_what_a_transient_pool_has_left_is_put_right_by_any_engine(
    san: San, tmp_path: Path
) -> None:
    san.on("login", *DIES, san.comes)
    with storaged.open(root=tmp_path / "first") as storage:
        define_secret(storage)
    killed(san, tmp_path / "first", "transient", xml_of(san, AUTH))
    assert SECRET in (san.place / "seen").read_text()
    with storaged.open(root=tmp_path / "other") as storage:
        assert san.records() == []
        assert storage.problems() == []
        pool = storage.define_pool(xml_of(san))
        assert not pool.active
        assert san.has_session()
        pool.start()
        assert len(san.calls("--login")) == 1, "the session that is there is used"
        pool.stop()
        assert not san.has_session()
    assert own_loans() == []


def running(san: San) -> list[Path]:
    """Return the processes of all calls of iscsiadm, as far as they are still there."""
    return [Path("/proc", call.split()[0]) for call in san.calls()]


def cancelled_at(san: San, word: str) -> Job[Any]:
    """Return a job that is cancelled as soon as iscsiadm is called with a word."""
    cancelled = job()

    def watch() -> None:
        eventually(lambda: san.calls(word))
        cancelled.cancel()

    threading.Thread(target=watch).start()
    return cancelled


def test_a_session_that_comes_after_a_cancel_is_known_for_ours(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "_GRACE", 0.1)
    san.on("login", "sleep 1", san.comes)
    with pytest.raises(Cancelled):
        backend(san).start(cancelled_at(san, "--login"))
    assert not san.has_session()
    assert san.records() == []
    eventually(san.has_session)
    pool = backend(san)
    pool.start(job())
    assert pool.anchor() == {"session": NUMBER, "ours": 1}
    assert len(san.calls("--login")) == 1
    pool.stop(job())
    assert not san.has_session()
    assert own_loans() == []


def test_a_cancel_that_comes_too_late_is_undone(san: San) -> None:
    san.on("login", san.comes, "sleep 0.5")
    with pytest.raises(Cancelled):
        backend(san).start(cancelled_at(san, "--login"))
    assert not san.has_session()
    assert own_loans() == []


def test_the_session_of_somebody_else_is_left(san: San) -> None:
    subprocess.run(["/bin/sh", "-c", san.comes], check=True)
    pool = backend(san)
    assert not pool.check_proves
    pool.start(job())
    assert pool.anchor() == {"session": NUMBER, "ours": 0}
    pool.stop(job())
    assert san.has_session()


def test_an_iscsiadm_that_hangs_has_a_bound(san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_iscsiadm, "_REMOTE", 0.3)
    san.on("login", "exec sleep 60")
    with ended_by_force(san), pytest.raises(CommandTimeout, match=r"more than 0\.3 s"):
        backend(san).start(job())
    assert san.records() == []
    (loan,) = own_loans()
    assert loan.is_abandoned, "a session may still come of it"


def test_a_discovery_that_hangs_can_be_cancelled(san: San) -> None:
    san.on("discovery", "exec sleep 60")
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        search(san, cancelled_at(san, "discovery"))
    assert time.monotonic() - begun < 5
    (process,) = running(san)
    assert not process.exists()


class ended_by_force:  # noqa: N801 -- it is used as a statement
    """End what iscsiadm was called for and has not come to its end."""

    def __init__(self, san: San) -> None:
        self._san = san

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for call in self._san.calls("--login"):
            with suppress(ProcessLookupError):
                os.kill(int(call.split()[0]), signal.SIGKILL)


def search(san: San, job: Job[Any]) -> tuple[PoolSource, ...]:
    spec = PoolSource(hosts=(SourceHost("127.0.0.1", san.port),))
    return iscsi.Iscsi.find_sources(spec, Host(id="test"), job)


GARBAGE = r"printf '\377\376\0\033[2J garbage\nDatei nicht gefunden: 1.2.3.4:3260,1\n\n\0\n'"


def test_a_discovery_that_talks_rubbish_finds_nothing(san: San) -> None:
    san.on("discovery", GARBAGE)
    assert search(san, job()) == ()
    san.on("discovery", GARBAGE, f"echo 127.0.0.1:{san.port},1 {IQN}")
    assert [each.devices[0].path for each in search(san, job())] == [IQN]
    san.on("discovery", "head -c 3000000 /dev/urandom")
    search(san, job())


def test_a_record_that_comes_after_a_cancel_is_removed(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "_GRACE", 0.0)
    san.on("new", "sleep 0.5", san.makes, "echo >> made")
    with pytest.raises(Cancelled):
        backend(san).start(cancelled_at(san, "--op new"))
    assert san.records() == []
    eventually((san.place / "made").exists)
    iscsi.Iscsi.recover()
    assert san.records() == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(24, AccessDenied), (8, Timeout), (19, OperationFailed), (99, CommandFailed)],
)
def test_an_error_is_known_in_any_language(san: San, status: int, kind: type[StorageError]) -> None:
    san.on("login", GARBAGE, f"{GARBAGE} >&2", "echo 'Zugriff verweigert' >&2", f"exit {status}")
    san.on("discovery", f"echo 127.0.0.1:{san.port},1 {IQN}")
    with pytest.raises(kind) as caught:
        login_to(san).log_in(CHAP, job())
    assert caught.value.message.replace("\n", "").isprintable()
    assert SECRET not in caught.value.message
    assert san.records() == []
    assert own_loans() == []


def test_a_login_without_a_session_is_told_and_leaves_nothing(san: San) -> None:
    san.on("login", GARBAGE)
    with pytest.raises(StorageError, match="there is no session"):
        backend(san).start(job())
    assert san.records() == []
    assert own_loans() == []


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_iscsireach, "CONNECT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kinds: time.sleep(3))
    slow: list[Callable[[], object]] = [
        lambda: _iscsireach.reach(Portal("san.invalid")),
        lambda: _iscsireach.addresses(Portal("san.invalid")),
    ]
    begun = time.monotonic()
    with pytest.raises(Timeout, match="does not answer"):
        slow[0]()
    assert slow[1]() == frozenset()
    cancelled = job()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        _iscsireach.reach(Portal("san.invalid"), cancelled)
    assert time.monotonic() - begun < 2


def test_a_scsi_id_that_hangs_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scsi_id"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(_scsiunits, "_SCSI_ID", (os.fspath(program),))
    cancelled = job()
    threading.Timer(0.2, cancelled.cancel).start()
    unit = Unit((0, 0, 0, 1), os.fspath(tmp_path), "sdx", "running")
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        _scsiunits._serial(unit, "/dev/null", None, 0, cancelled)
    assert time.monotonic() - begun < 5
