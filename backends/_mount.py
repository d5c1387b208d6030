"""Pools whose target is a mount point: what fs and netfs have in common.

What is mounted on the target is told from the kernel's list of mounts, never by looking at it.
Nothing is mounted over a file system that is not the pool's, and none is unmounted.

Source: libvirt's behaviour for fs and netfs pools.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from storaged import tool
from storaged.backend import Host, Refresh, StopsByForce, Watched
from storaged.backends._build import BuildsDirectory
from storaged.backends._local import FileVolumes
from storaged.backends._mountadvice import mount_advice
from storaged.backends._mountpoint import MountPoint, mount_point
from storaged.backends._openfiles import holders
from storaged.errors import (
    CommandFailed,
    CommandTimeout,
    InvalidArgument,
    OperationInvalid,
    SystemFailure,
    system_errors,
)
from storaged.job import Job
from storaged.model import PoolDef, VolumeRecord
from storaged.mounts import Mount

#: libvirt's options for every mount on Linux.
_OPTIONS: Final = ("nodev", "nosuid", "noexec")
#: How often something of one source may be mounted on one point.
_MAX_STACK: Final = 16
_UMOUNT_TIMEOUT: Final = 60.0
_FORCE_TIMEOUT: Final = 10.0
#: How long our own looks at volumes are waited for, and how often it is tried, in seconds.
_LOOKS_END: Final = 3.0
_LOOK_AGAIN: Final = 0.1
#: What umount says, and umount.nfs.
_BUSY: Final = "is busy"
#: A mount point that shows up only when somebody looks at it.
_TRIGGER: Final = "autofs"


class MountedTarget(FileVolumes, BuildsDirectory, StopsByForce, Watched):
    """`start` mounts the source on the target, `stop` unmounts it."""

    #: how long mount may take, in seconds
    mount_timeout: ClassVar[float]

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        self._hidden: str | None = None

    @abstractmethod
    def check_source(self) -> None:
        """Refuse a source that cannot be mounted, with libvirt's texts."""

    @abstractmethod
    def mount_source(self) -> str:
        """Return the source as mount takes it."""

    @abstractmethod
    def is_source(self, mount: Mount) -> bool:
        """Tell whether a mount is of the pool's source."""

    def mount_type(self) -> str | None:
        """Return the type for mount, None to let it find out."""
        return self.definition.source.format

    def own_options(self) -> tuple[str, ...]:
        """Return the options that the type needs beside libvirt's for all and the user's."""
        return ()

    def mount_command(self) -> list[str]:
        """Return libvirt's command for mounting the pool."""
        options = (*_OPTIONS, *self.own_options(), *self.definition.mount_options)
        kind = self.mount_type()
        typed = ["-t", kind] if kind else []
        return ["mount", "-o", ",".join(options), *typed, self.mount_source(), self.target]

    @property
    def check_proves(self) -> bool:
        return True

    def check(self) -> bool:
        top = mount_point(self.target).top
        return top is not None and self._is_ours(top)

    def start(self, job: Job[Any]) -> None:
        self.check_source()
        if not self.target.startswith("/"):
            raise InvalidArgument(f"path '{self.target}' is not absolute")
        if self.mount_source().startswith("-"):
            raise InvalidArgument(f"source '{self.mount_source()}' begins with a dash")
        place = self._place()
        if place.top is None:
            self._refuse_covered(place)
            self._mount(place, job)
        elif not self._is_ours(place.top):
            raise self._foreign(place.top)
        super().start(job)

    def stop(self, job: Job[Any]) -> str | None:
        for _ in range(_MAX_STACK):
            place = mount_point(self.target)
            if place.top is None or not self._is_ours(place.top):
                self._refuse_covered(place)
                return self._ended(place)
            self._unmount(place.path, job)
        raise self._too_many()

    def stop_by_force(self, job: Job[Any]) -> str | None:
        """Detach the file system: it goes when its last user does, who may lose what he writes."""
        for _ in range(_MAX_STACK):
            place = mount_point(self.target)
            if place.top is None or not self._is_ours(place.top):
                return self._ended(place)
            # without the type's own program, which would ask a server that is dead
            how = ["-i", "-c", "-l", *self.force_options(place.top)]
            tool.run(["umount", *how, place.path], timeout=_FORCE_TIMEOUT, changes=True)
        raise self._too_many()

    def force_options(self, mount: Mount) -> tuple[str, ...]:
        """Return what umount needs beside for a forced stop."""
        return ()

    def delete_target(self, job: Job[Any]) -> None:
        top = mount_point(self.target).top
        if top is not None:
            raise OperationInvalid(
                f"cannot remove '{self.target}': {_shown(top)} is mounted on it",
                advice=f"Unmount it first: umount {self.target}",
            )
        super().delete_target(job)

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        found = super().refresh(known, job)
        notes = self._notes()
        return replace(found, problems=(*found.problems, *notes)) if notes else found

    def watch(self) -> None:
        """Ask for the figures of the file system: that reaches the server, or the driver."""
        with self.opened_target() as directory:
            with system_errors(f"cannot statvfs path '{self.target}'"):
                os.fstatvfs(directory)
            self.watch_source(directory)

    def watch_source(self, directory: int) -> None:
        """Look at what else may go away; *directory* is the open target.

        :raise StorageError: it has gone.
        """

    def mount_notes(self, mount: Mount) -> tuple[str, ...]:
        """Return what people should know of the pool's mount."""
        return ()

    def _notes(self) -> tuple[str, ...]:
        top = mount_point(self.target).top
        notes = () if top is None or not self._is_ours(top) else self.mount_notes(top)
        return (*notes, self._hidden) if self._hidden else notes

    def _ended(self, place: MountPoint) -> str | None:
        """Forget what was true of the mount that has gone; tell what is mounted there still."""
        self._held = self._hidden = None
        self.rights.close()
        return None if place.top is None else f"{_shown(place.top)} is mounted on '{self.target}'"

    def _place(self) -> MountPoint:
        """Return what is on the target; what is mounted at the first look is mounted."""
        place = mount_point(self.target)
        if place.top is not None and place.top.type == _TRIGGER:
            with suppress(OSError):
                os.close(os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            place = mount_point(self.target)
        return place

    def _mount(self, place: MountPoint, job: Job[Any]) -> None:
        hidden = _entries(place.path)
        argv = self.mount_command()
        try:
            # killed when it is given up, so that it does not mount when nobody expects it any more
            tool.run(argv, timeout=self.mount_timeout, job=job)
        except CommandTimeout as err:
            err.advice = (
                f"The source did not answer for {self.mount_timeout:g} s. "
                "The start can be tried again."
            )
            raise
        except CommandFailed as err:
            if self.check():  # by somebody else, a moment ago
                return
            err.advice = mount_advice(err.stderr, self.definition, self.mount_source())
            raise
        self._hidden = None
        if hidden:
            more = f"{hidden} entries" if hidden > 1 else "1 entry"
            self._hidden = f"the mount hides {more} of the directory '{place.path}' below it"

    def _unmount(self, path: str, job: Job[Any]) -> None:
        deadline = time.monotonic() + _LOOKS_END
        while True:
            try:
                tool.run(["umount", path], timeout=_UMOUNT_TIMEOUT, job=job, changes=True)
            except CommandTimeout as err:
                err.advice = self._forced("Its source does not answer.")
                raise
            except CommandFailed as err:
                if _BUSY not in err.stderr:
                    raise
                if time.monotonic() > deadline or holders(path, others=True):
                    why = f"In use: {'; '.join(holders(path)) or 'by whom unknown'}."
                    err.advice = self._forced(why)
                    raise
            else:
                return
            job.checkpoint()  # a look of ours at a volume that has not ended yet
            time.sleep(_LOOK_AGAIN)

    def _forced(self, why: str) -> str:
        return f"{why} To let go of it all the same: storagectl pool stop --force" + (
            f" {self.definition.name}"
        )

    def _is_ours(self, mount: Mount) -> bool:
        """Tell whether a mount is the pool's; what was when it was started still is."""
        held = self._held
        if held is not None and held.mounted:
            there = (mount.source, mount.type, mount.root)
            if there == (held.source, held.type, held.root):
                return True
        return self.is_source(mount)

    def _refuse_covered(self, place: MountPoint) -> None:
        """Refuse to go on while something covers what is mounted on the target."""
        if not any(self._is_ours(mount) for mount in place.below):
            return
        if place.top is not None:
            raise self._foreign(place.top)
        raise OperationInvalid(
            f"target '{self.target}' of pool '{self.definition.name}' lies below another mount",
            advice=f"The pool's file system is mounted there, but covered: findmnt -T {place.path}",
        )

    def _too_many(self) -> OperationInvalid:
        return OperationInvalid(
            f"{_MAX_STACK} mounts or more lie on target '{self.target}' of pool "
            f"'{self.definition.name}'",
            advice=f"The topmost {_MAX_STACK} are gone. Stop the pool again.",
        )

    def _foreign(self, mount: Mount) -> OperationInvalid:
        return OperationInvalid(
            f"something else is mounted on target '{self.target}' of pool "
            f"'{self.definition.name}': {_shown(mount)}",
            advice=f"Nothing was changed. If it may go: umount {self.target}",
        )


def _entries(path: str) -> int:
    """Return how many entries a directory has, as far as that can be told."""
    try:
        return sum(1 for _ in Path(path).iterdir())
    except OSError:
        return 0


def _shown(mount: Mount) -> str:
    return f"{mount.type} of {mount.source}"


def no_device(path: str) -> SystemFailure:
    """Return the error for a device that has gone."""
    return SystemFailure(f"device '{path}' of a mounted file system has gone")
