"""One run of the guest from beginning to end, and what stays of it: a directory of results."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import batches, initrd, results
from tests.vm.cache import run_directory
from tests.vm.guest import Machine, pick_accelerator, run_machines
from tests.vm.kernel import prepared

#: The exit status for a guest that did not come to its end.
NO_ANSWER = 125
#: Nothing was selected, as pytest says it.
NO_TESTS = 5
#: What of the checkout the guest does not need, or reads where it is.
_NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".venv-*", ".*_cache", ".hypothesis", "build", "dist", "demo-root", "try")
)
#: Seconds that the guest gets to boot and to end, beyond what its work may take.
_BOOT = 90


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, and where.

    :param python: of the checkout's virtual environment.
    :param results: a directory for what comes back; what it held is replaced.
    :param limit: in seconds, for all.
    :param guests: how many may run side by side.
    :param lacking: only the tests that this machine's own kernel cannot run.
    """

    root: Path
    python: Path
    cache: Path
    results: Path
    limit: int
    guests: int = 1
    lacking: bool = False
    coverage: bool = False
    arguments: tuple[str, ...] = ()


def run_tests(request: Request) -> int:
    """Run the tests marked ``kernel`` in a guest; return 0 if all passed."""
    began = time.monotonic()
    with run_directory(request.cache) as place:
        tests = batches.collect(
            request.python,
            request.root,
            request.arguments,
            place / "ids",
            lacking=request.lacking,
        )
        if isinstance(tests, int):
            return tests
        if not tests:
            print("test-vm: no test is marked kernel and selected", file=sys.stderr)
            return NO_TESTS
        plan = batches.split(tests)
        guests = min(request.guests, len(plan))
        told = f"{len(tests)} tests in {len(plan)} batches, {guests} at a time"
        print(f"test-vm: {told}", flush=True)

        def write(out: Path) -> None:
            batches.write_job(
                plan,
                out,
                python=request.python,
                root=request.root,
                arguments=request.arguments,
                coverage=request.coverage,
            )

        with _booted(request, place, write, guests) as (out, answered):
            outcome = results.read(plan, out)
            results.merge(plan, out)
    print(*outcome.lines(), sep="\n")
    print(f"test-vm: {time.monotonic() - began:.0f} s in all, results in {request.results}")
    if not answered:
        return NO_ANSWER
    return 0 if outcome.good else 1


def run_command(request: Request) -> int:
    """Run one command in a guest; return its status."""
    with run_directory(request.cache) as place:

        def write(out: Path) -> None:
            batches.write_command(
                request.arguments, out, root=request.root, limit=request.limit - _BOOT
            )

        with _booted(request, place, write) as (out, answered):
            said = out / "command.status"
            answer = int(said.read_text().split()[0]) if said.exists() else NO_ANSWER
    return answer if answered else NO_ANSWER


@contextmanager
def _booted(
    request: Request, place: Path, write_job: Callable[[Path], None], guests: int = 1
) -> Iterator[tuple[Path, bool]]:
    """Boot guests for a job that they share; give what they left, and whether all told their end.

    At the end of the block that goes to the directory of results.
    """
    processors = max(1, (os.cpu_count() or 1) // guests)
    with ExitStack() as stack:
        ready = stack.enter_context(prepared(request.cache))
        machines = [
            Machine(ready.vmlinux, ready.layer, place, number, processors=processors)
            for number in range(guests)
        ]
        first = machines[0]
        first.out.mkdir()
        copy_checkout(request.root, first.tree)
        busybox = ready.layer / "usr/bin/busybox"
        first.initrd.write_bytes(initrd.build(ready.modules, busybox))
        accelerator = pick_accelerator(first, request.cache / "accel", os.environ)
        for machine in machines:
            machine.make_disks()
        write_job(first.out)
        try:
            ended = run_machines(machines, accelerator, request.limit)
            silent = [machine for machine in machines if not machine.status.exists()]
            for machine in silent:
                why = "ended without an answer" if ended else f"took more than {request.limit} s"
                told = f"test-vm: guest {machine.number} {why}; its kernel said at the end:"
                print(told, *_tail(machine.kernel_log), sep="\n", file=sys.stderr)
            yield first.out, not silent
        finally:
            clear(request.results)
            shutil.copytree(first.out, request.results)


def clear(results: Path) -> None:
    """Remove the results of an earlier run, and nothing else.

    :raise SystemExit: the directory holds something else.
    """
    if not results.exists():
        return
    if any(results.iterdir()) and not (results / "job").is_file():
        raise SystemExit(f"test-vm: '{results}' holds no results of an earlier run: left alone")
    shutil.rmtree(results)


def copy_checkout(root: Path, tree: Path) -> None:
    """Copy the checkout below *tree*, to its own path there: the guest lays it over the host's.

    So that who edits it meanwhile does not change what runs. Times are kept: byte code stays valid.
    """
    copy = tree / root.relative_to("/")
    copy.parent.mkdir(parents=True)
    for above in root.parents[:-1]:
        shutil.copystat(above, tree / above.relative_to("/"))
    shutil.copytree(root, copy, symlinks=True, ignore=_NOT_COPIED)


def _tail(file: Path, lines: int = 20) -> Sequence[str]:
    return file.read_text(errors="replace").splitlines()[-lines:] if file.exists() else ()
