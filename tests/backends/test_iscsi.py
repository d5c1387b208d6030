"""Pool type iscsi as far as it goes without the kernel's part: definitions, abilities, errors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import (
    DeviceEvent,
    FindsSources,
    Host,
    Plugged,
    Remembers,
    StopsByForce,
    Transfers,
    Watched,
    Wipes,
)
from storaged.backends import BUILTIN, NOTES
from storaged.backends._iscsiloan import PLACE
from storaged.backends._iscsilogin import Credentials, Login
from storaged.backends._iscsinode import ROOTS
from storaged.backends._iscsiportal import Portal
from storaged.backends.iscsi import Iscsi
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    OperationFailed,
    StorageError,
    XMLError,
)
from storaged.job import Job
from storaged.model import (
    Auth,
    PoolDef,
    PoolSource,
    SecretRef,
    SourceDevice,
    SourceHost,
)
from storaged.registry import Registry
from tests.kernel.iscsi import Tgtd

IQN = "iqn.2026-01.test.storaged:native"
SAN = SourceHost("192.0.2.7")
DISKS = SourceDevice(IQN)


def job() -> Job[Any]:
    return Job("test", "san")


def backend(source: PoolSource) -> Iscsi:
    definition = PoolDef("iscsi", "san", source=source, target="/dev/disk/by-path")
    return Iscsi(definition, Host(id="test"))


def test_the_class_line_tells_what_it_can() -> None:
    assert Registry().find("iscsi") is Iscsi
    for ability in (FindsSources, Transfers, Wipes, StopsByForce, Watched, Plugged, Remembers):
        assert issubclass(Iscsi, ability)


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        (
            PoolSource(hosts=(SAN, SAN), devices=(DISKS,)),
            ConfigUnsupported,
            "Expected exactly 1 host for the storage pool",
        ),
        (PoolSource(hosts=(SAN,)), InternalError, "missing source device"),
        (
            PoolSource(
                hosts=(SAN,), devices=(DISKS,), auth=Auth("ceph", "u", SecretRef(usage="x"))
            ),
            XMLError,
            "iscsi pool only supports 'chap' auth type",
        ),
        (
            PoolSource(hosts=(SAN,), devices=(SourceDevice("../../etc"),)),
            InvalidArgument,
            "no name of an iSCSI target",
        ),
        (
            PoolSource(hosts=(SourceHost("a/b"),), devices=(DISKS,)),
            InvalidArgument,
            "no name of an iSCSI host",
        ),
        (
            PoolSource(hosts=(SAN,), devices=(DISKS,), initiator="-x"),
            InvalidArgument,
            "no name of an iSCSI initiator",
        ),
    ],
)
def test_a_definition_that_asks_for_no_one_target_is_refused(
    source: PoolSource, kind: type[StorageError], text: str
) -> None:
    pool = backend(source)
    for call in (pool.check, pool.watch, lambda: pool.start(job())):
        with pytest.raises(kind, match=text):
            call()
    pool.stop(job())


def test_a_pool_without_a_session_says_so() -> None:
    pool = backend(PoolSource(hosts=(SAN,), devices=(DISKS,)))
    assert not pool.check()
    with pytest.raises(InternalError, match="cannot find iscsiadm session") as caught:
        pool.refresh({}, job())
    assert "storagectl pool start san" in (caught.value.advice or "")
    assert pool.units() == ()
    assert pool.anchor() == {"session": -1, "ours": 0}
    pool.stop(job())
    pool.stop_by_force(job())


def test_only_events_of_its_session_concern_it() -> None:
    pool = backend(PoolSource(hosts=(SAN,), devices=(DISKS,)))
    path = "/sys/devices/platform/host2/session{}/target2:0:0/2:0:0:1/block/sdb"
    assert not pool.concerns(DeviceEvent("add", "/dev/sdb", path.format(1)))
    pool.hold({"session": 1, "ours": 1})
    assert pool.concerns(DeviceEvent("remove", "/dev/sdb", path.format(1)))
    assert not pool.concerns(DeviceEvent("add", "/dev/sdb", path.format(12)))
    pool.hold({"session": "rubbish"})
    assert not pool.concerns(DeviceEvent("add", "/dev/sdb", path.format(1)))


def test_engines_know_where_its_notes_are() -> None:
    assert NOTES["iscsi"] == tuple(f"{root}/{PLACE}" for root in ROOTS)
    assert NOTES.keys() <= BUILTIN.keys()


def test_a_search_needs_one_host() -> None:
    host = Host(id="test")
    with pytest.raises(InvalidArgument, match="hostname must be specified for iscsi sources"):
        Iscsi.find_sources(None, host, Job("find-sources"))
    for hosts in ((), (SAN, SAN)):
        with pytest.raises(ConfigUnsupported, match="Expected exactly 1 host for the storage pool"):
            Iscsi.find_sources(PoolSource(hosts=hosts), host, Job("find-sources"))
    with pytest.raises(OperationFailed, match="Connection refused"):
        Iscsi.find_sources(
            PoolSource(hosts=(SourceHost("127.0.0.1", 1),)), host, Job("find-sources")
        )


def test_credentials_do_not_tell_their_secret() -> None:
    assert "hush" not in repr(Credentials("bob", b"hush"))


@pytest.fixture
def without_kernel() -> None:
    programs = [shutil.which(name, path="/usr/sbin:/sbin") for name in ("iscsiadm", "tgtd")]
    if os.geteuid() != 0 or not all(programs):
        pytest.skip("needs root, open-iscsi and tgt")
    if Path("/sys/class/iscsi_transport").exists():
        pytest.skip("the kernel has its part of iSCSI")


@pytest.mark.slow
@pytest.mark.usefixtures("without_kernel")
def test_a_kernel_without_iscsi_is_named_and_nothing_is_left(tgtd: Tgtd) -> None:
    tgtd.add(IQN, [])
    login = Login(IQN, Portal("127.0.0.1", tgtd.port))
    with pytest.raises(InternalError) as caught:
        login.log_in(Credentials("bob", b"hush-hush-hush"), job())
    assert "modprobe iscsi_tcp" in (caught.value.advice or "") or "iscsid" in (
        caught.value.advice or ""
    )
    assert "hush" not in repr(caught.value)
    assert not Path("/etc/iscsi/nodes", IQN).exists()
