"""New files that are seen whole or not at all.

The data go into a file without a name (O_TMPFILE), which the kernel forgets if we die. It gets its
name by a link that replaces nothing. Where the file system has no such files (NFS), the data go
into ``.storaged-HOST-PID-JOB.part``, under a lock, and `remove_leftovers` clears away those that a
dead process of the same host left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from storaged.backends._rights import OWN, Entries, Rights, made_by
from storaged.errors import NameTaken, system_errors
from storaged.formats import syscalls

#: The names of files under construction, of every host.
PART_NAME = re.compile(r"\.storaged-.+-\d+-\d+\.part")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_FLOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
#: How kernels and file systems say that they cannot make or link a file without a name.
_NO_UNNAMED = frozenset(
    {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.EPERM, errno.EACCES,
     errno.EXDEV, errno.ENOSYS, errno.EMLINK}
)  # fmt: skip
#: How they say that they cannot rename without replacing.
_NO_NOREPLACE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def part_name(host: str, job: int) -> str:
    """Return the name that a file under construction has if it must have one.

    Ten digits of chance follow the job's number: in a container every engine has the same process
    number, and counts its jobs from 1, and must not run into what a dead one left.
    """
    chance = int.from_bytes(os.urandom(4), "big")
    return f".storaged-{host}-{os.getpid()}-{job}{chance:010}.part"


@contextmanager
def new_file(
    directory: int, part: str, *, unnamed: bool, makers: Iterable[Entries] = (OWN,)
) -> Iterator[NewFile]:
    """Open a new, empty file of mode 0600; it is gone afterwards unless `NewFile.commit` ran.

    :param directory: an open directory.
    :param part: `part_name`.
    :param unnamed: what `can_be_unnamed` said of the directory.
    :param makers: who may make it if it needs a name, the best first.
    :raise OSError: it cannot be made.
    """
    if unnamed:
        fd, entries = os.open(".", _UNNAMED, 0o600, dir_fd=directory), OWN
    else:
        fd, entries = made_by(makers, lambda each: each.create(directory, part, _CREATE, 0o600))
    file = NewFile(fd, directory, None if unnamed else part, entries)
    try:
        if not unnamed:
            try_lock(fd)
        yield file
    finally:
        file.discard()
        os.close(fd)


class NewFile:
    """A file on its way to its name.

    :param fd: open for reading and writing; closed by `new_file`.
    :param part: the name it has meanwhile, None if it has none.
    :param entries: who made it, and changes its names.
    """

    def __init__(self, fd: int, directory: int, part: str | None, entries: Entries = OWN) -> None:
        self.fd = fd
        self.entries = entries
        #: what the kernel said of the file once it had its name; None before, or if it did not
        self.status: os.stat_result | None = None
        self._directory = directory
        self._part = part

    def commit(self, name: str) -> None:
        """Give the file its name; nothing is replaced.

        :raise FileExistsError: the name is taken.
        """
        if self._part is None:
            self._retried(lambda: syscalls.link_unnamed(self.fd, self._directory, name))
        else:
            self._rename(self._part, name)
            self._part = None
        with suppress(OSError):  # it is there, whatever a file server says now
            self.status = os.fstat(self.fd)

    def replace(self, name: str, part: str) -> None:
        """Give the file the name of another in one step.

        :param part: `part_name`: a file without a name gets it for a moment, as no link replaces.
        :raise OSError: the kernel refused; the other file is as it was.
        """
        if self._part is None:
            self._retried(lambda: syscalls.link_unnamed(self.fd, self._directory, part))
            self._part = part
        self.entries.rename(self._directory, self._part, name)
        self._part = None

    def _rename(self, part: str, name: str) -> None:
        try:
            self.entries.rename_noreplace(self._directory, part, name)
        except OSError as err:
            if err.errno not in _NO_NOREPLACE:
                raise
            at = self._directory
            self._retried(lambda: self.entries.link(at, part, name))
            self.entries.unlink(at, part)

    def discard(self) -> None:
        """Remove what has no final name yet."""
        if self._part is not None:
            with suppress(OSError):
                self.entries.unlink(self._directory, self._part)
            self._part = None

    def _retried(self, link: Callable[[], None]) -> None:
        """Make a link; over NFS the answer to the first try may be lost, and the second fails."""
        before = 0 if self._part is None else os.fstat(self.fd).st_nlink
        try:
            link()
        except FileExistsError:
            if os.fstat(self.fd).st_nlink <= before:
                raise


def can_be_unnamed(directory: int, part: str) -> bool:
    """Tell whether files here can be made without a name and get one later, by doing it.

    :raise OSError: for a reason that would stop every new file.
    """
    try:
        fd = os.open(".", _UNNAMED, 0o600, dir_fd=directory)
    except OSError as err:
        if err.errno in _NO_UNNAMED:
            return False
        raise
    try:
        syscalls.link_unnamed(fd, directory, part)
        os.unlink(part, dir_fd=directory)
    except OSError as err:
        if err.errno in _NO_UNNAMED:
            return False
        raise
    finally:
        os.close(fd)
    return True


def remove_leftovers(directory: int, host: str, rights: Rights | None = None) -> list[str]:
    """Remove the parts that dead processes of *host* left here; return their names.

    Other hosts and other engines may work in the same directory, and a file that somebody works on
    is locked: neither is touched.

    :param rights: as whom they are removed if we are refused.
    :raise OSError: the directory cannot be read.
    """
    own = re.compile(rf"\.storaged-{re.escape(host)}-\d+-\d+\.part")
    removed = []
    for name in os.listdir(directory):
        if own.fullmatch(name):
            with suppress(OSError):
                fd = _open_leftover(directory, name, rights)
                try:
                    if try_lock(fd):
                        (rights or OWN).unlink(directory, name)
                        removed.append(name)
                finally:
                    os.close(fd)
    return removed


def _open_leftover(directory: int, name: str, rights: Rights | None) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError as refusal:
        if rights is None:
            raise
        return rights.open_refused(refusal, directory, name, flags)


def try_lock(fd: int) -> bool:
    """Lock the first byte of a file; return whether it was possible.

    :raise OSError: for a reason other than somebody's lock or a file system without locks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK)
    except OSError as err:
        if err.errno in _NO_LOCKS | {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


@contextmanager
def taken_names(path: str, name: str) -> Iterator[None]:
    """Translate what goes wrong while the file at *path* is made.

    :raise NameTaken: something stands there already.
    :raise SystemFailure: everything else that the kernel says.
    """
    with system_errors(f"Failed to create file '{path}'"):
        try:
            yield
        except FileExistsError as err:
            raise NameTaken(
                f"volume target path '{path}' already exists",
                advice=f"The pool does not know it as '{name}' yet if it was made by others: "
                "refresh the pool, or choose another name.",
            ) from err
