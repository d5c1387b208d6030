"""The backing store of a new volume: there, readable, and of a known format and size.

Only of a file in the pool's own directory the format is probed. What a stranger's file says of
itself is not believed: outside, the format must have been given, as it must for a running virtual
machine.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storaged.backends._describe import backing_path
from storaged.backends._plan import encoded
from storaged.backends._record import NAME_ONLY, OPEN_FLAGS, open_named
from storaged.errors import ConfigUnsupported, system_errors
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
    doing = f"inaccessible backing store volume {backing.path}"
    with system_errors(doing):
        fd = _open(path, directory)
    try:
        with system_errors(doing):
            return _settled(volume, backing, fd, path, is_own=_is_within(fd, directory))
    finally:
        os.close(fd)


def backing_size(image: ImageInfo | None, directory: int, target: str) -> int | None:
    """Return the virtual size of an image's backing image, None if it cannot be told.

    Of a file outside the pool the format must be recorded, as for a new volume.
    """
    if image is None or image.backing is None:
        return None
    path = backing_path(image.backing.name, target)
    if path is None:
        return None
    recorded = image.backing.format
    with suppress(OSError), FileHandle(fd := _open(path, directory)) as handle:
        if recorded == "raw":
            return handle.size()
        if recorded is None and not _is_within(fd, directory):
            return None
        found = probe(handle)
        if found.state is ImageState.OK and recorded in (None, found.format):
            return found.capacity
    return None


def _open(path: str, directory: int) -> int:
    """Open a regular file or a block device.

    :raise OSError: it cannot be opened, or is something else, and was not opened then.
    """
    found = os.open(path, NAME_ONLY, dir_fd=directory)
    try:
        return open_named(found, OPEN_FLAGS)
    finally:
        os.close(found)


def _settled(
    volume: VolumeDef, backing: BackingStore, fd: int, path: str, *, is_own: bool
) -> VolumeDef:
    given = backing.format
    if given is None and not is_own:
        raise ConfigUnsupported(
            f"format of backing store '{path}' is not given",
            advice="It lies outside the pool, so it is not probed: give its format.",
        )
    handle = FileHandle(fd, owned=False)
    if given is not None and volume.capacity:
        if is_own and given != "raw":
            _check_format(probe(handle), given, path)
        return volume
    if given == "raw":
        return replace(volume, capacity=handle.size())
    image = probe(handle)
    _check_format(image, given, path)
    _check_state(image, path)
    return replace(
        volume,
        capacity=volume.capacity or image.capacity,
        backing=replace(backing, format=image.format),
    )


def _check_format(image: ImageInfo, given: str | None, path: str) -> None:
    if given is not None and image.format != given:
        raise ConfigUnsupported(f"backing store '{path}' is not of format {given}: {image.format}")


def _check_state(image: ImageInfo, path: str) -> None:
    if image.state is not ImageState.OK:
        why = image.reasons[0] if image.reasons else str(image.state)
        raise ConfigUnsupported(f"backing store '{path}' cannot be used: {why}")


def _is_within(fd: int, directory: int) -> bool:
    """Tell whether an open file lies in the open directory or below it, all links followed."""
    root = Path(f"/proc/self/fd/{directory}").readlink()
    return Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root)
