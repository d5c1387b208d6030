"""As whom the files of a target are reached: as we are, or as the user whom they belong to.

On a shared file system the server decides what root may do. Where it refuses, a `Deputy` is asked:
the owner of the file, or of the directory. Elsewhere, and for who is not root, a refusal stays one.
Nothing here costs anything until something was refused.

Source: libvirt's behaviour, and its list of shared file systems.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from storaged import mounts
from storaged.backends._record import NAME_ONLY
from storaged.deputy import Deputies, Deputy
from storaged.errors import StorageError
from storaged.formats import syscalls
from storaged.model import Permissions

M = TypeVar("M")

#: Magic numbers of shared file systems, from statfs(2).
_SHARED = frozenset(
    {
        0x6969,  # NFS
        0x01161970,  # GFS2
        0x7461636F,  # OCFS2
        0x6B414653,  # AFS
        0x517B,  # SMB
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2
        0x00C36400,  # CEPH
        0x47504653,  # GPFS
        0x61636673,  # ACFS
        0x19830326,  # BeeGFS
    }
)
_FUSE = 0x65735546
_SHARED_FUSE = frozenset({"fuse.glusterfs", "fuse.quobyte"})


class Entries:
    """Changes to the entries of an open directory, made as we are.

    :raise OSError: the kernel refused.
    """

    def create(self, directory: int, name: str, flags: int, mode: int) -> int:
        """Open a new file; the caller closes it."""
        return os.open(name, flags, mode, dir_fd=directory)

    def mkdir(self, directory: int, name: str, mode: int) -> None:
        """Make a directory."""
        os.mkdir(name, mode, dir_fd=directory)

    def unlink(self, directory: int, name: str) -> None:
        """Remove an entry that is no directory."""
        os.unlink(name, dir_fd=directory)

    def rmdir(self, directory: int, name: str) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=directory)

    def link(self, directory: int, name: str, new: str) -> None:
        """Give an entry a second name; nothing is replaced."""
        os.link(name, new, src_dir_fd=directory, dst_dir_fd=directory)

    def rename(self, directory: int, name: str, new: str) -> None:
        """Rename an entry; what has the new name is replaced."""
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=directory)

    def rename_noreplace(self, directory: int, name: str, new: str) -> None:
        """Rename an entry; nothing is replaced. EINVAL where that cannot be promised."""
        syscalls.rename_noreplace(directory, name, new)

    def chown(self, fd: int, owner: int, group: int) -> None:
        """Set the owner and the group of an open file; -1 leaves one as it is."""
        os.fchown(fd, owner, group)

    def chmod(self, fd: int, mode: int) -> None:
        """Set the mode of an open file."""
        os.fchmod(fd, mode)


#: As we are.
OWN = Entries()


class _DeputyEntries(Entries):
    """Changes made by another user."""

    def __init__(self, deputy: Deputy) -> None:
        self._deputy = deputy

    def create(self, directory: int, name: str, flags: int, mode: int) -> int:
        return self._deputy.open(directory, name, flags, mode)

    def mkdir(self, directory: int, name: str, mode: int) -> None:
        self._deputy.mkdir(directory, name, mode)

    def unlink(self, directory: int, name: str) -> None:
        self._deputy.unlink(directory, name)

    def rmdir(self, directory: int, name: str) -> None:
        self._deputy.rmdir(directory, name)

    def link(self, directory: int, name: str, new: str) -> None:
        self._deputy.link(directory, name, new)

    def rename(self, directory: int, name: str, new: str) -> None:
        self._deputy.rename(directory, name, new)

    def rename_noreplace(self, directory: int, name: str, new: str) -> None:
        self._deputy.rename_noreplace(directory, name, new)

    def chown(self, fd: int, owner: int, group: int) -> None:
        self._deputy.chown(fd, owner, group)

    def chmod(self, fd: int, mode: int) -> None:
        self._deputy.chmod(fd, mode)


class Rights:
    """As whom one target's files are reached.

    :param session: an ordinary user's engine: nobody else's rights are to be had.
    """

    def __init__(self, *, session: bool = False) -> None:
        self._deputies = None if session or os.geteuid() != 0 else Deputies()

    def close(self) -> None:
        """End all children; they are started anew when they are needed."""
        if self._deputies is not None:
            self._deputies.close()

    def open_refused(self, refusal: PermissionError, directory: int, name: str, flags: int) -> int:
        """Open an entry that we were refused, as its owner; no link is followed.

        :param refusal: raised again where nobody else may help.
        :raise OSError: the owner was refused too.
        """
        found = self.find_refused(refusal, directory, name)
        try:
            return self.reopen_refused(refusal, found, flags)
        finally:
            os.close(found)

    def reopen_refused(self, refusal: PermissionError, found: int, flags: int) -> int:
        """As `open_refused`, for a file or a directory that a descriptor stands for already."""
        status = os.fstat(found)
        deputies = self._helpers(refusal, found)
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise refusal
        return deputies.of(status.st_uid, status.st_gid).reopen(found, flags)

    def find_refused(self, refusal: PermissionError, directory: int, name: str) -> int:
        """Return a descriptor of `NAME_ONLY` of an entry, found by whoever may search here.

        :raise OSError: nobody who may help can see it.
        """
        deputies = self._helpers(refusal, directory)
        try:
            return os.open(name, NAME_ONLY | os.O_NOFOLLOW, dir_fd=directory)
        except PermissionError:
            owner = os.fstat(directory)
            found = deputies.of(owner.st_uid, owner.st_gid)
            return found.open(directory, name, NAME_ONLY | os.O_NOFOLLOW)

    def stat_refused(self, refusal: PermissionError, directory: int, name: str) -> os.stat_result:
        """Return the status of an entry, also of a link, in a directory that we may not search."""
        found = self.find_refused(refusal, directory, name)
        try:
            return os.fstat(found)
        finally:
            os.close(found)

    def makers(self, directory: int, permissions: Permissions) -> Iterator[Entries]:
        """Yield who may make an entry, the best first; the next is for when one was refused.

        What is to belong to a user is made by him on a shared file system. What is to belong to
        nobody special is made by us, and else by the directory's owner.
        """
        owner, group = permissions.owner, permissions.group
        deputies = self._deputies
        wanted = owner not in (None, 0)
        if wanted and owner is not None and deputies is not None and is_shared(directory):
            gid = _group_of(owner, directory) if group is None else group
            yield _DeputyEntries(deputies.of(owner, gid))
        yield OWN
        if not wanted and deputies is not None and is_shared(directory):
            status = os.fstat(directory)
            if status.st_uid:
                yield _DeputyEntries(deputies.of(status.st_uid, status.st_gid))

    def unlink(self, directory: int, name: str) -> None:
        """Remove an entry that is no directory: as we are, as its owner, as the directory's.

        :raise OSError: nobody may.
        """
        self._remove(directory, name, lambda entries: entries.unlink(directory, name))

    def rmdir(self, directory: int, name: str) -> None:
        """Remove an empty directory, in the same way."""
        self._remove(directory, name, lambda entries: entries.rmdir(directory, name))

    def change(self, fd: int, change: Callable[[Entries], None]) -> None:
        """Change an open file or directory: as we are, or as its owner.

        :raise OSError: neither may.
        """
        try:
            change(OWN)
        except PermissionError as refusal:
            deputies, owner = self._helpers(refusal, fd), os.fstat(fd)
            change(_DeputyEntries(deputies.of(owner.st_uid, owner.st_gid)))

    def _remove(self, directory: int, name: str, remove: Callable[[Entries], None]) -> None:
        try:
            remove(OWN)
        except PermissionError as refusal:
            deputies = self._helpers(refusal, directory)
            entry, folder = self.stat_refused(refusal, directory, name), os.fstat(directory)
            for status in (entry, folder):
                try:
                    remove(_DeputyEntries(deputies.of(status.st_uid, status.st_gid)))
                except PermissionError:
                    continue
                return
            raise

    def _helpers(self, refusal: PermissionError, fd: int) -> Deputies:
        if self._deputies is None or not is_shared(fd):
            raise refusal
        return self._deputies


def made_by(makers: Iterable[Entries], make: Callable[[Entries], M]) -> tuple[M, Entries]:
    """Have the first of *makers* who may do it make something; return it, and who that was.

    :raise OSError: nobody may, or it failed for another reason.
    """
    refusal: PermissionError | None = None
    for entries in makers:
        try:
            return make(entries), entries
        except PermissionError as err:
            refusal = refusal or err
    raise refusal or PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def is_shared(fd: int) -> bool:
    """Tell whether an open file lies on a file system that several hosts may use at a time."""
    kind = syscalls.file_system(fd).type & 0xFFFFFFFF
    if kind != _FUSE:
        return kind in _SHARED
    try:
        return mounts.mount_of(fd).type in _SHARED_FUSE
    except StorageError:
        return False


def _group_of(owner: int, directory: int) -> int:
    """Return the group that a new file of a user gets: his own, as the password file says."""
    import pwd

    try:
        return pwd.getpwuid(owner).pw_gid
    except KeyError:
        return os.fstat(directory).st_gid
