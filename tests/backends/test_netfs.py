"""Pools of type netfs without a server: commands, sources, discovery, and what mount says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Host
from storaged.backends._exports import parse_exports, parse_volumes
from storaged.backends._mountadvice import mount_advice
from storaged.backends.netfs import Netfs
from storaged.errors import (
    CommandFailed,
    CommandTimeout,
    ConfigUnsupported,
    InvalidArgument,
    OperationFailed,
)
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, SourceHost
from storaged.mounts import Mount

HOST = SourceHost("server.example")


def backend_of(format: str = "nfs", host: str = "server", dir: str = "/exp", **more: Any) -> Netfs:
    source = PoolSource(
        hosts=(SourceHost(host),), dir=dir, format=format, protocol=more.pop("protocol", None)
    )
    return Netfs(PoolDef("netfs", "nfs", source=source, target="/t", **more), Host(id="h"))


def job() -> Job[Any]:
    return Job("test", "nfs")


@pytest.mark.parametrize(
    ("backend", "options", "kind", "source"),
    [
        (backend_of(), "", "nfs", "server:/exp"),
        (backend_of(protocol="4.1"), ",nfsvers=4.1", "nfs", "server:/exp"),
        (backend_of("auto"), "", None, "server:/exp"),
        (backend_of("glusterfs", dir="/vol"), ",direct-io-mode=1", "glusterfs", "server:/vol"),
        (backend_of("cifs", dir="/share"), ",guest", "cifs", "//server/share"),
        (backend_of(mount_options=("soft", "timeo=5")), ",soft,timeo=5", "nfs", "server:/exp"),
        (backend_of(host="fe80::1"), "", "nfs", "[fe80::1]:/exp"),
    ],
)
def test_mount_command_is_libvirts(
    backend: Netfs, options: str, kind: str | None, source: str
) -> None:
    typed = ["-t", kind] if kind else []
    expected = ["mount", "-o", f"nodev,nosuid,noexec{options}", *typed, source, "/t"]
    assert backend.mount_command() == expected


@pytest.mark.parametrize(
    ("mounted", "root", "ours"),
    [
        ("server:/exp", "/", True),
        ("server:/exp/", "/", True),
        ("SERVER:/exp", "/", True),
        ("server:exp", "/", True),
        ("server:/exp", "/sub", False),
        ("server:/other", "/", False),
        ("other:/exp", "/", False),
        ("/dev/sda1", "/", False),
    ],
)
def test_which_mounts_are_the_pools(mounted: str, root: str, ours: bool) -> None:
    mount = Mount(2, 1, "0:50", root, "/t", ("rw",), "nfs4", mounted)
    assert backend_of().is_source(mount) is ours


def test_addresses_and_shares_are_compared_too() -> None:
    mount = Mount(2, 1, "0:50", "/", "/t", ("rw",), "cifs", "//server/share")
    assert backend_of("cifs", dir="share").is_source(mount)
    mount = Mount(2, 1, "0:50", "/", "/t", ("rw",), "nfs", "[fe80::1]:/exp")
    assert backend_of(host="fe80::1").is_source(mount)


@pytest.mark.parametrize(
    ("format", "host", "dir", "mounted", "root", "ours"),
    [
        ("glusterfs", "fe80::1", "/vol", "[fe80::1]:vol", "/", True),
        ("nfs", "fe80:0:0::1", "/exp", "[fe80::1]:/exp", "/", True),
        ("nfs", "[FE80::1]", "/exp", "[fe80::1]:/exp", "/", True),
        ("nfs", "fe80::2", "/exp", "[fe80::1]:/exp", "/", False),
        ("nfs", "10.0.0.1", "/a:/b", "10.0.0.1:/a:/b", "/", True),
        ("cifs", "server", "share/sub", "//server/share/sub", "/sub", True),
        ("cifs", "server", "share", "//server/share", "/sub", False),
        ("cifs", "server", "share/sub", "//server/share/sub", "/other", False),
    ],
)
def test_mounts_whose_source_is_spelled_otherwise(
    format: str, host: str, dir: str, mounted: str, root: str, ours: bool
) -> None:
    kind = {"glusterfs": "fuse.glusterfs", "nfs": "nfs4"}.get(format, format)
    mount = Mount(2, 1, "0:50", root, "/t", ("rw",), kind, mounted)
    assert backend_of(format, host=host, dir=dir).is_source(mount) is ours


def test_sources_are_checked_before_anything_is_done() -> None:
    two = PoolSource(hosts=(HOST, SourceHost("b")), dir="/exp")
    with pytest.raises(ConfigUnsupported, match="expected exactly 1 host for the storage pool"):
        Netfs(PoolDef("netfs", "x", source=two, target="/t"), Host(id="h")).start(job())
    with pytest.raises(InvalidArgument, match="begins with a dash"):
        backend_of(host="-oproxy").start(job())


def test_exports_as_showmount_prints_them() -> None:
    text = "/srv/a        *\n/srv/b c/     10.0.0.0/8,host\n/ (everyone)\n"
    text += "no path *\n/lonely\n\n/e\x07 *\n"
    found = parse_exports(text, HOST)
    assert [source.dir for source in found] == ["/srv/a", "/srv/b c", "/"]
    assert {(source.hosts, source.format) for source in found} == {((HOST,), "nfs")}


def test_volumes_as_gluster_prints_them() -> None:
    text = (
        "<cliOutput><opRet>0</opRet><volInfo><volumes><volume><name>v1</name></volume>"
        "<volume><name>v2</name></volume><count>2</count></volumes></volInfo></cliOutput>"
    )
    found = parse_volumes(text, HOST)
    assert [(source.dir, source.format) for source in found] == [
        ("v1", "glusterfs"), ("v2", "glusterfs"),
    ]  # fmt: skip


class Tools:
    """Scripts in the place of tools."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        directory.mkdir()
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def put(self, name: str, text: str) -> None:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "bin", monkeypatch)


def test_discovery_asks_both_and_needs_one(tools: Tools) -> None:
    tools.put("showmount", 'echo "$@" >&2; echo "/srv/x *"')
    tools.put("gluster", "echo garbage")
    spec = PoolSource(hosts=(HOST,))
    assert [
        source.dir for source in Netfs.find_sources(spec, Host(id="h"), Job("find-sources"))
    ] == ["/srv/x"]

    tools.put("showmount", "exit 0")
    assert Netfs.find_sources(spec, Host(id="h"), Job("find-sources")) == ()

    tools.put("showmount", "echo clnt_create: RPC: Program not registered >&2; exit 1")
    with pytest.raises(OperationFailed, match="no storage pools were found on host") as failed:
        Netfs.find_sources(spec, Host(id="h"), Job("find-sources"))
    assert failed.value.advice == "showmount: clnt_create: RPC: Program not registered"

    tools.put("gluster", "echo '<cliOutput><volInfo><volumes><volume><name>v</name></volume>"
              "</volumes></volInfo></cliOutput>'")  # fmt: skip
    assert [
        source.dir for source in Netfs.find_sources(spec, Host(id="h"), Job("find-sources"))
    ] == ["v"]


def test_server_that_never_answers_is_given_up(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.put("showmount", "trap '' TERM; while :; do sleep 1; done")
    tools.put("gluster", "exit 1")
    monkeypatch.setattr("storaged.backends._exports._TIMEOUT", 0.3)
    monkeypatch.setattr("storaged.tool._PATIENCE", 0.3)
    with pytest.raises(OperationFailed) as failed:
        Netfs.find_sources(PoolSource(hosts=(HOST,)), Host(id="h"), Job("find-sources"))
    assert isinstance(failed.value.__cause__, CommandTimeout)


def test_discovery_without_a_host_or_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(id="h")
    with pytest.raises(InvalidArgument, match="hostname must be specified for netfs sources"):
        Netfs.find_sources(None, host, Job("find-sources"))
    with pytest.raises(ConfigUnsupported, match="Expected exactly 1 host for the storage pool"):
        Netfs.find_sources(PoolSource(), host, Job("find-sources"))
    with pytest.raises(InvalidArgument, match="begins with a dash"):
        Netfs.find_sources(PoolSource(hosts=(SourceHost("--all"),)), host, Job("find-sources"))
    monkeypatch.setattr("storaged.command.find_program", lambda *_: None)
    with pytest.raises(OperationFailed) as failed:
        Netfs.find_sources(PoolSource(hosts=(HOST,)), host, Job("find-sources"))
    assert "nfs-common" in (failed.value.advice or "")


def test_mount_that_hangs_is_bounded(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools.put("mount", "exec sleep 60")
    monkeypatch.setattr(Netfs, "mount_timeout", 0.3)
    with pytest.raises(CommandTimeout) as failed:
        backend_of().start(job())
    assert "did not answer for 0.3 s" in (failed.value.advice or "")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("mount.nfs: access denied by server while mounting s:/e", "showmount -e server"),
        ("mount.nfs: requested NFS version or transport protocol is not supported", "rpcinfo"),
        ("mount.nfs: Connection timed out", "ping server"),
        ("bad option; for several filesystems (e.g. nfs, cifs) you might need a "
         "/sbin/mount.<type> helper program.", "nfs-common"),
        ("mount: /t: unknown filesystem type 'nfs'.", "modprobe nfs"),
    ],
)  # fmt: skip
def test_what_mount_says_is_explained(tools: Tools, said: str, advice: str) -> None:
    tools.put("mount", f'echo "{said}" >&2; exit 32')
    with pytest.raises(CommandFailed, match="unexpected exit status 32") as failed:
        backend_of().start(job())
    assert advice in (failed.value.advice or "")


def test_type_that_nobody_named_is_advised_on() -> None:
    said = "mount: /t: unknown filesystem type 'nfs'."
    assert "modprobe nfs" in (mount_advice(said, backend_of("auto").definition, "s:/e") or "")


def test_what_mount_has_started_ends_with_it(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else its helper would mount when nobody expects it any more."""
    late = tmp_path / "late"
    tools.put("mount", f"(sleep 1; touch {late}) & wait")
    monkeypatch.setattr(Netfs, "mount_timeout", 0.3)
    with pytest.raises(CommandTimeout):
        backend_of().start(job())
    time.sleep(1.2)
    assert not late.exists()


def test_unknown_words_get_no_advice() -> None:
    assert mount_advice("gibberish", backend_of().definition, "s:/e") is None
