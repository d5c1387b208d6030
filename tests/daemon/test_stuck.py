"""Storage that never answers: the daemon starts, serves the rest, and ends in time."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.daemon.running import PROJECT, Daemon, storaged_daemon

_BACKEND = """
import time
from storaged.backend import Backend, Descriptor, Refresh
from storaged.model import Space

class Stuck(Backend):
    descriptor = Descriptor(type="stuck")
    def check(self):
        return False
    def start(self, job):
        while True:
            time.sleep(3600)
    def refresh(self, known, job):
        return Refresh(volumes={}, space=Space())
"""


def plug_in(directory: Path) -> dict[str, str]:
    """Install a pool type that hangs; return the environment in which it is found."""
    info = directory / "stuck-1.dist-info"
    info.mkdir(parents=True)
    (directory / "stuckbackend.py").write_text(_BACKEND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[storaged.backends]\nstuck = stuckbackend:Stuck\n")
    return {"PYTHONPATH": f"{PROJECT}:{directory}"}


def virsh(daemon: Daemon, *words: str) -> list[str]:
    return ["virsh", "-q", "-c", daemon.uri(), *words]


def run(daemon: Daemon, *words: str) -> str:
    done = subprocess.run(virsh(daemon, *words), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_storage_that_never_answers(tmp_path: Path) -> None:
    environ = plug_in(tmp_path / "site")
    document = tmp_path / "stuck.xml"
    document.write_text("<pool type='stuck'><name>dead</name></pool>")
    (tmp_path / "images").mkdir()
    with storaged_daemon(tmp_path, environ=environ) as daemon:
        run(daemon, "pool-define", str(document))
        run(daemon, "pool-autostart", "dead")
        start = subprocess.Popen(virsh(daemon, "pool-start", "dead"), stderr=subprocess.PIPE)
        try:
            time.sleep(0.5)
            assert start.poll() is None
            run(daemon, "pool-create-as", "alive", "dir", "--target", str(tmp_path / "images"))
            run(daemon, "vol-create-as", "alive", "disk", "1M")
            assert set(run(daemon, "pool-list", "--all", "--name").split()) == {"dead", "alive"}
            began = time.monotonic()
            assert daemon.stop(35) == 0, daemon.log
            assert time.monotonic() - began < 30
        finally:
            start.kill()
            start.communicate()
    (tmp_path / "run/libvirt/storage/autostarted").unlink()  # as after a boot
    began = time.monotonic()
    with storaged_daemon(tmp_path, environ=environ) as daemon:
        assert time.monotonic() - began < 20
        assert "dead" in run(daemon, "pool-list", "--all", "--name")
        assert "disk" in run(daemon, "vol-list", "alive")
