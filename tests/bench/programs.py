"""What starting costs: the import, and the command line as a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import storaged
from tests.bench.measure import Report, repeat

ROUNDS = 15
IMPORT = (
    "import time; start = time.perf_counter(); import storaged; storaged.Storage; "
    "print((time.perf_counter() - start) * 1000)"
)
BARE = IMPORT.replace(" storaged.Storage;", "")


def run(report: Report, directory: Path) -> None:
    """Measure in fresh processes."""
    for name, code, goal in (
        ("import storaged", BARE, 30.0),
        ("import storaged, engine loaded", IMPORT, None),
    ):
        times = []
        for _ in range(ROUNDS):
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
        report.samples(name, times, goal=goal)
    state = directory / "program-state"
    with storaged.open(state) as storage:
        storage.ensure_dir_pool("bench", directory / "program-images")
    report.samples("python -c pass, whole process", wall(ROUNDS, [sys.executable, "-c", "pass"]))
    report.samples(
        "storagectl pool list, whole process",
        wall(ROUNDS, storagectl(state, "pool", "list")),
        goal=150.0,
    )


def storagectl(root: Path, *arguments: str) -> list[str]:
    """Return the command line that runs storagectl with its state below *root*."""
    script = Path(sys.executable).with_name("storagectl")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "storaged.cli"]
    return [*program, "--root", str(root), *arguments]


def wall(count: int, command: list[str]) -> list[float]:
    """Return the times of whole processes, in milliseconds."""
    # with byte code, as an installed program has it
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True, env=environ)
    run()
    return repeat(count, run)
