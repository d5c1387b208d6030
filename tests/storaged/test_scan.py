"""Scans: one at a time, joined while they wait, merged with what changed meanwhile."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from storaged.errors import SystemFailure
from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from tests.doubles import Control, Shelf, eventually, promptly, refused
from tests.storaged.conftest import Engine


def directory(engine: Engine) -> Path:
    return engine.directory / "p"


def test_a_request_joins_the_scan_that_waits_and_never_the_one_that_runs(
    pool: Pool, control: Control, engine: Engine, events: list[str]
) -> None:
    before = control.calls["refresh"]
    control.hold("refreshed")
    running = pool.refresh(wait=False)
    control.wait_for("refreshed", before + 1)
    (directory(engine) / "late").touch()
    waiting = [pool.refresh(wait=False) for _ in range(20)]
    assert len({job.id for job in waiting}) == 1
    assert waiting[0] is not running
    control.release("refreshed")
    running.result()
    waiting[0].result()
    assert control.calls["refresh"] == before + 2
    assert "late" in pool.names()
    assert events == ["REFRESH", "REFRESH"]


def test_what_was_made_and_deleted_during_a_scan_is_not_undone_by_it(
    pool: Pool, control: Control
) -> None:
    doomed = pool.create("doomed", 4096)
    grown = pool.create("grown", 4096)
    before = control.calls["refreshed"]
    control.hold("refreshed")
    job = pool.refresh(wait=False)
    control.wait_for("refreshed", before + 1)  # it has seen all and says nothing yet
    pool.create("made", 4096)
    doomed.delete()
    grown.resize(8192)
    control.release("refreshed")
    job.result()
    assert {info.ref.name: info.capacity for info in pool.infos()} == {"made": 4096, "grown": 8192}


def test_a_volume_under_work_is_not_undone_by_a_scan_that_began_meanwhile(
    pool: Pool, control: Control
) -> None:
    doomed = pool.create("doomed", 4096)
    control.hold("create", lively=True)
    control.hold("deleted")
    making = pool.create("made", 4096, wait=False)
    deleting = doomed.delete(wait=False)
    control.wait_for("create", 2)
    control.wait_for("deleted")
    pool.refresh()
    assert pool.names() == ["doomed", "made"]
    control.release_all()
    making.result()
    deleting.result()
    assert pool.names() == ["made"]


def test_what_others_did_is_seen(pool: Pool, engine: Engine) -> None:
    pool.create("mine", 4096).info()
    (directory(engine) / "theirs").write_bytes(b"x" * 512)
    os.truncate(directory(engine) / "mine", 1 << 20)
    assert pool.names() == ["mine"]
    pool.refresh()
    sizes = {info.ref.name: info.capacity for info in pool.infos()}
    assert sizes == {"mine": 1 << 20, "theirs": 512}
    (directory(engine) / "mine").unlink()
    pool.refresh()
    assert pool.names() == ["theirs"]


def test_a_stop_during_a_scan_ends_the_scan_without_an_effect(
    pool: Pool, control: Control, events: list[str]
) -> None:
    control.hold("refreshed")
    running, waiting = (pool.refresh(wait=False) for _ in range(2))
    control.wait_for("refreshed", 2)
    pool.stop()
    control.release("refreshed")
    for job in (running, waiting):
        with refused(55, "Requested operation is not valid: storage pool 'p' is not active"):
            job.result()
    assert not pool.active
    assert events == ["STOPPED"]


def test_a_scan_that_hangs_for_ever_is_not_in_the_way_after_a_restart(
    pool: Pool, control: Control, engine: Engine
) -> None:
    before = control.calls["refresh"]
    control.hold("refreshed")
    hanging = pool.refresh(wait=False)
    control.wait_for("refreshed", before + 1)
    gate = control._gates.pop("refreshed")  # those that are in it stay in it
    pool.stop()
    pool.start()
    (directory(engine) / "new").touch()
    pool.refresh()
    assert pool.names() == ["new"]
    (directory(engine) / "newer").touch()
    control.hold("refreshed")
    job = pool.refresh(wait=False)
    control.wait_for("refreshed", before + 4)
    pool.create("made", 4096)
    gate.opened.set()
    with refused(55):
        hanging.result()
    control.release("refreshed")
    job.result()
    assert pool.names() == ["made", "new", "newer"]


def test_a_failing_refresh_during_a_start_by_somebody_else(pool: Pool, control: Control) -> None:
    """The pool is taken down by one thread alone, and can be started at once afterwards."""
    control.fail("refresh", SystemFailure("gone", 5))
    control.hold("stop")
    job = pool.refresh(wait=False)
    control.wait_for("stop")
    with refused(55):
        pool.start()
    control.mend("refresh")
    control.release("stop")
    with refused(38):
        job.result()
    pool.start()
    assert pool.active


def test_the_first_list_after_an_opening_scans_once_for_all_who_ask(
    pool: Pool, control: Control, engine: Engine, storage: Storage
) -> None:
    pool.create("v", 4096)
    storage.close()
    again = engine.open().pool("p")
    before = control.calls["refresh"]
    control.hold("refresh", lively=True)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(again.names())) for _ in range(6)]
    for thread in threads:
        thread.start()
    control.wait_for("refresh", before + 1)
    control.release("refresh")
    for thread in threads:
        thread.join()
    assert found == [["v"]] * 6
    assert control.calls["refresh"] == before + 1


def test_the_first_list_of_dead_storage_gives_up(
    pool: Pool, control: Control, engine: Engine, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.scan.PATIENCE", 0.3)
    storage.close()
    again = engine.open().pool("p")
    control.hold("refresh")
    for _ in range(2):
        with promptly(5), refused(68) as caught:
            again.names()
    assert "pool 'p' has not been read yet" in str(caught.value)
    assert again.active
    control.release("refresh")
    eventually(lambda: again.names() == [])


def test_a_refresh_can_be_cancelled(pool: Pool, control: Control) -> None:
    control.hold("refresh", lively=True)
    job = pool.refresh(wait=False)
    control.wait_for("refresh", 2)
    job.cancel()
    with refused(78):
        job.result()
    control.release("refresh")
    assert pool.active
    pool.refresh()


def test_volumes_with_keys_of_their_own(engine: Engine) -> None:
    storage = engine.open(backends={"shelf": Shelf})
    pool = storage.define_pool("<pool type='shelf'><name>s</name></pool>")
    pool.start()
    storage.close()
    storage = engine.open(backends={"shelf": Shelf})
    assert storage.volume_by_key("key-of-two").name == "two"  # it takes the first scan to know
    assert storage.volume_by_path("shelf://one").name == "one"
    pool = storage.pool("s")
    assert [volume.path for volume in pool.volumes()] == ["shelf://one", "shelf://two"]
    assert pool.volume("one").info().capacity == 100
    assert "<key>key-of-one</key>" in pool.volume("one").xml()
    with refused(3):
        pool.create("three", 1)
    with refused(50):
        pool.volume("three")
    with refused(50, "Storage volume not found: no storage vol with matching key nothing"):
        storage.volume_by_key("nothing")


def make_bad_files(where: Path) -> None:
    os.mkfifo(where / "fifo")
    (where / "dangling").symlink_to("nowhere")
    (where / "loop").symlink_to("loop")
    (where / "directory").mkdir()
    (where / "truncated.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    (where / "hostile.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 4096)
    (where / "hostile.vmdk").write_bytes(b"KDMV" + b"\xff" * 4096)
    (where / "backed.qcow2").write_bytes(b"QFI\xfb\0\0\0\2" + (1 << 60).to_bytes(8, "big") * 12)
    (where / "control\x01name").touch()
    (where / os.fsdecode(b"not-utf8-\xff")).touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(where / "socket"))
    if os.geteuid() == 0:
        os.mknod(where / "null", 0o666 | 0o020000, os.makedev(1, 3))


def test_a_bad_file_never_takes_a_pool_down(engine: Engine, storage: Storage) -> None:
    pool = engine.pool(kind="dir")
    make_bad_files(directory(engine))
    good = pool.create("good", 4096)
    pool.refresh()
    assert pool.active
    names = pool.names()
    assert good.name in names
    assert not {"fifo", "socket", "dangling", "loop", "null", "control\x01name"} & set(names)
    assert {"directory", "truncated.qcow2", "hostile.qcow2", "hostile.vmdk"} <= set(names)
    problems = {info.ref.name: info.problem for info in pool.infos()}
    assert problems["good"] is None
    assert problems["truncated.qcow2"]
    for volume in pool.volumes():
        volume.info()
        assert volume.xml()


def test_a_file_that_nobody_may_read_is_listed(ordinary_directory: Path) -> None:
    with open_storage(ordinary_directory / "root", session=True, durability="none") as storage:
        pool = storage.ensure_dir_pool("p", ordinary_directory / "p")
        secret = ordinary_directory / "p/secret"
        secret.write_bytes(b"x" * 1024)
        secret.chmod(0)
        pool.refresh()
        (info,) = pool.infos()
        assert pool.active
        assert info.capacity == 1024
        assert info.problem is not None
        assert info.problem.startswith("unreadable: owner ")
