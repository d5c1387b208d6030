"""New volumes from existing ones, of any pool and between any two formats."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from storaged.backend import (
    PLAIN_CLONE,
    CloneBacking,
    CloneOptions,
    ClonesVolumes,
    Compression,
    ImageSource,
)
from storaged.backends import _plan
from storaged.backends._backing import settle_backing
from storaged.backends._create import CreatesFiles
from storaged.backends._image import check_sound, format_errors
from storaged.backends._record import mark_raw
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    OperationInvalid,
    OperationUnsupported,
    SystemFailure,
    Unsupported,
    system_errors,
)
from storaged.formats import raw, syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo
from storaged.formats.probe import probe
from storaged.job import Job
from storaged.model import BackingStore, VolumeDef, VolumeRecord, VolumeType

#: libvirt makes no new ISO image: to it one is raw data, as a clone's source too.
_RAW = ("raw", "iso", None)
#: How the kernel says that two files cannot share data.
_NO_SHARING = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS}
)  # fmt: skip
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class _Way:
    """How a clone is filled.

    :param keep: its backing file is the source's: only the top layer is copied.
    :param preallocate: also what reads as zeros gets its clusters.
    """

    keep: bool
    reflink: bool
    preallocate: bool
    options: CloneOptions


class ClonesFiles(CreatesFiles, ClonesVolumes):
    """A clone has the content of its source; the data are shared where the file system can."""

    def plan_clone(
        self,
        volume: VolumeDef,
        source: VolumeRecord,
        *,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeDef:
        with self.opened_target() as directory:
            self.check_free(directory, volume.name)
            is_folder = source.type in (VolumeType.DIR, VolumeType.PLOOP)
            if is_folder or volume.format == "dir":
                raise OperationUnsupported(f"directory volume '{source.name}' cannot be cloned")
            check_sound(source, "cloned")
            check_locked(volume, source, options)
            volume = _with_defaults(volume, source, options)
            if preallocate_metadata:
                _check_preallocation(volume, source, options)
            volume = _with_backing(volume, source.image, options.backing)
            if volume.backing is not None and not _keeps(volume, source.image):
                volume = settle_backing(volume, directory, self.target, self.rights)
        from storaged.backends import _content

        _content.check(volume, compress=options.compress)
        _plan.check_rest(volume)
        _plan.require_secret(volume, options.secret)
        path = self.path_of(volume.name)
        allocation = volume.capacity if volume.allocation is None else volume.allocation
        volume = replace(volume, allocation=allocation)
        return _plan.settle(volume, path, self.host.compat_level)

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
        from storaged.backends import _content

        record = source.record
        way = _Way(_keeps(volume, record.image), reflink, preallocate_metadata, options)
        if way.keep:
            volume = self._found_from_here(volume, source)
        doing = f"cannot copy '{record.name}' to '{self.path_of(volume.name)}'"
        with (
            self.opened_target() as directory,
            format_errors(record.name),
            system_errors(doing),
            _content.disk_of(source, job, options.source_secret) as disk,
        ):
            check_same(source)
            durability = options.durability
            with self.new_volume(directory, volume, job, durability=durability) as file:
                target = FileHandle(file.fd, owned=False)
                if not volume.nocow:
                    _follow_nocow(target, source.handle)
                with sharing_errors(source, required=reflink):
                    _fill(target, volume, disk, record, job, way)
            return self.read_again(directory, volume.name)

    def _found_from_here(self, volume: VolumeDef, source: ImageSource) -> VolumeDef:
        """Return the request with the backing file under a name that leads to it from here too."""
        backing = volume.backing
        folder = os.path.dirname(source.path)  # noqa: PTH120
        if backing is None or backing.path.startswith("/") or folder == self.target:
            return volume
        path = os.path.normpath(f"{folder}/{backing.path}")
        return replace(volume, backing=replace(backing, path=path))


def _fill(
    target: FileHandle,
    volume: VolumeDef,
    disk: Handle,
    source: VolumeRecord,
    job: Job[Any],
    way: _Way,
) -> None:
    """Fill the file of a planned clone with the disk of the source, or with its top layer."""
    from storaged.backends import _content
    from storaged.formats import convert

    size = disk.size() + max(volume.capacity - source.capacity, 0)
    with _content.writer(
        target,
        replace(volume, capacity=size),
        job,
        like=_content.like(source),
        compress=way.options.compress,
        secret=way.options.secret,
        preallocate=way.preallocate,
    ) as writer:
        convert.convert(
            disk,
            writer,
            size=size,
            chain=not way.keep,
            sharing=convert.Sharing.REQUIRED if way.reflink else convert.Sharing.AUTO,
            total=_content.expected(source, volume, disk, way.options.source_secret),
            checkpoint=job.checkpoint,
        )
    if volume.format == "raw" and volume.encryption is None:
        mark_raw(target.fileno())
    allocation = volume.allocation or 0
    # As in libvirt: a clone that need not hold all of its source stays sparse.
    if volume.format in _RAW and 0 < source.capacity <= allocation:
        raw.fill_holes(target, max(allocation, target.size()), job.checkpoint)
    elif way.preallocate and allocation >= volume.capacity:
        raw.fill_holes(target, target.size(), job.checkpoint)


def check_locked(volume: VolumeDef, source: VolumeRecord, options: CloneOptions) -> None:
    """Refuse to take the ciphertext of a raw volume for the data of a guest.

    Copied to another raw volume it is what it was: the container, with its passphrases.

    :raise ConfigUnsupported: the passphrase is needed.
    """
    image = source.image
    if source.format != "raw" or image is None or image.encryption is None:
        return
    copied = volume.format in _RAW and volume.encryption is None
    if not copied and options.source_secret is None:
        raise ConfigUnsupported(
            f"volume '{source.name}' is encrypted ({image.encryption}): its passphrase is needed"
            f" for a clone that is not a copy of the container",
            advice="storagectl takes it from a file: --source-secret-file PATH",
        )


def _with_defaults(volume: VolumeDef, source: VolumeRecord, options: CloneOptions) -> VolumeDef:
    """Return a request with what it does not say: as the source has it, where that fits."""
    kind = volume.format or source.format or "raw"
    capacity = max(volume.capacity, source.capacity)
    if kind not in _RAW:
        capacity = -(-capacity // _SECTOR) * _SECTOR
    volume = replace(volume, format=kind, capacity=capacity)
    if options.compress is Compression.ZSTD and volume.compat is None:
        volume = replace(volume, compat="1.1")  # version 2 cannot be packed so
    if kind in _RAW:  # as for a new one, libvirt does not look at them
        return replace(volume, compat=None, features=None, cluster_size=0)
    image = source.image
    if image is None or not image.format == kind == "qcow2":
        return volume
    compat = volume.compat or image.compat or "0.10"
    features = volume.features
    if features is None and compat != "0.10":
        features = (image.features or frozenset()) - {"data_file"}
    return replace(
        volume,
        compat=compat,
        features=features,
        cluster_size=volume.cluster_size or image.cluster_size,
    )


def _check_preallocation(volume: VolumeDef, source: VolumeRecord, options: CloneOptions) -> None:
    """Refuse metadata preallocation where libvirt does, and of what has no clusters of its own.

    :raise ConfigUnsupported: the text says why.
    """
    if volume.format in _RAW and source.format in _RAW:
        raise ConfigUnsupported("metadata preallocation is not supported for raw volumes")
    if volume.format != "qcow2":
        raise ConfigUnsupported("metadata preallocation only available with qcow2")
    if volume.backing is not None or options.backing is CloneBacking.KEEP:
        raise ConfigUnsupported("metadata preallocation conflicts with backing store")
    if options.compress is not None:
        raise ConfigUnsupported("metadata preallocation conflicts with compression")


def _with_backing(volume: VolumeDef, image: ImageInfo | None, wish: CloneBacking) -> VolumeDef:
    """Return a request with the backing file that the clone is to refer to.

    A request that names the source's backing file wants to keep it.

    :raise InternalError: it names another one: libvirt's code and text.
    :raise ConfigUnsupported: it cannot be kept.
    """
    own = image.backing if image is not None else None
    if volume.backing is not None:
        if volume.format in _RAW:
            raise Unsupported("backing storage not supported for raw volumes")
        if own is not None and volume.backing.path != os.fsdecode(own.name):
            raise InternalError("a different backing store cannot be specified.")
    elif wish is CloneBacking.KEEP and own is not None:
        volume = replace(volume, backing=BackingStore(os.fsdecode(own.name), own.format))
    if own is None or volume.backing is None:
        return volume
    if image is None or not volume.format == image.format == "qcow2":
        raise ConfigUnsupported(
            f"a clone of format '{volume.format}' cannot keep the backing file of its source",
            advice="Both have to be qcow2; without --keep-backing its data are copied too.",
        )
    recorded = volume.backing.format or own.format
    if recorded is None:
        raise ConfigUnsupported(
            "the format of the source's backing file is not recorded",
            advice="Record it with vol rebase --set-backing-format, or clone without"
            " --keep-backing.",
        )
    return replace(volume, backing=BackingStore(volume.backing.path, recorded))


def _keeps(volume: VolumeDef, image: ImageInfo | None) -> bool:
    """Tell whether a planned clone refers to its source's backing file."""
    return volume.backing is not None and image is not None and image.backing is not None


def check_same(source: ImageSource) -> None:
    """Refuse to clone another image than the one that was checked."""
    record = source.record
    if record.format not in _RAW and probe(source.handle) != record.image:
        raise OperationInvalid(
            f"volume '{record.name}' was changed while it was cloned",
            advice="Look at it again, with a refresh of its pool, and clone it then.",
        )


def _follow_nocow(target: FileHandle, source: Handle) -> None:
    """Take over whether the source is copied on write: btrfs shares between like files only."""
    reader, writer = source.fileno(), target.fileno()
    if reader is not None and writer is not None:
        with suppress(OSError):
            syscalls.set_nocow(writer, nocow=syscalls.is_nocow(reader))


@contextmanager
def sharing_errors(source: ImageSource, *, required: bool) -> Iterator[None]:
    """Tell what is behind it if data could not be shared that had to be."""
    try:
        yield
    except OSError as err:
        if not required or err.errno not in _NO_SHARING:
            raise
        raise SystemFailure(
            f"failed to clone files from '{source.path or source.record.name}'",
            err.errno or errno.EOPNOTSUPP,
            advice="Both volumes must lie on one file system that can share data, such as XFS or"
            " btrfs; without reflink the data are copied.",
        ) from err
