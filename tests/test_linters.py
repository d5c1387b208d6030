"""The linters as tests, so that one command tells all. In CI a missing tool is a failure."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("packaging/setup.sh", "packaging/pythons.sh", "docs/demo.sh", ".ci/run")


def unavailable(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is not installed (make setup)")


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("arguments", ["ruff check", "ruff format --check", "mypy"])
def test_python(arguments: str) -> None:
    tool, *rest = arguments.split()
    if importlib.util.find_spec(tool) is None:
        unavailable(tool)
    run(sys.executable, "-m", tool, *rest)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    shell = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    run(shell, "-n", script)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert listed >= {"help", "setup", "run", "check", "test", "bench", "clean"}
