"""The JSON objects for checks and inspections: a promise, as those of `storaged.cli.objects`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from storaged.concerns import Concern
    from storaged.formats.checkreport import CheckReport
    from storaged.formats.image import ImageInfo
    from storaged.imaging import Inspection, Layer


class CheckObject(TypedDict):
    """What a check found."""

    format: str
    clean: bool
    corruptions: int
    leaks: int
    #: the first of them, in words
    findings: list[str]
    #: where in the file the last thing ends that is used, in bytes
    end: int
    #: units of the disk, those that have room in the file, and the compressed among these
    total: int
    allocated: int
    compressed: int


class ConcernObject(TypedDict):
    """What is odd: *level* is note or danger."""

    level: str
    text: str


class LayerObject(TypedDict):
    """One image of a backing chain."""

    name: str
    #: null if it was not found
    path: str | None
    #: null if it is not recorded
    format: str | None
    capacity: int
    concerns: list[ConcernObject]


class ImageObject(TypedDict):
    """What a header says."""

    format: str
    #: ok, suspicious, corrupt or unsupported
    state: str
    capacity: int
    compat: str | None
    cluster_size: int
    features: list[str]
    encryption: str | None
    compression: str | None
    subformat: str | None
    refcount_bits: int
    backing: str | None
    backing_format: str | None
    data_file: str | None
    extents: list[str]


class HolderObject(TypedDict):
    """A process that has the image open."""

    pid: int
    command: str
    writing: bool
    #: the virtual machine, if it is known
    guest: str | None


class SnapshotObject(TypedDict):
    """An internal snapshot; *taken* in seconds since the epoch."""

    id: str
    name: str
    capacity: int
    taken: float
    state_size: int


class BitmapObject(TypedDict):
    """A dirty bitmap."""

    name: str
    granularity: int
    enabled: bool
    in_use: bool


class InspectionObject(TypedDict):
    """What an image is, what it refers to and who uses it."""

    name: str
    path: str
    #: as libvirt lists it
    format: str | None
    #: what the file is by its content
    true_format: str | None
    capacity: int
    allocation: int
    physical: int
    #: null if it has no header
    image: ImageObject | None
    concerns: list[ConcernObject]
    chain: list[LayerObject]
    holders: list[HolderObject]
    used_by: list[str]
    snapshots: list[SnapshotObject]
    bitmaps: list[BitmapObject]


def check_object(report: CheckReport) -> CheckObject:
    """Return a report."""
    return {
        "format": report.format,
        "clean": report.clean,
        "corruptions": report.corruptions,
        "leaks": report.leaks,
        "findings": list(report.findings),
        "end": report.end,
        "total": report.total,
        "allocated": report.allocated,
        "compressed": report.compressed,
    }


def inspection_object(found: Inspection) -> InspectionObject:
    """Return an inspection."""
    return {
        "name": found.name,
        "path": found.path,
        "format": found.format,
        "true_format": found.true_format,
        "capacity": found.capacity,
        "allocation": found.allocation,
        "physical": found.physical,
        "image": None if found.image is None else _image(found.image),
        "concerns": _concerns(found.concerns),
        "chain": [_layer(layer) for layer in found.chain],
        "holders": [
            {
                "pid": each.pid,
                "command": each.command,
                "writing": each.writing,
                "guest": each.guest,
            }
            for each in found.holders
        ],
        "used_by": list(found.used_by),
        "snapshots": [
            {
                "id": each.id,
                "name": each.name,
                "capacity": each.capacity,
                "taken": each.taken / 1e9,
                "state_size": each.state_size,
            }
            for each in found.snapshots
        ],
        "bitmaps": [
            {
                "name": each.name,
                "granularity": each.granularity,
                "enabled": each.enabled,
                "in_use": each.in_use,
            }
            for each in found.bitmaps
        ],
    }


def _image(image: ImageInfo) -> ImageObject:
    backing = image.backing
    return {
        "format": image.format,
        "state": str(image.state),
        "capacity": image.capacity,
        "compat": image.compat,
        "cluster_size": image.cluster_size,
        "features": sorted(image.features or ()),
        "encryption": image.encryption,
        "compression": image.compression,
        "subformat": image.subformat,
        "refcount_bits": image.refcount_bits,
        "backing": None if backing is None else os.fsdecode(backing.name),
        "backing_format": None if backing is None else backing.format,
        "data_file": None if image.data_file is None else os.fsdecode(image.data_file),
        "extents": [os.fsdecode(name) for name in image.extents],
    }


def _layer(layer: Layer) -> LayerObject:
    return {
        "name": layer.name,
        "path": layer.path,
        "format": layer.format,
        "capacity": layer.capacity,
        "concerns": _concerns(layer.concerns),
    }


def _concerns(concerns: tuple[Concern, ...]) -> list[ConcernObject]:
    return [{"level": str(each.level), "text": each.text} for each in concerns]
