"""Ensure: done once, told the second time, never formatting, never shrinking."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from storaged.ensure import Difference
from storaged.model import Permissions, PoolDef, PoolSource
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import PATIENCE, Control, refused
from tests.storaged.conftest import Engine


def test_a_pool_from_nothing_and_again(engine: Engine, storage: Storage) -> None:
    target = engine.directory / "new/deep"
    wanted = PoolDef("dir", "p", target=str(target))
    done = storage.ensure_pool(wanted)
    assert done.changed
    assert done.actions == ("defined", "started", "autostart on")
    assert done.differences == ()
    assert (done.object.active, done.object.autostart, target.is_dir()) == (True, True, True)
    again = storage.ensure_pool(replace(wanted, uuid=uuid4()))
    assert (again.changed, again.actions, again.differences) == (False, (), ())
    assert again.object == done.object


def test_only_what_is_missing_is_done(engine: Engine, storage: Storage) -> None:
    wanted = engine.definition(kind="dir")
    pool = storage.define_pool(wanted)
    assert storage.ensure_pool(wanted, autostart=False).actions == ("started",)
    assert storage.ensure_pool(wanted, autostart=True).actions == ("autostart on",)
    pool.stop()
    assert storage.ensure_pool(wanted).actions == ("started",)


def test_a_transient_pool_is_kept_from_now_on(engine: Engine, storage: Storage) -> None:
    wanted = engine.definition()
    storage.create_pool(wanted)
    done = storage.ensure_pool(wanted)
    assert done.actions == ("defined", "autostart on")
    assert done.object.persistent


def test_differences_are_told_and_left(engine: Engine, storage: Storage, control: Control) -> None:
    there = engine.definition()
    storage.create_pool(there)
    wanted = replace(
        there, uuid=uuid4(), source=PoolSource(name="other"), permissions=Permissions(0o700)
    )
    done = storage.ensure_pool(wanted)
    assert [found.field for found in done.differences] == ["source", "mode"]
    assert done.object.definition() == there
    assert done.object.persistent
    assert control.calls["build"] == 0


def test_ensuring_never_formats(engine: Engine, storage: Storage, control: Control) -> None:
    keep = engine.directory / "p/data"
    wanted = engine.definition()
    keep.write_bytes(b"precious")
    storage.ensure_pool(wanted)
    assert keep.read_bytes() == b"precious"
    assert storage.pool("p").names() == ["data"]


def test_a_directory(engine: Engine, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.directory)
    pool = storage.ensure_dir_pool("images", "images")
    assert pool.definition().target == str(engine.directory / "images")
    assert storage.ensure_dir_pool("images", engine.directory / "images") == pool
    with refused(9) as caught:
        storage.ensure_dir_pool("images", engine.directory / "elsewhere")
    assert f"It is of type 'dir' on '{engine.directory}/images'" in str(caught.value.advice)
    with refused(9):
        storage.ensure_dir_pool("other", engine.directory / "images")
    assert not (engine.directory / "elsewhere").exists()


def test_many_ensure_one_pool_at_once(engine: Engine, storage: Storage, control: Control) -> None:
    wanted = PoolDef("double", "p", target=str(engine.directory / "together"))
    control.hold("start", lively=True)
    done: list[tuple[str, ...]] = []
    threads = [
        threading.Thread(
            target=lambda: done.append(storage.ensure_pool(replace(wanted, uuid=uuid4())).actions)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    control.wait_for("start")
    control.release("start")
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == 8
    actions = sorted(action for each in done for action in each if action != "autostart on")
    assert actions == ["defined", "started"]


def test_a_volume(pool: Pool) -> None:
    done = pool.ensure_volume("v.qcow2", "1 GiB", format="qcow2")
    assert (done.actions, done.changed) == (("created",), True)
    again = pool.ensure_volume("v.qcow2", "1 GiB", format="qcow2")
    assert (again.actions, again.changed, again.differences) == ((), False, ())
    grown = pool.ensure_volume("v.qcow2", "2 GiB", format="qcow2")
    assert grown.actions == (f"grown from {1 << 30} to {2 << 30} bytes",)
    assert grown.object.info().capacity == 2 << 30


def test_a_volume_is_never_made_smaller_or_another(pool: Pool) -> None:
    pool.create("v", 8192, mode=0o600)
    done = pool.ensure_volume("v", 4096, mode=0o640)
    assert not done.changed
    assert done.differences == (
        Difference("capacity", "4096", "8192"),
        Difference("mode", "0640", "0600"),
    )
    done = pool.ensure_volume("v", 16384, format="qcow2")
    assert [found.field for found in done.differences] == ["capacity", "format"]
    assert done.object.info().capacity == 8192


def test_an_overlay(pool: Pool) -> None:
    base = pool.create("base.qcow2", "1 GiB", format="qcow2")
    for changed in (True, False):
        done = pool.ensure_volume("top.qcow2", None, format="qcow2", backing=base)
        assert (done.changed, done.differences) == (changed, ())
    other = pool.create("other.qcow2", "1 GiB", format="qcow2")
    done = pool.ensure_volume("top.qcow2", None, format="qcow2", backing=other)
    assert done.differences == (Difference("backing", other.path, base.path),)


def test_a_capacity_that_was_rounded_is_no_difference(pool: Pool) -> None:
    for changed in (True, False):
        done = pool.ensure_volume("v.qcow2", 1_000_001, format="qcow2")
        assert (done.changed, done.differences) == (changed, ())


def test_many_ensure_one_volume_at_once(pool: Pool) -> None:
    done: list[bool] = []
    threads = [
        threading.Thread(target=lambda: done.append(pool.ensure_volume("v", 65536).changed))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(done) == [False] * 11 + [True]
    assert Path(pool.volume("v").path).stat().st_size == 65536
