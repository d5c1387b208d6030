"""A pool that is a mount, seen by the engine: killed in a start, stopped beside its looks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storaged.backends.fs import Fs
from storaged.mounts import mounts
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.kernel.fixtures import LoopDevice
from tests.kernel.programs import patience
from tests.storaged.conftest import Engine

pytestmark = pytest.mark.kernel("loop", "ext4")

KILLED = """
import os, signal, sys, storaged
from storaged.state import StateStore
StateStore.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with storaged.open(sys.argv[1]) as storage:
    storage.pool("m").start()
"""


def define(storage: Storage, device: str, target: Path) -> Pool:
    return storage.define_pool(
        f"<pool type='fs'><name>m</name><source><device path='{device}'/><format type='ext4'/>"
        f"</source><target><path>{target}</path></target></pool>"
    )


def is_mounted(target: Path) -> bool:
    return any(mount.point == str(target) for mount in mounts())


@pytest.mark.parametrize("step", ["write_anchor", "write_live"])
def test_killed_in_a_start(
    engine: Engine, loop_device: LoopDevice, unmounted: Path, step: str
) -> None:
    """What is mounted is active, whether or not that could be written down."""
    target = unmounted / "target"
    storage = engine.open(backends=None)
    pool = define(storage, loop_device(32), target)
    pool.build(overwrite=True)
    storage.close()
    argv = [sys.executable, "-c", KILLED.format(step=step), str(engine.root)]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert is_mounted(target)

    with engine.open(backends=None, readonly=True) as reader:
        assert reader.pool("m").info().active
    storage = engine.open(backends=None)
    pool = storage.pool("m")
    assert pool.info().active
    assert pool.create("disk", 1 << 20).name == "disk"
    storage.close()
    storage = engine.open(backends=None)
    pool = storage.pool("m")
    assert pool.names() == ["disk", "lost+found"]
    pool.stop()
    assert not is_mounted(target)
    storage.close()
    assert not engine.open(backends=None).pool("m").info().active


def test_stops_beside_the_watch_and_looks(
    engine: Engine, loop_device: LoopDevice, unmounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow look of ours at the storage is no reason for a stop to fail."""
    look, looking = Fs.watch_source, threading.Event()

    def slow(self: Fs, directory: int) -> None:
        looking.set()
        time.sleep(0.4)
        look(self, directory)

    monkeypatch.setattr(Fs, "watch_source", slow)
    target = unmounted / "target"
    storage = engine.open(backends=None, watch=True)
    pool = define(storage, loop_device(32), target)
    pool.build(overwrite=True)
    for _ in range(3):
        looking.clear()
        pool.start()
        assert looking.wait(patience(10))
        pool.stop()
        assert not is_mounted(target)
