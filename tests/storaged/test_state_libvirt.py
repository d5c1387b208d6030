"""Our files and libvirt's are each other's: tried with its own daemon."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from storaged import poolxml
from storaged.driverlock import DriverLock, EngineKind, Owner
from storaged.errors import ResourceBusy
from storaged.model import Permissions, PoolDef, PoolSource, PoolType, SourceDevice, SourceHost
from storaged.paths import Paths
from storaged.state import StateStore
from tests.storaged.libvirtd import launch, libvirtd

UUIDS = [UUID(int=number) for number in range(1, 10)]


def definitions(directory: Path) -> list[PoolDef]:
    (directory / "d").mkdir()
    odd = "o<d&d '\"ü -- name"
    return [
        PoolDef(PoolType.DIR, "d", UUIDS[0], target=f"{directory}/d"),
        PoolDef(
            PoolType.DIR,
            odd,
            UUIDS[1],
            target=f"{directory}/{odd}",
            permissions=Permissions(mode=0o750, owner=3, group=4, label="a_label"),
        ),
        PoolDef(
            PoolType.NETFS,
            "n.f-s",
            UUIDS[2],
            source=PoolSource(hosts=(SourceHost("server"),), dir="/exported", format="nfs"),
            target="/mnt/n",
        ),
        PoolDef(
            PoolType.LOGICAL,
            "vg",
            UUIDS[3],
            source=PoolSource(devices=(SourceDevice("/dev/sdy"),), name="vg", format="lvm2"),
            target="/dev/vg",
        ),
    ]


def body(path: Path) -> str:
    """Return a file without the comment at its head, which each program words for itself."""
    head, end, rest = path.read_text().partition("-->\n\n")
    assert head.startswith("<!--\n")
    assert end
    return rest


def test_what_libvirt_wrote(tmp_path: Path) -> None:
    theirs, ours = Paths.below(tmp_path / "theirs"), Paths.below(tmp_path / "ours")
    wanted = definitions(tmp_path)
    with libvirtd(tmp_path / "theirs") as daemon:
        for number, definition in enumerate(wanted):
            document = tmp_path / f"{number}.xml"
            document.write_text(poolxml.format_pool(definition))
            daemon.virsh("pool-define", str(document))
        daemon.virsh("pool-start", "d")
        daemon.virsh("pool-autostart", "d")
        seen = daemon.python(
            "from storaged.paths import Paths; from storaged.state import StateStore\n"
            "loaded = StateStore(Paths.system(), readonly=True).load()\n"
            "print(*loaded.problems, *(p.name for p in loaded.pools if p.autostart), sep='\\n')"
        )
        assert seen.split() == ["d"]
    loaded = StateStore(theirs).load()
    assert [found.name for found in loaded.pools] == sorted(pool.name for pool in wanted)
    assert [found.name for found in loaded.pools if found.live] == ["d"]
    store = StateStore(ours)
    for found in loaded.pools:
        assert found.config in wanted
        assert found.live in (None, found.config)
        store.write_config(found.config)
        name = found.name
        assert body(ours.config_file(name)) == body(theirs.config_file(name))
        if found.live:
            store.write_live(found.live)
            assert body(ours.live_file(name)) == body(theirs.live_file(name))


def test_libvirt_counts_as_the_first_look(tmp_path: Path) -> None:
    with libvirtd(tmp_path):
        pass
    store = StateStore(Paths.below(tmp_path))
    assert not store.first_since_boot()
    assert not store.needs_autostart()


def test_what_we_wrote(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = StateStore(Paths.below(root))
    wanted = definitions(tmp_path)
    for definition in wanted:
        store.write_config(definition)
    store.set_autostart("d", True)
    store.set_autostart("vg", True)
    store.mark_autostarted()
    (tmp_path / "t").mkdir()
    transient = PoolDef(PoolType.DIR, "t", UUIDS[5], target=f"{tmp_path}/t")
    store.write_live(transient)
    with libvirtd(root) as daemon:
        listed = [line.split() for line in daemon.virsh("pool-list", "--all").splitlines()]
        assert {line[0]: line[-1] for line in listed} == {
            "d": "yes", "o<d&d": "no", "n.f-s": "no", "vg": "yes", "t": "no"
        }  # fmt: skip
        for definition in wanted:
            if definition.name != "d":  # it runs, as its directory is there: with real figures
                dumped = daemon.virsh("pool-dumpxml", str(definition.uuid))
                assert poolxml.parse_pool(dumped) == definition
        assert "<name>t</name>" in daemon.virsh("pool-dumpxml", "t")
        daemon.virsh("pool-destroy", "t")
        daemon.virsh("pool-autostart", "--disable", "d")
        daemon.virsh("pool-undefine", "vg")
    assert "error" not in (root / "libvirtd.log").read_text()
    left = {found.name: found for found in store.load().pools}
    assert left.keys() == {pool.name for pool in wanted} - {"vg"}
    assert not left["d"].autostart


def test_libvirt_keeps_us_out(tmp_path: Path) -> None:
    lock = DriverLock(Paths.below(tmp_path))
    with libvirtd(tmp_path) as daemon:
        began = time.monotonic()
        with pytest.raises(ResourceBusy) as caught:
            lock.acquire(timeout=30, kind=EngineKind.EMBEDDED)
        assert time.monotonic() - began < 5
        assert caught.value.pid == daemon.pid
        assert f"process {daemon.pid} (libvirtd)" in str(caught.value)
        assert "systemctl stop libvirtd.service" in (caught.value.advice or "")
        assert lock.owner() == Owner(daemon.pid, EngineKind.DAEMON)
        daemon.stop()
        lock.acquire(timeout=0, kind=EngineKind.EMBEDDED).release()


def test_we_keep_libvirt_out(tmp_path: Path) -> None:
    with DriverLock(Paths.below(tmp_path)).acquire(timeout=0, kind=EngineKind.EMBEDDED):
        process = launch(tmp_path)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert "Failed to acquire pid file" in (tmp_path / "libvirtd.log").read_text()
