"""Opening the file of a volume for work on its bytes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from storaged import imagelock
from storaged.backend import Durability
from storaged.backends._links import open_entry
from storaged.backends._record import IMAGE_KINDS, OPEN_FLAGS
from storaged.backends._scan import ScansDirectory, look_at
from storaged.concerns import dangers
from storaged.errors import (
    ConfigUnsupported,
    InvalidSecret,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    system_errors,
)
from storaged.formats.errors import (
    CorruptImage,
    FormatError,
    UnsupportedFormat,
    WrongPassphrase,
)
from storaged.model import VolumeRecord, VolumeType

_WRITE_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: How network and FUSE file systems say that they cannot sync a directory.
_NO_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class OpensImages(ScansDirectory):
    """The volumes' files can be opened."""

    def open_fd(self, directory: int, volume: VolumeRecord, *, writable: bool) -> int:
        """Open the file of a volume below the open target; the caller closes it.

        A link is followed if root or we made it, or if what it leads to is its maker's own. Else
        whoever can write to the directory could turn us upon any file of the host.

        :raise NoSuchVolume: it has gone.
        :raise OperationUnsupported: it is a directory, or by now something else than a file.
        :raise SystemFailure: it cannot be opened, or is another link.
        """
        if volume.type in (VolumeType.DIR, VolumeType.PLOOP):
            raise OperationUnsupported(
                f"volume '{volume.name}' is a directory: its bytes cannot be accessed"
            )
        path = self.path_of(volume.name)
        with system_errors(f"Failed to open storage volume with path '{path}'"):
            try:
                flags = _WRITE_FLAGS if writable else OPEN_FLAGS
                fd = open_entry(directory, volume.name, flags, path, self.rights)
            except FileNotFoundError as err:
                raise NoSuchVolume(f"no storage vol with matching path '{path}'") from err
            if stat.S_IFMT(os.fstat(fd).st_mode) in IMAGE_KINDS:
                return fd
        os.close(fd)
        raise OperationUnsupported(f"volume '{volume.name}' is no file any more")

    @contextmanager
    def locked_image(
        self, directory: int, volume: VolumeRecord, *, force: bool = False
    ) -> Iterator[int]:
        """Open the file of a volume for writing, and keep QEMU out meanwhile.

        :param force: go on even if a virtual machine has it open.
        :raise VolumeBusy: it is open elsewhere.
        """
        fd = self.open_fd(directory, volume, writable=True)
        try:
            with imagelock.hold(fd, volume.name, force=force):
                yield fd
        finally:
            os.close(fd)

    def sync(self, fd: int, durability: Durability | None = None) -> None:
        """Bring a file or a directory to the disk, if that is what success promises here.

        :param durability: what it promises this time; None is the engine's setting.
        :raise OSError: the disk did not take it.
        """
        if (durability or self.host.durability) is not Durability.FULL:
            return
        try:
            os.fsync(fd)
        except OSError as err:
            if err.errno not in _NO_SYNC or not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise

    def record_of(self, fd: int, name: str) -> VolumeRecord:
        """Return the facts of an open volume: of the very file, whatever has its name by now.

        :raise OSError: it cannot be read.
        """
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return self.recorder().of_file(name, fd, status)
        return self.recorder().of_device(name, fd, status)

    def read_again(
        self, directory: int, name: str, known: VolumeRecord | None = None
    ) -> VolumeRecord:
        """Return the facts of a volume after work on it.

        :raise NoSuchVolume: somebody removed it meanwhile.
        """
        record = look_at(directory, name, self.recorder(), known)
        if record is None:
            raise NoSuchVolume(f"no storage vol with matching path '{self.path_of(name)}'")
        return record


def check_sound(volume: VolumeRecord, doing: str) -> None:
    """Refuse work on an image that is a danger; what is only worth a note is let pass.

    :param doing: what was to be done, such as ``resized``.
    :raise OperationInvalid: naming what is wrong with it.
    """
    why = dangers(volume.concerns)
    if why:
        raise OperationInvalid(
            f"volume '{volume.name}' cannot be {doing}: {why[0]}",
            advice="It can be downloaded and deleted.",
        )


@contextmanager
def format_errors(volume: str) -> Iterator[None]:
    """Translate what the formats layer says of an image: the one place where that is done.

    :param volume: its name.
    :raise OperationUnsupported: the code does not do it.
    :raise OperationInvalid: the image is damaged.
    :raise InvalidSecret: the passphrase does not open it.
    :raise ConfigUnsupported: the format does not allow it.
    """
    try:
        yield
    except UnsupportedFormat as err:
        raise OperationUnsupported(f"volume '{volume}': {err}") from err
    except CorruptImage as err:
        raise OperationInvalid(f"volume '{volume}' is damaged: {err}") from err
    except WrongPassphrase as err:
        raise InvalidSecret(f"volume '{volume}': {err}") from err
    except FormatError as err:
        raise ConfigUnsupported(f"volume '{volume}': {err}") from err
