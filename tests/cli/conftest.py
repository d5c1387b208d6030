from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.running import storaged_daemon

TREE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ctl:
    """Runs the real storagectl, each time as a process of its own, below one root."""

    root: Path
    images: Path
    env: dict[str, str] = field(default_factory=dict)
    #: the engine to use; that below *root* if None
    uri: str | None = None

    def argv(self, *words: str) -> list[str]:
        where = ["--root", str(self.root)] if self.uri is None else ["--connect", self.uri]
        return [sys.executable, "-m", "storaged.cli.main", *where, *words]

    def environment(self, **more: str) -> dict[str, str]:
        dropped = ("STORAGED_ROOT", "STORAGED_URI", "PYTHONDONTWRITEBYTECODE")
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


@contextmanager
def beside(root: Path, place: Path, compiled: Path) -> Iterator[Ctl]:
    """Storagectl beside the daemon below *root*, with one running pool ``t`` over *place*."""
    ctl = Ctl(root, place / "images", {"PYTHONPYCACHEPREFIX": str(compiled), "TMPDIR": str(place)})
    ctl.start_pool()
    yield ctl
    ctl.run("pool", "stop", "t")
    ctl.run("pool", "undefine", "t")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module that says ``BOTH_WAYS`` beside a daemon as well.

    Its ``WITHOUT_DAEMON`` names the tests for which that means nothing.
    """
    if "ctl" in metafunc.fixturenames and getattr(metafunc.module, "BOTH_WAYS", False):
        ways: list[Any] = ["embedded"]
        if metafunc.function.__name__ not in getattr(metafunc.module, "WITHOUT_DAEMON", ()):
            ways.append(pytest.param("daemon", marks=pytest.mark.slow))
        metafunc.parametrize("ctl", ways, indirect=True)


@pytest.fixture
def ctl(tmp_path: Path, compiled: Path, request: pytest.FixtureRequest) -> Iterator[Ctl]:
    """Storagectl below a root of its own; with the parameter "daemon" a daemon serves that root."""
    env = {"PYTHONPYCACHEPREFIX": str(compiled), "TMPDIR": str(tmp_path)}
    made = Ctl(tmp_path / "root", tmp_path / "images", env)
    if getattr(request, "param", "embedded") == "daemon":
        with storaged_daemon(made.root, environ=env):
            yield made
    else:
        yield made


@pytest.fixture
def pool(ctl: Ctl) -> Ctl:
    """Storagectl with one running dir pool ``t``."""
    ctl.start_pool()
    return ctl
