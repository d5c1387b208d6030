"""Looking at the volumes of a directory: all of them, one of them, everything about one.

A bad entry never fails the scan. What libvirt passes over without a word is passed over here too:
FIFOs, sockets, character devices, what has vanished, links that lead nowhere. So are links into the
kernel's own file systems: to read /proc/kmsg takes away what stands there. What would make libvirt
stop the whole pool is listed with its problem.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from storaged.backend import Figures, LooksAtVolumes, Refresh
from storaged.backends._describe import describe, label_of
from storaged.backends._links import is_kernels
from storaged.backends._newfile import PART_NAME
from storaged.backends._record import (
    BLOCK,
    NAME_ONLY,
    OPEN_FLAGS,
    STAMP,
    Recorder,
    open_named,
    stamp_of,
    update_allocation,
)
from storaged.backends._rights import Rights
from storaged.backends._target import TargetDirectory, read_space
from storaged.errors import NoSuchVolume, SystemFailure, system_errors
from storaged.job import Job
from storaged.model import Permissions, Space, VolumeDef, VolumeRecord

#: Names that no listing shows, because XML cannot carry them: control characters but TAB, LF, CR.
_UNPRINTABLE = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f]")
#: Errors that say "this is nothing to list".
_NOTHING = frozenset(
    {
        errno.ENOENT,
        errno.ELOOP,
        errno.ENXIO,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.ENAMETOOLONG,
    }
)
#: Errors that are this process's or this host's, not the file's.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
#: Entries between two signs of life.
_STEP = 256


class ScansDirectory(TargetDirectory, LooksAtVolumes):
    """The entries of the target directory are the volumes."""

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        with self.opened_target(verify=False) as directory:
            with system_errors(f"cannot read directory '{self.target}'"):
                volumes = scan(directory, self.recorder(), known, job)
            problem = self.target_problem(directory)
            figures = self._figures(directory)
            return Refresh(
                volumes, figures.space, figures.permissions, (problem,) if problem else ()
            )

    def measure(self) -> Figures:
        with self.opened_target(verify=False) as directory:
            problem = self.target_problem(directory)
            return Figures(Space(), None, problem) if problem else self._figures(directory)

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        if not is_listed(name):
            return None
        with self.opened_target(verify=False) as directory:
            return look_at(directory, name, self.recorder(), known)

    def recorder(self) -> Recorder:
        """Return what makes the records of this pool's volumes."""
        return Recorder(self.target, self.rights)

    def _figures(self, directory: int) -> Figures:
        with system_errors(f"cannot open directory '{self.target}'"):
            permissions = Permissions.of_file(os.fstat(directory), label_of(directory))
        return Figures(read_space(directory, self.target), permissions)

    def describe(self, record: VolumeRecord) -> VolumeDef:
        try:
            with self.opened_target(verify=False) as directory:
                return describe(record, directory, self.target, self.rights)
        except FileNotFoundError as err:
            raise NoSuchVolume(f"no storage vol with matching name '{record.name}'") from err
        except OSError as err:
            raise SystemFailure(
                f"cannot stat file '{self.path_of(record.name)}'", err.errno or errno.EIO
            ) from err


def is_listed(name: str) -> bool:
    """Tell whether an entry of this name may be a volume at all."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        and _UNPRINTABLE.search(name) is None
        and PART_NAME.fullmatch(name) is None
    )


def look_at(
    directory: int, name: str, recorder: Recorder, known: VolumeRecord | None = None
) -> VolumeRecord | None:
    """Return the record of one entry of an open directory, None if it is no volume.

    :param known: the record so far: it is returned itself if nothing changed.
    :raise SystemFailure: this process has no descriptor or no memory left.
    """
    try:
        status = _status(directory, name, recorder)
    except OSError as err:
        # Of a link into a place that we may not enter nobody can tell what it is.
        fresh = None if _is_denied(err) else _failure(name, None, err, recorder)
    else:
        if known is not None and known.stamp == stamp_of(status):
            return update_allocation(known, status)
        fresh = _read(directory, name, status, recorder, known)
    return known if fresh == known else fresh


def scan(
    directory: int, recorder: Recorder, known: Mapping[str, VolumeRecord], job: Job[Any]
) -> dict[str, VolumeRecord]:
    """Return the records of all volumes of an open directory, by name.

    :param recorder: makes the records.
    :param known: the records so far: those of unchanged files are returned themselves.
    :raise SystemFailure: the directory cannot be read, or this process has nothing left.
    """
    with system_errors("cannot read directory"), os.scandir(directory) as listing:
        entries = list(listing)
    found: dict[str, VolumeRecord] = {}
    for start in range(0, len(entries), _STEP):
        job.checkpoint()
        for entry in _changed(directory, entries[start : start + _STEP], known, found):
            name = entry.name
            if _UNPRINTABLE.search(name) or (name[0] == "." and PART_NAME.fullmatch(name)):
                continue
            # The kind comes with the name: a regular file is opened without another look, and
            # nothing else is opened before it was looked at (opening a device may act on it).
            old = known.get(name)
            if entry.is_file(follow_symlinks=False):
                record = _open(directory, name, None, recorder, old)
            else:
                record = look_at(directory, name, recorder, old)
            if record is not None:
                found[name] = old if old is not None and old == record else record
    return found


def _changed(
    directory: int,
    entries: list[os.DirEntry[str]],
    known: Mapping[str, VolumeRecord],
    found: dict[str, VolumeRecord],
) -> list[os.DirEntry[str]]:
    """Put the records of unchanged files into *found* and return the other entries.

    This loop is what a refresh of a large pool consists of: one system call a file, and no call of
    a function of ours.
    """
    if not known:
        return entries
    look, pack = os.stat, STAMP.pack
    changed = []
    for entry in entries:
        name = entry.name
        record = known.get(name)
        if record is not None:
            try:
                status = look(name, dir_fd=directory)
            except OSError:
                changed.append(entry)
                continue
            stamp = pack(
                status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            )
            if stamp == record.stamp and record.allocation == status.st_blocks * BLOCK:
                found[name] = record
                continue
        changed.append(entry)
    return changed


def _read(
    directory: int,
    name: str,
    status: os.stat_result,
    recorder: Recorder,
    known: VolumeRecord | None,
) -> VolumeRecord | None:
    kind = stat.S_IFMT(status.st_mode)
    if kind in (stat.S_IFREG, stat.S_IFBLK):
        return _open(directory, name, status, recorder, known)
    if kind != stat.S_IFDIR:
        return None
    try:
        return recorder.of_directory(name, directory, status)
    except OSError as err:
        return _failure(name, status, err, recorder)


def _open(
    directory: int,
    name: str,
    status: os.stat_result | None,
    recorder: Recorder,
    known: VolumeRecord | None,
) -> VolumeRecord | None:
    """Open and probe what is, or was a moment ago, a regular file or a block device."""
    try:
        fd = _open_entry(directory, name, recorder.rights)
        try:
            status = os.fstat(fd)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                return recorder.of_file(name, fd, status, known)
            return recorder.of_device(name, fd, status) if kind == stat.S_IFBLK else None
        finally:
            os.close(fd)
    except OSError as err:
        if status is None:
            with suppress(OSError):
                status = os.stat(name, dir_fd=directory)
        return _failure(name, status, err, recorder)


def _status(directory: int, name: str, recorder: Recorder) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=directory)
    except PermissionError as refusal:
        if recorder.rights is None:
            raise
        return recorder.rights.stat_refused(refusal, directory, name)


def _open_entry(directory: int, name: str, rights: Rights | None = None) -> int:
    """Open an entry; what a link leads to only after a look at the very file.

    :raise OSError: it cannot be opened; EINVAL if a link leads to something else than an image,
        ENODEV if it leads to a file of the kernel's.
    """
    try:
        return os.open(name, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    except PermissionError as refusal:
        if rights is None:
            raise
        return rights.open_refused(refusal, directory, name, OPEN_FLAGS)
    except OSError as err:
        if err.errno != errno.ELOOP:
            raise
    found = os.open(name, NAME_ONLY, dir_fd=directory)
    try:
        if is_kernels(found):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return open_named(found, OPEN_FLAGS, rights)
    finally:
        os.close(found)


def _failure(
    name: str, status: os.stat_result | None, error: OSError, recorder: Recorder
) -> VolumeRecord | None:
    number = error.errno or errno.EIO
    if number in _NOTHING:
        return None
    if number in _EXHAUSTED:
        raise SystemFailure(f"cannot open volume '{name}'", number) from error
    return recorder.of_failure(name, status, number)


def _is_denied(error: OSError) -> bool:
    return error.errno in (errno.EACCES, errno.EPERM)
