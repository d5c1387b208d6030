"""Changing the capacity of file volumes."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

from storaged.backend import Resizes
from storaged.backends._backing import backing_size
from storaged.backends._image import OpensImages, check_sound, format_errors
from storaged.errors import InvalidArgument, OperationUnsupported, system_errors
from storaged.formats import raw
from storaged.formats.file import FileHandle
from storaged.job import Job
from storaged.model import VolumeRecord

_SECTOR = 512


class ResizesFiles(OpensImages, Resizes):
    """Raw volumes grow and shrink, qcow2 volumes grow."""

    def resize(
        self,
        volume: VolumeRecord,
        capacity: int,
        job: Job[Any],
        *,
        allocate: bool = False,
        shrink: bool = False,
        force: bool = False,
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
                now = self.record_of(fd, volume.name)  # what others did before the lock counts
                capacity = _checked(now, capacity, allocate=allocate, shrink=shrink)
                if capacity != now.capacity or allocate:
                    self._change(directory, fd, now, capacity, job, allocate=allocate)
            return self.read_again(directory, volume.name)

    def _change(
        self,
        directory: int,
        fd: int,
        now: VolumeRecord,
        capacity: int,
        job: Job[Any],
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
                from storaged.backends import _writers

                _writers.grow(handle, capacity, backing_size(now.image, directory, self.target))
        self.sync(fd)


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
    if volume.format != "qcow2":
        raise OperationUnsupported(
            f"volumes of format '{volume.format}' cannot be resized",
            advice="What can be resized natively is raw, and qcow2 upwards.",
        )
    if capacity < volume.capacity:
        raise OperationUnsupported(
            f"qcow2 volume '{volume.name}' cannot be made smaller natively",
            advice="Use qemu-img resize --shrink while nothing has it open, and refresh the pool.",
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
            for part in handle.map(0, before):
                job.checkpoint()
                if not part.data:
                    raw.allocate(handle, part.offset, part.offset + part.length)
        handle.truncate(length)
    except BaseException:
        with suppress(OSError):
            handle.truncate(before)
        raise
