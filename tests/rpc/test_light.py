"""The client's half stays light: many only manage a remote host, with one short command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import HEAVY, NAMES, ROOT, imported_by

MODULES = sorted(name for name in NAMES if name.startswith("storaged.rpc"))
#: What a client needs for its first call.
CLIENT = "import storaged.rpc.remote, storaged.rpc.extension, storaged.rpc.keepalive"
CLIENT += ", storaged.rpc.streams"
#: Each costs more than all of the rest, or is not everywhere.
FORBIDDEN = {*HEAVY, "dataclasses", "logging", "socket", "threading", "fcntl", "pwd", "grp"}


def test_nothing_heavy_is_imported() -> None:
    loaded = imported_by(f"import {', '.join(MODULES)}") - imported_by("pass")
    assert set(MODULES) <= loaded
    assert not FORBIDDEN & loaded
    ours = {name for name in loaded if name.startswith("storaged.")}
    allowed = {"errordomain", "errors", "units", "version"}
    assert ours - set(MODULES) <= {f"storaged.{name}" for name in allowed}


@pytest.mark.slow
def test_import_is_quick(tmp_path: Path) -> None:
    """The bound is several times what it takes: it catches what changes the order of magnitude."""
    code = "import contextlib, enum, struct, time, typing; start = time.process_time()\n"
    code += f"{CLIENT}\nprint(time.process_time() - start)"
    command = [sys.executable, "-X", f"pycache_prefix={tmp_path}", "-c", code]
    environment = {"PATH": "/usr/bin:/bin"}
    took = []
    for _ in range(6):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
        )
        took.append(float(done.stdout))
    assert min(took) < 0.03, f"{min(took) * 1000:.1f} ms"
