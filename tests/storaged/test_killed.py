"""Processes killed while they make volumes: what they leave, and who clears it away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storaged.backends._newfile import PART_NAME
from tests.storaged.conftest import Engine

#: Of what is copied: enough to be killed in the middle.
SIZE = 16 << 20

CREATING = """
import sys, storaged
with storaged.open(root=sys.argv[1], durability="none") as storage:
    base = storage.pool("k").volume("base")
    print("ready", flush=True)
    for number in range(1000):
        base.clone_to(f"v{number}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_killed_process_leaves_nothing_that_looks_whole(
    engine: Engine, unnamed: bool, tmp_path: Path
) -> None:
    storage = engine.open(backends=None)
    base = engine.pool("k", "dir").create("base", SIZE)
    Path(base.path).write_bytes(os.urandom(SIZE))
    target = engine.directory / "k"
    storage.close()
    code = CREATING
    if not unnamed:  # as on a file system that cannot make files without a name
        code = (
            "from storaged.backends import _create\n"
            "_create.can_be_unnamed = lambda *_: False\n" + CREATING
        )
    parts = 0
    for attempt in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", code, engine.root], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.0037 * attempt)
        child.kill()
        child.wait()
        child.stdout.close()
        left = sorted(entry.name for entry in target.iterdir())
        found = [name for name in left if PART_NAME.fullmatch(name)]
        assert len(found) <= 1
        parts += len(found)
        whole = [name for name in left if name not in found]
        assert all((target / name).stat().st_size == SIZE for name in whole)
        other = Engine(tmp_path / "other", engine.directory, engine.backend, engine.control)
        stranger = other.open(backends=None)
        other.pool("k", "dir", stranger).stop()
        assert sorted(entry.name for entry in target.iterdir()) == left  # not ours to remove
        other.close()
        (tmp_path / "other/etc/libvirt/storage/k.xml").unlink()
        again = engine.open(backends=None)
        assert again.pool("k").names() == whole
        again.pool("k").stop()
        again.pool("k").start()
        assert sorted(entry.name for entry in target.iterdir()) == whole
        for name in set(whole) - {"base"}:
            again.pool("k").volume(name).delete()
        again.close()
    assert unnamed is (parts == 0)


INTERRUPTED = """
import sys, storaged
from tests.doubles import make_double
backend, control = make_double()
control.hold("create", lively=True)
with storaged.open(root=sys.argv[1], durability="none", backends={"double": backend}) as storage:
    pool = storage.create_pool(storaged.PoolDef("double", "p", target=sys.argv[2]))
    job = pool.create("held", 4096, wait=False)
    control.wait_for("create")
    print("ready", flush=True)
    try:
        job.complete()
    except KeyboardInterrupt:
        print(pool.names() in ([], ["held"]), flush=True)
        raise
"""


def test_an_interrupt_ends_the_work_and_the_process(engine: Engine) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, engine.root, engine.directory],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert out == "True\n"
    assert child.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert list(engine.directory.iterdir()) == []
    engine.open().close()
