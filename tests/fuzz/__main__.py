"""``python -m tests.fuzz``: fuzz the readers of images. See docs/security.md.

With the package atheris the fuzzer follows the code's branches; without it, it follows what becomes
of the images. Crashers are written to tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.fuzz.loop import CORPUS, file_name, fuzz, run_one
from tests.fuzz.mutator import MAX_LENGTH, Mutator

if TYPE_CHECKING:
    from tests.fuzz.targets import Target


def main() -> int:
    """Run as the command line says; return 1 if a crasher was found."""
    arguments = _parser().parse_args()
    atheris = None if arguments.own else _installed()
    chosen = _targets(atheris)
    if arguments.target:
        chosen = {name: chosen[name] for name in arguments.target}
    if arguments.images:
        return _repeat(chosen, arguments.images)
    seconds, failed = arguments.seconds / len(chosen), 0
    for name, target in chosen.items():
        if atheris is None:
            failed |= _own(name, target, seconds, arguments.seed)
        else:
            failed |= _guided(atheris, name, target, seconds, arguments.seed)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="in all; 600 if not given")
    parser.add_argument("--target", action="append", help="one of them, in place of all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="to repeat a run")
    parser.add_argument("--own", action="store_true", help="do without atheris")
    parser.add_argument("images", nargs="*", type=Path, help="run these instead of new ones")
    return parser


def _installed() -> Any:
    """Return atheris, None if it is not installed."""
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def _targets(atheris: Any) -> dict[str, Target]:
    """Load the targets, and all that they call in such a way that atheris sees its branches."""
    include = ["storaged.formats"]
    with nullcontext() if atheris is None else atheris.instrument_imports(include=include):
        formats = importlib.import_module("storaged.formats")
        for module in pkgutil.iter_modules(formats.__path__):
            importlib.import_module(f"storaged.formats.{module.name}")
        from tests.fuzz.targets import targets
    return targets()


def _repeat(chosen: dict[str, Target], images: list[Path]) -> int:
    failed = 0
    for name, target in chosen.items():
        for path in images:
            start = time.perf_counter()
            try:
                word = run_one(target, path.read_bytes())
            except Exception:
                traceback.print_exc()
                word, failed = "CRASH", 1
            print(f"{name} {path.name}: {word} ({time.perf_counter() - start:.3f} s)")
    return failed


def _own(name: str, target: Target, seconds: float, seed: int) -> int:
    end = time.monotonic() + seconds
    outcome = fuzz(
        target,
        seed=seed,
        more=lambda _: time.monotonic() < end,
        found=lambda image: _keep(name, image),
    )
    print(
        f"{name}: {outcome.images} images, {outcome.kept} of them new, "
        f"{len(outcome.crashers)} crashers (seed {seed})",
        flush=True,
    )
    for image, err in outcome.crashers:
        print(f"  {CORPUS.name}/{file_name(name, image)}")
        traceback.print_exception(err, file=sys.stdout)
    return min(len(outcome.crashers), 1)


def _keep(name: str, image: bytes) -> None:
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / file_name(name, image)).write_bytes(image)


def _guided(atheris: Any, name: str, target: Target, seconds: float, seed: int) -> int:
    """Run atheris in a child: it ends its process."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return min(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), 1)
    images = list(target.seeds())
    mutator = Mutator(Random(seed), images)

    def damage(data: bytes, limit: int, number: int) -> bytes:
        if number % 2:
            return bytes(atheris.Mutate(data, limit))
        return mutator.mutate(data)[:limit]

    def run(data: bytes) -> None:
        try:
            run_one(target, data)
        except Exception:
            _keep(name, data)
            raise

    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            (Path(folder) / str(number)).write_bytes(image)
        limits = (f"-max_total_time={int(seconds)}", f"-max_len={MAX_LENGTH}", "-timeout=20")
        options = (f"-seed={seed % 2**32}", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/")
        atheris.Setup([name, *limits, *options, folder], run, custom_mutator=damage)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
