"""Making and removing the target directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from storaged.backend import Builds
from storaged.backends._plan import no_nocow
from storaged.backends._rights import Entries, made_by
from storaged.backends._target import TargetDirectory
from storaged.errors import InvalidArgument, OperationInvalid, SystemFailure, system_errors
from storaged.formats import syscalls
from storaged.job import Job

#: libvirt's mode for a new target that asks for none.
DEFAULT_MODE = 0o711
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PARENT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class BuildsDirectory(TargetDirectory, Builds):
    """`build` makes the target directory; what is there already gets only what was asked for."""

    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        if not self.target.startswith("/"):
            raise InvalidArgument(f"path '{self.target}' is not absolute")
        if overwrite is not None:
            raise OperationInvalid(
                f"No source device specified when formatting pool '{self.definition.name}'"
            )
        try:
            self.make_directory()
        finally:
            self.rights.close()

    def delete_target(self, job: Job[Any]) -> None:
        try:
            self._remove_target()
        except OSError as err:
            raise SystemFailure(
                f"failed to remove pool '{self.target}'",
                err.errno or errno.EIO,
                advice=_why_not(err.errno, self.target),
            ) from err
        finally:
            self.rights.close()

    def _remove_target(self) -> None:
        try:
            Path(self.target).rmdir()
        except PermissionError:
            path = Path(self.target)
            parent = os.open(path.parent, _PARENT)
            try:
                self.rights.rmdir(parent, path.name)
            finally:
                os.close(parent)

    def make_directory(self) -> None:
        """Make the target and its parents, or adapt the target that is there.

        :raise SystemFailure: the kernel refused; what was made until then stays.
        """
        with system_errors(f"cannot create path '{self.target}'"):
            Path(self.target).parent.mkdir(parents=True, exist_ok=True)
            parent = os.open(Path(self.target).parent, _PARENT)
        try:
            directory, maker = self._open_or_make(parent)
        finally:
            os.close(parent)
        try:
            self._set_permissions(directory, maker)
            self._control_cow(directory)
        finally:
            os.close(directory)

    def _open_or_make(self, parent: int) -> tuple[int, Entries | None]:
        """Return the open target, and who made it if it is new.

        What was made is never reached through a link that somebody put in its place.
        """
        name = Path(self.target).name or "."
        maker: Entries | None = None
        with system_errors(f"cannot create path '{self.target}'"), suppress(FileExistsError):
            makers = self.rights.makers(parent, self.definition.permissions)
            _, maker = made_by(makers, lambda each: each.mkdir(parent, name, 0o700))
        with system_errors(f"cannot open directory '{self.target}'"):
            flags = _DIRECTORY | (os.O_NOFOLLOW if maker else 0)
            try:
                return os.open(name, flags, dir_fd=parent), maker
            except PermissionError as refusal:
                return self.rights.open_refused(refusal, parent, name, flags), maker

    def _set_permissions(self, directory: int, maker: Entries | None) -> None:
        def change(work: Callable[[Entries], None]) -> None:
            if maker is None:
                self.rights.change(directory, work)
            else:
                work(maker)

        wanted = self.definition.permissions
        status = os.fstat(directory)
        owner = -1 if wanted.owner is None else wanted.owner
        group = -1 if wanted.group is None else wanted.group
        differs = owner not in (-1, status.st_uid) or group not in (-1, status.st_gid)
        if differs and not self.host.session:
            with system_errors(f"cannot chown '{self.target}' to ({owner}, {group})"):
                change(lambda entries: entries.chown(directory, owner, group))
        mode = DEFAULT_MODE if maker and wanted.mode is None else wanted.mode
        if mode is not None and mode != stat.S_IMODE(status.st_mode):
            with system_errors(f"cannot set mode of '{self.target}' to {mode:04o}"):
                change(lambda entries: entries.chmod(directory, mode))

    def _control_cow(self, directory: int) -> None:
        """Turn copy on write off, by default too: it fragments images. On as the pool asks."""
        wanted = self.definition.cow
        if wanted is None:
            with suppress(OSError):
                syscalls.set_nocow(directory, nocow=True)
            return
        with system_errors(f"cannot set COW flag on '{self.target}'"):
            if syscalls.file_system(directory).type != syscalls.BTRFS_MAGIC:
                raise SystemFailure(*no_nocow(self.target))
            syscalls.set_nocow(directory, nocow=not wanted)


def _why_not(number: int | None, target: str) -> str | None:
    if number == errno.EBUSY:
        return f"'{target}' is a mount point: undefine the pool instead, the data stay."
    if number in (errno.ENOTEMPTY, errno.EEXIST):
        try:
            names = sorted(entry.name for entry in Path(target).iterdir())
        except OSError:
            return None
        more = ", ..." if len(names) > 3 else ""
        return f"{len(names)} entries are left: {', '.join(names[:3])}{more}"
    return None
