"""Storagectl over libvirt's own daemon, which it finds by its socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl, beside
from tests.cli.test_daemon import refreshed
from tests.cli.test_story import qemu_info
from tests.cli.test_terminal import running, wait_for
from tests.storaged.libvirtd import Libvirtd, libvirtd

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    with libvirtd(tmp_path_factory.mktemp("libvirtd")) as running:
        yield running


@pytest.fixture
def served(daemon: Libvirtd, tmp_path: Path, compiled: Path) -> Iterator[Ctl]:
    """Storagectl beside libvirt's daemon, with one running pool ``t``."""
    with beside(daemon.root, tmp_path, compiled) as ctl:
        yield ctl


def test_the_daemon_does_the_work(daemon: Libvirtd, served: Ctl):
    assert "t" in daemon.virsh("pool-list", "--name").split()
    assert served.out("pool", "list") == (
        "Name  State   Autostart  Type\nt     active  yes        dir\n"
    )
    shown = served.json("pool", "info", "t")
    assert (shown["target"], shown["state"]) == (str(served.images), "running")
    again = served.json("pool", "ensure", "t", "--target", str(served.images))
    assert (again["changed"], again["differences"]) == (False, [])
    said = served.error("--embedded", "pool", "refresh", "t", status=6)
    assert "is in use by process" in said


def test_volumes(served: Ctl, tmp_path: Path):
    path = served.images / "a.qcow2"
    said = served.out("vol", "create-as", "t", "a.qcow2", "8M", "--format", "qcow2")
    assert said == f"volume a.qcow2 created: qcow2, 8 MiB, thin, {path}\n"
    assert qemu_info(path)["virtual-size"] == 8 << 20
    served.out("vol", "clone", "t", "a.qcow2", "b")
    assert [volume["name"] for volume in served.json("vol", "list", "t")] == ["a.qcow2", "b"]
    served.out("vol", "create-as", "t", "raw", "1M")
    served.out("vol", "upload", "t/raw", "-", stdin=b"hello")
    assert served.run("vol", "download", "t/raw", "-", "--length", "5").stdout == b"hello"
    served.out("vol", "resize", "t/raw", "2M")
    assert served.json("vol", "info", str(served.images / "raw"))["capacity"] == 2 << 20
    for name in ("a.qcow2", "b", "raw"):
        served.out("vol", "delete", f"t/{name}")
    assert list(served.images.iterdir()) == []


def test_statuses_are_the_same(served: Ctl):
    served.out("vol", "create-as", "t", "a", "1M")
    served.error("pool", "info", "none", status=4)
    served.error("vol", "info", "t/none", status=4)
    served.error("vol", "create-as", "t", "a", "1M", status=5)
    served.error("pool", "define-as", "t", "dir", "--target", "/elsewhere", status=5)
    served.error("pool", "start", "t", status=11)
    served.error("vol", "resize", "t/a", "1", status=8)


def test_what_it_cannot_do(served: Ctl):
    served.out("vol", "create-as", "t", "a", "1M")
    for words in (("pool", "policy", "t"), ("vol", "delete", "t/a", "--force")):
        said = served.error(*words, status=9)
        assert "hint: The other side is not storaged." in said
    assert served.json("job", "list") == []
    served.error("job", "cancel", "1", status=8)


def test_events(served: Ctl):
    with running(served, "event") as event:
        wait_for(lambda: refreshed(served, event))
        said, _ = event.communicate(timeout=60)
    assert (event.returncode, said) == (0, b"pool t refreshed\n")
