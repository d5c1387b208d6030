"""The directory that a pool's volumes lie in, opened anew for each piece of work, never by luck.

A pool says "active", but its file system may have been unmounted since: what is then written goes
into the directory below, and is not there when the mount comes back. So `hold` remembers what the
target was, and whatever works on volumes opens the target by path, compares, and does everything
below that descriptor. Nothing is kept open, so nobody is kept from unmounting.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from storaged import mounts
from storaged.backend import Anchored, Backend, Host
from storaged.backends._rights import Rights
from storaged.errors import InternalError, StorageError, TargetChanged, system_errors
from storaged.formats import syscalls
from storaged.job import Job
from storaged.model import PoolDef, Space

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: File systems whose statfs id is made at each mount: it says nothing of a remount.
_UNSTABLE_IDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs"})


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a target directory is.

    :param device: ``st_dev``.
    :param inode: ``st_ino``; *device*, *inode* and *file_system* together are "the very same".
    :param file_system: statfs' id.
    :param type: of the file system, such as ``xfs``.
    :param source: what is mounted, such as a device.
    :param root: the directory of the file system that is mounted.
    :param mounted: 1 if the target itself is the mount point.
    :param uuid: of the file system, "" where the kernel does not tell.
    """

    device: int
    inode: int
    file_system: int
    type: str
    source: str
    root: str
    mounted: int
    uuid: str = ""

    def __str__(self) -> str:
        below = "" if self.root == "/" else f"{self.root} of "
        how = "mounted on it" if self.mounted else "below it"
        return f"{self.type} of {below}{self.source} {how}"

    def is_same_storage(self, other: Anchor) -> bool:
        """Tell whether the two are one file system, perhaps mounted anew."""
        place = (self.mounted, self.root, self.type) == (other.mounted, other.root, other.type)
        if self.uuid and other.uuid:
            return place and self.uuid == other.uuid
        unstable = self.type in _UNSTABLE_IDS or self.type.startswith("fuse")
        alike = unstable or self.file_system == other.file_system
        return place and alike and self.source == other.source


class TargetDirectory(Backend, Anchored):
    """A pool whose volumes are the entries of its target directory."""

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        self._held: Anchor | None = None
        #: as whom its files are reached
        self.rights = Rights(session=host.session)

    @property
    def target(self) -> str:
        """The path of the target directory, as the definition has it."""
        if self.definition.target is None:
            raise InternalError(f"pool '{self.definition.name}' has no target path")
        return self.definition.target

    def path_of(self, name: str) -> str:
        """Return the path, and so the key, of the volume *name*."""
        return f"{self.target}/{name}"

    def check(self) -> bool:
        return os.path.isdir(self.target)  # noqa: PTH112

    def stop(self, job: Job[Any]) -> str | None:
        self.rights.close()
        return None

    def anchor(self) -> Mapping[str, str | int]:
        with self.opened_target(verify=False) as directory:
            return asdict(read_anchor(directory))

    def hold(self, anchor: Mapping[str, str | int]) -> None:
        try:
            self._held = Anchor(**anchor)  # type: ignore[arg-type]
        except TypeError as err:
            raise InternalError(
                f"the recorded identity of '{self.target}' cannot be read: {sorted(anchor)}"
            ) from err

    def opened_target(self, *, verify: bool = True) -> OpenedTarget:
        """Open the target for one piece of work.

        :param verify: make sure that it is the one of `hold`.
        :raise SystemFailure: it cannot be opened.
        :raise TargetChanged: it is another directory, or on another file system, than before.
        """
        return OpenedTarget(self, verify=verify)

    def open_target(self, *, verify: bool) -> int:
        """Open the target as `opened_target` does, for who closes it."""
        target = self.target
        with system_errors(
            f"cannot open directory '{target}'",
            advice=f"If it has to be made: storagectl pool build {self.definition.name}",
        ):
            directory = self._open_directory(target)
        if verify:
            try:
                self._verify(directory)
            except BaseException:
                os.close(directory)
                raise
        return directory

    def _open_directory(self, target: str) -> int:
        try:
            return os.open(target, _DIRECTORY)
        except PermissionError as refusal:
            found = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self.rights.reopen_refused(refusal, found, _DIRECTORY)
            finally:
                os.close(found)

    def target_problem(self, directory: int) -> str | None:
        """Say what is wrong with the opened target's identity, or None."""
        try:
            self._verify(directory)
        except StorageError as err:
            return err.message
        return None

    def _verify(self, directory: int) -> None:
        held = self._held
        if held is None:
            return
        with system_errors(f"cannot open directory '{self.target}'"):
            status = os.fstat(directory)
            very_same = status.st_ino == held.inode and status.st_dev == held.device
            if very_same and os.fstatvfs(directory).f_fsid == held.file_system:
                return
        found = read_anchor(directory)
        if not found.is_same_storage(held):
            raise _changed(self.definition.name, self.target, held, found)
        self._held = found


class OpenedTarget:
    """The target of a pool while one piece of work needs it; as a context it is a descriptor."""

    __slots__ = ("_directory", "_pool", "_verify")

    def __init__(self, pool: TargetDirectory, *, verify: bool) -> None:
        self._pool = pool
        self._verify = verify

    def __enter__(self) -> int:
        self._directory = self._pool.open_target(verify=self._verify)
        return self._directory

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self._directory)


def read_anchor(directory: int) -> Anchor:
    """Return what identifies an open directory.

    :raise SystemFailure: the kernel does not tell.
    """
    mount = mounts.mount_of(directory)
    with system_errors(f"cannot identify the file system of '{mount.point}'"):
        status = os.fstat(directory)
        file_system = os.fstatvfs(directory).f_fsid
    return Anchor(
        device=status.st_dev,
        inode=status.st_ino,
        file_system=file_system,
        type=mount.type,
        source=mount.source,
        root=mount.root,
        mounted=int(mounts.is_mount_point(directory, mount)),
        uuid=syscalls.file_system_uuid(directory),
    )


def read_space(directory: int, path: str) -> Space:
    """Return how full the file system of an open directory is."""
    with system_errors(f"cannot statvfs path '{path}'"):
        facts = os.fstatvfs(directory)
    capacity = facts.f_frsize * facts.f_blocks
    available = facts.f_frsize * facts.f_bfree
    return Space(capacity, capacity - available, available)


def _changed(pool: str, target: str, held: Anchor, found: Anchor) -> TargetChanged:
    point = shlex.quote(target)
    if held.mounted and not found.mounted:
        # of a bind mount or a subvolume the source alone would be too much
        source = f"{shlex.quote(held.source)} " if held.root == "/" else ""
        mend = f"Mount it again: mount {source}{point}"
    elif found.mounted:
        mend = f"Unmount what covers it: umount {point}"
    else:
        mend = "Bring the old file system back"
    return TargetChanged(
        f"target '{target}' of pool '{pool}' has changed: expected {held}, found {found}",
        advice=f"{mend}. If the change is meant, stop and start the pool.",
    )
