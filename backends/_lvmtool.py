"""Running lvm: one place for its locks, its output and what its refusals mean.

LVM waits for the locks of other processes without end; here it is told not to, and is asked again
until a bound, so that a cancel ends the waiting and the error can name who is in the way.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from storaged import tool
from storaged.errors import (
    CommandFailed,
    InternalError,
    MissingProgram,
    NoSpace,
    OperationUnsupported,
    StorageError,
    Timeout,
    VolumeBusy,
)
from storaged.job import Job

#: How long a question and a change may take, in seconds.
ASKING: Final = 60.0
CHANGING: Final = 300.0
#: How long a lock of another process is waited for, in seconds.
LOCK_PATIENCE: Final = 30.0
#: The longest pause between two attempts, in seconds.
_PAUSE: Final = 0.5
#: Its exit status where it could not do all.
_SOME_FAILED: Final = 5
#: How much of output that makes no sense is shown, in bytes.
_SHOWN: Final = 80

#: What of our environment LVM needs: where its configuration is, and not to speak of descriptors.
_PASSING: Final = ("LVM_SYSTEM_DIR", "LVM_SUPPRESS_FD_WARNINGS")
_NO_WAITING: Final = ("--config", "global/wait_for_locks=0")
_LOCKED: Final = re.compile(
    r"^\s*(/.*): flock failed: Resource temporarily unavailable$", re.MULTILINE
)
#: Lines of its standard error that say nothing of why it failed.
_NOISE: Final = re.compile(r"WARNING|File descriptor|Run `|Cannot process")

_FULL: Final = re.compile(r"insufficient (free space|suitable)|Insufficient (free|suitable)")
_IN_USE: Final = re.compile(
    r"in use[.:]|is used by another device|has open count|Can't open .* exclusively"
)
#: What checks and repairs the metadata of thin pools is not a part of LVM.
_NO_PROGRAM: Final = re.compile(r"(?:^|\s|/)(thin_\w+): execvp failed: No such file")
_NO_SNAPSHOT: Final = re.compile(r"Snapshots of snapshots|Snapshots of an? .*not supported", re.I)


def ask(words: Sequence[str], job: Job[Any] | None = None) -> tuple[dict[str, Any], tool.Output]:
    """Ask LVM for a report and return its sections by name, with rows of text, and what it printed.

    Where one of several groups or devices is broken, it fails and tells of the others nonetheless.

    :param words: the command and its arguments, such as ``("pvs", "-o", "pv_name")``.
    :raise CommandFailed: it refused.
    :raise Timeout: another process held its lock for too long.
    :raise InternalError: what it printed is no report.
    """
    how = ("--reportformat", "json", "--units", "b", "--nosuffix")
    output = _run((words[0], *how, *words[1:]), job, timeout=ASKING, changes=False)
    try:
        sections = _sections(output)
    except InternalError:
        if output.status:
            raise output.failure() from None
        raise
    if output.status not in (0, _SOME_FAILED) or (output.status and not any(sections.values())):
        raise output.failure()
    return sections, output


def change(
    words: Sequence[str],
    job: Job[Any] | None = None,
    *,
    timeout: float = CHANGING,
    sure: bool = True,
) -> None:
    """Have LVM change something.

    :param words: the command and its arguments.
    :param sure: answer its questions with yes, not with no.
    :raise NoSpace: the group has too little left.
    :raise VolumeBusy: a volume is mounted, or open otherwise.
    :raise OperationUnsupported: a snapshot where there can be none.
    :raise CommandFailed: it refused for another reason.
    :raise Timeout: another process held its lock for too long.
    """
    output = _run((*words, *(("--yes",) if sure else ())), job, timeout=timeout, changes=True)
    if output.status:
        raise _meaning(output.failure())


def remove(group: str, name: str, uuid: str, job: Job[Any] | None = None) -> None:
    """Remove a volume, and what hangs on it; see `change`.

    One that has taken its name by now, and is another, stays.
    """
    change(("lvremove", "-f", f"{group}/{name}", "--select", f"lv_uuid={uuid}"), job)


def reason(stderr: str) -> str:
    """Return the line of LVM's that tells best why it failed."""
    lines = [line.strip() for line in stderr.splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    return (telling or lines or ["it did not say why"])[0]


def _meaning(err: CommandFailed) -> StorageError:
    why = reason(err.stderr)
    if _FULL.search(err.stderr):
        return NoSpace(f"Not enough space left in storage pool: {why}")
    if _NO_SNAPSHOT.search(err.stderr):
        return OperationUnsupported(
            why,
            advice="Only volumes of a thin pool have snapshots of snapshots: create the volume"
            " with the thin pool as its backing volume.",
        )
    if _IN_USE.search(err.stderr):
        return VolumeBusy(why)
    if (missing := _NO_PROGRAM.search(err.stderr)) is not None:
        return MissingProgram(
            f"{missing[1]} is not installed: {why}",
            advice="On Debian: apt-get install thin-provisioning-tools.",
        )
    return err


def _run(
    words: Sequence[str], job: Job[Any] | None, *, timeout: float, changes: bool
) -> tool.Output:
    argv = ("lvm", words[0], *_NO_WAITING, *words[1:])
    deadline = time.monotonic() + LOCK_PATIENCE
    pause = 0.05
    while True:
        output = tool.run(
            argv, timeout=timeout, job=job, accept=(), changes=changes, passing=_PASSING
        )
        held = _LOCKED.search(output.stderr) if output.status else None
        if held is None:
            return output
        if time.monotonic() >= deadline:
            raise _locked(held[1])
        if job is not None:
            job.checkpoint()
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE)


def _locked(path: str) -> Timeout:
    """Return the error for a lock that others held for too long."""
    holders = _holders(path)
    named = ", ".join(f"{name} (process {pid})" for pid, name in holders) or "another process"
    return Timeout(
        f"LVM's lock '{path}' is held by {named} for more than {LOCK_PATIENCE:g} s",
        advice=f"See what it does: ps -fp {holders[0][0]}" if holders else None,
    )


def _holders(path: str) -> list[tuple[int, str]]:
    """Return the processes that have a lock on a file, with the names of their programs."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        status = Path(path).stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == device and int(fields[4]) > 0:
                name = Path(f"/proc/{int(fields[4])}/comm").read_text(errors="replace")
                found.append((int(fields[4]), name.strip()))
    return found


def _sections(output: tool.Output) -> dict[str, Any]:
    """Return the sections of a report; those of several groups are put together."""
    sections: dict[str, Any] = {}
    try:
        for part in json.loads(output.text)["report"]:
            for name, rows in part.items():
                sections.setdefault(name, []).extend(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        shown = ascii(output.stdout[:_SHOWN])
        raise InternalError(
            f"'{' '.join(output.argv[:2])}' printed what is no report: {shown}",
            advice="Is this the lvm of package lvm2, version 2.03 or later?",
        ) from err
    return sections
