"""Changing the capacity of file volumes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from storaged.backend import Resizes
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
            check_sound(now, "resized")
            if now.format != "raw":
                capacity = -(-capacity // _SECTOR) * _SECTOR
            if capacity == now.capacity:
                return now
            _check(now, capacity, allocate=allocate, shrink=shrink)
            with self.locked_image(directory, now, force=force) as fd:
                handle = FileHandle(fd, owned=False)
                with system_errors(f"Failed to resize file '{self.path_of(volume.name)}'"):
                    if now.format == "raw":
                        # a raw volume with LUKS is longer than its capacity, by its header
                        length = handle.size() + capacity - now.capacity
                        _resize_raw(handle, length, job, allocate=allocate)
                    else:
                        with format_errors(volume.name):
                            from storaged.backends import _writers

                            _writers.grow(handle, capacity)
                    self.sync(fd)
            return self.read_again(directory, volume.name)


def _check(volume: VolumeRecord, capacity: int, *, allocate: bool, shrink: bool) -> None:
    if capacity < volume.capacity and not shrink:
        raise InvalidArgument(
            "Can't shrink capacity below current capacity unless shrink flag explicitly specified"
        )
    if volume.format == "raw":
        return
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
    """Set the length; if the space cannot be had, the file is as it was.

    :raise OSError: the kernel refused.
    """
    before = handle.size()
    try:
        if allocate and length > before:
            raw.allocate(handle, before, length, job.checkpoint)
        handle.truncate(length)
    except BaseException:
        with suppress(OSError):
            handle.truncate(before)
        raise
