"""From what the kernel says of a directory entry to a volume's record.

A pool may have 100,000 volumes, so what many records have in common is shared between them.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import struct
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from storaged.concerns import Concern, Level, concerns, is_plain
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.probe import Prober, probe, probe_fd
from storaged.model import Permissions, VolumeRecord, VolumeType
from storaged.units import MAX_SIZE

if TYPE_CHECKING:
    from storaged.backends._rights import Rights

#: The five figures by which an unchanged file is known.
STAMP = struct.Struct("=QQqqq")
#: How a file of a foreign directory is opened: never waiting, never becoming a terminal.
OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: Names a file without opening it: opening a device can do things to the device.
NAME_ONLY = os.O_PATH | os.O_CLOEXEC
#: The kinds of files that hold an image.
IMAGE_KINDS = (stat.S_IFREG, stat.S_IFBLK)
#: A directory that holds both is a ploop image.
PLOOP_FILES = ("root.hds", "DiskDescriptor.xml")
#: What ``st_blocks`` counts, in bytes.
BLOCK = 512
#: An extended attribute: the format that a volume was made with.
MARK = "user.storaged.format"
_RAW = b"raw"
WAS_RAW = Concern(
    Level.DANGER,
    "it was a raw volume, so that its header, which names other files, may be its guest's work; "
    "if it is not: storagectl vol rebase POOL/VOLUME --set-backing-format FORMAT",
)
#: Device and inode in a stamp.
_FILE = struct.Struct("=QQ")
_NO_FILE = bytes(_FILE.size)
_MAX_SHARED = 4096


def open_named(found: int, flags: int, rights: Rights | None = None) -> int:
    """Open what a descriptor of `NAME_ONLY` stands for, whatever has its name by now.

    :raise OSError: EISDIR or EINVAL if it is no regular file and no block device.
    """
    kind = stat.S_IFMT(os.fstat(found).st_mode)
    if kind not in IMAGE_KINDS:
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(number, os.strerror(number))
    try:
        return os.open(f"/proc/self/fd/{found}", flags)
    except PermissionError as refusal:
        if rights is None:
            raise
        return rights.reopen_refused(refusal, found, flags)


def stamp_of(status: os.stat_result) -> bytes:
    """Return what changes whenever a file does."""
    return STAMP.pack(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def update_allocation(record: VolumeRecord, status: os.stat_result) -> VolumeRecord:
    """Return *record* itself, or a copy with the blocks that the file has by now.

    Delayed allocation changes them without changing any time.
    """
    allocation = status.st_blocks * BLOCK
    if record.type is not VolumeType.FILE or record.allocation == allocation:
        return record
    return replace(record, allocation=allocation)


def mark_raw(fd: int | None) -> None:
    """Note on an open file that it was made as a raw volume, where the file system keeps notes."""
    with suppress(OSError):
        if fd is None:
            return
        os.setxattr(fd, MARK, _RAW)


def unmark(fd: int) -> None:
    """Take back what `mark_raw` noted: an operator says what the file holds now."""
    with suppress(OSError):
        os.removexattr(fd, MARK)


def _is_marked_raw(fd: int) -> bool:
    try:
        return os.getxattr(fd, MARK) == _RAW
    except OSError:
        return False


def _was_raw(known: VolumeRecord | None, status: os.stat_result) -> bool:
    """Tell whether the very file was a raw volume, or came to names of other files as one."""
    if known is None or _FILE.unpack_from(known.stamp or _NO_FILE) != (
        status.st_dev,
        status.st_ino,
    ):
        return False
    return (known.format == "raw" and known.image is None) or WAS_RAW in known.concerns


class Recorder:
    """Makes records; those of one recorder share their equal parts. Not for several threads.

    :param target: path of the directory that the volumes lie in.
    :param rights: as whom its files are reached where we are refused; None: as nobody else.
    """

    def __init__(self, target: str, rights: Rights | None = None) -> None:
        self._target = target
        self.rights = rights
        self._permissions: dict[tuple[int, int, int], Permissions] = {}
        self._prober = Prober()
        #: by the identity of an image, which the prober shares: it, and what speaks against it
        self._concerns: dict[int, tuple[ImageInfo, tuple[Concern, ...]]] = {}

    def permissions(self, status: os.stat_result) -> Permissions:
        """Return mode, owner and group, shared."""
        key = (status.st_mode, status.st_uid, status.st_gid)
        found = self._permissions.get(key)
        if found is None:
            if len(self._permissions) >= _MAX_SHARED:
                self._permissions.clear()
            found = self._permissions[key] = Permissions.of_file(status)
        return found

    def of_file(
        self,
        name: str,
        fd: int,
        status: os.stat_result,
        known: VolumeRecord | None = None,
    ) -> VolumeRecord:
        """Return the record of an open regular file.

        The guest of a raw volume can write whatever it likes to the start of its disk, so also the
        header of an image that names files of this host: that is a danger.

        :param known: the record so far.
        :raise OSError: it cannot be read.
        """
        size = status.st_size
        image = self._prober.probe_fd(fd, size)
        if image is None:
            return self.of_plain(name, status)
        permissions = self.permissions(status)
        record = self._of_image(
            image, name, status.st_blocks * BLOCK, size, stamp_of(status), permissions
        )
        names_files = image.backing is not None or image.data_file is not None
        if names_files and (_was_raw(known, status) or _is_marked_raw(fd)):
            found = (WAS_RAW, *record.concerns)
            return replace(record, concerns=found, problem=WAS_RAW.text)
        return record

    def of_plain(self, name: str, status: os.stat_result) -> VolumeRecord:
        """Return the record of a regular file that is known to hold no image."""
        size = status.st_size
        return VolumeRecord(
            name, size, status.st_blocks * BLOCK, size, "raw", VolumeType.FILE,
            stamp_of(status), self.permissions(status),
        )  # fmt: skip

    def of_device(self, name: str, fd: int, status: os.stat_result) -> VolumeRecord:
        """Return the record of an open block device, which libvirt lists as a file.

        :raise OSError: it cannot be read.
        """
        size = os.lseek(fd, 0, os.SEEK_END)
        image = probe(FileHandle(fd, owned=False))
        permissions = self.permissions(status)
        if image.format == "raw" and image.encryption is None:
            return VolumeRecord(name, size, size, size, "raw", permissions=permissions)
        return self._of_image(image, name, size, size, b"", permissions)

    def of_directory(self, name: str, directory: int, status: os.stat_result) -> VolumeRecord:
        """Return the record of the directory *name* in the open *directory*: plain, or a ploop."""
        permissions = self.permissions(status)
        try:
            parts = [
                os.stat(f"{name}/{part}", dir_fd=directory, follow_symlinks=False)
                for part in PLOOP_FILES
            ]
        except OSError:
            parts = []
        if not all(stat.S_ISREG(part.st_mode) for part in parts) or not parts:
            return VolumeRecord(name, 0, 0, 0, "dir", VolumeType.DIR, stamp_of(status), permissions)
        image, disk = _read_ploop(directory, f"{name}/{PLOOP_FILES[0]}")
        return VolumeRecord(
            name,
            capacity=image.capacity if image else disk.st_size,
            allocation=disk.st_blocks * BLOCK,
            physical=disk.st_size,
            format="ploop",
            type=VolumeType.PLOOP,
            permissions=permissions,
        )

    def of_failure(self, name: str, status: os.stat_result | None, number: int) -> VolumeRecord:
        """Return the record of what is there but cannot be read; libvirt would stop the pool.

        :param status: what is known of it.
        :param number: the error number.
        """
        if status is None:
            return VolumeRecord(name, 0, 0, 0, "raw", problem=f"unreadable: {os.strerror(number)}")
        if number in (errno.EACCES, errno.EPERM):
            mode = stat.S_IMODE(status.st_mode)
            problem = f"unreadable: owner {owner_name(status.st_uid)}, mode {mode:04o}"
        else:
            problem = f"unreadable: {os.strerror(number)}"
        size = status.st_size
        permissions = self.permissions(status)
        return VolumeRecord(
            name, size, status.st_blocks * BLOCK, size, "raw",
            permissions=permissions, problem=problem,
        )  # fmt: skip

    def concerns(self, image: ImageInfo) -> tuple[Concern, ...]:
        """Return what speaks against an image, shared."""
        if is_plain(image):
            return ()
        known = self._concerns.get(id(image))
        if known is None:
            if len(self._concerns) >= _MAX_SHARED:
                self._concerns.clear()
            known = self._concerns[id(image)] = image, concerns(image, self._target)
        return known[1]

    def _of_image(
        self,
        image: ImageInfo,
        name: str,
        allocation: int,
        size: int,
        stamp: bytes,
        permissions: Permissions,
    ) -> VolumeRecord:
        found = self.concerns(image)
        capacity = image.capacity
        odd = image.state is not ImageState.OK
        if odd and (image.state is ImageState.CORRUPT or capacity > MAX_SIZE):
            capacity = size
        return VolumeRecord(
            name, capacity, allocation, size, image.format, VolumeType.FILE,
            stamp, permissions, image, problem=found[0].text if found else None, concerns=found,
        )  # fmt: skip


def _read_ploop(directory: int, path: str) -> tuple[ImageInfo | None, os.stat_result]:
    fd = os.open(path, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    try:
        status = os.fstat(fd)
        image = probe_fd(fd, status.st_size) if stat.S_ISREG(status.st_mode) else None
    finally:
        os.close(fd)
    return image, status


def owner_name(uid: int) -> str:
    """Return the name of a user, the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
