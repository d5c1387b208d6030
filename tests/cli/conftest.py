from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ctl:
    """Runs the real storagectl, each time as a process of its own, below one root."""

    root: Path
    images: Path
    env: dict[str, str] = field(default_factory=dict)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "storaged.cli.main", "--root", str(self.root), *words]

    def environment(self, **more: str) -> dict[str, str]:
        dropped = ("STORAGED_ROOT", "PYTHONDONTWRITEBYTECODE")
        kept = {key: value for key, value in os.environ.items() if key not in dropped}
        return {**kept, "PYTHONPATH": str(TREE), "LC_ALL": "C.UTF-8", **self.env, **more}

    def run(
        self,
        *words: str,
        status: int = 0,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self.argv(*words),
            env=self.environment(**(env or {})),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        return done

    def out(self, *words: str, **how: Any) -> str:
        """Return what one run printed; it must have been silent on standard error."""
        done = self.run(*words, **how)
        assert done.stderr == b""
        return done.stdout.decode()

    def json(self, *words: str, **how: Any) -> Any:
        return json.loads(self.out(*words, "--json", **how))

    def error(self, *words: str, status: int) -> str:
        done = self.run(*words, status=status)
        assert done.stdout == b""
        return done.stderr.decode()

    def start_pool(self, name: str = "t", more: Sequence[str] = ()) -> None:
        self.run("pool", "ensure", name, "--target", str(self.images), *more)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the byte code, which an installed storagectl has too."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def ctl(tmp_path: Path, compiled: Path) -> Ctl:
    env = {"PYTHONPYCACHEPREFIX": str(compiled), "TMPDIR": str(tmp_path)}
    return Ctl(tmp_path / "root", tmp_path / "images", env)


@pytest.fixture
def pool(ctl: Ctl) -> Ctl:
    """Storagectl with one running dir pool ``t``."""
    ctl.start_pool()
    return ctl
