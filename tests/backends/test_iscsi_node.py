"""Records of iscsiadm's node database: changed for a login, put back after it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsinode import (
    alone,
    find_interface,
    find_node,
    interface_is_used,
    is_made,
    lent,
    mark_made,
    own_initiator,
    settled,
)
from storaged.backends._iscsiportal import Portal
from storaged.errors import InvalidArgument, SystemFailure
from storaged.job import Job

IQN = "iqn.2026-01.test.storaged:node-database"
RECORD = """# BEGIN RECORD 2.1.8
node.name = iqn.x:y
node.startup = automatic
node.session.auth.authmethod = None
node.session.timeo.replacement_timeout = 120
# END RECORD
"""
CHAP = {
    "node.startup": "manual",
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.password": "hush hush",
}


def test_what_a_login_needs_is_put_back() -> None:
    text = lent(RECORD, CHAP, CHAP.keys())
    assert "\nnode.session.auth.password = hush hush\n" in text
    assert "\nnode.startup = manual\n" in text
    assert "\nnode.startup = automatic\n" not in text
    assert text.endswith("# END RECORD\n")
    assert settled(text) == RECORD
    assert settled(RECORD) == RECORD


NAMES = st.sampled_from([f"node.a{number}" for number in range(5)])
VALUES = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_any_record_comes_back(there: dict[str, str], wanted: dict[str, str]) -> None:
    lines = [f"{name} = {value}" for name, value in there.items()]
    text = "\n".join(["# BEGIN RECORD 2.1.8", *lines, "# END RECORD", ""])
    changed = lent(text, wanted, wanted.keys())
    found = dict(line.split(" = ", 1) for line in changed.splitlines() if not line.startswith("#"))
    assert found == {**there, **wanted}
    assert settled(changed) == text


def make(root: Path, place: str, text: str = RECORD) -> Path:
    path = root / "nodes" / IQN / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_record_is_found_by_target_portal_and_interface(tmp_path: Path) -> None:
    make(tmp_path, "san,3260,2/default")
    make(tmp_path, "san,3261,1/mine")
    make(tmp_path, "fe80::1,3260,1/default")
    make(tmp_path, "old,3260")
    make(tmp_path, "garbage/default")
    roots = (tmp_path / "none", tmp_path)

    def found(portal: Portal, interface: str = "default") -> str | None:
        node = find_node(IQN, portal, interface, roots)
        return None if node is None else str(node.portal)

    assert found(Portal("san")) == "san:3260,2", "whatever its group"
    assert found(Portal("san", 3261), "mine") == "san:3261,1"
    assert found(Portal("san", 3261)) is None
    assert found(Portal("FE80:0::1")) == "[fe80::1]:3260,1"
    assert found(Portal("old")) == "old:3260", "of an unknown group"
    make(tmp_path, "san,3260,1/default")
    assert found(Portal("san")) == "san:3260,1"
    assert interface_is_used("mine", roots)
    assert not interface_is_used("yours", roots)


def test_lending_is_atomic_private_and_leaves_nothing(tmp_path: Path) -> None:
    path = make(tmp_path, "san,3260,1/default")
    node = find_node(IQN, Portal("san"), "default", (tmp_path,))
    assert node is not None
    node.lend(CHAP)
    assert node.is_lent
    assert path.stat().st_mode & 0o777 == 0o600
    node.lend({**CHAP, "node.session.auth.password": "other"})  # after a crash
    assert "hush" not in path.read_text()
    node.settle()
    node.settle()
    assert path.read_text() == RECORD
    assert [each.name for each in path.parent.iterdir()] == ["default"]


def test_what_was_made_for_a_login_is_removed_after_it(tmp_path: Path) -> None:
    make(tmp_path, "san,3260,1/other")
    path = make(tmp_path, "san,3260,1/default")
    static = tmp_path / "static" / f"{IQN},san,3260,1,default"
    static.parent.mkdir()
    static.symlink_to(path.parent)
    node = find_node(IQN, Portal("san"), "default", (tmp_path,))
    assert node is not None
    node.lend({}, made=True)
    assert node.is_lent
    assert is_made(path)
    node.lend(CHAP)
    assert path.read_text().count("made by") == 1
    node.settle()
    node.settle()
    assert not node.is_lent
    assert [each.name for each in path.parent.iterdir()] == ["other"]
    assert not list(static.parent.iterdir())
    with pytest.raises(SystemFailure):
        node.lend(CHAP)
    assert not path.exists()


@pytest.mark.parametrize("secret", ["two\nlines", " x", "x ", "", "x" * 256, "nul\0", "\udcff"])
def test_a_secret_that_iscsiadm_would_misread_is_refused_and_not_told(
    tmp_path: Path, secret: str
) -> None:
    path = make(tmp_path, "san,3260,1/default")
    node = find_node(IQN, Portal("san"), "default", (tmp_path,))
    assert node is not None
    with pytest.raises(InvalidArgument, match=r"auth\.password cannot be stored") as caught:
        node.lend({"node.session.auth.password": secret})
    assert not secret.strip() or secret not in repr(caught.value)
    assert path.read_text() == RECORD


def test_the_database_is_one_at_a_time_and_cleared_of_beginnings(tmp_path: Path) -> None:
    left = tmp_path / ".storaged-1-abc.tmp"
    left.write_text("a password")
    order = []
    started = threading.Event()

    def other() -> None:
        started.set()
        with alone(Job("test"), (tmp_path,)):
            order.append("second")

    with alone(Job("test"), (tmp_path,)):
        assert not left.exists()
        thread = threading.Thread(target=other)
        thread.start()
        started.wait(5)
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_the_name_of_this_host(tmp_path: Path) -> None:
    path = tmp_path / "initiatorname.iscsi"
    assert own_initiator(path) is None
    path.write_text("## a comment\n# InitiatorName=iqn.no\n")
    assert own_initiator(path) is None
    path.write_text("## a comment\nInitiatorName = iqn.x:me \n")
    assert own_initiator(path) == "iqn.x:me"


@pytest.fixture
def database() -> Iterator[Path]:
    """The real database of this host, cleared of what the test makes."""
    root = Path("/etc/iscsi")
    if os.geteuid() != 0 or not (root / "iscsid.conf").exists():
        pytest.skip("needs root and open-iscsi")
    yield root
    for portal in ("192.0.2.7:3260,1", "[2001:db8::1]:3260,1"):
        words = ["iscsiadm", "-m", "node", "-T", IQN, "-p", portal, "-o", "delete"]
        subprocess.run(words, check=False, capture_output=True)


def shown(portal: str) -> str:
    """What iscsiadm reads from a record, its secrets too."""
    words = ["iscsiadm", "-m", "node", "-T", IQN, "-p", portal, "-S"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::1"])
def test_iscsiadm_reads_what_was_written(database: Path, host: str) -> None:
    portal = Portal(host)
    iscsiadm.new_node(IQN, portal, "default")
    node = find_node(IQN, portal, "default")
    assert node is not None
    assert node.path == database / "nodes" / IQN / portal.entry / "default"
    before = shown(str(portal))
    node.lend({**CHAP, "node.session.timeo.replacement_timeout": "15"})
    lent_text = shown(str(portal))
    assert "node.session.auth.password = hush hush\n" in lent_text
    assert "node.session.auth.authmethod = CHAP\n" in lent_text
    assert "replacement_timeout = 15\n" in lent_text
    node.settle()
    assert shown(str(portal)) == before
    node.lend(CHAP, made=True)
    node.settle()
    assert not node.path.parent.parent.exists()
    assert not list((database / "static").glob(f"{IQN},*"))


@pytest.mark.slow
def test_iscsiadm_keeps_the_note_in_an_interface(database: Path) -> None:
    name = "libvirt-iface-storaged"
    subprocess.run(["iscsiadm", "-m", "iface", "-I", name, "-o", "new"], check=True)
    try:
        path = find_interface(name)
        assert path == database / "ifaces" / name
        mark_made(path)
        assert is_made(path)
        assert (name, "") in iscsiadm.interfaces()
    finally:
        iscsiadm.delete_interface(name)
    assert not path.exists()
