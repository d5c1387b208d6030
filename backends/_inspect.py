"""Telling what an image in a directory is and what it refers to, however hostile it is."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from storaged import imagelock
from storaged.backends._chain import ReadsChains
from storaged.chain import Chain
from storaged.concerns import Concern, Level
from storaged.errors import system_errors
from storaged.formats.errors import FormatError
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.probe import probe
from storaged.imagebackend import InspectsImages
from storaged.imaging import DirtyBitmap, Inspection, InternalSnapshot, Layer
from storaged.job import Job
from storaged.model import VolumeRecord, VolumeType


class InspectsFiles(ReadsChains, InspectsImages):
    """An image is opened for reading; what it names is left to the rules for backing chains."""

    def inspect_image(self, volume: VolumeRecord, job: Job[Any]) -> Inspection:
        with self.opened_target() as directory:
            now = self.read_again(directory, volume.name, volume)
            found = Inspection(
                name=now.name,
                path=self.path_of(now.name),
                format=now.format,
                true_format=now.format,
                capacity=now.capacity,
                allocation=now.allocation,
                physical=now.physical,
                concerns=now.concerns,
            )
            if now.type in (VolumeType.DIR, VolumeType.PLOOP):
                return found
            fd = self.open_fd(directory, now, writable=False)
            try:
                with system_errors(f"Failed to inspect volume with path '{found.path}'"):
                    found = _of_file(found, fd)
            finally:
                os.close(fd)
        job.checkpoint()
        return _with_chain(found, self.chain(now))


def _with_chain(found: Inspection, chain: Chain) -> Inspection:
    layers = [
        Layer(os.fsdecode(link.name), link.path, link.format, link.capacity, link.concerns)
        for link in chain.links
    ]
    own = layers[0].concerns if layers else ()
    if layers:  # what speaks against the image itself is told of it, not of the chain
        layers[0] = replace(layers[0], concerns=())
    end = () if chain.end is None else (chain.end,)
    concerns = tuple(dict.fromkeys((*found.concerns, *own, *end)))
    return replace(found, chain=tuple(layers), concerns=concerns)


def _of_file(found: Inspection, fd: int) -> Inspection:
    handle = FileHandle(fd, owned=False)
    status = os.fstat(fd)
    own = os.getpid()
    holders = imagelock.holders(status.st_dev, status.st_ino)
    image = probe(handle)
    parts = _Parts(image)
    if image.format == "qcow2" and image.state in (ImageState.OK, ImageState.SUSPICIOUS):
        parts.read(handle)
    return replace(
        found,
        true_format=_identified(handle, image),
        image=None if image.format == "raw" and image.state is ImageState.OK else image,
        holders=tuple(holder for holder in holders if holder.pid != own),
        snapshots=parts.snapshots,
        bitmaps=parts.bitmaps,
        concerns=(*found.concerns, *parts.concerns),
    )


def _identified(handle: Handle, image: ImageInfo) -> str:
    """Return what a file is by its content: also formats that libvirt lists as raw."""
    from storaged.formats.identify import identify

    return identify(handle).format or image.format


@dataclass(slots=True)
class _Parts:
    """What lies in a qcow2 beside the guest's data; what cannot be read is a concern."""

    image: ImageInfo
    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[DirtyBitmap, ...] = ()
    concerns: tuple[Concern, ...] = ()

    def read(self, handle: Handle) -> None:
        """Read the tables of snapshots and bitmaps."""
        try:
            if self.image.snapshots:
                self.snapshots = _snapshots(handle)
            self.bitmaps = _bitmaps(handle)
        except FormatError as err:
            self.concerns = (Concern(Level.DANGER, str(err)),)


def _snapshots(handle: Handle) -> tuple[InternalSnapshot, ...]:
    from storaged.formats.qcow2_snapshots import read_snapshots

    return tuple(
        InternalSnapshot(each.id, each.name, each.disk_size or 0, each.created, each.vm_state_size)
        for each in read_snapshots(handle)
    )


def _bitmaps(handle: Handle) -> tuple[DirtyBitmap, ...]:
    from storaged.formats.qcow2_bitmaps import BitmapFlag, read_bitmaps

    return tuple(
        DirtyBitmap(
            each.name,
            each.granularity,
            enabled=bool(each.flags & BitmapFlag.AUTO),
            in_use=bool(each.flags & BitmapFlag.IN_USE),
        )
        for each in read_bitmaps(handle)
    )
