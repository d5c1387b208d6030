"""Changing the headers of images: what they refer to, and their features. The data stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from storaged.backends._backing import settle_backing
from storaged.backends._chain import ReadsChains
from storaged.backends._image import check_sound, format_errors
from storaged.backends._record import unmark
from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    OperationInvalid,
    OperationUnsupported,
    system_errors,
)
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo, ImageState
from storaged.imagebackend import ChangesHeaders
from storaged.imaging import HeaderChange, check_compat
from storaged.job import Job
from storaged.model import BackingStore, VolumeDef, VolumeRecord
from storaged.references import ReferenceKind, refer
from storaged.traits import FILE_FORMATS

#: States of an image whose header can be trusted enough to mend what it says.
_MENDABLE = (ImageState.OK, ImageState.SUSPICIOUS)


class AmendsFiles(ReadsChains, ChangesHeaders):
    """The header of a qcow2 is changed natively, in one sector, while nobody has it open."""

    def rebase(
        self,
        volume: VolumeRecord,
        backing: BackingStore | None,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        _check_recorded(backing)

        def change(handle: Handle, image: ImageInfo) -> None:
            from storaged.formats import qcow2_amend

            name = None if backing is None else os.fsencode(backing.path)
            qcow2_amend.rebase(handle, name, None if backing is None else backing.format)

        with self.opened_target() as directory:
            if backing is not None and not force:
                self._check_new_backing(volume, backing, directory)
            return self._change_header(directory, volume, "rebased", change, confirms=True)

    def set_backing_format(
        self, volume: VolumeRecord, format: str, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        _check_known(format)

        def change(handle: Handle, image: ImageInfo) -> None:
            from storaged.formats import qcow2_amend

            if image.backing is None:
                raise OperationInvalid(f"volume '{volume.name}' has no backing file")
            qcow2_amend.set_backing_format(handle, format)

        with self.opened_target() as directory:
            image = volume.image
            if image is not None and image.backing is not None and not force:
                named = BackingStore(os.fsdecode(image.backing.name), format)
                self._check_new_backing(volume, named, directory)
            return self._change_header(directory, volume, "changed", change, confirms=True)

    def amend(self, volume: VolumeRecord, change: HeaderChange, job: Job[Any]) -> VolumeRecord:
        version = _version(volume, change)

        def put(handle: Handle, image: ImageInfo) -> None:
            from storaged.formats import qcow2_amend

            wanted = None if image.compat == change.compat else version
            qcow2_amend.amend(handle, lazy_refcounts=change.lazy_refcounts, version=wanted)

        with self.opened_target() as directory:
            check_sound(self.read_again(directory, volume.name, volume), "amended")
            return self._change_header(directory, volume, "amended", put)

    def _check_new_backing(
        self, volume: VolumeRecord, backing: BackingStore, directory: int
    ) -> None:
        """Refuse a backing file that is not there, not of the format that is said, or not sound.

        :raise StorageError: see `settle_backing`.
        :raise InvalidArgument: the volume would come to lie below itself.
        """
        reference = refer(os.fsencode(backing.path), self.target)
        if reference.kind is not ReferenceKind.FILE:
            raise ConfigUnsupported(
                f"'{backing.path}' cannot be a backing file: only a file of this host can"
            )
        settle_backing(VolumeDef(volume.name, backing=backing), directory, self.target, self.rights)
        below = self.backing_volume(backing, directory)
        if below is None:
            return
        if backing.format == "raw" and below.format not in ("raw", "iso"):
            raise ConfigUnsupported(
                f"backing store '{backing.path}' is not of format raw: {below.format}",
                advice="If all of it is the guest's raw data nevertheless: --force",
            )
        chain = self.chain(below, format=backing.format)
        status = os.stat(volume.name, dir_fd=directory)
        own = status.st_dev, status.st_ino
        if any((link.device, link.inode) == own for link in chain.links):
            raise InvalidArgument(f"volume '{volume.name}' would come to lie below itself")
        for danger in chain.dangers:
            raise OperationInvalid(f"'{backing.path}' cannot be a backing file: {danger}")

    def _change_header(
        self,
        directory: int,
        volume: VolumeRecord,
        doing: str,
        change: Callable[[Handle, ImageInfo], None],
        *,
        confirms: bool = False,
    ) -> VolumeRecord:
        """Change the header of an image in place; return the facts after it.

        :param confirms: an operator has said what the image refers to.
        """
        now = self.read_again(directory, volume.name, volume)
        if now.image is None and now.problem is not None:  # whoever opens it is told why
            os.close(self.open_fd(directory, now, writable=False))
        _check_qcow2(now, doing)
        path = self.path_of(volume.name)
        with (
            self.locked_image(directory, now) as fd,
            system_errors(f"Failed to change header of file '{path}'"),
        ):
            now = self.record_of(fd, volume.name)  # what others did before the lock counts
            image = _check_qcow2(now, doing)
            with format_errors(volume.name):
                change(FileHandle(fd, owned=False), image)
            if confirms:
                unmark(fd)
            self.sync(fd)
        return self.read_again(directory, volume.name)


def _check_qcow2(volume: VolumeRecord, doing: str) -> ImageInfo:
    """Return what the header of a qcow2 says.

    :raise OperationUnsupported: it is of another format.
    :raise OperationInvalid: it is too damaged to be changed.
    """
    image = volume.image
    if image is None or image.format != "qcow2":
        raise OperationUnsupported(
            f"volumes of format {volume.format or 'raw'} cannot be {doing}: only qcow2 can"
        )
    if image.state not in _MENDABLE:
        check_sound(volume, doing)
    return image


def _check_recorded(backing: BackingStore | None) -> None:
    """Refuse a reference without a format: what is not recorded would have to be probed."""
    if backing is None:
        return
    if backing.format is None:
        raise InvalidArgument(
            "the format of the backing file is not given",
            advice="It is recorded, so that nobody ever has to guess it: --backing-format FORMAT",
        )
    _check_known(backing.format)
    if not backing.path:
        raise InvalidArgument("the path of the backing file is empty")


def _check_known(format: str) -> None:
    if format not in FILE_FORMATS:
        raise InvalidArgument(f"unknown format '{format}'")


def _version(volume: VolumeRecord, change: HeaderChange) -> int | None:
    """Return the version that a header is to have, None if it stays.

    :raise InvalidArgument: there is no such version.
    :raise ConfigUnsupported: that takes more than the header.
    """
    check_compat(change.compat)
    if change.compat is None:
        return None
    if change.compat == "1.1":
        return 3
    raise ConfigUnsupported(
        f"volume '{volume.name}' cannot be brought to compat {change.compat} in its header alone",
        advice=f"Write it anew: storagectl vol convert --compat {change.compat}",
    )
