"""Records of iscsiadm's node database: changed for a login, put back after it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsiloan import new_loan
from storaged.backends._iscsinode import (
    Node,
    find_interface,
    find_node,
    interface_is_used,
    interface_of,
    is_made,
    line_of,
    mark_made,
    own_initiator,
    with_lines,
)
from storaged.backends._iscsiportal import Portal
from storaged.errors import InvalidArgument, SystemFailure

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


def lines(values: dict[str, str]) -> dict[str, str | None]:
    return {name: line_of(name, value) for name, value in values.items()}


def test_a_record_gets_other_values_where_iscsiadm_has_them() -> None:
    text = with_lines(RECORD, lines(CHAP))
    assert "\nnode.session.auth.password = hush hush\n" in text
    assert "\nnode.startup = manual\n" in text
    assert "\nnode.startup = automatic\n" not in text
    assert text.endswith("# END RECORD\n")
    assert with_lines(RECORD, {}) == RECORD


NAMES = st.sampled_from([f"node.a{number}" for number in range(5)])
VALUES = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_any_record_comes_back(there: dict[str, str], wanted: dict[str, str]) -> None:
    there_lines = {name: f"{name} = {value}" for name, value in there.items()}
    text = "\n".join(["# BEGIN RECORD 2.1.8", *there_lines.values(), "# END RECORD", ""])
    changed = with_lines(text, lines(wanted))
    found = dict(line.split(" = ", 1) for line in changed.splitlines() if not line.startswith("#"))
    assert found == {**there, **wanted}
    assert with_lines(changed, {name: there_lines.get(name) for name in wanted}) == text


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

    def at(portal: Portal, interface: str = "default") -> str | None:
        node = find_node(IQN, portal, interface, roots)
        return None if node is None else str(node.portal)

    assert at(Portal("san")) == "san:3260,2", "whatever its group"
    assert at(Portal("san", 3261), "mine") == "san:3261,1"
    assert at(Portal("san", 3261)) is None
    assert at(Portal("FE80:0::1")) == "[fe80::1]:3260,1"
    assert at(Portal("old")) == "old:3260", "of an unknown group"
    make(tmp_path, "san,3260,1/default")
    assert at(Portal("san")) == "san:3260,1"
    assert interface_is_used("mine", roots)
    assert not interface_is_used("yours", roots)


def found(root: Path) -> Node:
    node = find_node(IQN, Portal("san"), "default", (root,))
    assert node is not None
    return node


def test_a_change_is_atomic_private_and_leaves_nothing(tmp_path: Path) -> None:
    path = make(tmp_path, "san,3260,1/default")
    node = found(tmp_path)
    was = node.lines(CHAP)
    assert was["node.startup"] == "node.startup = automatic"
    assert was["node.session.auth.password"] is None
    node.change(lines(CHAP))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "hush" in path.read_text()
    node.change(was)
    assert path.read_text() == RECORD
    assert [each.name for each in path.parent.iterdir()] == ["default"]
    path.unlink()
    with pytest.raises(SystemFailure):
        node.change(lines(CHAP))
    assert not path.exists()


def test_a_database_may_be_a_link_to_another_file_system(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (Path(other) / "nodes").mkdir()
        (tmp_path / "nodes").symlink_to(Path(other) / "nodes")
        path = make(tmp_path, "san,3260,1/default")
        assert path.stat().st_dev != tmp_path.stat().st_dev
        found(tmp_path).change(lines(CHAP))
        assert "hush" in path.read_text()
        assert [each.name for each in Path(other).iterdir()] == ["nodes"]


def test_a_record_is_removed_with_what_leads_to_it(tmp_path: Path) -> None:
    make(tmp_path, "san,3260,1/other")
    path = make(tmp_path, "san,3260,1/default")
    static = tmp_path / "static" / f"{IQN},san,3260,1,default"
    static.parent.mkdir()
    static.symlink_to(path.parent)
    node = found(tmp_path)
    node.remove()
    node.remove()
    assert [each.name for each in path.parent.iterdir()] == ["other"]
    assert not list(static.parent.iterdir())
    make(tmp_path, "san,3260,1/default")
    (path.parent / "other").unlink()
    node.remove()
    assert not list((tmp_path / "nodes").iterdir())


@pytest.mark.parametrize("secret", ["two\nlines", " x", "x ", "", "x" * 256, "nul\0", "\udcff"])
def test_a_secret_that_iscsiadm_would_misread_is_refused_and_not_told(secret: str) -> None:
    with pytest.raises(InvalidArgument, match=r"auth\.password cannot be stored") as caught:
        line_of("node.session.auth.password", secret)
    assert not secret.strip() or secret not in repr(caught.value)


def test_an_interface_is_found_by_its_initiator(tmp_path: Path) -> None:
    place = tmp_path / "ifaces"
    place.mkdir()
    (place / "a").write_text("# BEGIN RECORD\niface.initiatorname = iqn.x:me2\n# END RECORD\n")
    (place / "b").write_text("# BEGIN RECORD\niface.initiatorname = iqn.x:me\n# END RECORD\n")
    (place / "c").mkdir()
    (place / "d").symlink_to("b")
    assert interface_of("iqn.x:me", (tmp_path / "none", tmp_path)) == "b"
    assert interface_of("iqn.x:m", (tmp_path,)) is None


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
    loan = new_loan(IQN, node.portal, None, "default", (), made=False)
    loan = loan.lend({**CHAP, "node.session.timeo.replacement_timeout": "15"})
    lent_text = shown(str(portal))
    assert "node.session.auth.password = hush hush\n" in lent_text
    assert "node.session.auth.authmethod = CHAP\n" in lent_text
    assert "replacement_timeout = 15\n" in lent_text
    loan.end()
    assert shown(str(portal)) == before
    loan = new_loan(IQN, node.portal, None, "default", (), made=True)
    loan.lend(CHAP).end()
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
        listed = subprocess.run(["iscsiadm", "-m", "iface"], capture_output=True, text=True)
        assert f"{name} tcp," in listed.stdout
    finally:
        iscsiadm.delete_interface(name)
    assert not path.exists()
