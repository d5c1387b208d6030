"""A pool of type netfs on a volume of a real Gluster server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Host
from storaged.backends.netfs import Netfs
from storaged.job import Job
from storaged.model import Permissions, PoolDef, PoolSource, SourceHost, VolumeDef
from tests.kernel.programs import eventually, patience, run

pytestmark = [pytest.mark.kernel("gluster"), pytest.mark.slow]

HOST = SourceHost(socket.gethostname())


def new_job() -> Job[Any]:
    return Job("test", "gluster")


def gluster(*words: str, check: bool = True) -> str:
    return run("gluster", "--mode=script", *words, check=check, timeout=60)


@pytest.fixture
def volume(tmp_path: Path, unmounted: Path) -> Iterator[str]:
    """A started volume; its server ends with the test. The host may have no other one."""
    brick = tmp_path / "brick"
    brick.mkdir()
    name = f"storaged-{uuid.uuid4().hex[:8]}"
    argv = [shutil.which("glusterd") or "glusterd", "-N", "-p", str(tmp_path / "pid")]
    server = subprocess.Popen([*argv, "-l", str(tmp_path / "log")])
    try:
        eventually(lambda: "Peers" in gluster("peer", "status", check=False), 30, "glusterd")
        gluster("volume", "create", name, f"{HOST.name}:{brick}", "force")
        try:
            gluster("volume", "start", name)
            yield name
        finally:
            run("umount", "-l", str(tmp_path / "target"), check=False)
            gluster("volume", "stop", name, "force", check=False)
            gluster("volume", "delete", name, check=False)
    finally:
        server.terminate()
        server.wait(patience(20))


def test_life_of_a_pool_on_gluster(volume: str, tmp_path: Path) -> None:
    found = Netfs.find_sources(PoolSource(hosts=(HOST,)), Host(id="h"), Job("find-sources"))
    assert PoolSource(hosts=(HOST,), dir=volume, format="glusterfs") in found
    source = PoolSource(hosts=(HOST,), dir=volume, format="glusterfs")
    definition = PoolDef("netfs", "gluster", source=source, target=str(tmp_path / "target"))
    backend = Netfs(definition, Host(id="h"))
    backend.build(new_job())
    backend.start(new_job())
    backend.hold(backend.anchor())
    assert Netfs(definition, backend.host).check()
    request = VolumeDef("disk", 1 << 20, allocation=0, permissions=Permissions(0o600, 12345, 23456))
    made = backend.create(backend.plan(request), new_job())
    assert made.permissions.owner == 12345
    sink = backend.upload(made, 0, 0)
    sink.write(b"guest")
    sink.finish()
    with closing(backend.open_image(made)) as handle:
        assert handle.pread(5, 0) == b"guest"
    backend.watch()
    assert list(backend.refresh({}, new_job()).volumes) == ["disk"]
    backend.delete(made, new_job())
    backend.stop(new_job())
    assert not backend.check()
