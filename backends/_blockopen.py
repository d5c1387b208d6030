"""Opening the block device that a volume is: the one that is meant, and nobody else's."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storaged import imagelock
from storaged.backend import Backend
from storaged.backends._blockholder import MOMENT, TRIES, busy, holders, is_ours, lasting_writers
from storaged.backends._record import NAME_ONLY, STAMP
from storaged.errors import (
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    system_errors,
)
from storaged.formats.file import FileHandle
from storaged.formats.handle import Bytes
from storaged.model import VolumeRecord

#: How the kernel says that the device behind a node is gone.
_GONE = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR})
_ACCESS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def device_stamp(rdev: int, size: int) -> bytes:
    """Return the stamp of a volume's record: by it the device is known again.

    :param rdev: its number, as in ``st_rdev``.
    :param size: in bytes; 0 if it may have any.
    """
    return STAMP.pack(rdev, 0, size, 0, 0)


def device_of_stamp(stamp: bytes) -> tuple[int, int] | None:
    """Return number and size of the device that a stamp is of; None if it says nothing."""
    if len(stamp) != STAMP.size:
        return None
    rdev, _, size, _, _ = STAMP.unpack(stamp)
    return rdev, size


def size_of(rdev: int) -> int | None:
    """Return the length of a device in bytes without opening it; None if it is not there.

    Source: ``/sys/dev/block/MAJOR:MINOR/size`` counts sectors of 512 bytes, whatever the device's.
    """
    path = f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/size"
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 -- called for each volume
            return int(file.read()) * 512
    except (OSError, ValueError):
        return None


def discard_unit_of(rdev: int) -> int:
    """Return how many bytes a device discards at least, and aligned to them; 0 if it cannot."""
    try:
        path = f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/queue"
        if not int(Path(path, "discard_max_bytes").read_text()):
            return 0
        return int(Path(path, "discard_granularity").read_text())
    except (OSError, ValueError):
        return 0


class DeviceHandle(FileHandle):
    """An open block device. What comes to its end too early is an error: it was pulled.

    :param locks: closed before the descriptor.
    :param discard_unit: see `FileHandle`.
    """

    def __init__(
        self,
        fd: int,
        *,
        owned: bool = True,
        locks: ExitStack | None = None,
        discard_unit: int = 0,
    ) -> None:
        super().__init__(fd, owned=owned, discard_unit=discard_unit)
        self._locks = locks
        self._length = self.size()

    @property
    def descriptor(self) -> int:
        """The open descriptor."""
        return self._fd

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the device ended when opened.

        :raise OSError: ENODEV if it has become shorter since.
        """
        data = super().pread(length, offset)
        if len(data) < length and offset + len(data) < self._length:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return data

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Write all of *data* at *offset*.

        :raise OSError: ENODEV if the device has become shorter than that since it was opened.
        """
        try:
            super().pwrite(data, offset)
        except OSError as err:
            self._check_there(err)
            raise

    def pwritev(self, parts: Sequence[Bytes], offset: int) -> None:
        """Write all of several pieces; see `pwrite`."""
        try:
            super().pwritev(parts, offset)
        except OSError as err:
            self._check_there(err)
            raise

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a stretch read as zeros; see `pwrite`."""
        try:
            super().write_zeroes(offset, length, unmap=unmap)
        except OSError as err:
            self._check_there(err)
            raise

    def _check_there(self, err: OSError) -> None:
        """Tell that the device was pulled, where the kernel says that it has no space."""
        if err.errno == errno.ENOSPC and self.size() < self._length:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from err

    def close(self) -> None:
        """Let go of the locks and the device. Calling it again does nothing."""
        if self._locks is not None:
            self._locks.close()
        super().close()


class OpensDevices(Backend):
    """The volumes are block devices of this host, under the paths of their records."""

    def is_same(self, volume: VolumeRecord, rdev: int) -> bool:
        """Tell whether the device that a volume's path leads to is still the volume.

        Its number tells that. A type that knows better (an LV's number changes when it is
        activated again, its UUID does not) overrides this.

        :param rdev: number of the device.
        """
        known = device_of_stamp(volume.stamp)
        return known is None or known[0] == rdev

    def discard_unit(self, volume: VolumeRecord) -> int:
        """Return of how many bytes the units are that read as zeros once they were discarded.

        0 where nobody promises that; a type whose volumes are thin overrides this.
        """
        return 0

    def device_path(self, volume: VolumeRecord) -> str:
        """Return the path of a volume's device."""
        return volume.path or f"{self.definition.target}/{volume.name}"

    def open_device(
        self,
        volume: VolumeRecord,
        *,
        writable: bool = False,
        shared: bool = False,
        force: bool = False,
    ) -> int:
        """Open the device of a volume; the caller closes it.

        Whoever is to write has it for himself: no other program can mount it, or build on it,
        while it is open, and none writes to it already.

        :param shared: put up with other writers of ours, which have it for themselves.
        :param force: also if other programs, such as a machine, write to it.
        :raise NoSuchVolume: it has gone.
        :raise OperationInvalid: it is another device, or of another size, by now.
        :raise OperationUnsupported: it is no block device.
        :raise VolumeBusy: it is mounted, or in use by another device; the advice says which.
        :raise SystemFailure: it cannot be opened.
        """
        path = self.device_path(volume)
        fd = open_block(path, volume.name, writable=writable, shared=shared, force=force)
        try:
            self._check_same(fd, volume, path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_same(self, fd: int, volume: VolumeRecord, path: str) -> None:
        rdev = os.fstat(fd).st_rdev
        known = device_of_stamp(volume.stamp)
        size = os.lseek(fd, 0, os.SEEK_END)
        what = None
        if not self.is_same(volume, rdev):
            what = f"'{path}' is another device by now ({os.major(rdev)}:{os.minor(rdev)})"
        elif known is not None and known[1] not in (0, size):
            what = f"its device '{path}' has {size} bytes by now, and had {known[1]}"
        if what is not None:
            raise OperationInvalid(
                f"volume '{volume.name}' is not what it was: {what}",
                advice=f"Look at it again: storagectl pool refresh {self.definition.name}",
            )

    @contextmanager
    def locked_device(self, volume: VolumeRecord, *, force: bool = False) -> Iterator[DeviceHandle]:
        """Open the device of a volume for writing, and keep QEMU out meanwhile.

        :param force: go on even if a virtual machine has it open.
        :raise StorageError: see `open_device`.
        :raise VolumeBusy: also if it is open elsewhere.
        """
        fd = self.open_device(volume, writable=True, force=force)
        with locked_block(fd, volume.name, force=force) as it:
            yield it


@contextmanager
def locked_block(fd: int, name: str, *, force: bool = False) -> Iterator[DeviceHandle]:
    """Keep QEMU from an open device, and close that at the end.

    :param name: of the volume.
    :raise VolumeBusy: QEMU has it open, and not *force*.
    """
    try:
        with imagelock.hold(fd, name, force=force):
            yield DeviceHandle(fd, owned=False)
    finally:
        os.close(fd)


def open_block(
    path: str, name: str, *, writable: bool = False, shared: bool = False, force: bool = False
) -> int:
    """Open the block device that a path leads to; see `OpensDevices.open_device`.

    :param name: of the volume, for messages.
    """
    with system_errors(f"Failed to open storage volume with path '{path}'"):
        try:
            found = os.open(path, NAME_ONLY)
        except OSError as err:
            raise _missing(path, err) from err
        try:
            rdev = os.fstat(found).st_rdev
            if not stat.S_ISBLK(os.fstat(found).st_mode):
                raise OperationUnsupported(f"volume '{name}' is no block device: '{path}'")
            # By the descriptor: what was looked at is what is opened.
            link = f"/proc/self/fd/{found}"
            if not writable:
                return os.open(link, os.O_RDONLY | _ACCESS)
            fd = _claim(link, rdev, name, shared=shared)
            if not force and (users := lasting_writers(rdev)):
                os.close(fd)
                raise busy(name, tuple(f"open by {user}" for user in users))
            return fd
        except OSError as err:
            raise _missing(path, err) from err
        finally:
            os.close(found)


def _missing(path: str, err: OSError) -> Exception:
    """Return what to raise for an error of an open: whether the volume has gone."""
    if err.errno not in _GONE:
        return err
    return NoSuchVolume(
        f"no storage vol with matching path '{path}'",
        advice="Its device is not there any more: refresh the pool.",
    )


def _claim(link: str, rdev: int, name: str, *, shared: bool) -> int:
    """Open a device for writing, for nobody else.

    :raise VolumeBusy: somebody has it.
    :raise OSError: it cannot be opened.
    """
    for _ in range(TRIES):
        try:
            return os.open(link, os.O_RDWR | os.O_EXCL | _ACCESS)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
        if named := holders(rdev):
            raise busy(name, named)
        if shared and is_ours(rdev):
            return os.open(link, os.O_RDWR | _ACCESS)
        time.sleep(MOMENT)
    raise busy(name, holders(rdev), rdev)
