"""All there is to say of one volume, for its XML.

The backing store is named, and its times and owner are told if it is a local file; but nothing an
image's header names is ever opened for reading here.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from storaged.backends._rights import Rights
from storaged.formats import syscalls
from storaged.formats.image import BackingRef
from storaged.model import (
    BackingStore,
    Encryption,
    Permissions,
    Timestamps,
    VolumeDef,
    VolumeRecord,
)
from storaged.references import refer, without_credentials

_LABEL = "security.selinux"
#: Names the file without any access to its content, and so without waiting for a FIFO's writer.
_NAME_ONLY = os.O_PATH | os.O_CLOEXEC


def describe(
    record: VolumeRecord, directory: int, target: str, rights: Rights | None = None
) -> VolumeDef:
    """Return the full definition of a volume of an open directory.

    :param target: the path of the directory.
    :param rights: as whom the volume is looked at if we are refused.
    :raise OSError: the volume has gone (`FileNotFoundError`), or cannot be looked at.
    """
    permissions, timestamps = file_facts(record.name, directory, rights=rights)
    path = f"{target}/{record.name}"
    image = record.image
    return VolumeDef(
        name=record.name,
        capacity=record.capacity,
        allocation=record.allocation,
        physical=record.physical,
        format=record.format,
        type=record.type,
        key=path,
        path=path,
        permissions=permissions,
        timestamps=timestamps,
        encryption=Encryption(image.encryption) if image and image.encryption else None,
        compat=image.compat if image else None,
        # libvirt tells the cluster size of qcow2 only
        cluster_size=image.cluster_size if image and image.format == "qcow2" else 0,
        features=image.features if image else None,
        backing=_backing(image.backing, directory, target) if image and image.backing else None,
    )


def label_of(fd: int) -> str | None:
    """Return the SELinux label of an open file, None where there are none."""
    with suppress(OSError):
        value = os.getxattr(f"/proc/self/fd/{fd}", _LABEL)
        return value.rstrip(b"\0").decode(errors="replace") or None
    return None


def _backing(backing: BackingRef, directory: int, target: str) -> BackingStore:
    # libvirt prints "raw" for an unrecorded format where it does not probe.
    kind = backing.format or "raw"
    path = refer(backing.name, target).path
    if path is None:
        return BackingStore(without_credentials(os.fsdecode(backing.name)), kind)
    with suppress(OSError):
        permissions, timestamps = file_facts(path, directory, regular=True)
        return BackingStore(path, kind, permissions, timestamps)
    return BackingStore(path, kind)


def file_facts(
    path: str,
    directory: int | None = None,
    *,
    regular: bool = False,
    rights: Rights | None = None,
) -> tuple[Permissions, Timestamps]:
    """Return what is told of a file or a device; it is not opened for reading.

    :param regular: refuse all but a regular file.
    :raise OSError: it is not there (`FileNotFoundError`), or cannot be looked at.
    """
    try:
        fd = os.open(path, _NAME_ONLY, dir_fd=directory)
    except PermissionError as refusal:
        if rights is None or directory is None:
            raise
        fd = rights.find_refused(refusal, directory, path)
    try:
        status = os.fstat(fd)
        if regular and not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        permissions = Permissions.of_file(status, label_of(fd))
        return permissions, Timestamps(
            status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns, syscalls.birth_time(fd)
        )
    finally:
        os.close(fd)
