"""Portals, names, sessions in sysfs, and what iscsiadm's failures mean. Nothing of it is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backends._iscsiadm import Status, meaning
from storaged.backends._iscsiportal import (
    PORT,
    Portal,
    check_name,
    is_name,
    parse_discovery,
    parse_portal,
)
from storaged.backends._iscsisession import matching, read_session, read_sessions
from storaged.errors import (
    AccessDenied,
    CommandFailed,
    InternalError,
    InvalidArgument,
    OperationFailed,
    StorageError,
    Timeout,
)
from storaged.model import SourceHost
from storaged.tool import Output
from tests.backends.iscsidoubles import make_session

IQN = "iqn.2026-01.test:disks"
ME = "iqn.2026-01.test:me"


@pytest.mark.parametrize(
    ("host", "written", "entry"),
    [
        (SourceHost("san"), "san:3260,1", "san,3260,1"),
        (SourceHost("192.0.2.7", 3261), "192.0.2.7:3261,1", "192.0.2.7,3261,1"),
        (SourceHost("fe80::1"), "[fe80::1]:3260,1", "fe80::1,3260,1"),
        (SourceHost("[fe80::1]", 99), "[fe80::1]:99,1", "fe80::1,99,1"),
    ],
)
def test_a_portal_is_written_as_iscsiadm_takes_it(
    host: SourceHost, written: str, entry: str
) -> None:
    portal = Portal.of_host(host)
    assert (str(portal), portal.entry) == (written, entry)
    assert parse_portal(written) == portal


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", ".", "a,b", "x\n", "[", "h\0", "bücher"])
def test_what_is_no_host_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="iSCSI host"):
        Portal(name)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(InvalidArgument, match="no port"):
        Portal("san", port)


@pytest.mark.parametrize("name", ["", "a b", "../../etc", "-T", ".x", "x\n", "i" * 224, "\udcff"])
def test_what_is_no_name_of_a_target_is_refused(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InvalidArgument, match="iSCSI target"):
        check_name(name, "target")


def test_places_are_compared_however_they_are_spelt() -> None:
    assert Portal("FE80:0::1").is_at("fe80::1", PORT)
    assert Portal("San.").is_at("san", PORT)
    assert not Portal("san").is_at("san", 3261)
    assert not Portal("192.0.2.1").is_at("192.0.2.11", PORT)


def test_a_discovery_is_read() -> None:
    text = (
        f"192.0.2.7:3260,1 {IQN}\n[fe80::1]:3260,2 {IQN}\n192.0.2.8:3260,-1 other\n"
        "iscsiadm: something else\n1.2.3.4:99999,1 x\n\n:3260,1 y\n192.0.2.7:3260,1 ../z\n"
    )
    assert parse_discovery(text) == (
        (Portal("192.0.2.7"), IQN),
        (Portal("fe80::1", group=2), IQN),
        (Portal("192.0.2.8", group=None), "other"),
    )


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_read_as_a_discovery(text: str) -> None:
    for portal, name in parse_discovery(text):
        assert parse_portal(str(portal)) == portal
        assert is_name(name)


def session(sysfs: Path, number: int, *, target: str = IQN, **other: Any) -> Path:
    return make_session(sysfs, number, target, **other)


def test_sessions_are_read_from_sysfs(tmp_path: Path) -> None:
    device = session(tmp_path, 12, went="192.0.2.9")
    session(tmp_path, 3, target="other")
    (tmp_path / "class/iscsi_session/session99").symlink_to("/nowhere")
    first, second = read_sessions(str(tmp_path))
    assert (first.id, first.target) == (3, "other")
    assert (second.id, second.host, second.state) == (12, 12, "LOGGED_IN")
    assert second.device == str(device)
    assert set(second.portals) == {("192.0.2.7", PORT), ("192.0.2.9", PORT)}
    assert read_session(99, str(tmp_path)) is None
    assert read_sessions(str(tmp_path / "none")) == ()


def test_a_session_is_matched_by_target_portal_and_initiator(tmp_path: Path) -> None:
    session(tmp_path, 1, portal="192.0.2.8")
    session(tmp_path, 2, initiator="iqn.x:other", interface="libvirt-iface-1")
    session(tmp_path, 3, target=f"{IQN}2")
    session(tmp_path, 4)
    session(tmp_path, 5, portal="127.0.0.1")
    sessions = read_sessions(str(tmp_path))

    def found(host: str, initiator: str = ME, *, own: bool = True) -> int | None:
        match = matching(sessions, IQN, Portal(host), initiator, own=own)
        return match.id if match else None

    assert found("192.0.2.7") == 4
    assert found("192.0.2.8") == 1
    assert found("192.0.2.7", "iqn.x:other", own=False) == 2
    assert found("192.0.2.7", "iqn.x:third", own=False) is None
    assert found("192.0.2.7", "iqn.renamed:since") == 4, "the default interface is the host's own"
    assert found("localhost") == 5, "a name is looked up where no session was asked for by it"
    assert found("192.0.2.9") is None


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (Status.AUTHENTICATION, AccessDenied, "secret"),
        (Status.TRANSPORT_TIMEOUT, Timeout, "server is up"),
        (Status.TRANSPORT, Timeout, "server is up"),
        (Status.LOGIN_REFUSED, OperationFailed, "target"),
        (Status.NOTHING_FOUND, OperationFailed, "find-sources-as"),
        (Status.NO_TRANSPORT, InternalError, "modprobe iscsi_tcp"),
        (Status.NO_DAEMON, InternalError, "systemctl start iscsid"),
        (9, CommandFailed, "iscsiadm"),
    ],
)
def test_an_exit_status_has_a_meaning(status: int, kind: type[StorageError], advice: str) -> None:
    argv = ("/sbin/iscsiadm", "--mode", "node", "--portal", "san:3260,1", "--login")
    err = meaning(Output(argv, status, b"", "noise\niscsiadm: the reason\n"))
    assert type(err) is kind
    assert "the reason" in err.message
    assert advice in (err.advice or "")
