"""Writing an image of a directory anew in its place: another format, another version, no chain."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, suppress
from typing import Any

from storaged import imagelock
from storaged.backend import ImageSource
from storaged.backends._chain import ReadsChains
from storaged.backends._create import CreatesFiles
from storaged.backends._image import check_sound, format_errors
from storaged.backends._newfile import NewFile, new_file, part_name
from storaged.backends._plan import check_rest
from storaged.backends._record import MARK, mark_raw, owner_name, stamp_of
from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    OperationInvalid,
    OperationUnsupported,
    VolumeBusy,
    system_errors,
)
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo
from storaged.imagebackend import RewritesImages
from storaged.imaging import ConvertOptions, check_compat
from storaged.job import Job
from storaged.model import (
    BackingStore,
    Encryption,
    Permissions,
    VolumeDef,
    VolumeRecord,
    VolumeType,
)

#: Attributes of a file that its successor gets: labels, access lists, what users noted.
_ATTRIBUTES = ("security.selinux", "system.posix_acl_access", "user.")


class RewritesFiles(CreatesFiles, ReadsChains, RewritesImages):
    """The new image is filled beside the old one and then takes its name."""

    def rewrite(
        self, volume: VolumeRecord, options: ConvertOptions, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        name = volume.name
        with self.opened_target() as directory:
            now = self.read_again(directory, name, volume)
            fd = self.open_fd(directory, now, writable=False)
            try:
                _planned(now, options, force=force)
                self._replace(directory, fd, name, options, job, force=force)
            finally:
                os.close(fd)
            return self.read_again(directory, name)

    def _replace(
        self,
        directory: int,
        fd: int,
        name: str,
        options: ConvertOptions,
        job: Job[Any],
        *,
        force: bool,
    ) -> None:
        with imagelock.hold(fd, name):  # nobody has it open, not even to read
            now = self.record_of(fd, name)
            planned = _planned(now, options, force=force)
            status = _check_name(directory, name, fd, force=force)
            if not force:
                _check_owner(name, status)
        part = part_name(self.host.id, job.id)
        with (
            system_errors(f"cannot convert file '{self.path_of(name)}'"),
            self._new_like(directory, part, status) as file,
        ):
            with imagelock.hold(fd, name, writing=False):
                path = self.path_of(name)
                handle = FileHandle(fd, owned=False)
                source = ImageSource(now, handle, path, lambda: self.open_disk(now))
                self._fill_anew(source, planned, file.fd, options, job)
            _take_over(fd, file, status, force=force)
            if planned.format == "raw" and planned.encryption is None:
                mark_raw(file.fd)
            self.sync(file.fd, options.durability)
            job.checkpoint()
            with imagelock.hold(fd, name):
                if stamp_of(_check_name(directory, name, fd, force=force)) != stamp_of(status):
                    raise VolumeBusy(f"volume '{name}' was changed while it was converted")
                file.replace(name, part)
            self.sync(directory, options.durability)

    def _new_like(
        self, directory: int, part: str, status: os.stat_result
    ) -> AbstractContextManager[NewFile]:
        """Open a new file that can be given to whom the old one belongs."""
        unnamed = self.can_be_unnamed(directory, part)
        makers = self.rights.makers(directory, Permissions.of_file(status))
        return new_file(directory, part, unnamed=unnamed, makers=makers)

    def _fill_anew(
        self,
        source: ImageSource,
        volume: VolumeDef,
        target: int,
        options: ConvertOptions,
        job: Job[Any],
    ) -> None:
        """Fill an empty file with what a guest sees on the old image, or with its top layer."""
        from storaged.backends import _content
        from storaged.formats import convert

        record = source.record
        with (
            format_errors(record.name),
            _content.disk_of(source, job, options.secret) as disk,
            _content.writer(
                FileHandle(target, owned=False),
                volume,
                job,
                like=_content.like(record),
                compress=options.compress,
                subformat=options.subformat or _subformat(record, volume),
                secret=options.secret,
            ) as writer,
        ):
            convert.convert(
                disk,
                writer,
                chain=volume.backing is None,
                total=_content.expected(record, volume, disk, options.secret),
                checkpoint=job.checkpoint,
            )


def _take_over(old: int, file: NewFile, status: os.stat_result, *, force: bool) -> None:
    """Give the new file owner, mode and labels of the old one.

    :param force: what we may not give away stays ours, without the bits that lend our rights.
    :raise OSError: the kernel refused the owner or the mode.
    """
    new = file.fd
    own = os.fstat(new)
    mode = stat.S_IMODE(status.st_mode)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        try:
            file.entries.chown(new, status.st_uid, status.st_gid)
        except PermissionError:
            if not force:
                raise
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    file.entries.chmod(new, mode)
    with suppress(OSError):  # the file system has none
        for attribute in os.listxattr(old):
            if attribute.startswith(_ATTRIBUTES) and attribute != MARK:
                with suppress(OSError):  # ours is not to set it
                    os.setxattr(new, attribute, os.getxattr(old, attribute))


def _check_owner(name: str, status: os.stat_result) -> None:
    """Refuse to replace the file of somebody else by one that would be ours.

    :raise OperationInvalid: only root could keep the owner.
    """
    own = os.geteuid()
    if own == 0 or (status.st_uid == own and status.st_gid in (os.getegid(), *os.getgroups())):
        return
    raise OperationInvalid(
        f"volume '{name}' belongs to {owner_name(status.st_uid)}, and its owner and group could"
        " not be kept",
        advice="If the new image may belong to the user who converts it: --force",
    )


def _planned(volume: VolumeRecord, options: ConvertOptions, *, force: bool) -> VolumeDef:
    """Return what the new image is to be.

    :raise StorageError: it cannot be, or something would be lost.
    """
    from storaged.backends import _content

    check_compat(options.compat)
    if volume.type is not VolumeType.FILE:
        raise OperationUnsupported(f"volume '{volume.name}' is no file: it cannot be converted")
    check_sound(volume, "converted")
    _check_secret(volume, options)
    if not force:
        _check_loss(volume)
    image = volume.image
    kind = options.format or volume.format or "raw"
    old = image if image is not None and image.format == kind == "qcow2" else None
    planned = VolumeDef(
        volume.name,
        volume.capacity,
        format=kind,
        compat=_compat(options, old, kind),
        cluster_size=options.cluster_size or (old.cluster_size if old else 0),
        features=_features(options, old) if kind == "qcow2" else None,
        backing=None if options.flatten or kind != "qcow2" else _backing(volume, image),
        encryption=None if image is None or image.encryption is None else Encryption("luks"),
    )
    check_rest(planned)
    _content.check(planned, compress=options.compress, subformat=options.subformat)
    return planned


def _compat(options: ConvertOptions, old: ImageInfo | None, kind: str) -> str | None:
    if options.compat is not None or kind != "qcow2":
        return options.compat
    if old is not None and old.compat is None:
        return "0.10"
    return "1.1"


def _subformat(old: VolumeRecord, new: VolumeDef) -> str | None:
    """Return what kind of vmdk a vmdk remains; what is not written becomes the default."""
    image = old.image
    return image.subformat if image is not None and image.format == new.format == "vmdk" else None


def _features(options: ConvertOptions, old: ImageInfo | None) -> frozenset[str] | None:
    if options.compat == "0.10" or (old is not None and old.compat is None and not options.compat):
        before: frozenset[str] = frozenset()
    else:
        before = (old.features or frozenset()) - {"data_file"} if old else frozenset()
    features = set(before)
    for feature, wanted in (
        ("lazy_refcounts", options.lazy_refcounts),
        ("extended_l2", options.extended_l2),
    ):
        if wanted is not None:
            (features.add if wanted else features.discard)(feature)
    return frozenset(features) or None


def _backing(volume: VolumeRecord, image: ImageInfo | None) -> BackingStore | None:
    """Return the backing file that the new image refers to as the old one does.

    :raise ConfigUnsupported: its format is not recorded, so nobody could record it.
    """
    if image is None or image.backing is None:
        return None
    if image.backing.format is None:
        what = f"the format of the backing file of volume '{volume.name}' is not recorded"
        if image.format != "qcow2":
            raise ConfigUnsupported(f"{what}, and {image.format} has no place for it")
        raise ConfigUnsupported(
            what,
            advice="Record it with vol rebase --set-backing-format, then convert.",
        )
    return BackingStore(os.fsdecode(image.backing.name), image.backing.format)


def _check_secret(volume: VolumeRecord, options: ConvertOptions) -> None:
    encryption = None if volume.image is None else volume.image.encryption
    if encryption is not None and options.secret is None:
        raise ConfigUnsupported(
            f"volume '{volume.name}' is encrypted ({encryption}): its passphrase is needed",
            advice="storagectl takes it from a file: --secret-file PATH",
        )
    if encryption is None and options.secret is not None:
        raise InvalidArgument(
            f"a secret was given for volume '{volume.name}', which is not encrypted"
        )


def _check_loss(volume: VolumeRecord) -> None:
    image = volume.image
    if image is None:
        return
    for count, what in ((image.snapshots, "internal snapshots"), (image.bitmaps, "dirty bitmaps")):
        if count:
            raise OperationInvalid(
                f"volume '{volume.name}' has {what} ({count}), which would be lost",
                advice="If that is meant: --force",
            )


def _check_name(directory: int, name: str, fd: int, *, force: bool) -> os.stat_result:
    """Return the status of an open file that is to be replaced, if its name still leads to it.

    :raise InvalidArgument: the name is a link: what it leads to would stay as it is.
    :raise OperationInvalid: the file has other names, which would keep the old image.
    :raise VolumeBusy: somebody put another file in its place.
    """
    status = os.fstat(fd)
    with system_errors(f"cannot stat file '{name}'"):
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(named.st_mode):
        raise InvalidArgument(
            f"volume '{name}' is a link: convert what it leads to, in its own pool"
        )
    if (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
        raise VolumeBusy(f"volume '{name}' was replaced meanwhile")
    if status.st_nlink > 1 and not force:
        raise OperationInvalid(
            f"volume '{name}' has {status.st_nlink} names, and the others would keep the old image",
            advice="If that is meant: --force",
        )
    return status
