"""Whom polkit lets in: asked over a real bus, from the real polkit and from a double of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.errors import Domain, InternalError, StorageError
from storaged.process import start_time
from storaged.rpc.errors import AuthCancelled, AuthFailed, AuthUnavailable
from storaged.rpc.identity import Identity
from storaged.server import polkit
from tests.daemon.polkitd import double_of_polkit, message_bus, real_polkit


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("jeepney")
    with message_bus() as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        yield address


def myself() -> Identity:
    return Identity(uid=os.getuid(), pid=os.getpid(), started=start_time(os.getpid()))


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        ("no", AuthFailed, 45),
        ("challenge", AuthUnavailable, 94),
        ("dismissed", AuthCancelled, 79),
        ("fault", InternalError, 1),
    ],
)
def test_refusals(
    bus: str, tmp_path: Path, answer: str, error: type[StorageError], code: int
) -> None:
    with double_of_polkit(tmp_path, bus, answer), pytest.raises(error) as caught:
        polkit.Polkit().check(myself(), readonly=False)
    assert type(caught.value) is error
    assert caught.value.code == code
    assert caught.value.domain == (Domain.DBUS if code == 1 else Domain.POLKIT)


@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_asked(bus: str, tmp_path: Path, readonly: bool) -> None:
    with double_of_polkit(tmp_path, bus, "yes") as noted:
        polkit.Polkit().check(myself(), readonly=readonly)
    member, (subject, action, details, flags, _) = json.loads(noted.read_text())
    assert member == "CheckAuthorization"
    assert action == "org.libvirt.unix." + ("monitor" if readonly else "manage")
    assert (details, flags) == ({}, 1)
    assert subject == [
        "unix-process",
        {
            "pid": ["u", os.getpid()],
            "start-time": ["t", start_time(os.getpid())],
            "uid": ["i", os.getuid()],
        },
    ]


def test_an_answer_that_does_not_come(bus: str, tmp_path: Path) -> None:
    with double_of_polkit(tmp_path, bus, "silence") as noted:
        began = time.monotonic()
        with pytest.raises(AuthCancelled):
            polkit.Polkit(patience=0.3).check(myself(), readonly=False)
        assert time.monotonic() - began < 5
        deadline = time.monotonic() + 10
        while noted.read_text().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        asked, cancelled = map(json.loads, noted.read_text().splitlines())
    assert cancelled[0] == "CancelCheckAuthorization"
    assert cancelled[1] == [asked[1][4]]


def test_a_process_that_cannot_be_named(bus: str, tmp_path: Path) -> None:
    with double_of_polkit(tmp_path, bus, "yes") as noted:
        for identity in (Identity(uid=1, pid=None, started=1), Identity(uid=1, pid=1)):
            with pytest.raises(AuthFailed):
                polkit.Polkit().check(identity, readonly=False)
        assert not noted.exists()


def test_why_it_cannot_be_asked(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "org.freedesktop.PolicyKit1" in (polkit.unavailable() or "")
    with pytest.raises(InternalError):
        polkit.Polkit().check(myself(), readonly=False)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    assert "cannot connect to the system bus" in (polkit.unavailable() or "")
    monkeypatch.setitem(sys.modules, "jeepney.io.blocking", None)
    assert polkit.unavailable() == "the Python package jeepney is not installed"


def test_the_real_polkit(bus: str, tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed")
    with real_polkit(tmp_path, bus):
        polkit.Polkit().check(myself(), readonly=False)
        other = subprocess.Popen([setpriv, "--reuid=65534", "--clear-groups", "sleep", "60"])
        try:
            while Path(f"/proc/{other.pid}").stat().st_uid != 65534:
                time.sleep(0.01)
            who = Identity(uid=65534, pid=other.pid, started=start_time(other.pid))
            polkit.Polkit().check(who, readonly=True)
            with pytest.raises(AuthUnavailable, match="no polkit agent available"):
                polkit.Polkit().check(who, readonly=False)
        finally:
            other.kill()
            other.wait()
