"""Opening: cheap, decided by the state files, and not stopped by what is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Host
from storaged.errors import ResourceBusy, StorageError
from storaged.job import Job
from storaged.model import PoolDef
from storaged.storage import Storage
from tests.conftest import LoopMount
from tests.doubles import Control, eventually, promptly, refused
from tests.storaged.conftest import Engine


def tree(*tops: Path) -> dict[str, tuple[object, ...]]:
    """Return all that can be seen of the files below *tops*."""
    found: dict[str, tuple[object, ...]] = {}
    for top in tops:
        for path in sorted(top.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, content)
    return found


def new_boot(engine: Engine) -> None:
    """Leave the root as a boot does."""
    (engine.root / "run/storaged/boot").write_text("another boot\n")


AUDITED = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import storaged
with storaged.open(root=sys.argv[1]) as storage:
    assert [pool.active for pool in storage.pools()] == [True] * 3
    storage.pool("p1").info()
    print([path for path in opened if path.startswith(sys.argv[2]) and path != sys.argv[2] + "/p1"])
    assert len(storage.pool("p1").names()) == 20
    assert any("v7" in path for path in opened), "the hook is blind"
"""


def test_opening_opens_no_volume(engine: Engine, storage: Storage) -> None:
    for number in range(3):
        pool = engine.pool(f"p{number}", "dir")
        for volume in range(20):
            pool.create(f"v{volume}", 4096)
    storage.close()
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, engine.root, engine.directory],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_what_was_stopped_stays_stopped(engine: Engine, storage: Storage, control: Control) -> None:
    engine.pool("on")
    engine.pool("off").stop()
    storage.close()
    again = engine.open()
    assert [(pool.name, pool.active) for pool in again.pools()] == [("off", False), ("on", True)]
    assert control.calls["check"] == 0


def test_the_first_opening_of_a_boot_looks_at_the_directories(
    engine: Engine, storage: Storage, control: Control
) -> None:
    storage.define_pool(engine.definition("there"))
    storage.define_pool(engine.definition("gone"))
    storage.create_pool(engine.definition("transient"))
    storage.close()
    (engine.directory / "gone").rmdir()
    new_boot(engine)
    again = engine.open()
    assert [(pool.name, pool.active) for pool in again.pools()] == [
        ("gone", False),
        ("there", True),
    ]
    assert (engine.root / "run/libvirt/storage/there.xml").exists()
    again.pool("there").stop()
    again.close()
    calls = control.calls["check"]
    assert [pool.active for pool in engine.open().pools()] == [False, False]
    assert control.calls["check"] == calls


def test_dead_storage_does_not_hold_up_an_opening(
    engine: Engine, storage: Storage, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.driver.OPEN_PATIENCE", 0.2)
    for name in ("dead", "alive"):
        kind = "double" if name == "dead" else "dir"
        storage.define_pool(engine.definition(name, kind)).set_autostart(True)
    storage.close()
    control.hold("check")
    control.hold("start")
    new_boot(engine)
    with promptly(5):
        again = engine.open(autostart=True)
    assert [(pool.name, pool.active) for pool in again.pools()] == [
        ("alive", True),
        ("dead", False),
    ]
    control.release_all()
    eventually(lambda: again.pool("dead").active)


def test_a_missing_plug_in(engine: Engine, storage: Storage) -> None:
    for name in ("kept", "running"):
        pool = engine.pool(name)
        pool.set_autostart(True)
    storage.pool("kept").stop()
    storage.close()
    before = tree(engine.root / "etc", engine.root / "run/libvirt/storage")
    again = engine.open(backends=None, autostart=True)
    for pool in again.pools():
        assert not pool.active
        assert pool.info().problems[0].startswith("missing backend for pool type ")
        for work in (pool.start, pool.names):
            with pytest.raises(StorageError):
                work()
        assert "type='double'" in pool.xml()
    with refused(1):
        again.define_pool(engine.definition("new"))
    again.close()
    after = tree(engine.root / "etc", engine.root / "run/libvirt/storage")
    changed = {Path(path).name for path in before.keys() ^ after.keys()}
    changed |= {
        Path(path).name for path in before.keys() & after.keys() if before[path] != after[path]
    }
    assert changed <= {"driver.pid", "autostarted"}
    assert engine.open().pool("running").active


def test_the_interpreter_for_ceph(engine: Engine, tmp_path: Path) -> None:
    with refused(8) as caught:
        engine.open(rbd_python=tmp_path)
    assert f"absolute path of a program, which '{tmp_path}' is not" in str(caught.value)
    assert not engine.root.exists()
    hosts = []

    class Asking(engine.backend):  # type: ignore[misc, name-defined]
        def __init__(self, definition: PoolDef, host: Host) -> None:
            super().__init__(definition, host)
            hosts.append(host.rbd_python)

    with engine.open(backends={"double": Asking}) as storage:
        engine.pool(storage=storage)
    engine.open(backends={"double": Asking}, rbd_python=Path(sys.executable))
    assert hosts[0] is None
    assert hosts[-1] == sys.executable


def test_corrupt_files_are_reported_and_left(engine: Engine, storage: Storage) -> None:
    good, anchored = engine.pool("good"), engine.pool("anchored")
    anchored.create("v", 4096)
    storage.close()
    config = engine.root / "etc/libvirt/storage"
    (config / "broken.xml").write_text("<pool type='dir'><name>broken")
    (config / "wrong-name.xml").write_text((config / "good.xml").read_text())
    (engine.root / "run/libvirt/storage/rubbish.xml").write_bytes(b"\xff\0")
    anchors = engine.root / "run/storaged/anchors"
    for content in ("not JSON", '{"strange": 1}', "[]"):
        (anchors / f"{anchored.uuid}.json").write_text(content)
        again = engine.open()
        problems = "\n".join(again.problems())
        assert all(name in problems for name in ("broken.xml", "wrong-name.xml", "rubbish.xml"))
        assert [pool.name for pool in again.pools(active=True)] == ["anchored", "good"]
        assert again.pool("anchored").info().problems[0].startswith("taken as it is now, because")
        assert again.pool("anchored").names() == ["v"]
        assert again.pool(good.name).create("w", 4096).delete() is None
        again.close()
    assert (config / "broken.xml").read_text() == "<pool type='dir'><name>broken"


def test_two_engines_exclude_each_other(engine: Engine, storage: Storage) -> None:
    with pytest.raises(ResourceBusy) as caught:
        engine.open(lock_timeout=0.05)
    assert caught.value.code == 87
    assert caught.value.pid == os.getpid()
    storage.close()
    engine.open().close()


def test_a_reader_works_beside_a_writer_and_changes_nothing(
    engine: Engine, storage: Storage
) -> None:
    pool = engine.pool()
    pool.create("v", 4096)
    storage.define_pool(engine.definition("off"))
    (engine.directory / "p/theirs").touch()
    before = tree(engine.root, engine.directory)
    reader = engine.open(readonly=True)
    assert reader.readonly
    assert [found.active for found in reader.pools()] == [False, True]
    seen = reader.pool("p")
    assert seen.names() == ["theirs", "v"]
    seen.refresh()
    assert seen.volume("v").info().capacity == 4096
    assert seen.info().space.capacity > 0
    assert seen.volume("v").open_download().read(10) == bytes(10)
    volume = seen.volume("v")
    refusals = (
        lambda: seen.create("w", 1), seen.stop, seen.undefine, volume.delete, volume.wipe,
        lambda: volume.resize(1 << 20), volume.open_upload,
        lambda: volume.clone_to("c"), lambda: seen.set_autostart(True),
        lambda: reader.define_pool(engine.definition("x")), reader.pool("off").start,
        lambda: reader.create_pool(engine.definition("y")), reader.pool("off").build,
        reader.pool("off").delete, lambda: seen.set_policy(seen.policy()),
        lambda: volume.upload("/dev/null"),
    )  # fmt: skip
    for change in refusals:
        with refused(8, "invalid argument: this engine was opened read-only"):
            change()
    reader.close()
    (engine.directory / "x").rmdir()
    (engine.directory / "y").rmdir()
    assert tree(engine.root, engine.directory) == before
    new_boot(engine)
    before = tree(engine.root)
    late = engine.open(readonly=True)
    assert [found.active for found in late.pools()] == [True, True]
    late.close()
    assert tree(engine.root) == before


def test_a_closed_engine_changes_nothing_more(engine: Engine, storage: Storage) -> None:
    pool = engine.pool()
    storage.close()
    storage.close()
    for change in (lambda: pool.create("v", 1), pool.stop, lambda: pool.set_autostart(True)):
        with refused(55, "Requested operation is not valid: the engine was closed"):
            change()
    assert engine.open().pool("p").active


def test_close_cancels_and_is_bounded(
    engine: Engine, storage: Storage, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = engine.pool()
    control.hold("create", lively=True)
    control.hold("refresh", lively=True)
    jobs: tuple[Job[Any], ...] = (pool.create("v", 4096, wait=False), pool.refresh(wait=False))
    control.wait_for("create")
    with promptly():
        storage.close()
    for job in jobs:
        with refused(78):
            job.result(0)
    assert list((engine.directory / "p").iterdir()) == []
    control.release_all()
    monkeypatch.setattr("storaged.driver.CLOSE_PATIENCE", 0.3)
    again = engine.open()
    control.hold("create")
    late = again.pool("p").create("w", 4096, wait=False)
    control.wait_for("create", 2)
    with promptly():
        again.close()
    assert not late.ended
    engine.open().close()
    control.release_all()


def test_a_start_that_outlives_its_engine_does_not_write(
    engine: Engine, storage: Storage, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.driver.CLOSE_PATIENCE", 0.1)
    pool = storage.define_pool(engine.definition())
    control.hold("start")
    job = pool.start(wait=False)
    control.wait_for("start")
    storage.close()
    again = engine.open()
    before = tree(engine.root)
    control.release("start")
    with pytest.raises(StorageError):
        job.result()
    assert tree(engine.root) == before
    assert not again.pool("p").active


HANGS = """
import sys, threading, storaged
from storaged.backends.dir import Dir
from storaged.backend import Descriptor
class Dead(Dir):
    descriptor = Descriptor("dead", volume_formats=("raw",))
    def create(self, *args, **more):
        began.set()
        threading.Event().wait()
began = threading.Event()
import storaged.driver
storaged.driver.CLOSE_PATIENCE = 0.2
with storaged.open(root=sys.argv[1], backends={"dead": Dead}) as storage:
    pool = storage.create_pool(storaged.PoolDef("dead", "d", target=sys.argv[2]))
    pool.create("v", 1, wait=False)
    began.wait()
print("closed")
"""


def test_a_process_with_a_stuck_worker_ends(engine: Engine) -> None:
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS, engine.root, engine.directory],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
    assert time.monotonic() - before < 10


# The target must stay what it was when the pool was started


@pytest.fixture
def mounted(engine: Engine, loop_mount: LoopMount) -> Iterator[tuple[Path, Path]]:
    """A mounted file system and its image; mounted again at the end."""
    target = loop_mount("ext4", mebibytes=32)
    yield target, target.with_suffix(".img")
    if not target.is_mount():
        mount(target.with_suffix(".img"), target)


def mount(image: Path, target: Path) -> None:
    subprocess.run(["mount", "-o", "loop", image, target], check=True)


def umount(target: Path) -> None:
    subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("reopened", [False, True])
def test_an_unmounted_target_is_not_written_into(
    engine: Engine, storage: Storage, mounted: tuple[Path, Path], reopened: bool
) -> None:
    target, image = mounted
    pool = storage.define_pool(PoolDef("dir", "m", target=str(target)))
    pool.start()
    volume = pool.create("v", 4096)
    umount(target)  # an idle pool does not keep anybody from it
    if reopened:
        storage.close()
        storage = engine.open()
        pool = storage.pool("m")
        (problem,) = pool.info().problems  # nothing had to be tried first
        assert "has changed" in problem
        assert pool.info().space.capacity == 0  # not that of the file system below
    with refused(9):
        storage.ensure_dir_pool("m", target)
    with refused(50):
        pool.volume("w")
    with refused(9) as caught:
        pool.create("w", 4096)
    assert f"target '{target}' of pool 'm' has changed" in str(caught.value)
    assert "Mount it again: mount /dev/loop" in str(caught.value.advice)
    assert list(target.iterdir()) == []
    assert any("has changed" in problem for problem in pool.problems)
    pool.refresh()
    assert any("has changed" in problem for problem in pool.problems)
    mount(image, target)
    assert pool.create("w", 4096).info().capacity == 4096
    pool.refresh()
    assert (pool.names(), pool.info().problems) == (["lost+found", "v", "w"], ())
    assert pool.volume(volume.name).info().capacity == 4096


def test_another_file_system_in_its_place_is_not_written_into(
    storage: Storage, mounted: tuple[Path, Path]
) -> None:
    target, image = mounted
    pool = storage.define_pool(PoolDef("dir", "m", target=str(target)))
    pool.start()
    umount(target)
    other = image.with_name("other")
    other.write_bytes(bytes(image.stat().st_size))
    subprocess.run(["mkfs.ext4", "-q", other], check=True)
    mount(other, target)
    with refused(9):
        pool.create("w", 4096)
    assert [path.name for path in target.iterdir()] == ["lost+found"]
