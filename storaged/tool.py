"""Tools: programs of others that are run to their end, within a bound.

A tool that changes storage (mkfs, lvcreate, iscsiadm) is not ended half-way by a cancel: it gets a
while to come to its end. What it prints goes to memory of its own, not into a pipe, so that it also
comes to its end when we are killed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from storaged import command
from storaged.errors import Cancelled, CommandFailed, CommandTimeout, MissingProgram, system_errors

if TYPE_CHECKING:
    from storaged.job import Job

#: How often a cancel is looked for, in seconds.
_SLICE: Final = 0.1
#: How long a tool that changes storage may go on after a cancel, in seconds.
_GRACE: Final = 10.0
#: How long a tool gets to end when it is told to, in seconds.
_PATIENCE: Final = 2.0
#: How much a tool may print, in bytes: it is kept in memory.
_ROOM: Final = 64 << 20

#: The Debian package of each program that some pool type needs.
PACKAGES: Final = MappingProxyType(
    {
        "blkid": "util-linux",
        "gluster": "glusterfs-client",
        "iscsiadm": "open-iscsi",
        "iscsid": "open-iscsi",
        "lvm": "lvm2",
        "mkfs.btrfs": "btrfs-progs",
        "mkfs.ext2": "e2fsprogs",
        "mkfs.ext3": "e2fsprogs",
        "mkfs.ext4": "e2fsprogs",
        "mkfs.vfat": "dosfstools",
        "mkfs.xfs": "xfsprogs",
        "mount": "mount",
        "mount.cifs": "cifs-utils",
        "mount.glusterfs": "glusterfs-client",
        "mount.nfs": "nfs-common",
        "parted": "parted",
        "scsi_id": "udev",
        "showmount": "nfs-common",
        "udevadm": "udev",
        "umount": "mount",
        "wipefs": "util-linux",
    }
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a tool that has ended printed.

    :param status: its exit status; negative for a signal.
    :param stderr: the end of its standard error, in printable text.
    """

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Its standard output as text; what is not UTF-8 is kept as surrogates."""
        return self.stdout.decode(errors="surrogateescape")

    def failure(self, advice: str | None = None) -> CommandFailed:
        """Return the error for a status, or an output, that the caller does not accept."""
        return CommandFailed(self.argv, self.status, self.stderr, advice=advice)


def find(name: str) -> str:
    """Return the path of a tool.

    :raise MissingProgram: it is not installed; the advice names the package.
    """
    found = command.find_program(name, os.environ)
    if found is None:
        package = PACKAGES.get(name)
        raise MissingProgram(
            f"{name} is not installed",
            advice=None if package is None else f"On Debian: apt-get install {package}.",
        )
    return found


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    job: Job[Any] | None = None,
    accept: Collection[int] = (0,),
    changes: bool = False,
    stdin: bytes = b"",
    user: command.User | None = None,
    keep: Sequence[int] = (),
    passing: Sequence[str] = (),
) -> Output:
    """Run a tool and wait for its end.

    :param argv: the first is the name of the program; none of them may be a secret.
    :param timeout: how long it may take, in seconds; then it is killed, unless it *changes*.
    :param job: a cancel of it ends the tool.
    :param accept: the exit statuses that are no failure; empty: all.
    :param changes: it changes storage: after a cancel it gets a while to come to its end, and if
        it does, that is its outcome. What takes longer is left to itself.
    :param stdin: what it reads.
    :param keep: descriptors that it gets under their numbers.
    :param passing: names of our environment that it gets beside those that every program does.
    :raise MissingProgram: it is not installed.
    :raise CommandFailed: it ended with another status, or printed without end.
    :raise CommandTimeout: it took too long. One that hangs in the kernel is left behind.
    :raise Cancelled: *job* was cancelled.
    """
    words = (find(argv[0]), *argv[1:])
    with ExitStack() as opened:
        printed, given = _files(argv[0], stdin, opened)
        environ = command.environment(os.environ, *passing)
        child = command.start(words, environ, keep=keep, stdin=given, stdout=printed, user=user)
        try:
            status = _wait(child, words, timeout, job, changes=changes)
        except BaseException:
            _end(child, changes=changes)
            raise
        _end(child, changes=changes)
        # the offset is the tool's too: it is where it has come to
        stdout = os.pread(printed, os.lseek(printed, 0, os.SEEK_CUR), 0)
    if len(stdout) >= _ROOM:
        raise CommandFailed(words, status, f"it printed more than {_ROOM} bytes")
    output = Output(words, status, stdout, child.said())
    if accept and status not in accept:
        raise output.failure()
    return output


def _files(name: str, stdin: bytes, opened: ExitStack) -> tuple[int, int]:
    """Return memory for what a tool prints, and memory with what it reads."""
    with system_errors(f"Cannot run {name}"):
        printed = command.sealed_memory("stdout", _ROOM)
        opened.callback(os.close, printed)
        given = os.memfd_create("stdin", os.MFD_CLOEXEC)
        opened.callback(os.close, given)
        os.pwrite(given, stdin, 0)
    return printed, given


def _wait(
    child: command.Child,
    argv: tuple[str, ...],
    timeout: float,
    job: Job[Any] | None,
    *,
    changes: bool,
) -> int:
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        status = child.wait(min(_SLICE, max(left, 0)))
        if status is not None:
            return status
        if left <= 0:
            goes_on = f", and goes on as process {child.pid}" if changes else ""
            said = f"it took more than {timeout:g} s{goes_on}. {child.said()}".strip()
            raise CommandTimeout(argv, -9, said)
        try:
            if job is not None:
                job.checkpoint()
        except Cancelled:
            # what it has done is done: whoever waits for it is to know
            status = child.wait(min(_GRACE, max(left, 0))) if changes else None
            if status is None:
                raise
            return status


def _end(child: command.Child, *, changes: bool) -> None:
    """See to it that a program ends; one that hangs in the kernel is waited for by nobody else.

    A tool that changes storage is not killed: lvm may have suspended devices, and mkfs is half way.
    It goes on to its end.
    """
    if changes and child.wait(0) is None:
        _reap_later(child)
        return
    if child.wait(0) is None:
        child.terminate()
        if child.wait(_PATIENCE) is None:
            child.kill()
            if child.wait(_PATIENCE) is None:
                _reap_later(child)
                return
    child.close(patience=0)


def _reap_later(child: command.Child) -> None:
    name = f"storaged-reap-{child.pid}"
    threading.Thread(target=child.reap, name=name, daemon=True).start()
