"""Opening what a name leads to, if there is a link on the way only after a look at who made it.

Whoever can write to a directory could else turn us upon any file of the host. That holds for each
link that a path leads through, for those in what a link says too: root or we made it, or its maker
owns what it leads to.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from storaged.backends._record import IMAGE_KINDS, NAME_ONLY, OPEN_FLAGS, open_named, owner_name
from storaged.backends._rights import Rights
from storaged.errors import OperationUnsupported, SystemFailure
from storaged.formats import syscalls

_DIRECTORY = NAME_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: Links on the way of one path, as in the kernel.
_MAX_LINKS = 40


def open_entry(
    directory: int, name: str, flags: int, path: str, rights: Rights | None = None
) -> int:
    """Open an entry of a directory, or what it leads to if it is a link that may be followed.

    :param path: of the entry, for messages.
    :param rights: as whom it is opened if we are refused; None: as nobody else.
    :raise OSError: the kernel refused.
    :raise SystemFailure: it is another link.
    :raise OperationUnsupported: it is a link to something else than an image.
    """
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
    except PermissionError as refusal:
        if rights is None:
            raise
        return rights.open_refused(refusal, directory, name, flags)
    except OSError as err:
        if err.errno != errno.ELOOP:
            raise
    found = _Walk(path).find(directory, name)
    try:
        return _open_goal(found, flags, name, path, rights)
    finally:
        os.close(found)


def open_place(path: str, directory: int, rights: Rights | None = None) -> int:
    """Open for reading what a path leads to, without opening what is no image on the way.

    :param path: absolute, or from the open *directory* on.
    :raise OSError: the kernel refused; EISDIR or EINVAL if it is no regular file and no block
        device, which was not opened then.
    :raise SystemFailure: there is a link on the way that may not be followed.
    :raise OperationUnsupported: it is a link to something else than an image, or the kernel's.
    """
    parent = open_parent(path, directory)
    try:
        return open_image(parent, os.path.basename(path), path, rights)  # noqa: PTH119
    finally:
        os.close(parent)


def open_parent(path: str, directory: int) -> int:
    """Open the directory that a path leads through last, for its name alone.

    :param path: absolute, or from the open *directory* on.
    :raise OSError: the kernel refused.
    :raise SystemFailure: there is a link on the way that may not be followed.
    """
    folder = os.path.dirname(path)  # noqa: PTH120
    return _Walk(path).find(directory, f"{folder}/" if folder else ".")


def open_image(directory: int, name: str, path: str, rights: Rights | None = None) -> int:
    """As `open_place`, for an entry of an open directory; *path* is for messages."""
    walk = _Walk(path)
    try:
        found = walk.find(directory, name)
    except PermissionError as refusal:
        if rights is None:
            raise
        return rights.open_refused(refusal, directory, name, OPEN_FLAGS)
    try:
        if walk.links or is_kernels(found):
            return _open_goal(found, OPEN_FLAGS, name, path, rights)
        return open_named(found, OPEN_FLAGS, rights)
    finally:
        os.close(found)


def is_kernels(fd: int) -> bool:
    """Tell whether a file is no file of a disk, but a figure or a switch of the kernel.

    To read one can take something away (``/proc/kmsg``), or act like an access to a device.
    """
    # What lies on a block device is none, and needs no other call.
    return os.major(os.fstat(fd).st_dev) == 0 and syscalls.is_kernels(fd)


def is_within(fd: int, directory: int) -> bool:
    """Tell whether an open file lies in the open directory or below it, all links followed."""
    return real_path(fd).is_relative_to(real_path(directory))


def real_path(fd: int) -> Path:
    """Return the path of an open file, all links followed."""
    return Path(f"/proc/self/fd/{fd}").readlink()


class _Walk:
    """One way to what a path leads to, component by component.

    :param path: for messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        #: how many were followed
        self.links = 0

    def find(self, directory: int, path: str) -> int:
        """Return a descriptor of `NAME_ONLY` of what a path leads to; the caller closes it.

        :param path: absolute, or from the open *directory* on; a directory if it ends in a slash.
        """
        place = os.open("/" if path.startswith("/") else ".", _DIRECTORY, dir_fd=directory)
        *folders, last = path.split("/")
        try:
            for name in folders:
                if name not in ("", "."):
                    place = self._moved(place, name, is_folder=True)
            if last:
                place = self._moved(place, last, is_folder=False)
        except BaseException:
            os.close(place)
            raise
        return place

    def _moved(self, place: int, name: str, *, is_folder: bool) -> int:
        """Return what a name in an open directory leads to; close the directory."""
        found = self._step(place, name, is_folder=is_folder)
        os.close(place)
        return found

    def _step(self, place: int, name: str, *, is_folder: bool) -> int:
        if is_folder:
            try:
                # with this flag what is mounted at the first access is mounted
                return os.open(name, _DIRECTORY, dir_fd=place)
            except NotADirectoryError:
                pass  # a link is none either
        found = os.open(name, NAME_ONLY | os.O_NOFOLLOW, dir_fd=place)
        try:
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode):
                goal = self._follow(found, place, status.st_uid)
                found, link = goal, found
                os.close(link)
            if is_folder and not stat.S_ISDIR(os.fstat(found).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._path)
        except BaseException:
            os.close(found)
            raise
        return found

    def _follow(self, link: int, place: int, maker: int) -> int:
        """Return what an open link leads to that *maker* made."""
        self.links += 1
        if self.links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path)
        text = os.readlink("", dir_fd=link)  # of the link just looked at, not of another by now
        found = self.find(place, text)
        owner = os.fstat(found).st_uid
        if maker in (0, os.geteuid(), owner):
            return found
        path = real_path(link)
        os.close(found)
        raise _foreign_link(self._path, str(path), maker, owner)


def _open_goal(found: int, flags: int, name: str, path: str, rights: Rights | None) -> int:
    """Open what a link leads to."""
    if stat.S_IFMT(os.fstat(found).st_mode) not in IMAGE_KINDS:
        raise OperationUnsupported(f"volume '{name}' is no file any more")
    if is_kernels(found):
        raise OperationUnsupported(f"'{path}' leads to a file of the kernel's own")
    return open_named(found, flags, rights)


def _foreign_link(path: str, link: str, maker: int, owner: int) -> SystemFailure:
    what = "it" if link == path else f"'{link}' on its way"
    return SystemFailure(
        f"Failed to open storage volume with path '{path}'",
        errno.EACCES,
        advice=f"User {owner_name(maker)} made {what} as a link to a file of user "
        f"{owner_name(owner)}. If that is meant: chown -h root {shlex.quote(link)}",
    )
