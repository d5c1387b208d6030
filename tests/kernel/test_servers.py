"""The servers that kernel-bound tests talk to: they start, they answer, they end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.kernel.features import FEATURES, missing
from tests.kernel.iscsi import Chap, Initiator, Lio, Tgtd, listens, sessions
from tests.kernel.nfs import NfsServer
from tests.kernel.programs import eventually, in_guest, run

IQN = "iqn.2026-01.test.storaged:disks"


def sparse(path: Path, mebibytes: int = 16) -> Path:
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    return path


def log_in(portal: str) -> None:
    run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal)
    run("iscsiadm", "-m", "node", "-T", IQN, "-p", portal, "--login")


@pytest.mark.kernel("tgt")
def test_tgtd_has_its_targets(tgtd: Tgtd, tmp_path: Path) -> None:
    tid = tgtd.add(IQN, [sparse(tmp_path / "disk")], Chap("user", "secretsecret"))
    told = tgtd.admin("--op", "show", "--mode", "target")
    assert f"Target {tid}: {IQN}" in told
    assert str(tmp_path / "disk") in told
    tgtd.kill()
    assert not listens(tgtd.port)


@pytest.mark.kernel("iscsi", "tgt", "udev")
def test_a_disk_by_tgtd(tgtd: Tgtd, initiator: Initiator, tmp_path: Path) -> None:
    tgtd.add(IQN, [sparse(tmp_path / "disk")])
    log_in(tgtd.portal)
    link = Path(f"/dev/disk/by-path/ip-{tgtd.portal}-iscsi-{IQN}-lun-1")
    eventually(link.exists, what=str(link))


@pytest.mark.kernel("iscsi", "lio", "udev")
def test_a_disk_by_lio(lio: Lio, initiator: Initiator, tmp_path: Path) -> None:
    before = sessions()
    lio.add(IQN, [sparse(tmp_path / "disk")])
    log_in(lio.portal)
    assert len(sessions() - before) == 1
    link = Path(f"/dev/disk/by-path/ip-{lio.portal}-iscsi-{IQN}-lun-0")
    eventually(link.exists, what=str(link))


@pytest.mark.kernel("nfsd", "nfs")
@pytest.mark.parametrize("options", ["vers=3,nolock", "vers=4.2"])
def test_nfs(nfs_server: NfsServer, unmounted: Path, options: str) -> None:
    exported, target = unmounted / "exported", unmounted / "target"
    exported.mkdir()
    target.mkdir()
    path = nfs_server.export(exported, version4="vers=4" in options)
    assert str(exported) in run("showmount", "-e", "127.0.0.1")
    soft = f"{options},soft,timeo=10,retrans=1,noac"
    run("mount", "-t", "nfs", "-o", soft, f"127.0.0.1:{path}", target)
    (exported / "file").touch()
    assert os.listdir(target) == ["file"]  # noqa: PTH208 (asks the server)
    nfs_server.stop()
    with pytest.raises(OSError, match=r"Input/output error|timed out"):
        os.stat(target / "file")  # noqa: PTH116
    nfs_server.resume()
    eventually((target / "file").exists, what="the server")


@pytest.mark.kernel("dummy")
def test_an_address_that_does_not_answer(black_hole: str) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection((black_hole, 3260), timeout=1)


@pytest.mark.kernel("disks")
@pytest.mark.parametrize("name", FEATURES)
def test_the_guest_has_every_feature(name: str) -> None:
    assert in_guest()
    assert missing(name) is None
