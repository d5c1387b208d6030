"""storagectl secret: with a daemon and without one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from base64 import encodebytes
from pathlib import Path
from uuid import UUID

import pytest

from tests.cli.conftest import Ctl
from tests.storaged.libvirtd import libvirtd

BOTH_WAYS = True

XML = """<secret private='yes'>
  <uuid>00000000-0000-4000-8000-000000000001</uuid>
  <description>of the array</description>
  <usage type='iscsi'><target>t1</target></usage>
</secret>
"""
UUID_1 = "00000000-0000-4000-8000-000000000001"
SHOWN = {
    "uuid": UUID_1,
    "usage": "iscsi",
    "usage_id": "t1",
    "ephemeral": False,
    "private": True,
    "description": "of the array",
}


def value_of(ctl: Ctl, uuid: str) -> str:
    """Return what the state directory holds as a secret's value, in base64."""
    return (ctl.root / "etc/libvirt/secrets" / f"{uuid}.base64").read_text()


def test_life(ctl: Ctl, tmp_path: Path) -> None:
    assert ctl.out("secret", "list").split() == ["UUID", "Usage", "ID", "Private", "Ephemeral"]
    (tmp_path / "t1.xml").write_text(XML)
    defined = ctl.json("secret", "define", str(tmp_path / "t1.xml"), "--validate")
    assert defined == {"action": "defined", "secret": SHOWN}
    assert ctl.out("secret", "define", "-", stdin=XML.encode()) == f"secret {UUID_1} defined\n"
    (tmp_path / "value").write_bytes(b"geheim\n")
    for word in (UUID_1, "iscsi/t1"):
        said = ctl.out("secret", "set-value", word, "--file", str(tmp_path / "value"))
        assert said == f"value of secret {UUID_1} set\n"
        assert value_of(ctl, UUID_1) == "Z2VoZWlt"
    changed = ctl.json("secret", "set-value", "iscsi/t1", "--file", "-", stdin=b"another")
    assert changed == {"action": "value set", "secret": SHOWN}
    assert value_of(ctl, UUID_1) == "YW5vdGhlcg=="
    ctl.out("secret", "set-value", "iscsi/t1", "--base64", "--file", "-", stdin=b"AP8=\n")
    assert value_of(ctl, UUID_1) == "AP8="
    wrapped = encodebytes(bytes(65536))  # as base64(1) prints it
    ctl.out("secret", "set-value", "iscsi/t1", "--base64", "--file", "-", stdin=wrapped)
    assert value_of(ctl, UUID_1).encode() == b"".join(wrapped.split())
    assert ctl.json("secret", "list") == [SHOWN]
    assert ctl.json("secret", "info", "iscsi/t1") == SHOWN
    text = ctl.out("secret", "show", UUID_1)
    assert "ID:             t1\nPrivate:        yes\nEphemeral:      no\n" in text
    assert ctl.json("secret", "dumpxml", "iscsi/t1")["xml"] in ctl.out("secret-dumpxml", UUID_1)
    gone = ctl.json("secret", "undefine", "iscsi/t1")
    assert gone == {"action": "undefined", "secret": SHOWN}
    assert ctl.json("secret", "list") == []
    assert not list((ctl.root / "etc/libvirt/secrets").glob(f"{UUID_1}*"))


def test_options_instead_of_xml(ctl: Ctl) -> None:
    ctl.out("secret", "define-as", "volume", "/images/a b.img", "--uuid", UUID_1)
    made = ctl.json("secret", "define-as", "ceph", "client.x", "--private", "--description", "<d>")
    secret = made["secret"]
    assert UUID(secret["uuid"]).version == 4
    assert (secret["usage"], secret["usage_id"]) == ("ceph", "client.x")
    assert (secret["private"], secret["description"]) == (True, "<d>")
    assert "<volume>/images/a b.img</volume>" in ctl.out("secret", "dumpxml", UUID_1)
    assert ctl.json("secret", "info", "volume//images/a b.img")["uuid"] == UUID_1
    listed = ctl.out("secret", "list")
    assert f"{UUID_1}  volume  /images/a b.img  no       no\n" in listed
    assert ctl.out("secret", "list", "--private", "--uuid") == f"{secret['uuid']}\n"
    assert ctl.out("secret", "list", "--no-private", "--uuid") == f"{UUID_1}\n"
    assert ctl.json("secret", "list", "--ephemeral") == []
    assert len(ctl.json("secret", "list", "--ephemeral", "--no-ephemeral")) == 2


def test_statuses(ctl: Ctl) -> None:
    ctl.out("secret", "define", "-", stdin=XML.encode())
    assert "no secret with matching usage 't2'" in ctl.error("secret", "info", "iscsi/t2", status=4)
    assert "no secret with matching uuid" in ctl.error(
        "secret", "undefine", UUID_1.replace("1", "2"), status=4
    )
    assert "hint: Give its UUID, or KIND/ID" in ctl.error("secret", "info", "t1", status=8)
    assert "no kind of secret 'nfs'" in ctl.error("secret", "info", "nfs/t1", status=8)
    assert "already defined for use with t1" in ctl.error(
        "secret", "define-as", "iscsi", "t1", status=1
    )
    assert "give --file FILE" in ctl.error("secret", "set-value", "iscsi/t1", status=2)
    assert "Invalid value for 'KIND'" in ctl.error("secret", "define-as", "nfs", "x", status=2)


@pytest.mark.parametrize(
    ("value", "more"),
    [
        (b"", ()),
        (b"\n", ()),
        (b"x" * 65537, ()),
        (b"not base64!", ("--base64",)),
        (b" \n", ("--base64",)),
        (encodebytes(bytes(65537)), ("--base64",)),
        (b"AAAA\n" * 30_000, ("--base64",)),
    ],
)
def test_values_that_are_none(ctl: Ctl, value: bytes, more: tuple[str, ...]) -> None:
    ctl.out("secret", "define", "-", stdin=XML.encode())
    done = ctl.run("secret", "set-value", UUID_1, "--file", "-", *more, stdin=value, status=8)
    assert value.strip()[:20] not in done.stderr or not value.strip()
    assert not (ctl.root / "etc/libvirt/secrets" / f"{UUID_1}.base64").exists()


def test_nothing_shows_a_value(ctl: Ctl) -> None:
    ctl.out("secret", "define-as", "iscsi", "t1", "--uuid", UUID_1)
    words = ("secret", "set-value", UUID_1, "--file", "-", "--verbose", "--json")
    done = ctl.run(*words, stdin=b"quite-secret")
    shown = done.stdout + done.stderr
    for command in ("list", "info", "dumpxml", "undefine"):
        rest = () if command == "list" else (UUID_1,)
        shown += ctl.run("secret", command, *rest, "--verbose").stdout
    assert b"quite-secret" not in shown
    assert b"cXVpdGUtc2VjcmV0" not in shown


def test_ephemeral_ones_need_who_keeps_them(ctl: Ctl, request: pytest.FixtureRequest) -> None:
    words = ("secret", "define-as", "iscsi", "brief", "--ephemeral")
    if request.node.callspec.params["ctl"] == "embedded":
        assert "no daemon runs that could keep" in ctl.error(*words, status=1)
        return
    assert "defined" in ctl.out(*words)
    assert ctl.json("secret", "info", "iscsi/brief")["ephemeral"] is True
    assert not list((ctl.root / "etc/libvirt/secrets").glob("*"))


def test_on_a_terminal(ctl: Ctl) -> None:
    """It is asked for twice, and not echoed."""
    ctl.out("secret", "define", "-", stdin=XML.encode())
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ctl.argv("secret", "set-value", UUID_1),
        env=ctl.environment(),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    try:
        for answers in (b"Value: ", b"confirmation: "):
            while answers not in shown:
                shown += os.read(leader, 4096)
            os.write(leader, b"geheim\n")
        assert process.wait(60) == 0
    finally:
        os.close(leader)
        process.kill()
        process.wait()
    assert b"geheim" not in shown
    assert value_of(ctl, UUID_1) == "Z2VoZWlt"


def test_completion(ctl: Ctl) -> None:
    ctl.out("secret", "define", "-", stdin=XML.encode())
    done = ctl.run(
        env={
            "_STORAGECTL_COMPLETE": "bash_complete",
            "COMP_WORDS": "storagectl secret info i",
            "COMP_CWORD": "3",
            "STORAGED_ROOT": str(ctl.root),
        }
    )
    assert done.stdout == b"plain,iscsi/t1\n"


@pytest.mark.slow
def test_libvirts_daemon_keeps_them(tmp_path: Path, compiled: Path) -> None:
    """Beside libvirt's daemon the driver of secrets is asked, and what it keeps is shown."""
    with libvirtd(tmp_path / "root", secrets=True) as daemon:
        ctl = Ctl(daemon.root, tmp_path, {"PYTHONPYCACHEPREFIX": str(compiled)})
        ctl.out("secret", "define", "-", stdin=XML.encode())
        ctl.out("secret", "set-value", "iscsi/t1", "--file", "-", stdin=b"geheim")
        shown = json.loads(ctl.run("secret", "list", "--json").stdout)
        assert shown == [SHOWN]
        uri = daemon.uri.replace("storage:", "secret:")
        virsh = subprocess.run(
            ["virsh", "-c", uri, "secret-list"], capture_output=True, text=True, check=True
        )
        assert f"{UUID_1}   iscsi t1" in virsh.stdout
        assert value_of(ctl, UUID_1) == "Z2VoZWlt"
        ctl.out("secret", "undefine", "iscsi/t1")
