"""A server that dies under a daemon and comes back, as virsh and storagectl show it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.running import PROJECT, Daemon, environment, storaged_daemon
from tests.doubles import eventually

_BACKEND = """
import os, time
from storaged.backend import Backend, Descriptor, Refresh, StopsByForce, Watched
from storaged.errors import SystemFailure
from storaged.model import Space, VolumeRecord

SERVER = os.environ["SERVER"]

def ask():
    while (said := open(SERVER).read()) == "dead":
        time.sleep(0.05)
    if said == "refused":
        raise SystemFailure("server refuses", 111)

class Served(Backend, Watched, StopsByForce):
    descriptor = Descriptor(type="served")
    def start(self, job):
        ask()
    def stop(self, job):
        ask()
    def stop_by_force(self, job):
        pass
    def watch(self):
        ask()
    def refresh(self, known, job):
        ask()
        record = VolumeRecord("disk", 1 << 20, 1 << 20, key="served:disk", path="served:disk")
        return Refresh({"disk": record}, Space(100 << 20, 1 << 20, 99 << 20))
"""


class Scene:
    """A daemon with a pool "served" whose server a file plays, and a pool "other"."""

    def __init__(self, daemon: Daemon, server: Path, environ: dict[str, str]) -> None:
        self.daemon = daemon
        self.server = server
        self.environ = environment(environ)

    def virsh(self, *words: str, fails: bool = False) -> str:
        argv = ["virsh", "-q", "-c", self.daemon.uri(), *words]
        return self._run(argv, fails)

    def ctl(self, *words: str, fails: bool = False) -> str:
        argv = [sys.executable, "-m", "storaged.cli", "--root", str(self.daemon.root), *words]
        return self._run(argv, fails)

    def _run(self, argv: list[str], fails: bool) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env=self.environ)
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout

    def state(self, pool: str = "served") -> str:
        found = re.search(r"State: +(\w+)", self.virsh("pool-info", pool))
        assert found is not None
        return found[1]

    def becomes(self, state: str, seconds: float) -> None:
        eventually(lambda: self.state() == state, timeout=seconds)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Starts daemons, one after the other."""
    site, server = tmp_path / "site", tmp_path / "server"
    info = site / "served-1.dist-info"
    info.mkdir(parents=True)
    (site / "servedbackend.py").write_text(_BACKEND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: served\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[storaged.backends]\nserved = servedbackend:Served\n")
    environ = {"PYTHONPATH": f"{PROJECT}:{site}", "SERVER": str(server)}
    server.write_text("alive")
    opened: list[Any] = []

    def begin() -> Scene:
        running = storaged_daemon(tmp_path / "r", environ=environ)
        opened.append(running)
        return Scene(running.__enter__(), server, environ)

    (tmp_path / "r").mkdir()
    yield begin
    server.write_text("alive")
    for running in opened:
        running.__exit__(None, None, None)


@pytest.fixture
def scene(start: Callable[..., Scene], tmp_path: Path) -> Scene:
    made = start()
    document = tmp_path / "served.xml"
    document.write_text("<pool type='served'><name>served</name></pool>")
    made.virsh("pool-define", str(document))
    (tmp_path / "images").mkdir()
    made.virsh("pool-create-as", "other", "dir", "--target", str(tmp_path / "images"))
    return made


@pytest.mark.slow
def test_a_server_dies_and_comes_back(scene: Scene) -> None:
    scene.virsh("pool-start", "served")
    told = [listening(scene, event) for event in ("refresh", "lifecycle")]
    try:
        time.sleep(0.5)  # virsh does not tell when it listens
        scene.server.write_text("dead")
        scene.becomes("inaccessible", 10)
        before = time.monotonic()
        assert "served" in scene.virsh("pool-list", "--name")
        assert "disk" in scene.virsh("vol-list", "served")
        assert "other" in scene.virsh("pool-list", "--name")
        scene.virsh("vol-create-as", "other", "v", "1M")
        assert "does not answer since" in scene.virsh("pool-refresh", "served", fails=True)
        assert time.monotonic() - before < 10  # six processes, on a busy machine
        listed = scene.ctl("pool", "list")
        assert re.search(r"served +inaccessible since \d\d:\d\d ", listed)
        shown = scene.ctl("pool", "info", "served")
        assert re.search(r"State: +inaccessible since \d\d:\d\d:\d\d\n", shown)
        assert re.search(r"Available: +99 MiB", shown)  # virsh shows no sizes in this state
        assert re.search(r"Problem: +does not answer since .* \(no answer for 5 s\)", shown)
        (found,) = [
            one
            for one in json.loads(scene.ctl("pool", "list", "--json"))
            if one["name"] == "served"
        ]
        assert found["state"] == "inaccessible"
        assert found["active"]
        assert time.time() - 60 < found["inaccessible_since"] < time.time()
        scene.server.write_text("alive")
        scene.becomes("running", 10)
        scene.virsh("pool-refresh", "served")
    finally:
        time.sleep(0.5)
        for one in told:
            one.terminate()
        refreshes, lifecycle = (one.communicate()[0] for one in told)
    assert refreshes.count("event 'refresh' for storage pool served") >= 2
    assert lifecycle == ""


def listening(scene: Scene, event: str) -> subprocess.Popen[str]:
    """Return virsh, which prints the events of the pool."""
    how = ("--pool", "served", "--event", event, "--loop", "--timeout", "90")
    return subprocess.Popen(
        ["virsh", "-c", scene.daemon.uri(), "pool-event", *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_forced_stop(scene: Scene) -> None:
    scene.virsh("pool-start", "served")
    scene.server.write_text("refused")
    scene.becomes("inaccessible", 10)
    assert "server refuses" in scene.virsh("pool-destroy", "served", fails=True)
    assert scene.state() == "inaccessible"
    scene.server.write_text("dead")
    scene.ctl("pool", "stop", "served", "--force")
    assert scene.state() == "inactive"
    scene.server.write_text("alive")
    scene.virsh("pool-start", "served")
    assert scene.state() == "running"


@pytest.mark.slow
def test_a_failed_autostart(scene: Scene, start: Callable[..., Scene], tmp_path: Path) -> None:
    scene.virsh("pool-autostart", "served")
    assert scene.daemon.stop() == 0
    (tmp_path / "r/run/libvirt/storage/autostarted").unlink()  # as after a boot
    scene.server.write_text("refused")
    again = start()
    assert re.search(
        r"autostart failed: .*server refuses.*; (next try in \d+ s|it is being tried again)",
        again.ctl("pool", "info", "served"),
    )
    assert again.state() == "inactive"
    again.daemon.kill()
    assert "the daemon tries again as soon as it runs" in again.ctl("pool", "info", "served")
    anew = start()
    assert "server refuses" in anew.ctl("pool", "info", "served")
    anew.server.write_text("alive")
    anew.becomes("running", 20)
    assert "autostart failed" not in anew.ctl("pool", "info", "served")
