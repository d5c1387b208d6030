"""The process that has librbd: aborted, hung, without bindings, under another interpreter."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import venv
from collections import deque
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from storaged.backends import _rbdlink
from storaged.errors import MissingBackend, OperationFailed, StorageError
from storaged.isolate import ChildDied
from storaged.poolhandle import Pool
from tests.backends.rbdpools import IMPATIENT, backend_of, engine, opened, pool_xml, start
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool as CephPool
from tests.kernel.programs import eventually, patience

#: Options of tests in which somebody hangs, and is ended by force long before.
PATIENT = dict.fromkeys(IMPATIENT, "60")
PROJECT = Path(_rbdlink.__file__).parents[2]


def runs(pid: int) -> bool:
    """Tell whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children() -> set[int]:
    """Return our processes with librbd."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(word) for word in (task / "children").read_text().split()}
    return {pid for pid in found if b"isolatescript" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def child_of(pool: Pool) -> int:
    """Return the process of a pool."""
    pid = backend_of(pool).link.pid
    assert pid is not None
    return pid


def abort(pool: Pool) -> None:
    """End a pool's process as librbd does where it finds what it did not expect."""
    os.kill(child_of(pool), signal.SIGABRT)


def await_calls(pool: Pool, count: int) -> None:
    """Wait until so many calls are under way in a pool's process."""
    session = backend_of(pool).link.session()
    eventually(lambda: len(session._pending) >= count, 5)


# Aborts


def test_an_abort_of_an_idle_process_is_not_noticed(
    tmp_path: Path, ceph_cluster: Cluster, ceph_open: Cluster, ceph_pools: CephPools
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pools(ceph_cluster)) as (storage, pool):
        other = start(storage, ceph_open, ceph_pools(ceph_open), name="other")
        pool.create("v", 1 << 20)
        first, others = child_of(pool), child_of(other)
        abort(pool)
        eventually(lambda: not runs(first))
        pool.refresh()
        abort(pool)
        pool.refresh()
        assert pool.names() == ["v"]
        assert child_of(pool) != first
        assert child_of(other) == others


def test_an_abort_ends_the_calls_under_way_and_no_others(
    tmp_path: Path, ceph_cluster: Cluster, ceph_open: Cluster, ceph_pools: CephPools
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pools(ceph_cluster)) as (storage, pool):
        other = start(storage, ceph_open, ceph_pools(ceph_open), name="other")
        pool.create("v", 1 << 20)
        other.create("w", 32 << 20)
        link = backend_of(pool).link
        with ceph_cluster.osd.frozen():
            replies = [link.begin("names", "no names") for _ in range(20)]
            creating = pool.create("x", 1 << 20, wait=False)
            scanning = pool.refresh(wait=False)
            with ceph_open.osd.frozen():
                going_on = other.refresh(wait=False)
                await_calls(pool, 22)
                await_calls(other, 1)
                abort(pool)
                for reply in replies:
                    with pytest.raises(ChildDied, match=r"signal 6 \(SIGABRT\)"):
                        reply.take(10)
                with pytest.raises(ChildDied, match=r"signal 6 \(SIGABRT\)"):
                    creating.result()
            going_on.result()
        scanning.result()  # it only looks, and is done once more
        pool.create("y", 1 << 20)
        assert {"v", "y"} <= set(pool.names())


def test_what_an_aborted_process_was_about_to_remove_goes(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (_, pool):
        for number in range(5):
            pool.create(f"v{number}", 1 << 20).delete()
        abort(pool)
        pool.refresh()
        eventually(lambda: ceph_pool.trash() == [])
        assert not [name for name in ceph_pool.objects() if name.startswith("rbd_header")]


def test_an_abort_under_an_upload(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    (tmp_path / "data").write_bytes(os.urandom(3 << 20))
    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (_, pool):
        volume = pool.create("v", 64 << 20)
        sink = volume.open_upload()
        sink.write(bytes(8 << 20))
        abort(pool)

        def go_on() -> None:
            for _ in range(14):
                sink.write(bytes(4 << 20))
            sink.finish()

        with pytest.raises(ChildDied, match=r"signal 6 \(SIGABRT\)"):
            go_on()
        sink.abort()
        source = volume.open_download()
        source.read(1 << 20)
        abort(pool)
        with pytest.raises(ChildDied, match=r"signal 6 \(SIGABRT\)"):
            deque(iter(lambda: source.read(1 << 20), b""))
        source.close()

        began = time.monotonic()
        volume.upload(tmp_path / "data")
        assert time.monotonic() - began < patience(10)  # whoever died has let go of it
        volume.download(tmp_path / "back")
        assert (tmp_path / "back").read_bytes()[: 3 << 20] == (tmp_path / "data").read_bytes()


def script(path: Path, text: str) -> Path:
    """Write a program that stands for an interpreter."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_process_that_always_aborts_is_started_now_and_then(
    tmp_path: Path, ceph_open: Cluster
) -> None:
    log = tmp_path / "starts"
    log.touch()
    python = script(tmp_path / "python", f"echo >>{log}; kill -ABRT $$")
    with engine(tmp_path / "root", ceph_open, rbd_python=python, watch=True) as storage:
        pool = storage.define_pool(pool_xml(ceph_open, "p"))
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(ChildDied, match=r"cannot connect to Ceph: .*SIGABRT"):
                pool.start()
        assert len(log.read_text()) <= 3 + (time.monotonic() - began)


@pytest.mark.slow
def test_a_process_that_aborts_under_an_active_pool_does_not_spin(
    tmp_path: Path, ceph_open: Cluster, ceph_pools: CephPools
) -> None:
    log, broken = tmp_path / "starts", tmp_path / "broken"
    log.touch()
    system = _rbdlink._python()
    text = f'echo >>{log}; test -e {broken} && kill -ABRT $$; exec {system} "$@"'
    python = script(tmp_path / "python", text)
    with opened(
        tmp_path / "root",
        ceph_open,
        ceph_pools(ceph_open),
        engine_options={"rbd_python": python, "watch": True},
    ) as (_, pool):
        pool.create("v", 1 << 20)
        broken.touch()
        before, began = len(log.read_text()), time.monotonic()
        abort(pool)
        eventually(lambda: pool.info().outage, 10)
        for _ in range(20):
            with pytest.raises(OperationFailed):
                pool.create("x", 1 << 20)
        assert pool.names() == ["v"]
        assert len(log.read_text()) - before <= 3 + (time.monotonic() - began)
        broken.unlink()
        eventually(lambda: pool.info().outage is None, 10)
        pool.create("x", 1 << 20)


# What hangs


@pytest.mark.slow
def test_a_pool_whose_calls_hang_is_stopped_by_force(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool, options=PATIENT) as (_, pool):
        pool.create("v", 1 << 20)
        pid = child_of(pool)
        with ceph_cluster.osd.frozen():
            jobs = [pool.create(f"x{number}", 1 << 20, wait=False) for number in range(3)]
            await_calls(pool, 3)
            began = time.monotonic()
            pool.stop(force=True)
            assert time.monotonic() - began < patience(5) + 3
            assert not pool.active
            for job in jobs:
                with pytest.raises(StorageError):
                    job.result()
            eventually(lambda: not runs(pid))
        pool.start()
        pool.create("y", 1 << 20)


@pytest.mark.slow
def test_a_start_that_hangs_is_let_go_of_by_force(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with engine(tmp_path / "root", ceph_cluster) as storage:
        pool = storage.define_pool(pool_xml(ceph_cluster, ceph_pool.name, options=PATIENT))
        before = children()
        with ceph_cluster.mon.frozen():
            starting = pool.start(wait=False)
            found = eventually(lambda: children() - before)
            began = time.monotonic()
            pool.stop(force=True)
            assert time.monotonic() - began < patience(5) + 3
            with pytest.raises(StorageError):
                starting.result()
            eventually(lambda: not any(map(runs, found)))
        pool.start()


@pytest.mark.slow
def test_an_engine_is_closed_while_calls_hang(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    hasty = {**PATIENT, "rados_osd_op_timeout": "10"}
    with engine(tmp_path / "root", ceph_cluster) as storage:
        pool = start(storage, ceph_cluster, ceph_pool, options=hasty)
        pid = child_of(pool)
        with ceph_cluster.osd.frozen():
            pool.create("x", 1 << 20, wait=False)
            await_calls(pool, 1)
            began = time.monotonic()
            storage.close()
            assert time.monotonic() - began < patience(10)
            eventually(lambda: not runs(pid), 30)  # it brings its call to an end


# Interpreters


def test_without_the_bindings_only_rbd_does_not_work(tmp_path: Path, ceph_open: Cluster) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare/bin/python"
    if subprocess.run([python, "-c", "import rados"], stderr=subprocess.DEVNULL).returncode == 0:
        pytest.skip("our own Python has the bindings in itself")
    with engine(tmp_path / "root", ceph_open, rbd_python=python) as storage:
        pool = storage.define_pool(pool_xml(ceph_open, "p"))
        with pytest.raises(MissingBackend, match="rados and rbd") as caught:
            pool.start()
        assert caught.value.advice == "apt-get install python3-rados python3-rbd"
        (tmp_path / "dir").mkdir()
        storage.ensure_dir_pool("dir", tmp_path / "dir").create("v", 1 << 20)


def test_an_interpreter_that_is_none_is_told(tmp_path: Path, ceph_open: Cluster) -> None:
    python = script(tmp_path / "python", "echo this is no Python >&2; exit 3")
    with engine(tmp_path / "root", ceph_open, rbd_python=python) as storage:
        pool = storage.define_pool(pool_xml(ceph_open, "p"))
        with pytest.raises(ChildDied, match="this is no Python"):
            pool.start()
        python.unlink()
        with pytest.raises(ChildDied, match=r"cannot be started.*No such file"):
            pool.start()


def test_our_own_interpreter_is_taken_if_it_has_the_bindings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: dict[str, str] = {}

    def find(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin=places[name]) if name in places else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert _rbdlink._python() == "/usr/bin/python3"
    places["rados"] = f"{sys.prefix}/lib/rados.so"
    assert _rbdlink._python() == "/usr/bin/python3"
    places["rbd"] = f"{sys.base_prefix}/lib/rbd.so"
    assert _rbdlink._python() == sys.executable
    places["rbd"] = "/elsewhere/rbd.so"  # by PYTHONPATH, which the process does not heed
    assert _rbdlink._python() == "/usr/bin/python3"


#: Makes, writes, reads, lists and deletes with a backend alone, which needs no XML.
_STORY = """
import base64, json, sys
from storaged.backend import Host
from storaged.backends.rbd import Rbd
from storaged.job import Job
from storaged.model import Auth, PoolDef, PoolSource, SecretRef, SourceHost, VolumeDef

class Secrets:
    def value(self, usage, ref):
        return base64.b64decode(key)

host, port, pool, key = json.load(sys.stdin)
auth = Auth("ceph", "libvirt", SecretRef(usage="x"))
source = PoolSource(hosts=(SourceHost(host, port),), name=pool, auth=auth)
backend = Rbd(PoolDef("rbd", "story", source=source), Host(id="story", secrets=Secrets()))
job = Job("story")
backend.start(job)
made = backend.create(backend.plan(VolumeDef("v", 8 << 20)), job)
sink = backend.upload(made, 0, 0)
sink.write(b"story" * 100_000)
sink.finish()
source = backend.download(made, 0, 500_000)
data = b""
while more := source.read(1 << 20):
    data += more
source.close()
assert data == b"story" * 100_000
names = list(backend.refresh({}, job).volumes)
backend.delete(made, job)
assert not backend.refresh({}, job).volumes
backend.stop(job)
print(*sys.version_info[:2], *names)
"""


def test_under_a_newer_python_than_the_bindings_are_for(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    found = sorted(Path(sys.base_prefix).parent.glob("3.13*/bin/python3"))
    if not found:
        pytest.skip("there is no Python 3.13 beside ours")
    done = subprocess.run(
        [found[0], "-c", _STORY],
        input=json.dumps(
            [ceph_cluster.host, ceph_cluster.port, ceph_pool.name, ceph_cluster.key()]
        ),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=patience(30),
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "3 13 v\n"


# Secrets


def test_the_key_is_seen_nowhere(
    tmp_path: Path,
    ceph_cluster: Cluster,
    ceph_pool: CephPool,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    key = ceph_cluster.key()
    seen: list[str] = []
    caplog.set_level(logging.DEBUG)
    ceph_pool.create("image", 1 << 20)
    with opened(
        tmp_path / "root",
        ceph_cluster,
        ceph_pool,
        options=IMPATIENT,
        engine_options={"watch": True},
    ) as (storage, pool):
        process = Path(f"/proc/{child_of(pool)}")
        seen += [(process / name).read_bytes().decode() for name in ("cmdline", "environ")]
        seen += [pool.xml(), pool.xml(inactive=True), repr(pool.definition())]
        wrong: list[dict[str, Any]] = [
            {"user": "nobody"},
            {"hosts": [("127.0.0.1", 1)]},
            {"options": {"nosuchoption": "1"}},
        ]
        for how in wrong:
            xml = pool_xml(ceph_cluster, ceph_pool.name, name="bad", **how)
            bad = storage.define_pool(xml)
            with pytest.raises(StorageError) as caught:
                bad.start()
            seen += ["".join(traceback.format_exception(caught.value)), str(caught.value.advice)]
            seen += bad.problems
            bad.undefine()
        abort(pool)
        pool.refresh()
        seen += [caplog.text, *pool.problems]
    seen += [*capfd.readouterr()]
    secrets = tmp_path / "root/etc/libvirt/secrets"
    for path in (tmp_path / "root").rglob("*"):
        if path.is_file() and not path.is_relative_to(secrets):
            seen.append(path.read_bytes().decode(errors="replace"))
    assert not [text for text in seen if key in text]
