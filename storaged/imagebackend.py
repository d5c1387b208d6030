"""What a pool type may be able to do with the images in its volumes, beyond their bytes.

The contract of `storaged.backend` holds here too: `StorageError` only, any thread, one writer a
volume. Everything that changes an image honours QEMU's locks, and no force helps against them:
two that change the tables of one image destroy it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from storaged.backend import Ability
from storaged.chain import Chain
from storaged.formats.checkreport import CheckReport
from storaged.imaging import ConvertOptions, HeaderChange, Inspection
from storaged.job import Job
from storaged.model import BackingStore, VolumeRecord


class ChecksImages(Ability, ABC):
    """The tables of an image can be checked."""

    missing = "storage pool does not support checking of volumes"

    @abstractmethod
    def check_image(
        self, volume: VolumeRecord, job: Job[Any], *, force: bool = False
    ) -> CheckReport:
        """Check the tables of a volume's image; nothing is changed.

        :param force: also while somebody writes to it: what is found then may be in transit.
        :raise OperationUnsupported: its format has no tables, or none that are known.
        :raise VolumeBusy: somebody writes to it.
        """


class InspectsImages(Ability, ABC):
    """It can be told what an image is and what it refers to."""

    missing = "storage pool does not support inspection of volumes"

    @abstractmethod
    def inspect_image(self, volume: VolumeRecord, job: Job[Any]) -> Inspection:
        """Tell all that is known of a volume's image, without ``used_by``.

        Nothing is opened that the image names unless the rules for backing chains allow it, and an
        image that is damaged is told of, not refused.
        """


class ChangesHeaders(Ability, ABC):
    """The header of an image can be changed without its data being touched."""

    missing = "storage pool does not support changing of image headers"

    @abstractmethod
    def rebase(
        self,
        volume: VolumeRecord,
        backing: BackingStore | None,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        """Have an image refer to another backing file, or to none; return the facts after it.

        Its data stay as they are: where it has none, it shows what the new backing file has.

        :param force: although the new backing file is not there or not sound.
        """

    @abstractmethod
    def set_backing_format(
        self, volume: VolumeRecord, format: str, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        """Record the format of the backing file that an image has.

        :param force: although the backing file is not there or not of this format.
        """

    @abstractmethod
    def amend(self, volume: VolumeRecord, change: HeaderChange, job: Job[Any]) -> VolumeRecord:
        """Change features of an image; return the facts after it."""


class RewritesImages(Ability, ABC):
    """An image can be written anew in its place."""

    missing = "storage pool does not support conversion of volumes"

    @abstractmethod
    def rewrite(
        self, volume: VolumeRecord, options: ConvertOptions, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        """Put another image with the same content in place of a volume's; return its facts.

        The new file has the owner, mode and labels of the old one and takes its name in one step:
        at every moment one of the two is there, whole.

        :param force: although internal snapshots or bitmaps are lost, or other names of the file
            keep the old image.
        :raise OperationInvalid: something would be lost, and not *force*.
        :raise VolumeBusy: somebody has it open.
        """


class FollowsChains(Ability, ABC):
    """It can be told what the images in its volumes refer to."""

    missing = "storage pool does not support looking at backing chains"

    @abstractmethod
    def chain(self, volume: VolumeRecord, *, format: str | None = None) -> Chain:
        """Return the backing chain of a volume, as far as it may be looked at.

        Nothing of an image that is a danger is opened; why the chain ends there is told.

        :param format: read the volume as this and not as what it is listed as.
        :raise NoSuchVolume: the volume has gone.
        """
