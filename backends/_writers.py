"""Images as they are written natively: a volume's whole image, an empty one, a larger one.

Import this where it is used, not at the top of a module: the writers cost a program that only looks
at volumes more than the rest of the pool type.
"""

from __future__ import annotations

import os

from storaged.backends._image import format_errors
from storaged.errors import ConfigUnsupported
from storaged.formats import qcow2_create, qcow2_grow, vmdk, vmdk_create
from storaged.formats.file import FileHandle
from storaged.formats.handle import Checkpoint
from storaged.formats.image import ImageInfo
from storaged.formats.qcow2_create import CreateOptions, Preallocation
from storaged.model import VolumeDef

_DEFAULT_CLUSTER = 65536


def check(volume: VolumeDef, *, preallocate_metadata: bool) -> None:
    """Refuse what the format of a planned volume does not allow.

    :raise ConfigUnsupported: the text names the field and the value.
    """
    if volume.format == "qcow2":
        with format_errors(volume.name):
            qcow2_create.check(qcow2_options(volume, preallocate_metadata))
    elif volume.format == "vmdk" and not 0 < volume.capacity <= vmdk.MAX_CAPACITY:
        raise ConfigUnsupported(
            f"capacity of a vmdk volume must be from 1 to {vmdk.MAX_CAPACITY} bytes,"
            f" not {volume.capacity}"
        )


def write(
    handle: FileHandle,
    volume: VolumeDef,
    checkpoint: Checkpoint,
    *,
    preallocate_metadata: bool,
    parent: vmdk_create.Parent | None = None,
) -> None:
    """Write the image of a planned qcow2 or vmdk volume into an empty file.

    :param parent: what a vmdk over a backing file has to know of it.
    :raise FormatError: what `check` would have said.
    """
    if volume.format == "vmdk":
        vmdk_create.create(handle, volume.capacity, name=volume.name, parent=parent)
    else:
        qcow2_create.create(handle, qcow2_options(volume, preallocate_metadata), checkpoint)


def write_empty(
    handle: FileHandle, image: ImageInfo, name: str, parent: vmdk_create.Parent | None = None
) -> None:
    """Put an empty image like *image* in place of what is in the file.

    :param parent: what a vmdk over a backing file has to know of it.
    """
    handle.truncate(0)
    if image.format == "vmdk":
        vmdk_create.create(handle, image.capacity, name=name, parent=parent)
        return
    features = image.features or frozenset()
    options = CreateOptions(
        capacity=image.capacity,
        version=2 if image.compat is None else 3,
        cluster_size=image.cluster_size,
        lazy_refcounts="lazy_refcounts" in features,
        extended_l2="extended_l2" in features,
        backing=image.backing.name if image.backing else None,
        backing_format=image.backing.format if image.backing else None,
    )
    qcow2_create.create(handle, options)


def grow(handle: FileHandle, capacity: int, backing: int | None) -> None:
    """Give a qcow2 image a larger capacity.

    :param backing: the size of its backing image, None if it is not known.
    :raise FormatError: it cannot be grown natively; it is unchanged.
    """
    qcow2_grow.grow(handle, capacity, backing_size=backing)


def shrink(handle: FileHandle, capacity: int, checkpoint: Checkpoint) -> None:
    """Give a qcow2 image a smaller capacity; what lies above it is lost.

    :raise FormatError: it cannot be made smaller natively; it is unchanged.
    """
    from storaged.formats import qcow2_shrink

    qcow2_shrink.shrink(handle, capacity, checkpoint=checkpoint)


def qcow2_options(volume: VolumeDef, preallocate_metadata: bool) -> CreateOptions:
    """Return what image a planned qcow2 volume asks for."""
    features = volume.features or frozenset()
    backing = volume.backing
    preallocation = Preallocation.OFF
    if preallocate_metadata:
        full = volume.allocation is None or volume.allocation >= volume.capacity
        preallocation = Preallocation.FALLOC if full else Preallocation.METADATA
    return CreateOptions(
        capacity=volume.capacity,
        version=2 if volume.compat == "0.10" else 3,
        cluster_size=volume.cluster_size or _DEFAULT_CLUSTER,
        lazy_refcounts="lazy_refcounts" in features,
        extended_l2="extended_l2" in features,
        backing=os.fsencode(backing.path) if backing else None,
        backing_format=backing.format if backing else None,
        preallocation=preallocation,
    )
