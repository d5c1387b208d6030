"""Checking the tables of the images that are files of a directory."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from typing import Any

from storaged import imagelock
from storaged.backends._image import OpensImages, format_errors
from storaged.backends._links import open_image
from storaged.errors import (
    OperationInvalid,
    OperationUnsupported,
    StorageError,
    SystemFailure,
    system_errors,
)
from storaged.formats.checkreport import CheckReport
from storaged.formats.errors import CorruptImage
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo
from storaged.imagebackend import ChecksImages
from storaged.job import Job
from storaged.model import VolumeRecord
from storaged.references import refer

#: Formats that have no tables to contradict each other; what is listed as one of them may be an
#: image of a kind that libvirt does not know.
_PLAIN = ("raw", "iso", "dir", "fat", None)


class ChecksFiles(OpensImages, ChecksImages):
    """The tables of qcow2 and vmdk images are checked natively."""

    def check_image(
        self, volume: VolumeRecord, job: Job[Any], *, force: bool = False
    ) -> CheckReport:
        with self.opened_target() as directory:
            fd = self.open_fd(directory, volume, writable=False)
            doing = f"Failed to check volume with path '{self.path_of(volume.name)}'"
            try:
                with (
                    imagelock.hold(fd, volume.name, writing=False, force=force),
                    system_errors(doing),
                    format_errors(volume.name),
                ):
                    now = self.record_of(fd, volume.name)
                    return _checked(now, FileHandle(fd, owned=False), directory, self.target, job)
            finally:
                os.close(fd)


def _checked(
    volume: VolumeRecord, handle: FileHandle, directory: int, target: str, job: Job[Any]
) -> CheckReport:
    """Check an open image.

    :raise OperationUnsupported: its format has no tables, or none that are known.
    """
    from storaged.formats.identify import identify

    image = volume.image if volume.format not in _PLAIN else identify(handle)
    kind = image.format if image is not None else volume.format or "raw"
    try:
        if kind == "qcow2":
            from storaged.formats import qcow2_check

            size = _data_file_size(image, directory, target)
            return qcow2_check.check(handle, data_file_size=size, checkpoint=job.checkpoint)
        if kind == "vmdk":
            from storaged.formats import vmdk_check

            with ExitStack() as files:
                extents = _extents(volume.name, image, directory, target, files)
                return vmdk_check.check(handle, extents=extents, checkpoint=job.checkpoint)
    except CorruptImage as err:  # so badly that there is nothing left to count
        return CheckReport(kind, corruptions=1, findings=(str(err),))
    if kind in _PLAIN:
        raise OperationUnsupported(f"volumes of format {kind} have no tables")
    raise OperationUnsupported(
        f"volumes of format {kind} cannot be checked",
        advice="What is checked natively is qcow2 and vmdk.",
    )


def _data_file_size(image: ImageInfo | None, directory: int, target: str) -> int | None:
    """Return the length of the data file of a qcow2; None if it has none, or none in the pool."""
    if image is None or image.data_file is None:
        return None
    with suppress(OSError, StorageError), ExitStack() as files:
        found = _own_file(image.data_file, directory, target, files)
        return None if found is None else found.size()
    return None


def _extents(
    volume: str, image: ImageInfo | None, directory: int, target: str, files: ExitStack
) -> list[FileHandle]:
    """Open the extents of a vmdk, which *files* closes.

    :raise OperationUnsupported: one of them is elsewhere.
    :raise OperationInvalid: one of them is no regular file, or a link that is not followed.
    :raise SystemFailure: one of them cannot be opened.
    """
    found = []
    for name in image.extents if image is not None else ():
        what = f"extent {os.fsdecode(name)!a} of volume '{volume}'"
        try:
            extent = _own_file(name, directory, target, files)
        except OSError as err:
            number = err.errno or errno.EIO
            if number in (errno.EINVAL, errno.EISDIR):
                raise OperationInvalid(f"{what} is no regular file") from err
            raise SystemFailure(f"cannot open {what}", number) from err
        except StorageError as err:  # a link that is not to be followed
            raise OperationInvalid(f"{what}: {err.message}", advice=err.advice) from err
        if extent is None:
            raise OperationUnsupported(f"{what} is not in its pool")
        found.append(extent)
    return found


def _own_file(name: bytes, directory: int, target: str, files: ExitStack) -> FileHandle | None:
    """Open a file that an image names, if that is one of the open directory.

    :raise OSError: it cannot be opened.
    :raise StorageError: it is a link that is not followed.
    """
    plain = name.removeprefix(os.fsencode(target) + b"/")
    if not refer(plain, target).is_plain:
        return None
    entry = os.fsdecode(plain)
    handle = FileHandle(open_image(directory, entry, f"{target}/{entry}"))
    files.callback(handle.close)
    return handle
