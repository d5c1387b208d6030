"""The backing store of a new volume: there, readable, and of a known format and size.

Only a file in the pool's own directory is probed. What a stranger's file says of itself is not
believed: outside, the format must have been given, as it must for a running virtual machine.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

from storaged.backends._describe import backing_path
from storaged.backends._plan import encoded
from storaged.backends._record import OPEN_FLAGS
from storaged.errors import ConfigUnsupported, SystemFailure, system_errors
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.probe import probe
from storaged.model import BackingStore, VolumeDef


def settle_backing(volume: VolumeDef, directory: int, target: str) -> VolumeDef:
    """Return the request with the format of its backing store, and with its size if none is given.

    :param directory: the open target of the pool.
    :param target: its path; a relative backing path starts there.
    :raise SystemFailure: it is not there, not readable or not a file.
    :raise ConfigUnsupported: its format is not what was given, or cannot be told.
    """
    backing = volume.backing
    if backing is None:
        return volume
    name = encoded(backing.path, "backing store")
    path = backing_path(name, target) or f"{target}/{backing.path}"
    doing = f"inaccessible backing store volume {path}"
    with system_errors(doing):
        fd = os.open(path, OPEN_FLAGS, dir_fd=directory)
    try:
        with system_errors(doing):
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFBLK):
                raise SystemFailure(doing, errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL)
            return _settled(volume, backing, fd, path, is_own=_is_within(fd, directory))
    finally:
        os.close(fd)


def _settled(
    volume: VolumeDef, backing: BackingStore, fd: int, path: str, *, is_own: bool
) -> VolumeDef:
    given = backing.format
    if given is None and not is_own:
        raise ConfigUnsupported(
            f"format of backing store '{path}' is not given",
            advice="It lies outside the pool, so it is not probed: give its format.",
        )
    if given is not None and volume.capacity:
        return volume
    handle = FileHandle(fd, owned=False)
    if given == "raw":
        return replace(volume, capacity=handle.size())
    image = probe(handle)
    _check(image, given, path)
    return replace(
        volume,
        capacity=volume.capacity or image.capacity,
        backing=replace(backing, format=image.format),
    )


def _check(image: ImageInfo, given: str | None, path: str) -> None:
    if given is not None and image.format != given:
        raise ConfigUnsupported(f"backing store '{path}' is not of format {given}: {image.format}")
    if image.state is not ImageState.OK:
        why = image.reasons[0] if image.reasons else str(image.state)
        raise ConfigUnsupported(f"backing store '{path}' cannot be used: {why}")


def _is_within(fd: int, directory: int) -> bool:
    """Tell whether an open file lies in the open directory or below it, all links followed."""
    root = Path(f"/proc/self/fd/{directory}").readlink()
    return Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root)
