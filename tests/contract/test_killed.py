"""The daemon is killed in the middle of its work: another one shows what is true, and no halves."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged.backend import ClonesVolumes, CreatesVolumes, Transfers
from storaged.errors import PoolBuilt, StorageError
from storaged.flow import Sink
from storaged.job import Job
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.volumehandle import Volume
from tests.contract import halting
from tests.contract.subjects import MIB, Ground, Subject, parameters
from tests.daemon.running import PROJECT, Daemon, await_ready, environment, storaged_daemon
from tests.kernel.programs import SYSTEM_PATH, eventually, patience

#: each test starts daemons
pytestmark = pytest.mark.slow

on_storage = pytest.mark.parametrize("subject", parameters())

#: Stands before a tool in the search path: says that it begins, and goes on when it is told to.
_WAITING_TOOL = """\
#!/bin/sh
case "$*" in *"{word}"*)
    echo $$ > {place}/begun.part
    mv {place}/begun.part {place}/begun
    while [ ! -e {place}/go ]; do sleep 0.1; done
esac
PATH={path} exec {tool} "$@"
"""


@contextmanager
def halting_daemon(
    root: Path, place: Path, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Daemon, Storage]]:
    """Run a daemon that is there to be killed, see `tests.contract.halting`, and connect to it."""
    root.mkdir(exist_ok=True)
    with (root / "storaged.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", halting.__name__, "--halted", place, "--root", root],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(environ),
            cwd=PROJECT,
        )
    daemon = Daemon(root, process, session=False)
    try:
        await_ready(daemon)
        with storaged.connect(daemon.uri()) as storage:
            yield daemon, storage
    finally:
        daemon.kill()


@contextmanager
def stopped_in_the_end(daemon: Daemon) -> Iterator[Storage]:
    """Give the daemon's pools; they are stopped at the end."""
    with storaged.connect(daemon.uri()) as storage:
        try:
            yield storage
        finally:
            for pool in storage.pools(active=True):
                pool.stop()


@on_storage
def test_killed(subject: Subject, ground: Ground, tmp_path: Path) -> None:
    """It is killed while it builds the pool, and while it makes and fills volumes."""
    root, data = tmp_path / "root", os.urandom(2 * MIB)
    if subject.builder:
        kill_in_build(subject, ground, root, tmp_path)
    with halting_daemon(root, tmp_path) as (daemon, storage):
        pool = begin(storage, ground)
        kept = keep(pool, subject, data)
        names = pool.names()
        jobs = begin_halves(pool, kept, subject)
        upload = begin_upload(ground, kept, data) if subject.can(Transfers) else None
        for job in jobs:
            eventually((tmp_path / str(job.volume)).exists, 20, f"{job} to come half-way")
        assert not any(job.ended for job in jobs)
        daemon.kill()
        for job in jobs:
            check_told(job)
        if upload is not None:
            with pytest.raises(StorageError):
                upload.finish()
    with storaged_daemon(root) as daemon, stopped_in_the_end(daemon) as storage:
        check_truth(storage.pool("ground"), subject, ground, names, kept.name, data)


def kill_in_build(subject: Subject, ground: Ground, root: Path, place: Path) -> None:
    """Kill a daemon while the tool works that makes the pool's storage; that comes to its end."""
    tools = place / "tools"
    tools.mkdir()
    name, word = (*subject.builder, "")[:2]
    tool = tools / name
    tool.write_text(_WAITING_TOOL.format(tool=name, word=word, place=place, path=SYSTEM_PATH))
    tool.chmod(0o755)
    environ = {"PATH": f"{tools}:{SYSTEM_PATH}"}
    with halting_daemon(root, place, environ) as (daemon, storage):
        pool = storage.define_pool(ground.xml)
        job = pool.build(overwrite=ground.overwrite, wait=False)
        eventually((place / "begun").exists, 20, name)
        running = os.pidfd_open(int((place / "begun").read_text()))
        daemon.kill()
        check_told(job)
    (place / "go").touch()
    ended, _, _ = select.select([running], [], [], patience(20))
    os.close(running)
    assert ended


def check_told(job: Job[Any]) -> None:
    """Check that a client hears of the end of its daemon."""
    assert job.wait(patience(10))
    assert isinstance(job.error, StorageError)


def begin(storage: Storage, ground: Ground) -> Pool:
    """Return the pool, running. A build that was begun before has come to its end, or can be."""
    if not storage.pools():
        storage.define_pool(ground.xml)
    pool = storage.pool("ground")
    assert not pool.active
    with suppress(PoolBuilt):
        pool.build(overwrite=ground.overwrite)
    pool.start()
    assert pool.problems == ()
    return pool


def keep(pool: Pool, subject: Subject, data: bytes) -> Volume:
    """Return a volume that is whole, and holds *data* if bytes can be moved."""
    if subject.can(CreatesVolumes):
        kept = pool.create("kept", 8 * MIB, format=subject.formats[0])
    else:
        kept = pool.volumes()[0]
    if subject.can(Transfers):
        kept.upload(BytesIO(data))
    return kept


def begin_halves(pool: Pool, kept: Volume, subject: Subject) -> list[Job[Volume]]:
    """Begin to make volumes, in each of the ways that there are."""
    made: Callable[[str], str] = halting.PREFIX.__add__
    jobs = []
    if subject.can(CreatesVolumes):
        form = subject.formats[0]
        jobs.append(pool.create(made("new"), 4 * MIB, format=form, wait=False))
    if subject.can(ClonesVolumes):
        jobs.append(kept.clone_to(made("copy"), wait=False))
    return jobs


def begin_upload(ground: Ground, kept: Volume, data: bytes) -> Sink:
    """Send half of an upload: bytes that lie behind those which the volume holds."""
    sink = kept.open_upload(3 * MIB, 2 * MIB)
    sink.write(data[:MIB])  # up to where an object ends, for storage that gathers what it sends
    eventually(
        lambda: ground.read(kept.path, 3 * MIB, 4096) == data[:4096],
        what="the upload to come half-way",
    )
    return sink


def check_truth(
    pool: Pool, subject: Subject, ground: Ground, names: list[str], kept: str, data: bytes
) -> None:
    """Check that the pool is as it was, and that it can do what it could."""
    assert pool.active
    assert pool.names() == names
    assert pool.volume(kept).problem is None
    pool.stop()
    pool.start()  # which clears away what has a name of its own
    assert pool.names() == names
    if subject.can(CreatesVolumes):
        assert sorted(ground.names()) == sorted(names)
        again = pool.create(f"{halting.PREFIX}new", 4 * MIB, format=subject.formats[0])
        assert again.problem is None
    if subject.can(Transfers):
        back = BytesIO()
        assert pool.volume(kept).download(back, length=len(data)) == len(data)
        assert back.getvalue() == data
        pool.volume(kept).upload(BytesIO(data))
