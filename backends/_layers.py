"""The images of a chain as what they are read as, and the disk that they make together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from storaged.chain import Link, Part
from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.formats.probe import probe

if TYPE_CHECKING:
    from storaged.formats.vmdk_describe import VmdkDescription

#: What is read as it lies there.
PLAIN = ("raw", "iso")


class HeldFile(FileHandle):
    """An open file with QEMU's locks on it: closing it gives both back.

    :param locks: closed before the descriptor, whose number may be another file's afterwards.
    """

    def __init__(self, fd: int, locks: ExitStack) -> None:
        super().__init__(fd)
        self._locks = locks

    def close(self) -> None:
        """Let go of the locks and close the descriptor. Calling it again does nothing."""
        self._locks.close()
        super().close()


@dataclass(slots=True)
class Layer:
    """An open image of a chain.

    :param vmdk: what a vmdk says of itself.
    :param parts: the open files that hold its data, in order.
    """

    link: Link
    handle: HeldFile
    vmdk: VmdkDescription | None = None
    parts: list[HeldFile] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Take note of a file that holds data."""
        self.link = replace(self.link, parts=(*self.link.parts, part))


def read_layer(
    handle: Handle, format: str, name: str
) -> tuple[ImageInfo | None, VmdkDescription | None]:
    """Return what an image says, read as *format* and as nothing else.

    :param name: of its file.
    :raise OSError: it cannot be read.
    """
    if format in PLAIN:
        return None, None
    image = probe(handle)
    if format != "vmdk":
        return image, None
    from storaged.formats.vmdk_describe import describe

    try:
        found = describe(handle, name=name.encode(errors="surrogateescape"))
    except FormatError:
        return image, None
    return (image if image.format == "vmdk" else _image_of(found)), found


def _image_of(found: VmdkDescription) -> ImageInfo:
    """Return what a descriptor alone says; as it lists as raw, the probe says nothing of it."""
    return ImageInfo(
        "vmdk",
        found.capacity,
        backing=BackingRef(found.parent, "vmdk") if found.parent else None,
        subformat=found.subformat,
        extents=tuple(extent.name for extent in found.extents),
        state=found.state,
        reasons=found.reasons if found.state is not ImageState.OK else (),
    )


def stacked(layers: Sequence[Layer]) -> Handle:
    """Return the disk that images make together, the first on top; the files are its own then.

    :raise FormatError: one of them cannot be read. The files remain the caller's.
    """
    disk: Handle | None = None
    for layer in reversed(layers):
        disk = _disk(layer, disk)
    if disk is None:
        raise FormatError("a chain of no images")
    return disk


def _disk(layer: Layer, below: Handle | None) -> Handle:
    match layer.link.format:
        case "raw" | "iso":
            return layer.handle
        case "qcow2":
            from storaged.formats.qcow2_read import Qcow2Disk

            data = layer.parts[0] if layer.parts else None
            return Qcow2Disk(layer.handle, backing=below, data_file=data)
        case "vmdk":
            from storaged.formats.vmdk_read import VmdkDisk

            return VmdkDisk(layer.handle, extents=layer.parts, parent=below)
        case other:
            raise UnsupportedFormat(f"images of format {other} are not read natively")
