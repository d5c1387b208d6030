"""New rbd images: empty ones, copy-on-write clones, and copies of volumes of any other pool."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from storaged.backend import (
    PLAIN_CLONE,
    CloneBacking,
    CloneOptions,
    ClonesVolumes,
    Durability,
    ImageSource,
)
from storaged.backends._clone import check_locked, sharing_errors
from storaged.backends._image import check_sound, format_errors
from storaged.backends._rbdhandle import RbdHandle
from storaged.backends._rbdlook import LooksAtImages
from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    NameTaken,
    OperationUnsupported,
    StorageError,
    SystemFailure,
    Unsupported,
    system_errors,
)
from storaged.job import Job
from storaged.model import VolumeDef, VolumeRecord, VolumeType

_RAW: Final = (None, "raw", "none", "unknown")
#: What images are called that are being filled.
_PART: Final = re.compile(r"\.storaged-(.+)-(\d+)-\d+\.part")


def is_unfinished(name: str) -> bool:
    """Tell whether an image is one that is being filled, or was when its maker died."""
    return _PART.fullmatch(name) is not None


class MakesImages(LooksAtImages, ClonesVolumes):
    """An empty image is made under its name; one that is to be filled gets its name at the end."""

    def plan(self, volume: VolumeDef, *, preallocate_metadata: bool = False) -> VolumeDef:
        if preallocate_metadata:
            raise InvalidArgument(
                "unsupported flags (0x1) in function virStorageBackendRBDBuildVol"
            )
        planned = self._planned(volume)
        if not planned.capacity:
            raise Unsupported("volume capacity required for this storage pool")
        if planned.backing is not None:
            raise Unsupported("backing storage not supported for raw volumes")
        return planned

    def _planned(self, volume: VolumeDef) -> VolumeDef:
        """Check what a new image and a clone have in common.

        :raise StorageError: it cannot be made.
        """
        if volume.format not in _RAW:
            raise ConfigUnsupported("only RAW volumes are supported by this storage pool")
        if volume.encryption is not None:
            raise ConfigUnsupported("storage pool does not support encrypted volumes")
        if is_unfinished(volume.name) or not volume.name.isprintable():
            raise InvalidArgument(f"'{volume.name}' cannot be the name of an image")
        path = self.path_of(volume.name)
        return replace(volume, type=VolumeType.NETWORK, format="raw", path=path, key=path)

    def create(
        self,
        volume: VolumeDef,
        job: Job[Any],
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
        durability: Durability | None = None,
    ) -> VolumeRecord:
        """See `CreatesVolumes.create`; the allocation that was asked for has no effect.

        Whether the name is free is seen by the attempt, which replaces nothing.

        :raise VolumeExists: it is not.
        """
        job.checkpoint()
        doing = f"failed to create volume '{volume.path}'"
        return self._make("create", doing, volume)

    def _make(self, verb: str, doing: str, volume: VolumeDef, **words: Any) -> VolumeRecord:
        """Have an image made and return its facts."""
        name, size = volume.name, volume.capacity
        found = self.link.ask(
            verb, doing, volume=name, name=name, size=size, used=self.counts_objects, **words
        )
        if found is None:
            raise self.gone(name)
        return self.take(name, found)

    def plan_clone(
        self,
        volume: VolumeDef,
        source: VolumeRecord,
        *,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeDef:
        if source.type in (VolumeType.DIR, VolumeType.PLOOP):
            raise OperationUnsupported(f"directory volume '{source.name}' cannot be cloned")
        check_sound(source, "cloned")
        if options.backing is not CloneBacking.FLATTEN:
            raise ConfigUnsupported("a clone on rbd cannot keep a backing file")
        if options.compress is not None:
            raise ConfigUnsupported("compression is only available with qcow2")
        if volume.backing is not None:
            raise Unsupported("backing storage not supported for raw volumes")
        check_locked(volume, source, options)
        planned = self._planned(volume)
        least = source.capacity
        if source.format == "raw" and source.image is not None and options.source_secret is None:
            least = max(least, source.physical)  # with the header of its encryption
        return replace(planned, capacity=max(planned.capacity, least))

    def clone(
        self,
        volume: VolumeDef,
        source: ImageSource,
        job: Job[Any],
        *,
        reflink: bool,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeRecord:
        handle = source.handle
        job.checkpoint()
        if isinstance(handle, RbdHandle) and handle.id and self._is_here(handle):
            doing = f"failed to clone rbd image '{source.path}'"
            words = {"parent": handle.volume, "parent_id": handle.id, "part": self._part(job)}
            try:
                return self._make("clone", doing, volume, **words)
            except Unsupported:  # then it is copied
                if reflink:
                    raise
        elif reflink:
            raise SystemFailure(
                f"failed to clone files from '{source.path or source.record.name}'",
                95,
                advice="A copy-on-write clone lies in the Ceph pool of its source; without reflink"
                " the data are copied.",
            )
        if self.look(volume.name, None) is not None:  # before anything is copied in vain
            raise NameTaken(f"volume target path '{volume.path}' already exists")
        self._copy(volume, source, job, options)
        return self.made(volume.name)

    def _is_here(self, handle: RbdHandle) -> bool:
        """Tell whether an image lies in this pool, whatever connection it is reached by."""
        self.link.session()
        if handle.link is not self.link:
            handle.link.session()
        return handle.link.identity == self.link.identity

    def _copy(
        self, volume: VolumeDef, source: ImageSource, job: Job[Any], options: CloneOptions
    ) -> None:
        from storaged.backends import _content
        from storaged.formats import convert
        from storaged.formats.raw_writer import RawWriter

        with (
            self._unfinished(volume, job) as part,
            format_errors(source.record.name),
            system_errors(f"cannot copy '{source.record.name}' to '{volume.path}'"),
            sharing_errors(source, required=False),
            _content.disk_of(source, job, options.source_secret) as disk,
            closing(RbdHandle(self.link, part, "", writable=True)) as image,
        ):
            convert.convert(
                disk,
                RawWriter(image, volume.capacity),
                size=volume.capacity,
                checkpoint=job.checkpoint,
            )
            image.flush()

    @contextmanager
    def _unfinished(self, volume: VolumeDef, job: Job[Any]) -> Iterator[str]:
        """Make an image that nobody sees; at the end of the context it gets its name.

        :raise VolumeExists: somebody else has taken that meanwhile.
        """
        part = self._part(job)
        doing = f"failed to create volume '{volume.path}'"
        self.link.ask("create", doing, name=part, size=volume.capacity, unfinished=True)
        try:
            yield part
            self.link.ask("finish", doing, volume=volume.name, name=part, new=volume.name)
        except BaseException:
            with suppress(StorageError):
                self.link.ask("discard_unfinished", doing, name=part)
            raise

    def _part(self, job: Job[Any]) -> str:
        return f".storaged-{self.host.id}-{os.getpid()}-{job.id}.part"

    def made(self, name: str) -> VolumeRecord:
        """Return the facts of an image that was made just now.

        :raise NoSuchVolume: somebody has removed it already.
        """
        found = self.look(name, None)
        if found is None:
            raise self.gone(name)
        return found

    def leftovers(self, names: dict[str, str]) -> list[str]:
        """Return those of the names that engines of this host have left that were killed."""
        found = []
        for name in names:
            part = _PART.fullmatch(name)
            if part is not None and part[1] == self.host.id and int(part[2]) != os.getpid():
                found.append(name)
        return found
