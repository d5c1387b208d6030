"""QEMU's image locks: who has an image open, and keeping it out while we work on it.

QEMU takes byte-range locks (open file description locks, shared) on the image file itself: byte
``100 + i`` says that permission *i* is used, byte ``200 + i`` that it is not shared with others.
Whoever sees a lock on the byte that contradicts its own wish keeps away.

Source: observed of QEMU 7.2; its documentation calls it "image locking".
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from storaged.errors import VolumeBusy, system_errors

#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid
_FLOCK = struct.Struct("hhqqi4x")
_USED = 100
_UNSHARED = 200
#: The file system has no locks: QEMU goes on without them, and so do we.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_PROC = Path("/proc")
#: What the kernel calls the end of a lock that has none.
_END = 2**63


class Permission(IntEnum):
    """What a user of an image may do; the number selects the lock bytes."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


#: All bytes that QEMU locks.
_BYTES = tuple(start + permission for start in (_USED, _UNSHARED) for permission in Permission)
#: What one who changes an image needs, and what it does not let others do meanwhile.
_WRITER_NEEDS = (Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE)
_WRITER_REFUSES = (Permission.WRITE, Permission.RESIZE)
#: What one who reads an image as a whole needs, and what would tear what he reads.
_READER_NEEDS = (Permission.CONSISTENT_READ,)
_READER_REFUSES = (Permission.WRITE, Permission.RESIZE)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file open.

    :param command: its short name, at most 15 characters.
    :param guest: name of the virtual machine, None if its arguments do not tell.
    :param locking: whether it holds one of QEMU's locks on the file.
    """

    pid: int
    command: str
    writing: bool
    guest: str | None = None
    locking: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        who = f"{self.command} (pid {self.pid})"
        return f"virtual machine '{self.guest}', {who}" if self.guest else who


def is_free(fd: int, *, writing: bool = True, alone: bool = True) -> bool:
    """Tell whether nobody has the image open in a way that contradicts our use.

    :param fd: the image, open for reading at least.
    :param writing: False asks only whether somebody else writes.
    :param alone: False puts up with other writers that put up with us.
    """
    needs, refuses = _wishes(writing, alone)
    tested = [_UNSHARED + need for need in needs] + [_USED + refused for refused in refuses]
    return not any(_is_locked(fd, byte) for byte in tested)


def check(fd: int, volume: str, *, writing: bool = True, alone: bool = True) -> None:
    """Refuse if a virtual machine, or another program with QEMU's locks, has the image open.

    :param volume: its name, for the message.
    :raise VolumeBusy: the advice names the processes.
    """
    if not is_free(fd, writing=writing, alone=alone):
        raise busy(fd, volume)


@contextmanager
def hold(
    fd: int, volume: str, *, writing: bool = True, alone: bool = True, force: bool = False
) -> Iterator[None]:
    """Keep QEMU out while the image is written to, or keep its writers out while it is read.

    :param fd: the image, open for reading at least.
    :param writing: False lets others read as well.
    :param alone: False lets others write as well if they let us; QEMU never does.
    :param force: go on even if somebody has it open.
    :raise VolumeBusy: somebody has it open, and not *force*.
    :raise SystemFailure: the file system's locks do not work.
    """
    needs, refuses = _wishes(writing, alone)
    taken = [_USED + need for need in needs] + [_UNSHARED + refused for refused in refuses]
    # As in QEMU: show our own use first, then look at the others'; so two never both go on.
    try:
        with system_errors(f"cannot lock volume '{volume}'"):
            for byte in taken:
                _lock(fd, byte, fcntl.F_RDLCK)
            if not force:
                check(fd, volume, writing=writing, alone=alone)
        yield
    finally:
        for byte in taken:
            with suppress(OSError):  # the owner may have closed it, which unlocks as well
                _lock(fd, byte, fcntl.F_UNLCK)


def _wishes(writing: bool, alone: bool) -> tuple[tuple[Permission, ...], tuple[Permission, ...]]:
    """Return what a user of an image needs, and what it does not let others do meanwhile."""
    needs = _WRITER_NEEDS if writing else _READER_NEEDS
    refuses = _WRITER_REFUSES if writing else _READER_REFUSES
    return needs, refuses if alone else ()


def busy(fd: int, volume: str) -> VolumeBusy:
    """Return the error for an image that is in use, with its users in the advice."""
    status = os.fstat(fd)
    own = os.getpid()
    users = [user for user in holders(status.st_dev, status.st_ino) if user.pid != own]
    locking = [user for user in users if user.locking]
    guilty = locking or [user for user in users if user.writing] or users
    named = ", ".join(map(str, guilty)) or _unseen(status.st_ino)
    how = "for writing " if not guilty or any(user.writing for user in guilty) else ""
    return VolumeBusy(
        f"volume '{volume}' is still in use.",
        advice=f"It is open {how}by {named}. Stop that first, or work on a clone.",
    )


def _unseen(inode: int) -> str:
    """Say who holds a lock that no process we may look into holds."""
    pids = _locked_by(inode)
    if pids is None:
        return "a program of another host"
    known = ", ".join(f"pid {pid}" for pid in sorted(pids) if pid > 0)
    own = f"this process (pid {os.getpid()}) itself, or by one that cannot be seen from here"
    return known or own


def _locked_by(inode: int) -> set[int] | None:
    """Return whose locks the kernel lists on QEMU's bytes of a file; None if it lists none.

    Of an open file description's lock it does not tell whose it is: the number is -1 then. The
    device is not compared, because some file systems show another one there.
    """
    found = None
    with suppress(OSError):
        for line in (_PROC / "locks").read_text().splitlines():
            lock = _parse_lock(line)
            if lock is not None and lock[1] == inode:
                found = (found or set()) | {lock[0]}
    return found


def _parse_lock(line: str) -> tuple[int, int] | None:
    """Return process and inode of a line of /proc/locks if it is about bytes of QEMU's, else None.

    ``1: OFDLCK ADVISORY  READ -1 fe:00:2180011 100 101``; a waiting one has an arrow second.
    """
    words = line.split()
    try:
        pid, place, first, last = words[-4:]
        begin, end = int(first), _END if last == "EOF" else int(last)
        # flock's and leases are nothing to QEMU's, though they are listed as of all bytes
        ranged = not {"OFDLCK", "POSIX"}.isdisjoint(words) and "->" not in words
        if ranged and any(begin <= byte <= end for byte in _BYTES):
            return int(pid), int(place.rpartition(":")[2])
    except ValueError:
        pass
    return None


def holders(device: int, inode: int) -> tuple[Holder, ...]:
    """Return the processes that have a file open, by pid; those we may not look into are missing.

    :param device: ``st_dev`` of the file.
    :param inode: ``st_ino`` of the file.
    """
    return _users(lambda pid: _descriptors(pid, device, inode))


def device_users(rdev: int) -> tuple[Holder, ...]:
    """Return the processes that have a block device open, by pid, through whatever node of it.

    libvirt gives each machine a ``/dev`` of its own: other nodes, with other locks.
    """
    return _users(lambda pid: _device_descriptors(pid, rdev))


def _users(descriptors: Callable[[int], Iterator[tuple[int, bool]]]) -> tuple[Holder, ...]:
    found = []
    for pid in sorted(int(name) for name in os.listdir(_PROC) if name.isdigit()):  # noqa: PTH208
        with suppress(OSError):
            opened = list(descriptors(pid))
            if opened:
                writing = any(mode & os.O_ACCMODE != os.O_RDONLY for mode, _ in opened)
                locking = any(locks for _, locks in opened)
                command = (_PROC / f"{pid}/comm").read_text(errors="replace").strip()
                found.append(Holder(pid, command, writing, _guest(pid), locking))
    return tuple(found)


def _descriptors(pid: int, device: int, inode: int) -> Iterator[tuple[int, bool]]:
    """Yield of each descriptor of a process that is the file its open flags, and if it locks.

    fdinfo names the inode without asking the file system, which may be a dead server's; only what
    has the right number is then looked at.
    """
    for entry in (_PROC / f"{pid}/fdinfo").iterdir():
        with suppress(OSError):
            lines = entry.read_text().splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            if int(facts.get("ino", inode)) != inode:  # kernels before 5.14 do not tell
                continue
            status = (_PROC / f"{pid}/fd/{entry.name}").stat()
            if (status.st_dev, status.st_ino) == (device, inode):
                locks = (line for line in lines if line.startswith("lock:"))
                yield int(facts["flags"], 8), any(map(_parse_lock, locks))


def _device_descriptors(pid: int, rdev: int) -> Iterator[tuple[int, bool]]:
    """Yield of each descriptor of a process that is a device what `_descriptors` does.

    Only what lies below ``/dev`` is looked at: a file may be a dead server's.
    """
    for entry in (_PROC / f"{pid}/fd").iterdir():
        with suppress(OSError):
            if not str(entry.readlink()).startswith("/dev/"):
                continue
            status = entry.stat()
            if stat.S_ISBLK(status.st_mode) and status.st_rdev == rdev:
                lines = (_PROC / f"{pid}/fdinfo/{entry.name}").read_text().splitlines()
                facts = dict(line.split(":", 1) for line in lines if ":" in line)
                yield int(facts["flags"], 8), False


def _guest(pid: int) -> str | None:
    """Return the value of QEMU's ``-name`` argument, which is ``NAME`` or ``guest=NAME,...``."""
    with suppress(OSError, ValueError):
        argv = (_PROC / f"{pid}/cmdline").read_bytes().split(b"\0")
        value = argv[argv.index(b"-name") + 1].decode(errors="replace")
        first = value.replace(",,", "\0").split(",")[0].replace("\0", ",")
        return first.removeprefix("guest=") or None
    return None


def _is_locked(fd: int, byte: int) -> bool:
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    except OSError as err:
        if err.errno in _NO_LOCKS:
            return False
        raise
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _lock(fd: int, byte: int, kind: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except OSError as err:
        # EAGAIN: somebody holds it exclusively; `check` tells so.
        if err.errno not in _NO_LOCKS | {errno.EAGAIN, errno.EACCES}:
            raise
