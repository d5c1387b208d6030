"""Which tests run in the guest, in which batches, and the shell script that runs them there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: A batch may take so many seconds, and so many more a test, and at most so many.
_LIMIT = (120, 60, 900)
#: After so many seconds in one test all stacks are shown and the batch ends.
_SILENCE = 240
#: Options of pytest after which the next word is a value, whatever it looks like.
_WITH_VALUE = frozenset({"-k", "-m", "-o", "-p", "-c", "-W", "-r", "-n", "--rootdir", "--ignore"})


@dataclass(frozen=True, slots=True)
class Batch:
    """The tests of one file: they run in one process."""

    name: str
    tests: tuple[str, ...]

    @property
    def limit(self) -> int:
        """How long it may take, in seconds."""
        start, each, most = _LIMIT
        return min(start + each * len(self.tests), most)


def split(tests: Sequence[str]) -> list[Batch]:
    """Return the batches of these tests, by file: those that may take longest first."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        by_file.setdefault(test.partition("::")[0], []).append(test)
    batches = []
    for number, (file, ids) in enumerate(by_file.items(), start=1):
        stem = file.removeprefix("tests/").removesuffix(".py").replace("/", "-")
        batches.append(Batch(f"{number:02}-{stem}", tuple(ids)))
    return sorted(batches, key=lambda batch: -len(batch.tests))


def without_paths(arguments: Sequence[str], root: Path) -> list[str]:
    """Return what of pytest's arguments says how, not which: the options."""
    kept: list[str] = []
    for word in arguments:
        is_value = bool(kept) and kept[-1] in _WITH_VALUE
        is_path = not word.startswith("-") and (root / word.partition("::")[0]).exists()
        if is_value or not is_path:
            kept.append(word)
    return kept


def stops_early(arguments: Sequence[str]) -> bool:
    """Tell whether pytest's arguments ask to stop at the first failure."""
    return any(word in {"-x", "--exitfirst", "--maxfail=1"} for word in arguments)


def collect(
    python: Path, root: Path, arguments: Sequence[str], answer: Path, *, lacking: bool = False
) -> list[str] | int:
    """Ask pytest on this machine which tests to run; as a by-product all is compiled.

    :param lacking: only those that this machine's kernel, or programs, cannot run.
    :return: the ids, or the exit status of pytest if it could not tell (it has told why).
    """
    options = ("-q", "-q", "--collect-only", "-p", "tests.vm.collecting", "-m", "kernel")
    environ = {**os.environ, "VM_COLLECT": str(answer), "VM_LACKING": "1" if lacking else ""}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(python), "-m", "pytest", *options, *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="")
        return done.returncode
    # what only runs in the guest must not be compiled there, on every boot
    subprocess.run(
        [python, "-m", "compileall", "-q", "storaged", "backends", "formats", "tests"],
        cwd=root,
        env=environ,
        check=False,
    )
    ids: list[str] = json.loads(answer.read_text(encoding="utf-8"))
    return ids


def write_job(
    batches: Sequence[Batch],
    out: Path,
    *,
    python: Path,
    root: Path,
    arguments: Sequence[str] = (),
    coverage: bool = False,
) -> None:
    """Write the script that guest.sh runs, and the lists of tests that it names."""
    lines = [f"cd {shlex.quote(str(root))}"]
    options = without_paths(arguments, root)
    stop = " || { touch /out/stop; return; }" if stops_early(arguments) else ""
    for batch in batches:
        (out / f"{batch.name}.tests").write_text("\n".join(batch.tests) + "\n", encoding="utf-8")
        words = ["env", f"COVERAGE_FILE=/out/.coverage.{batch.name}", str(python), "-m"]
        words += ["coverage", "run", "-m", "pytest"] if coverage else ["pytest"]
        words += ["-v", "-p", "no:cacheprovider", "-p", "no:xdist"]
        words += ["-o", f"faulthandler_timeout={_SILENCE}", f"--basetemp=/scratch/{batch.name}"]
        words += [f"--junitxml=/out/{batch.name}.xml", "-o", f"junit_suite_name={batch.name}"]
        words += [*options, f"@/out/{batch.name}.tests"]
        lines.append(f"batch {batch.name} {batch.limit} {shlex.join(words)}{stop}")
    (out / "job").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_command(command: Sequence[str], out: Path, *, root: Path, limit: int) -> None:
    """Write the script that runs one command, for those who want to look round in the guest."""
    lines = (f"cd {shlex.quote(str(root))}", f"batch command {limit} {shlex.join(command)}")
    (out / "job").write_text("\n".join(lines) + "\n", encoding="utf-8")
