"""Everything the library and the daemon do with images is done without ever starting qemu-img."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon

#: Does all that can be done to volumes, and prints what processes were started.
PROGRAM = """
import io, json, os, sys
from pathlib import Path

started = []
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"):
        started.append([event, str(arguments[0])])
sys.addaudithook(watch)

import storaged

def everything(storage, place):
    pool = storage.ensure_dir_pool("all", place)
    secret = b"open sesame"
    for kind in ("raw", "qcow2", "vmdk", *FOREIGN):
        pool.create(f"new.{kind}", "4 MiB", format=kind)
    pool.create("source", "4 MiB").upload(io.BytesIO(bytes(1 << 20) + os.urandom(1 << 20)))
    pool.create("pre", "4 MiB", format="qcow2", preallocate_metadata=True)
    for kind in ("raw", "qcow2", "vmdk", *FOREIGN):
        copy = pool.clone(pool.volume("source"), f"copy.{kind}", format=kind)
        pool.clone(copy, f"again.{kind}", format="qcow2", compress="zlib")
    top = pool.clone(pool.volume("copy.qcow2"), "top", backing="linked")
    pool.clone(top, "kept", backing="keep")
    pool.create("locked", "1 MiB", secret=secret)
    for volume in (top, pool.volume("copy.raw"), pool.volume("copy.qcow2")):
        volume.resize("8 MiB")
        volume.resize("6 MiB", shrink=True, force=True)
    top.check()
    top.inspect()
    top.amend(lazy_refcounts=True)
    top.rebase(str(place / "copy.qcow2"), "qcow2")
    top.convert(format="vmdk", flatten=True)
    pool.volume("copy.vmdk").wipe()
    pool.refresh()
    for volume in pool.volumes():
        volume.xml()
        volume.delete(force=True)
"""


def work(foreign: tuple[str, ...], storage: str, more: str = "") -> str:
    return (
        f"{PROGRAM.replace('FOREIGN', repr(foreign))}\n"
        f"with {storage} as storage:\n"
        "    everything(storage, Path(sys.argv[2]))\n"
        f"{more}\n"
        "print(json.dumps(started))\n"
    )


def run(program: str, *arguments: str | Path) -> list[list[str]]:
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    started: list[list[str]] = json.loads(result.stdout)
    return started


def test_native_formats_start_nothing(tmp_path: Path) -> None:
    program = work((), "storaged.open(sys.argv[1], durability='none')")
    assert run(program, tmp_path / "state", tmp_path / "images") == []


@pytest.mark.slow
def test_the_others_start_one_program(tmp_path: Path) -> None:
    """Each of them is the launcher that shuts qemu-storage-daemon in."""
    program = work(("vpc", "vdi", "qcow", "qed"), "storaged.open(sys.argv[1], durability='none')")
    started = run(program, tmp_path / "state", tmp_path / "images")
    assert len(started) > 10
    assert {(event, os.path.realpath(what)) for event, what in started} == {
        ("subprocess.Popen", os.path.realpath(sys.executable))
    }


@pytest.mark.slow
def test_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-img in front of the real one, that only tells that it was started."""
    tools = tmp_path / "tools"
    tools.mkdir()
    told = tmp_path / "told"
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        (tools / name).write_text(f'#!/bin/sh\necho "$0 $*" >> {told}\nexit 1\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with tempfile.TemporaryDirectory() as root, storaged_daemon(Path(root)) as daemon:
        foreign = ("vpc", "vdi", "qcow", "qed")
        program = work(foreign, "storaged.connect(sys.argv[1])")
        assert run(program, daemon.uri(), tmp_path / "images") == []
    assert not told.exists(), told.read_text()
