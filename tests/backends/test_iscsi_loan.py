"""Loans: what a login changes in iscsiadm's database comes back, whoever is killed in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backends import _iscsiadm, _iscsiloan
from storaged.backends._iscsiloan import LONG, PLACE, Loan, alone, new_loan, read_loans, recover
from storaged.backends._iscsiportal import Portal
from storaged.backends._iscsisession import Session
from storaged.errors import Cancelled, InvalidArgument, SystemFailure, Timeout
from storaged.job import Job

IQN = "iqn.2026-01.test.storaged:loan"
SAN = Portal("san")
RECORD = "# BEGIN RECORD 2.1.8\nnode.startup = automatic\n# END RECORD\n"
CHAP = {"node.startup": "manual", "node.session.auth.password": "hush hush"}


def make(root: Path, entry: str = "san,3260,1", text: str = RECORD) -> Path:
    path = root / "nodes" / IQN / entry / "default"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def loan_in(root: Path, *, made: bool = False, portal: Portal = SAN) -> Loan:
    return new_loan(IQN, portal, None, "default", (3, 1), made=made, roots=(root,))


def loans(root: Path) -> list[Path]:
    return list((root / PLACE).iterdir())


def abandoned(loan: Loan, **other: str) -> Loan:
    """Make a loan one of a process that was killed."""
    entry = json.loads(loan.path.read_text())
    loan.path.write_text(json.dumps({**entry, "lender": "1/999999999", **other}))
    (read,) = read_loans((loan.path.parent.parent,))
    assert read.is_abandoned
    return read


def session(number: int = 7, target: str = IQN, interface: str = "default") -> Session:
    return Session(number, target, "iqn.x:me", interface, "LOGGED_IN", (), 2, "/sys/none")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions of this host, as the test has them."""
    found: list[Session] = []
    monkeypatch.setattr(_iscsiloan, "read_sessions", lambda: tuple(found))
    return found


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = make(tmp_path)
    loan = loan_in(tmp_path).lend(CHAP, (tmp_path,))
    assert "auth.password = hush hush" in path.read_text()
    (kept,) = read_loans((tmp_path,))
    assert kept == loan
    assert not kept.is_abandoned
    assert "automatic" not in repr(kept), "what it was may be a password"
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert "hush" not in kept.path.read_text(), "the password is in one place only"
    settled = loan.settle((tmp_path,))
    assert path.read_text() == RECORD
    settled.settle((tmp_path,))
    settled.end((tmp_path,))
    settled.end((tmp_path,))
    assert path.read_text() == RECORD
    assert loans(tmp_path) == []


def test_what_others_change_meanwhile_stays(tmp_path: Path) -> None:
    path = make(tmp_path)
    loan = loan_in(tmp_path).lend(CHAP, (tmp_path,))
    # iscsiadm writes all anew, without any comment of ours
    text = path.read_text().replace("# END", "node.session.iscsi.FirstBurstLength = 1\n# END")
    path.write_text(text)
    loan.end((tmp_path,))
    assert path.read_text() == RECORD.replace(
        "# END", "node.session.iscsi.FirstBurstLength = 1\n# END"
    )
    loan = loan_in(tmp_path).lend(CHAP, (tmp_path,))
    path.unlink()
    loan.end((tmp_path,))
    assert not path.exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_record_that_is_lent_twice_comes_back_as_it_was_first(tmp_path: Path, made: bool) -> None:
    roots = (tmp_path,)
    first = loan_in(tmp_path, made=made)
    path = make(tmp_path)
    first = first.lend(CHAP, roots)
    second = loan_in(tmp_path).lend({**CHAP, "node.session.auth.password": "other"}, roots)
    first.end(roots)
    second.end(roots)
    assert (path.read_text() if path.exists() else None) == (None if made else RECORD)
    assert loans(tmp_path) == []


def test_what_was_made_is_removed_and_nothing_else(tmp_path: Path) -> None:
    other = make(tmp_path, "san,3260,2")
    loan = loan_in(tmp_path, made=True)
    with pytest.raises(SystemFailure, match="there is no record"):
        loan.lend(CHAP, (tmp_path,))
    loan.settle((tmp_path,))
    assert other.exists(), "it is of another portal group"
    loan = loan_in(tmp_path, made=True)
    path = make(tmp_path)
    loan = loan.lend(CHAP, (tmp_path,))
    settled = loan.settle((tmp_path,))
    assert not path.parent.exists()
    make(tmp_path)
    settled.end((tmp_path,))
    assert path.exists(), "somebody has made it since"


def test_a_value_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(InvalidArgument):
        loan_in(tmp_path).lend({"node.session.auth.password": "a\nb"}, (tmp_path,))
    assert path.read_text() == RECORD


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("how", ["opening", "alone"])
def test_who_comes_after_a_kill_puts_the_record_back(
    tmp_path: Path, sessions: list[Session], how: str, made: bool
) -> None:
    loan = loan_in(tmp_path, made=made)
    path = make(tmp_path)
    mine = loan.lend(CHAP, (tmp_path,))
    clear_up: Callable[[], None]
    if how == "opening":
        clear_up = lambda: recover((tmp_path,))  # noqa: E731
    else:

        def clear_up() -> None:
            with alone(None, (tmp_path,)):
                pass

    clear_up()
    assert "hush" in path.read_text(), "who lends it lives"
    left = abandoned(mine)
    sessions.append(session())
    clear_up()
    assert (path.read_text() if path.exists() else None) == (None if made else RECORD)
    (left,) = read_loans((tmp_path,))
    assert left.is_of(sessions[0]), "the session is known by it"
    assert not left.is_of(session(3)), "that was there before"
    assert not left.is_of(session(interface="other"))
    os.utime(left.path, (1, 1))
    clear_up()
    assert loans(tmp_path) != []
    sessions.clear()
    clear_up()
    assert loans(tmp_path) == [], "without a session it says nothing"


def test_a_session_may_be_late_but_not_in_another_boot(
    tmp_path: Path, sessions: list[Session]
) -> None:
    make(tmp_path)
    loan_in(tmp_path).lend(CHAP, (tmp_path,)).give_up((tmp_path,))
    recover((tmp_path,))
    (left,) = read_loans((tmp_path,))
    assert left.is_abandoned
    assert left.is_of(session())
    os.utime(left.path, (time.time() - 200,) * 2)
    recover((tmp_path,))
    assert loans(tmp_path) == []
    loan = abandoned(loan_in(tmp_path), boot="another")
    assert not loan.is_of(session())
    sessions.append(session())
    recover((tmp_path,))
    assert loans(tmp_path) == []


def test_a_process_that_has_died_lends_nothing(tmp_path: Path) -> None:
    script = (
        "import os, pathlib\n"
        "from storaged.backends._iscsiloan import new_loan\n"
        "from storaged.backends._iscsiportal import Portal\n"
        f"root = pathlib.Path({os.fspath(tmp_path)!r})\n"
        f"new_loan({IQN!r}, Portal('san'), None, 'default', (), made=True, roots=(root,))\n"
        "print(flush=True)\n"
        "input()\n"
    )
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (loan,) = read_loans((tmp_path,))
        assert not loan.is_abandoned
        assert not loan.is_mine
        process.kill()
    assert loan.is_abandoned


def test_an_opening_waits_for_nobody(tmp_path: Path) -> None:
    path = make(tmp_path)
    abandoned(loan_in(tmp_path).lend(CHAP, (tmp_path,)))
    with alone_elsewhere(tmp_path):
        begun = time.monotonic()
        recover((tmp_path,))
        assert time.monotonic() - begun < 5
        assert "hush" in path.read_text()
    recover((tmp_path,))
    assert path.read_text() == RECORD


class alone_elsewhere:  # noqa: N801 -- it is used as a statement
    """Have another open file keep the database to itself."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> None:
        import fcntl

        self._directory = os.open(self._root, os.O_RDONLY)
        fcntl.flock(self._directory, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)


def test_the_database_is_one_at_a_time_and_cleared_of_beginnings(tmp_path: Path) -> None:
    left = [tmp_path / ".storaged-1-abc.tmp", tmp_path / PLACE / ".storaged-1-abc.tmp"]
    (tmp_path / PLACE).mkdir()
    for path in left:
        path.write_text("a password")
    order = []
    started = threading.Event()

    def other() -> None:
        started.set()
        with alone(Job("test"), (tmp_path,)):
            order.append("second")

    with alone(Job("test"), (tmp_path,)):
        assert not any(path.exists() for path in left)
        thread = threading.Thread(target=other)
        thread.start()
        started.wait(5)
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_waiting_for_others_has_a_bound_and_can_be_cancelled(tmp_path: Path) -> None:
    job: Job[Any] = Job("test")
    with alone_elsewhere(tmp_path):
        with pytest.raises(Timeout, match="somebody else"), alone(job, (tmp_path,), patience=0.1):
            pass
        job.cancel()
        with pytest.raises(Cancelled), alone(job, (tmp_path,)):
            pass


def test_a_password_is_taken_out_however_long_others_are_at_it() -> None:
    # an interface made, named, found wrong and removed, and a record made
    assert 5 * _iscsiadm.LOCAL < LONG


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("san:3260,1"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
FIELDS = ("portal", "target", "interface", "boot", "lender", "was", "initiator", "before", "made")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.fixed_dictionaries(dict.fromkeys(FIELDS, ANYTHING)).map(lambda x: json.dumps(x).encode())
)
def test_any_file_is_read_as_a_loan(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "any-loan"
    (root / PLACE).mkdir(parents=True, exist_ok=True)
    (root / PLACE / "x.loan").write_bytes(data)
    for loan in read_loans((root,)):
        assert loan.is_abandoned
        assert not loan.is_for(IQN, SAN, None)
    recover((root,))
