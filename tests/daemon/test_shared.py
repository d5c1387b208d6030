"""Two daemons over one storage that tells of changes, and whose volumes have snapshots."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import storaged
from storaged import libvirt
from tests.daemon.running import PROJECT, Daemon, environment, storaged_daemon
from tests.doubles import eventually

#: each test starts two daemons
pytestmark = pytest.mark.slow

#: A directory that everybody may change; the snapshots of volumes lie in another one beside it.
_BACKEND = """
import threading, time
from pathlib import Path
from storaged.backend import Descriptor, HasSnapshots, Shared
from storaged.backends.dir import Dir
from storaged.errors import OperationInvalid

class Common(Dir, Shared, HasSnapshots):
    descriptor = Descriptor(type="common", volume_formats=("raw",))

    def watch(self):
        pass

    def listen(self, changed):
        threading.Thread(target=self.poll, args=(changed,), daemon=True).start()

    def poll(self, changed):
        target = Path(self.definition.target)
        known = None
        while True:
            seen = target.stat().st_mtime_ns
            if seen != known:
                changed()
            known = seen
            time.sleep(0.02)

    def delete(self, volume, job, *, force=False, snapshots=False):
        kept = sorted(Path(self.definition.target + ".snapshots").glob(f"{volume.name}@*"))
        if kept and not snapshots:
            raise OperationInvalid(f"volume '{volume.name}' has snapshots")
        for snapshot in kept:
            snapshot.unlink()
        super().delete(volume, job, force=force)
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """The environment in which the pool type is known."""
    info = tmp_path / "site" / "common-1.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site/commonbackend.py").write_text(_BACKEND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: common\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[storaged.backends]\ncommon = commonbackend:Common\n")
    return {"PYTHONPATH": f"{PROJECT}:{tmp_path / 'site'}"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    made.mkdir()
    return made


@pytest.fixture
def daemons(tmp_path: Path, site: dict[str, str], target: Path) -> Iterator[list[Daemon]]:
    """Two hosts, as it were, each with a pool p over the same storage."""
    with ExitStack() as stack:
        found = []
        for name in ("one", "two"):
            daemon = stack.enter_context(storaged_daemon(tmp_path / name, environ=site))
            with storaged.connect(daemon.uri()) as there:
                there.define_pool(storaged.PoolDef("common", "p", target=str(target))).start()
            found.append(daemon)
        yield found


def test_what_one_makes_the_other_tells(daemons: list[Daemon]) -> None:
    here, there = (storaged.connect(daemon.uri()) for daemon in daemons)
    heard = threading.Event()
    with here, there:
        assert there.pool("p").names() == []
        time.sleep(0.5)  # what the starts told
        there.subscribe(lambda _event: heard.set())
        for change in (
            lambda: here.pool("p").create("v", 4096),
            lambda: here.pool("p").volume("v").clone_to("w"),
            lambda: here.pool("p").volume("v").delete(),
        ):
            heard.clear()
            change()
            assert heard.wait(1)
            eventually(lambda: set(there.pool("p").names()) == set(here.pool("p").names()), 1)


def snapshots(target: Path) -> Path:
    made = target.with_name("target.snapshots")
    made.mkdir(exist_ok=True)
    return made


def test_deleting_with_snapshots_through_every_face(
    daemons: list[Daemon], target: Path, site: dict[str, str]
) -> None:
    uri = daemons[0].uri()
    with storaged.connect(uri) as storage:
        pool = storage.pool("p")
        names = ["library", "names", "storagectl"] + ["virsh"] * bool(shutil.which("virsh"))
        for name in names:
            pool.create(name, 4096)
            for number in ("one", "two"):
                (snapshots(target) / f"{name}@{number}").touch()
            with pytest.raises(storaged.OperationInvalid, match="has snapshots"):
                pool.volume(name).delete()
        pool.volume("library").delete(snapshots=True)
        with libvirt.open(uri) as connection:
            volume = connection.storagePoolLookupByName("p").storageVolLookupByName("names")
            volume.delete(libvirt.VIR_STORAGE_VOL_DELETE_WITH_SNAPSHOTS)
            del volume  # it keeps the connection open
        ours = [sys.executable, "-m", "storaged.cli", "--connect", uri]
        run(*ours, "vol", "delete", "p/storagectl", "--snapshots", environ=site)
        if "virsh" in names:
            virsh = ["virsh", "-q", "-c", uri, "vol-delete", "virsh", "p"]
            run(*virsh, "--delete-snapshots", environ=site)
        assert pool.names() == []
    assert list(target.iterdir()) == list(snapshots(target).iterdir()) == []


def run(*argv: str, environ: dict[str, str]) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env=environment(environ), check=False
    )
    assert done.returncode == 0, done.stderr
