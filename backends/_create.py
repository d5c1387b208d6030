"""New volumes in a directory: raw, qcow2, vmdk and plain directories.

A new volume of format iso is an empty sparse file, as in libvirt, for an image to be uploaded into.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from storaged.backend import CreatesVolumes, Durability, Host
from storaged.backends import _plan
from storaged.backends._backing import settle_backing, vmdk_parent
from storaged.backends._chain import ReadsChains
from storaged.backends._image import format_errors
from storaged.backends._layers import PLAIN
from storaged.backends._newfile import (
    NewFile,
    can_be_unnamed,
    new_file,
    part_name,
    remove_leftovers,
    taken_names,
)
from storaged.backends._record import mark_raw
from storaged.backends._rights import OWN, Entries, made_by
from storaged.errors import NameTaken, OperationInvalid, SystemFailure, system_errors
from storaged.formats import raw, syscalls
from storaged.formats.file import FileHandle
from storaged.job import Job
from storaged.model import Permissions, PoolDef, VolumeDef, VolumeRecord, VolumeType

#: libvirt's mode for a volume that asks for none.
DEFAULT_MODE = 0o600
#: Formats with a header to write.
_IMAGES = ("qcow2", "vmdk")


class CreatesFiles(ReadsChains, CreatesVolumes):
    """New volumes are new files."""

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        #: whether files can be made without a name here; None: not tried yet
        self._unnamed: bool | None = None

    def start(self, job: Job[Any]) -> None:
        """Make the storage available, and clear away what a dead process of this host left."""
        super().start(job)
        self._unnamed = None  # another file system may be there by now
        with suppress(OSError, SystemFailure), self.opened_target(verify=False) as directory:
            remove_leftovers(directory, self.host.id, self.rights)

    def plan(self, volume: VolumeDef, *, preallocate_metadata: bool = False) -> VolumeDef:
        with self.opened_target() as directory:
            self.check_free(directory, volume.name)
            volume = _plan.settle(volume, self.path_of(volume.name), self.host.compat_level)
            _plan.check_request(volume, preallocate_metadata=preallocate_metadata)
            volume = settle_backing(volume, directory, self.target, self.rights)
            self._check_chain(volume, directory)
            _plan.check_rest(volume)
            self._check_nocow(directory, volume)
            if volume.format in _IMAGES:
                from storaged.backends import _writers

                _writers.check(volume, preallocate_metadata=preallocate_metadata)
            return volume

    def create(
        self,
        volume: VolumeDef,
        job: Job[Any],
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
        durability: Durability | None = None,
    ) -> VolumeRecord:
        with self.opened_target() as directory:
            if volume.type is VolumeType.DIR:
                self._make_directory(directory, volume)
            else:
                _plan.require_secret(volume, secret)
                with self.new_volume(directory, volume, job, durability=durability) as file:
                    handle = FileHandle(file.fd, owned=False)
                    if _is_plain(volume):
                        self._fill_plain(handle, volume, job)
                    else:
                        self._fill(directory, handle, volume, job, preallocate_metadata, secret)
                if file.status is not None and _is_plain(volume):
                    return self.recorder().of_plain(volume.name, file.status)
            return self.read_again(directory, volume.name)

    def check_free(self, directory: int, name: str) -> None:
        """Refuse a name that cannot be, or that is taken.

        :raise StorageError: see `storaged.backends._plan.check_name`.
        :raise NameTaken: something stands there.
        """
        _plan.check_name(name)
        path = self.path_of(name)
        with system_errors(f"cannot stat file '{path}'"), suppress(FileNotFoundError):
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except PermissionError as refusal:
                self.rights.stat_refused(refusal, directory, name)
            raise NameTaken(f"volume target path '{path}' already exists")

    @contextmanager
    def new_volume(
        self,
        directory: int,
        volume: VolumeDef,
        job: Job[Any],
        *,
        durability: Durability | None = None,
    ) -> Iterator[NewFile]:
        """Open the file of a new volume; after the block it has its name, or is gone.

        :param durability: None is the engine's setting.
        :raise NameTaken: somebody else made a file of that name meanwhile.
        :raise SystemFailure: the kernel refused a step.
        """
        part = "" if self._unnamed else part_name(self.host.id, job.id)
        with taken_names(self.path_of(volume.name), volume.name):
            unnamed = self.can_be_unnamed(directory, part)
            makers = self.rights.makers(directory, volume.permissions)
            with new_file(directory, part, unnamed=unnamed, makers=makers) as file:
                if volume.nocow:
                    self._set_nocow(file.fd, volume)
                yield file
                self.set_permissions(file.fd, volume.permissions, file.entries)
                self.sync(file.fd, durability)
                job.checkpoint()
                file.commit(volume.name)
                try:
                    self.sync(directory, durability)
                except OSError:
                    file.entries.unlink(directory, volume.name)
                    raise

    def can_be_unnamed(self, directory: int, part: str) -> bool:
        """Tell whether files here can be made without a name; it is tried once.

        :param part: a name for trying it, if it was not yet.
        :raise OSError: for a reason that would stop every new file.
        """
        if self._unnamed is None:
            self._unnamed = can_be_unnamed(directory, part)
        return self._unnamed

    def set_permissions(self, fd: int, permissions: Permissions, entries: Entries = OWN) -> None:
        """Give a new file or directory what was asked for, whatever the umask is.

        :param entries: who made it.
        :raise OSError: the kernel refused.
        """
        status = os.fstat(fd)
        owner = -1 if permissions.owner is None else permissions.owner
        group = -1 if permissions.group is None else permissions.group
        differs = owner not in (-1, status.st_uid) or group not in (-1, status.st_gid)
        if differs and not self.host.session:
            entries.chown(fd, owner, group)
        mode = DEFAULT_MODE if permissions.mode is None else permissions.mode
        if differs or stat.S_IMODE(status.st_mode) != mode:  # a new owner takes special bits away
            entries.chmod(fd, mode)

    def _fill_plain(self, handle: FileHandle, volume: VolumeDef, job: Job[Any]) -> None:
        path = self.path_of(volume.name)
        allocation = volume.capacity if volume.allocation is None else volume.allocation
        if volume.format == "iso":
            allocation = 0
        doing = (
            f"cannot allocate {allocation} bytes in file" if allocation else "cannot extend file"
        )
        with system_errors(f"{doing} '{path}'"):
            raw.create(handle, volume.capacity, allocation=allocation, checkpoint=job.checkpoint)
        if volume.format == "raw":
            mark_raw(handle.fileno())

    def _fill(
        self,
        directory: int,
        handle: FileHandle,
        volume: VolumeDef,
        job: Job[Any],
        preallocate_metadata: bool,
        secret: bytes | None,
    ) -> None:
        path = self.path_of(volume.name)
        with format_errors(volume.name), system_errors(f"cannot fill file '{path}'"):
            from storaged.backends import _content

            _content.create(
                handle,
                volume,
                job,
                preallocate_metadata=preallocate_metadata,
                secret=secret,
                parent=vmdk_parent(volume, directory, self.target, self.rights),
            )

    def _make_directory(self, directory: int, volume: VolumeDef) -> None:
        with taken_names(self.path_of(volume.name), volume.name):
            makers = self.rights.makers(directory, volume.permissions)
            _, entries = made_by(makers, lambda each: each.mkdir(directory, volume.name, 0o700))
            try:
                fd = self._open_new_directory(directory, volume.name)
                try:
                    self.set_permissions(fd, volume.permissions, entries)
                finally:
                    os.close(fd)
                self.sync(directory)
            except OSError:
                entries.rmdir(directory, volume.name)
                raise

    def _open_new_directory(self, directory: int, name: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=directory)
        except PermissionError as refusal:
            return self.rights.open_refused(refusal, directory, name, flags)

    def _check_chain(self, volume: VolumeDef, directory: int) -> None:
        """Refuse a backing file that has a danger somewhere below it.

        :raise OperationInvalid: naming it.
        """
        backing = volume.backing
        if backing is None or backing.format in PLAIN:
            return
        with system_errors(f"inaccessible backing store volume {backing.path}"):
            below = self.backing_volume(backing, directory)
        if below is None:  # only what it says itself counts
            return
        for danger in self.chain(below, format=backing.format).dangers:
            raise OperationInvalid(f"backing store '{backing.path}' cannot be used: {danger}")

    def _check_nocow(self, directory: int, volume: VolumeDef) -> None:
        if volume.nocow and volume.format == "raw":
            with system_errors(f"cannot open directory '{self.target}'"):
                kind = syscalls.file_system(directory).type
            if kind != syscalls.BTRFS_MAGIC:
                raise SystemFailure(*_plan.no_nocow(self.path_of(volume.name)))

    def _set_nocow(self, fd: int, volume: VolumeDef) -> None:
        """Turn copy on write off; as in libvirt a must for raw, and a wish for what QEMU makes."""
        try:
            syscalls.set_nocow(fd, nocow=True)
        except OSError as err:
            if volume.format == "raw":
                text, number = _plan.no_nocow(self.path_of(volume.name))
                raise SystemFailure(text, number) from err


def _is_plain(volume: VolumeDef) -> bool:
    """Tell whether a planned volume has no header."""
    return volume.format in ("raw", "iso") and volume.encryption is None
