"""Changing the capacity of file volumes."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

from storaged.backend import Resizes
from storaged.backends._backing import backing_size
from storaged.backends._chain import ReadsChains
from storaged.backends._image import check_sound, format_errors
from storaged.errors import InvalidArgument, OperationInvalid, OperationUnsupported, system_errors
from storaged.formats import raw
from storaged.formats.errors import UnsupportedFormat
from storaged.formats.file import FileHandle
from storaged.formats.handle import Checkpoint
from storaged.formats.image import ImageState
from storaged.job import Job
from storaged.model import VolumeRecord

_SECTOR = 512


class ResizesFiles(ReadsChains, Resizes):
    """Raw and qcow2 volumes grow and shrink, qed volumes grow."""

    def resize(
        self,
        volume: VolumeRecord,
        capacity: int,
        job: Job[Any],
        *,
        allocate: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
    ) -> VolumeRecord:
        with self.opened_target() as directory:
            now = self.read_again(directory, volume.name, volume)
            wanted = _checked(now, capacity, allocate=allocate, shrink=shrink)
            if wanted == now.capacity and not allocate:
                return now
            # Two that change the tables of one image destroy it: no force helps there.
            force = force and now.format == "raw"
            with (
                self.locked_image(directory, now, force=force) as fd,
                system_errors(f"Failed to resize file '{self.path_of(volume.name)}'"),
            ):
                looked_at, now = now, self.record_of(fd, volume.name)
                # What others did before the lock counts, but another image was not meant.
                if now.format != looked_at.format:
                    raise OperationInvalid(
                        f"volume '{volume.name}' is of format {now.format} by now,"
                        f" not {looked_at.format}"
                    )
                capacity = _checked(now, capacity, allocate=allocate, shrink=shrink)
                if capacity != now.capacity or allocate:
                    self._change(directory, fd, now, capacity, job, secret, allocate=allocate)
            return self.read_again(directory, volume.name)

    def _change(
        self,
        directory: int,
        fd: int,
        now: VolumeRecord,
        capacity: int,
        job: Job[Any],
        secret: bytes | None,
        *,
        allocate: bool,
    ) -> None:
        handle = FileHandle(fd, owned=False)
        if now.format == "raw":
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OperationUnsupported(f"volume '{now.name}' is a device: it keeps its size")
            # a raw volume with LUKS is longer than its capacity, by its header
            length = handle.size() + capacity - now.capacity
            _resize_raw(handle, length, job, allocate=allocate)
        else:
            with format_errors(now.name):
                self._change_image(directory, handle, now, capacity, job, secret)
        self.sync(fd)

    def _change_image(
        self,
        directory: int,
        handle: FileHandle,
        now: VolumeRecord,
        capacity: int,
        job: Job[Any],
        secret: bytes | None,
    ) -> None:
        """Change an image with a header; by QEMU what is not changed natively.

        :raise FormatError: neither does it.
        """
        from storaged.backends import _writers

        try:
            if now.format != "qcow2":
                raise UnsupportedFormat(f"images of format {now.format} are not changed natively")
            if capacity < now.capacity:
                _writers.shrink(handle, capacity, job.checkpoint)
            else:
                _writers.grow(handle, capacity, self._backing_size(directory, handle, now))
        except UnsupportedFormat:
            fd = handle.fileno()
            if fd is None or not _is_alone(now):
                raise
            from storaged import qsd

            file = qsd.ImageFile(fd, writable=True)
            qsd.resize(qsd.Image(file, now.format or "raw", secret=secret), capacity, job)

    def _backing_size(self, directory: int, handle: FileHandle, now: VolumeRecord) -> int | None:
        """Return the virtual size of the backing image; None if there is none, or it is not known.

        :raise OperationInvalid: something of the chain is a danger.
        """
        fd = handle.fileno()
        if fd is None or now.image is None or now.image.backing is None:
            return None
        chain = self.chain_of(directory, fd, now)
        if chain.dangers:
            raise OperationInvalid(
                f"volume '{now.name}' cannot be resized: {chain.dangers[0]}",
                advice="It can be downloaded and deleted.",
            )
        if len(chain.links) > 1:
            return chain.links[1].capacity
        return backing_size(now.image, directory, self.target, self.rights)


def _checked(volume: VolumeRecord, capacity: int, *, allocate: bool, shrink: bool) -> int:
    """Return the capacity that the volume will have; its own needs nothing to be done.

    :raise StorageError: it cannot be.
    """
    check_sound(volume, "resized")
    if volume.format != "raw":
        capacity = -(-capacity // _SECTOR) * _SECTOR
    if capacity == volume.capacity and not allocate:
        return capacity
    if capacity < volume.capacity and not shrink:
        raise InvalidArgument(
            "Can't shrink capacity below current capacity unless shrink flag explicitly specified"
        )
    if volume.format != "raw":
        _check_image(volume, capacity, allocate=allocate)
    return capacity


def _check_image(volume: VolumeRecord, capacity: int, *, allocate: bool) -> None:
    if allocate:
        raise OperationUnsupported("preallocate is only supported for raw type volume")
    if volume.format not in ("qcow2", "qed"):
        raise OperationUnsupported(
            f"volumes of format '{volume.format}' cannot be resized",
            advice="A clone can be larger than its source, and of another format.",
        )
    if capacity < volume.capacity and volume.format == "qed":
        raise OperationUnsupported(f"qed volume '{volume.name}' cannot be made smaller")


def _is_alone(volume: VolumeRecord) -> bool:
    """Tell whether an image has all of its content in its file, so that QEMU needs no other."""
    image = volume.image
    return image is None or (
        image.backing is None and image.data_file is None and image.state is ImageState.OK
    )


def _resize_raw(handle: FileHandle, length: int, job: Job[Any], *, allocate: bool) -> None:
    """Set the length; if the space cannot be had, the file has its length and data as before.

    :raise OSError: the kernel refused.
    """
    before = handle.size()
    try:
        if allocate and length >= before:
            raw.allocate(handle, before, length, job.checkpoint)
            # As in libvirt all of the volume has its space afterwards, also what was sparse.
            raw.fill_holes(handle, before, _quiet(job))
        handle.truncate(length)
    except BaseException:
        with suppress(OSError):
            handle.truncate(before)
        raise


def _quiet(job: Job[Any]) -> Checkpoint:
    """Return a checkpoint that shows life and takes a cancel, but counts nothing."""
    return lambda _done, _total: job.checkpoint()
