"""Libvirt's daemon of secrets and ours over the same files: in turns, and side by side."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from storaged.backend import SecretUsage
from storaged.driver import open_driver
from storaged.driverlock import DriverLock, EngineKind
from storaged.errors import InvalidArgument, InvalidSecret, NoSuchSecret, StorageError
from storaged.model import SecretRef
from storaged.paths import Paths
from storaged.rpc.identity import Identity
from storaged.secrets import KeptSecrets, SecretFilter, SecretKind
from tests.secrets.conftest import document, numbered
from tests.storaged.libvirtd import Libvirtd, launch, libvirtd

pytestmark = pytest.mark.slow

DOCUMENTS = (
    "<secret><uuid>{0}</uuid><description>a &lt;b&gt; é &amp; 'c'</description></secret>",
    "<secret private='yes'><uuid>{0}</uuid>"
    "<usage type='volume'><volume>/a b</volume></usage></secret>",
    "<secret><uuid>{0}</uuid><usage type='ceph'><name>client.a</name></usage></secret>",
    "<secret><uuid>{0}</uuid><usage type='iscsi'><target>iqn.a</target></usage></secret>",
    "<secret><uuid>{0}</uuid><usage type='tls'><name>t</name></usage></secret>",
    "<secret><uuid>{0}</uuid><usage type='vtpm'><name>t</name></usage></secret>",
    "<secret><uuid>{0}</uuid><description>  two\n lines </description>"
    "<usage type='none'/></secret>",
)
#: Documents that libvirt refuses, or reads in its own way.
ODD = (
    "<secret",
    "",
    "<secrets/>",
    "<secret ephemeral='maybe'/>",
    "<secret private='maybe'/>",
    "<secret ephemeral='no' private=''><uuid>{0}</uuid></secret>",
    "<secret><uuid>x</uuid></secret>",
    "<secret private='maybe'><uuid>x</uuid><usage/></secret>",
    "<secret><usage/></secret>",
    "<secret><usage type=''/></secret>",
    "<secret><usage type='foo'/></secret>",
    "<secret><usage type='volume'/></secret>",
    "<secret><usage type='volume'><volume/></usage></secret>",
    "<secret><usage type='ceph'/></secret>",
    "<secret><usage type='iscsi'><name>x</name></usage></secret>",
    "<secret><usage type='tls'/></secret>",
    "<secret><usage type='vtpm'/></secret>",
    "<secret><uuid>{0}</uuid>"
    "<usage type='none'/><usage type='ceph'><name>z</name></usage></secret>",
    "<secret><uuid>{0}</uuid><usage/><usage type='ceph'><name>z</name></usage></secret>",
    "<secret><uuid>{0}</uuid><description/><other/></secret>",
)


def outcome(daemon: Libvirtd, tmp_path: Path, text: str) -> str:
    """Have virsh define a document; return the XML of what came of it, or the error."""
    file = tmp_path / "document.xml"
    file.write_text(text)
    command = ["virsh", "-c", daemon.uri, "-q"]
    done = subprocess.run(
        [*command, "secret-define", str(file)], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        return done.stderr.partition("\nerror: ")[2].rstrip("\n")
    return daemon.virsh("secret-dumpxml", str(numbered(1)))


def test_documents_are_read_as_libvirt_reads_them(secretd: Libvirtd, tmp_path: Path) -> None:
    theirs, ours = [], []
    with open_driver(Paths.below(tmp_path / "ours")) as driver:
        for text in (text.format(numbered(1)) for text in (*DOCUMENTS, *ODD)):
            theirs.append(outcome(secretd, tmp_path, text))
            if theirs[-1].startswith("<"):
                secretd.virsh("secret-undefine", str(numbered(1)))
            try:
                secret = driver.secret_define_xml(text)
                ours.append(driver.secret_xml(secret.uuid))
                driver.secret_undefine(secret.uuid)
            except StorageError as err:
                ours.append(err.message)
    assert ours == theirs


SEQUENCE = (
    document(1, "/a"),
    document(2, "/a"),
    document(1, "/b"),
    document(1),
    document(3),
    document(3, "/c"),
    document(1, "/a", ephemeral=True),
    document(1, "/a", private=True),
    document(1, "/a"),
    f"<secret private='yes'><uuid>{numbered(1)}</uuid>"
    "<usage type='tls'><name>/a</name></usage></secret>",
    document(4, "/a"),
)


def test_what_contradicts_is_refused_as_by_libvirt(secretd: Libvirtd, tmp_path: Path) -> None:
    theirs, ours = [], []
    with open_driver(Paths.below(tmp_path / "ours"), kind=EngineKind.DAEMON) as driver:
        for text in SEQUENCE:
            theirs.append(outcome(secretd, tmp_path, text))
            try:
                driver.secret_define_xml(text)
                ours.append(driver.secret_xml(numbered(1)))
            except StorageError as err:
                ours.append(err.message)
    assert ours == theirs


def facts(directory: Path) -> dict[str, tuple[int, bytes]]:
    found = {path.name: (path.stat().st_mode, path.read_bytes()) for path in directory.iterdir()}
    found["."] = (directory.stat().st_mode, b"")
    return found


def test_files_are_the_same_to_the_byte(paths: Paths, tmp_path: Path) -> None:
    texts = [text.format(numbered(at)) for at, text in enumerate(DOCUMENTS)]
    value = bytes(range(256)) * 3
    ours = Paths.below(tmp_path / "ours")
    with open_driver(ours) as driver:
        for text in texts:
            driver.secret_define_xml(text)
            driver.secret_set_value(driver.secret_define_xml(text).uuid, value)
        lock = facts(ours.secrets_state)
    with libvirtd(paths.config.parents[2], secrets=True, storage=False) as daemon:
        for at, text in enumerate(texts):
            file = tmp_path / "document.xml"
            file.write_text(text)
            daemon.virsh("secret-define", str(file))
            (tmp_path / "value").write_bytes(base64.b64encode(value))
            daemon.virsh("secret-set-value", str(numbered(at)), "--file", f"{tmp_path}/value")
        assert facts(ours.secrets) == facts(paths.secrets)
        theirs = facts(paths.secrets_state)
    assert {name: mode for name, (mode, _) in lock.items()} == {
        name: mode for name, (mode, _) in theirs.items()
    }


def test_both_directions_of_the_swap(paths: Paths) -> None:
    with open_driver(paths) as driver:
        driver.secret_define_xml(document(1, "/a"))
        driver.secret_set_value(numbered(1), b"ours\0")
        driver.secret_define_xml(document(2, "/gone", ephemeral=True))
    root = paths.config.parents[2]
    with libvirtd(root, secrets=True, storage=False) as daemon:
        assert daemon.virsh("secret-list").split() == [str(numbered(1)), "volume", "/a"]
        told = daemon.virsh("secret-get-value", str(numbered(1)))
        assert base64.b64decode(told) == b"ours\0"
        (root / "x.xml").write_text(document(3, "/b", private=True))
        daemon.virsh("secret-define", str(root / "x.xml"))
        (root / "value").write_bytes(base64.b64encode(b"theirs"))
        daemon.virsh("secret-set-value", str(numbered(3)), "--file", str(root / "value"))
    with open_driver(paths) as driver:
        assert {secret.uuid for secret in driver.secrets()} == {numbered(1), numbered(3)}
        assert driver.secret_value(numbered(3), caller=Identity(elevated=True)) == b"theirs"
        driver.secret_undefine(numbered(1))
        assert driver.problems() == ()
    with libvirtd(root, secrets=True, storage=False) as daemon:
        assert str(numbered(1)) not in daemon.virsh("secret-list")


# Side by side: whoever holds the lock is asked


def test_a_daemon_that_runs_is_asked(paths: Paths, secretd: Libvirtd) -> None:
    with open_driver(paths) as driver:
        heard: list[object] = []
        driver.secret_events.subscribe(lambda event: heard.append(event.change.value))
        driver.secret_define_xml(document(1, "/a"))
        driver.secret_set_value(numbered(1), b"value\0")
        driver.secret_define_xml(document(2, "/b", ephemeral=True, private=True))
        driver.secret_set_value(numbered(2), b"hidden")
        assert str(numbered(2)) in secretd.virsh("secret-list")
        assert {one.uuid for one in driver.secrets()} == {numbered(1), numbered(2)}
        private = driver.secrets(SecretFilter.PRIVATE)
        assert [one.uuid for one in private] == [numbered(2)]
        assert private[0].ephemeral
        assert driver.secret_lookup_by_usage(SecretKind.VOLUME, "/a").uuid == numbered(1)
        assert driver.secret_value(numbered(1)) == b"value\0"
        with pytest.raises(InvalidSecret, match=r"^Invalid secret: secret is private$"):
            driver.secret_value(numbered(2))
        with pytest.raises(NoSuchSecret, match="no secret with matching usage '/c'"):
            driver.secret_lookup_by_usage(SecretKind.VOLUME, "/c")
        with pytest.raises(StorageError, match="already defined for use with /a"):
            driver.secret_define_xml(document(3, "/a"))
        driver.secret_undefine(numbered(1))
        with pytest.raises(NoSuchSecret, match=f"no secret with matching uuid '{numbered(1)}'"):
            driver.secret_xml(numbered(1))
        assert heard == ["defined", "value changed"] * 2 + ["undefined"]
    assert not list(paths.secrets.glob("*.base64"))


def test_the_token_of_the_daemons_opens_private_secrets(paths: Paths, secretd: Libvirtd) -> None:
    kept = KeptSecrets(paths)
    someone, daemon = Identity(uid=107, gid=107, pid=1, user="x"), Identity(uid=0, elevated=True)
    with open_driver(paths) as driver:
        driver.secret_define_xml(document(1, "/a", private=True), caller=someone)
        driver.secret_set_value(numbered(1), b"hidden", caller=someone)
        assert driver.secret_value(numbered(1), caller=daemon) == b"hidden"
    with kept.reading(someone) as keeper, pytest.raises(InvalidSecret, match="secret is private"):
        keeper.value(keeper.by_uuid(numbered(1)))
    ref = SecretRef(usage="/a")
    assert kept.value(SecretUsage.VOLUME, ref) == b"hidden"
    assert kept.find(SecretUsage.VOLUME, "/a") == numbered(1)
    assert kept.find(SecretUsage.VOLUME, "/b") is None
    with pytest.raises(InvalidArgument, match="is of type 'volume' not expected 'iscsi' type"):
        kept.value(SecretUsage.ISCSI, SecretRef(uuid=numbered(1)))
    (paths.sockets / "common/system.token").unlink()
    with pytest.raises(InvalidSecret, match="secret is private"):
        kept.value(SecretUsage.VOLUME, ref)


def test_who_keeps_the_secrets_changes(paths: Paths) -> None:
    """What is in our memory only keeps libvirt's daemon out, and nothing else does."""
    root = paths.config.parents[2]
    with open_driver(paths, kind=EngineKind.DAEMON) as driver:
        assert DriverLock(paths).owner() is not None
        assert not paths.secrets_state.exists()  # who only reads takes no lock
        assert driver.secrets() == []
        driver.secret_define_xml(document(1))
        driver.secret_define_xml(document(2, ephemeral=True))
        launch(root, secrets=True, storage=False).wait(30)  # it ends by itself
        assert "Failed to acquire pid file" in (root / "libvirtd.log").read_text()
        driver.secret_undefine(numbered(2))
        with libvirtd(root, secrets=True, storage=False) as daemon:
            assert daemon.virsh("secret-list").split()[0] == str(numbered(1))
            driver.secret_define_xml(document(3))
            assert str(numbered(3)) in daemon.virsh("secret-list")
        driver.secret_undefine(numbered(1))
        assert [secret.uuid for secret in driver.secrets()] == [numbered(3)]
