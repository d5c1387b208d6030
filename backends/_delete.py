"""Removing volumes of a directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from storaged import imagelock
from storaged.backend import DeletesVolumes
from storaged.backends._image import OpensImages
from storaged.backends._record import OPEN_FLAGS
from storaged.backends._rights import Rights
from storaged.backends._scan import look_at
from storaged.errors import SystemFailure, system_errors
from storaged.job import Job
from storaged.model import VolumeRecord, VolumeType


class DeletesFiles(OpensImages, DeletesVolumes):
    """Volumes are unlinked; of a link only the link goes, not what it leads to."""

    def delete(self, volume: VolumeRecord, job: Job[Any], *, force: bool = False) -> None:
        path = self.path_of(volume.name)
        with self.opened_target() as directory:
            try:
                remove = self._way(directory, volume, force=force)
                # by now the pool may have been stopped by force, and the name be another volume's
                job.checkpoint()
                remove(directory, volume.name)
            except FileNotFoundError:
                return
            except OSError as err:
                raise SystemFailure(f"cannot unlink file '{path}'", err.errno or errno.EIO) from err
            with system_errors(f"cannot sync directory '{self.target}'"):
                self.sync(directory)

    def _way(
        self, directory: int, volume: VolumeRecord, *, force: bool
    ) -> Callable[[int, str], None]:
        """Return what removes a volume, given the open directory and the name."""
        if volume.type is not VolumeType.FILE and _is_link(directory, volume.name):
            return self.rights.unlink
        if volume.type is VolumeType.PLOOP and self._is_ploop(directory, volume.name):
            return _remove_tree
        if volume.type in (VolumeType.DIR, VolumeType.PLOOP):
            return self._remove_directory
        if not force:
            _check_unused(directory, volume.name, self.rights)
        return self.rights.unlink

    def _is_ploop(self, directory: int, name: str) -> bool:
        """Tell whether it still is one: another directory of that name may hold anything."""
        now = look_at(directory, name, self.recorder())
        return now is not None and now.type is VolumeType.PLOOP

    def _remove_directory(self, directory: int, name: str) -> None:
        try:
            self.rights.rmdir(directory, name)
        except FileNotFoundError:
            raise
        except OSError as err:
            advice = None
            if err.errno in (errno.ENOTEMPTY, errno.EEXIST):
                advice = "It holds files: only an empty directory is deleted."
            raise SystemFailure(
                f"cannot remove directory '{self.path_of(name)}'",
                err.errno or errno.EIO,
                advice=advice,
            ) from err


def _is_link(directory: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _remove_tree(directory: int, name: str) -> None:
    shutil.rmtree(name, dir_fd=directory)


def _check_unused(directory: int, name: str, rights: Rights) -> None:
    """Refuse a file that a virtual machine has open; one that we may not read is not looked at."""
    with suppress(FileNotFoundError, PermissionError):
        try:
            fd = os.open(name, OPEN_FLAGS, dir_fd=directory)
        except PermissionError as refusal:
            fd = rights.open_refused(refusal, directory, name, OPEN_FLAGS)
        try:
            imagelock.check(fd, name)
        finally:
            os.close(fd)
