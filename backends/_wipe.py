"""Overwriting what file volumes hold.

All that has space on the disk is overwritten where it lies, also what reads as zeros because a
guest discarded it; a sparse file's holes hold nothing and stay holes, and no file becomes longer.
Where nothing is written in place (btrfs, what a clone shares, most flash) no program can promise
that the old data are gone.

A qcow2 or vmdk image is an empty image of the same capacity, backing file and options afterwards
(libvirt leaves a file of zeros that is no image any more). An encrypted one is refused: who wipes
it gives no passphrase for a new header. Damaged images, and those of other formats, become plain
zeros; so does a raw volume with LUKS, its header included.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from storaged.backend import WipeAlgorithm, Wipes
from storaged.backends._image import OpensImages, format_errors
from storaged.backends._passes import PASSES, run_pass
from storaged.errors import ArgumentUnsupported, OperationUnsupported, system_errors
from storaged.formats.errors import CorruptImage
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo, ImageState
from storaged.job import Job
from storaged.model import VolumeRecord

if TYPE_CHECKING:
    from storaged.formats.vmdk_create import Parent

#: What of an image is overwritten last, so that a cancelled wipe can be done again: its header.
_HEADER = 1 << 16


class WipesFiles(OpensImages, Wipes):
    """The data of the files are overwritten."""

    def wipe(
        self,
        volume: VolumeRecord,
        algorithm: WipeAlgorithm,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        if algorithm is WipeAlgorithm.TRIM:
            raise ArgumentUnsupported("'trim' algorithm not supported")
        with self.opened_target() as directory:
            with (
                self.locked_image(directory, volume, force=force) as fd,
                system_errors(f"failed to wipe volume '{self.path_of(volume.name)}'"),
            ):
                image = _recreated(self.record_of(fd, volume.name))
                handle = FileHandle(fd, owned=False)
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    image = None  # an empty image needs an empty file
                with format_errors(volume.name):
                    parent = _parent(handle, image)
                _overwrite(handle, algorithm, job, header=_HEADER if image else 0)
                if image is not None:
                    with format_errors(volume.name):
                        from storaged.backends import _writers

                        _writers.write_empty(handle, image, volume.name, parent)
                self.sync(fd)
            return self.read_again(directory, volume.name)


def _overwrite(handle: FileHandle, algorithm: WipeAlgorithm, job: Job[Any], *, header: int) -> None:
    """Overwrite all that has space, what lies before *header* last.

    :raise OSError: a write failed, or a verification did.
    """
    size = handle.size()
    head = min(header, size)
    parts = [(start, length) for start, length in ((head, size - head), (0, head)) if length]
    passes = PASSES[algorithm]
    # Asked for anew in each pass, not kept: a torn file may lie in millions of pieces.
    total = len(passes) * sum(length for part in parts for _, length in handle.space(*part))
    done = 0
    job.checkpoint(0, total)

    def moved(length: int) -> None:
        nonlocal done
        done += length
        job.checkpoint(done, total)

    for part in parts:
        for one in passes:
            run_pass(handle, handle.space(*part), one, moved)


def _recreated(volume: VolumeRecord) -> ImageInfo | None:
    """Return what image is to be there afterwards, None for plain bytes.

    :raise OperationUnsupported: overwriting the file would not overwrite the data.
    """
    image = volume.image
    if image is None:
        return None
    if image.data_file is not None:
        raise OperationUnsupported(
            f"volume '{volume.name}' cannot be wiped: its data lie in another file"
        )
    if image.state is not ImageState.OK or image.format not in ("qcow2", "vmdk"):
        return None
    if image.encryption is not None:
        raise OperationUnsupported(
            f"volume '{volume.name}' cannot be wiped: it is encrypted ({image.encryption}), and an"
            " empty image needs a passphrase anew",
            advice="Delete it and create it anew.",
        )
    return image


def _parent(handle: FileHandle, image: ImageInfo | None) -> Parent | None:
    """Return what a vmdk knows of its backing file; None for every other image.

    :raise CorruptImage: it does not say which parent it was made for.
    :raise OSError: it cannot be read.
    """
    if image is None or image.format != "vmdk" or image.backing is None:
        return None
    from storaged.formats.vmdk_create import Parent
    from storaged.formats.vmdk_describe import describe

    known = describe(handle).parent_cid
    if known is None:
        raise CorruptImage("it names a parent, and not the parent's content id")
    return Parent(image.backing.name, known)
