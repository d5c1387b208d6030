"""The backing store of a new volume: there, readable, and of a known format and size.

Only of a file in the pool's own directory the format is probed. What a stranger's file says of
itself is not believed: outside, the format must have been given, as it must for a running virtual
machine.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from storaged.backends._links import is_within, open_place
from storaged.backends._plan import encoded
from storaged.backends._rights import Rights
from storaged.concerns import concerns, dangers
from storaged.errors import ConfigUnsupported, OperationInvalid, StorageError, system_errors
from storaged.formats.errors import FormatError
from storaged.formats.file import FileHandle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.probe import probe
from storaged.model import BackingStore, VolumeDef
from storaged.references import refer

if TYPE_CHECKING:
    from storaged.formats.vmdk_create import Parent


def settle_backing(
    volume: VolumeDef, directory: int, target: str, rights: Rights | None = None
) -> VolumeDef:
    """Return the request with the format of its backing store, and with its size if none is given.

    :param directory: the open target of the pool.
    :param target: its path; a relative backing path starts there.
    :param rights: as whom the backing file is opened if we are refused.
    :raise SystemFailure: it is not there, not readable or not a file.
    :raise ConfigUnsupported: its format is not what was given, or cannot be told.
    :raise OperationInvalid: it is an image that is a danger.
    """
    backing = volume.backing
    if backing is None:
        return volume
    name = encoded(backing.path, "backing store")
    path = refer(name, target).path or f"{target}/{backing.path}"
    doing = f"inaccessible backing store volume {backing.path}"
    with system_errors(doing):
        fd = open_place(path, directory, rights)
    try:
        with system_errors(doing):
            return _settled(volume, backing, fd, path, is_own=is_within(fd, directory))
    finally:
        os.close(fd)


def vmdk_parent(
    volume: VolumeDef, directory: int, target: str, rights: Rights | None = None
) -> Parent | None:
    """Return what a new vmdk over a backing file has to know of it; None for every other volume.

    :raise FormatError: the backing file is no vmdk.
    :raise OSError: it cannot be read.
    """
    backing = volume.backing
    if volume.format != "vmdk" or backing is None:
        return None
    from storaged.formats.vmdk_create import Parent
    from storaged.formats.vmdk_describe import describe

    name = encoded(backing.path, "backing store")
    path = refer(name, target).path or f"{target}/{backing.path}"
    with FileHandle(open_place(path, directory, rights)) as handle:
        found = describe(handle)
    if found.cid is None:
        raise FormatError(f"{path!a} has no content id")
    return Parent(name, found.cid)


def backing_size(
    image: ImageInfo | None, directory: int, target: str, rights: Rights | None = None
) -> int | None:
    """Return the virtual size of an image's backing image, None if it cannot be told.

    Of a file outside the pool the format must be recorded, as for a new volume.
    """
    if image is None or image.backing is None:
        return None
    path = refer(image.backing.name, target).path
    if path is None:
        return None
    recorded = image.backing.format
    with (
        suppress(OSError, StorageError),
        FileHandle(fd := open_place(path, directory, rights)) as handle,
    ):
        if recorded == "raw":
            return handle.size()
        if recorded is None and not is_within(fd, directory):
            return None
        found = probe(handle)
        if found.state is ImageState.OK and recorded in (None, found.format):
            return found.capacity
    return None


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
    if given == "raw":
        return volume if volume.capacity else replace(volume, capacity=handle.size())
    image = probe(handle)
    if is_own or not volume.capacity:
        _check_format(image, given, path)
    if image.format == given or given is None:
        _check_sound(image, path)
    if given is not None and volume.capacity:
        return volume
    return replace(
        volume,
        capacity=volume.capacity or image.capacity,
        backing=replace(backing, format=image.format),
    )


def _check_format(image: ImageInfo, given: str | None, path: str) -> None:
    if given is not None and image.format != given:
        raise ConfigUnsupported(f"backing store '{path}' is not of format {given}: {image.format}")


def _check_sound(image: ImageInfo, path: str) -> None:
    why = dangers(concerns(image, os.path.dirname(path)))  # noqa: PTH120
    if why:
        raise OperationInvalid(f"backing store '{path}' cannot be used: {why[0]}")
