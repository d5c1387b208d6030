"""New volumes from existing ones, of any pool, without changing their format."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from storaged import imagelock
from storaged.backend import ClonesVolumes, ImageSource
from storaged.backends import _copy
from storaged.backends._backing import backing_size
from storaged.backends._create import CreatesFiles
from storaged.backends._image import check_sound, format_errors
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    OperationInvalid,
    OperationUnsupported,
    SystemFailure,
    Unsupported,
    system_errors,
)
from storaged.formats import raw
from storaged.formats.file import FileHandle
from storaged.formats.handle import Checkpoint
from storaged.formats.image import ImageInfo
from storaged.formats.probe import probe
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord, VolumeType

_CONVERSION = "Conversion is not available natively: use qemu-img convert and refresh the pool."
#: libvirt makes no new ISO image: to it one is raw data, as a clone's source too.
_RAW = ("raw", "iso", None)


class ClonesFiles(CreatesFiles, ClonesVolumes):
    """Clones are byte copies, shared with the source where the file system can."""

    def plan_clone(
        self, volume: VolumeDef, source: VolumeRecord, *, preallocate_metadata: bool = False
    ) -> VolumeDef:
        with self.opened_target() as directory:
            self.check_free(directory, volume.name)
        if source.type in (VolumeType.DIR, VolumeType.PLOOP) or volume.format in ("dir", "ploop"):
            raise OperationUnsupported(f"directory volume '{source.name}' cannot be cloned")
        if preallocate_metadata:
            text = (
                "metadata preallocation is not supported for raw volumes"
                if volume.format in _RAW
                else "metadata preallocation is not available for a clone"
            )
            raise ConfigUnsupported(text)
        check_sound(source, "cloned")
        capacity = max(volume.capacity, source.capacity)
        volume = replace(volume, format=volume.format or source.format or "raw", capacity=capacity)
        _check_format(volume, source)
        _check_growth(volume, source)
        path = self.path_of(volume.name)
        allocation = capacity if volume.allocation is None else volume.allocation
        return replace(
            volume, allocation=allocation, type=VolumeType.FILE, path=path, key=path,
            compat=volume.compat or (source.image.compat if source.image else None),
        )  # fmt: skip

    def clone(
        self, volume: VolumeDef, source: ImageSource, job: Job[Any], *, reflink: bool
    ) -> VolumeRecord:
        record = source.record
        with self.opened_target() as directory, _unwritten(volume, source):
            with self.new_volume(directory, volume, job) as file:
                target = file.fd
                copy = FileHandle(target, owned=False)
                with system_errors(f"cannot copy '{record.name}' to '{self.path_of(volume.name)}'"):
                    self._copy(volume, source, target, job, reflink=reflink)
                    _check_same(volume, record, copy)
                self._grow(directory, volume, record, copy, job)
            return self.read_again(directory, volume.name)

    def _copy(
        self, volume: VolumeDef, source: ImageSource, target: int, job: Job[Any], *, reflink: bool
    ) -> None:
        record = source.record
        allocation = volume.allocation or 0
        # As in libvirt: a clone that need not hold all of its source stays sparse.
        full = 0 < record.capacity <= allocation and volume.format in _RAW
        total = min(record.allocation or record.physical or record.capacity, source.handle.size())
        try:
            _copy.share(target, source.handle, follow=not volume.nocow)
        except OSError as err:
            if reflink:
                raise _no_reflink(source.path or record.name, err) from err
            handle = FileHandle(target, owned=False)
            if full:
                raw.create(handle, 0, allocation=allocation, checkpoint=_quiet(job))
            _copy.copy(handle, source.handle, total, job.checkpoint)
        else:
            if full:
                os.posix_fallocate(target, 0, allocation)
        job.checkpoint(total, total)

    def _grow(
        self,
        directory: int,
        volume: VolumeDef,
        source: VolumeRecord,
        handle: FileHandle,
        job: Job[Any],
    ) -> None:
        growth = volume.capacity - source.capacity
        if growth <= 0:
            return
        with system_errors(f"cannot extend file '{self.path_of(volume.name)}'"):
            if volume.format in _RAW:
                handle.truncate(max(handle.size(), (source.physical or source.capacity) + growth))
            else:
                with format_errors(volume.name):
                    from storaged.backends import _writers

                    backing = backing_size(source.image, directory, self.target)
                    _writers.grow(handle, volume.capacity, backing)
        job.checkpoint()


def _unwritten(volume: VolumeDef, source: ImageSource) -> AbstractContextManager[None]:
    """Keep machines from writing to an image while it is copied: that would tear its tables.

    :raise VolumeBusy: one does already.
    """
    fd = source.handle.fileno()
    if fd is None or volume.format in _RAW:
        return nullcontext()
    return imagelock.hold(fd, source.record.name, writing=False)


def _check_same(volume: VolumeDef, source: VolumeRecord, copy: FileHandle) -> None:
    """Refuse a copy of another image than the one that was checked."""
    if volume.format not in _RAW and probe(copy) != source.image:
        raise OperationInvalid(
            f"volume '{source.name}' was changed while it was cloned",
            advice="Look at it again, with a refresh of its pool, and clone it then.",
        )


def _quiet(job: Job[Any]) -> Checkpoint:
    """Return a checkpoint that shows life and takes a cancel, but counts nothing."""
    return lambda _done, _total: job.checkpoint()


def _check_format(volume: VolumeDef, source: VolumeRecord) -> None:
    """Refuse what would need a conversion, naming why."""
    if volume.format != source.format and not (volume.format in _RAW and source.format in _RAW):
        raise _needs_conversion(
            f"a clone of '{source.name}' of format '{source.format}' cannot have format"
            f" '{volume.format}'"
        )
    if volume.encryption is not None:
        raise _needs_conversion(f"a clone of '{source.name}' cannot be encrypted anew")
    image = source.image
    if image is None or volume.format in _RAW:
        if volume.backing is not None:
            raise Unsupported("backing storage not supported for raw volumes")
        return
    obstacle = _obstacle(volume, image)
    if obstacle:
        raise _needs_conversion(f"volume '{source.name}' cannot be cloned: {obstacle}")
    _check_wishes(volume, image)


def _obstacle(volume: VolumeDef, image: ImageInfo) -> str | None:
    """Say what keeps an image from being the same image at another place."""
    if image.data_file is not None:
        return "its data lie in another file"
    if image.snapshots:
        return f"it has internal snapshots ({image.snapshots})"
    if image.encryption is not None:
        return f"it is encrypted ({image.encryption})"
    if image.backing is None:
        if volume.backing is not None:
            return "it has no backing store, and would need one"
        return None
    name = os.fsdecode(image.backing.name)
    if volume.backing is None:
        return "it has a backing store, whose data would have to be copied too"
    if volume.backing.path != name:
        # libvirt's text for it
        raise InternalError("a different backing store cannot be specified.")
    if not name.startswith("/"):
        return "its backing store is named relative to its own place"
    return None


def _check_wishes(volume: VolumeDef, image: ImageInfo) -> None:
    wishes = (
        ("compat", volume.compat, image.compat or ("0.10" if image.format == "qcow2" else None)),
        ("clusterSize", volume.cluster_size or None, image.cluster_size),
    )
    for name, wanted, found in wishes:
        if wanted is not None and wanted != found:
            raise _needs_conversion(f"a clone cannot have {name} {wanted}: the source has {found}")
    if volume.features and volume.features != image.features:
        raise _needs_conversion(
            f"a clone cannot have features {', '.join(sorted(volume.features))}:"
            " the source has others"
        )


def _check_growth(volume: VolumeDef, source: VolumeRecord) -> None:
    growing = volume.capacity > source.capacity
    if growing and volume.format not in (*_RAW, "qcow2"):
        raise OperationUnsupported(
            f"a clone of format '{volume.format}' cannot be larger than its source:"
            f" {volume.capacity} is above {source.capacity}"
        )


def _needs_conversion(detail: str) -> ConfigUnsupported:
    return ConfigUnsupported(detail, advice=_CONVERSION)


def _no_reflink(name: str, error: OSError) -> SystemFailure:
    return SystemFailure(
        f"failed to clone files from '{name}'",
        error.errno or errno.EOPNOTSUPP,
        advice="Both volumes must lie on one file system that can share data, such as XFS or"
        " btrfs; without reflink the data are copied.",
    )
