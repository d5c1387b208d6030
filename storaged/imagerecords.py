"""Between the values of `storaged.imaging` and their records on the wire, for both of its ends."""

from __future__ import annotations

import os
from typing import Final

from storaged.concerns import Concern, Level
from storaged.errors import InvalidArgument
from storaged.formats.checkreport import CheckReport
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.imagelock import Holder
from storaged.imaging import (
    CloneOptions,
    Compression,
    ConvertOptions,
    DirtyBitmap,
    Durability,
    HeaderChange,
    Inspection,
    InternalSnapshot,
    Layer,
    clone_backing,
    compression,
    durability,
)
from storaged.rpc import images as rpc
from storaged.rpc.storage import StoragePool, StorageVol

_ENABLED: Final = 1
_IN_USE: Final = 2
#: A choice that is not made.
_AS_IT_IS: Final = 2


def report_record(report: CheckReport) -> rpc.VolCheckRet:
    """Return a report as it stands on the wire."""
    return rpc.VolCheckRet(
        report.format,
        report.corruptions,
        report.leaks,
        report.findings[: rpc.LIST_MAX],
        report.end,
        report.total,
        report.allocated,
        report.compressed,
    )


def report_of(found: rpc.VolCheckRet) -> CheckReport:
    """Return the report that a record holds."""
    return CheckReport(
        format=found.format,
        corruptions=found.corruptions,
        leaks=found.leaks,
        findings=found.findings,
        end=found.end,
        total=found.total,
        allocated=found.allocated,
        compressed=found.compressed,
    )


def inspection_record(found: Inspection) -> rpc.VolInspectRet:
    """Return an inspection as it stands on the wire, the first of what there is too much of."""
    most = rpc.LIST_MAX
    return rpc.VolInspectRet(
        name=found.name,
        path=found.path,
        format=found.format,
        true_format=found.true_format,
        capacity=found.capacity,
        allocation=found.allocation,
        physical=found.physical,
        image=None if found.image is None else _image_record(found.image),
        chain=tuple(map(_layer_record, found.chain[:most])),
        concerns=_concern_records(found.concerns),
        holders=tuple(
            rpc.HolderFacts(each.pid, each.command, int(each.writing), each.guest)
            for each in found.holders[:most]
        ),
        used_by=found.used_by[:most],
        snapshots=tuple(
            rpc.SnapshotFacts(each.id, each.name, each.capacity, each.taken, each.state_size)
            for each in found.snapshots[:most]
        ),
        bitmaps=tuple(map(_bitmap_record, found.bitmaps[:most])),
    )


def inspection_of(found: rpc.VolInspectRet) -> Inspection:
    """Return the inspection that a record holds."""
    return Inspection(
        name=found.name,
        path=found.path,
        format=found.format,
        true_format=found.true_format,
        capacity=found.capacity,
        allocation=found.allocation,
        physical=found.physical,
        image=None if found.image is None else _image_of(found.image),
        chain=tuple(
            Layer(each.name, each.path, each.format, each.capacity, _concerns_of(each.concerns))
            for each in found.chain
        ),
        concerns=_concerns_of(found.concerns),
        holders=tuple(
            Holder(each.pid, each.command, bool(each.writing), each.guest) for each in found.holders
        ),
        used_by=found.used_by,
        snapshots=tuple(
            InternalSnapshot(each.id, each.name, each.capacity, each.taken, each.state_size)
            for each in found.snapshots
        ),
        bitmaps=tuple(
            DirtyBitmap(
                each.name,
                each.granularity,
                enabled=bool(each.flags & _ENABLED),
                in_use=bool(each.flags & _IN_USE),
            )
            for each in found.bitmaps
        ),
    )


def _layer_record(layer: Layer) -> rpc.LayerFacts:
    return rpc.LayerFacts(
        layer.name, layer.path, layer.format, layer.capacity, _concern_records(layer.concerns)
    )


def _bitmap_record(bitmap: DirtyBitmap) -> rpc.BitmapFacts:
    flags = (_ENABLED if bitmap.enabled else 0) | (_IN_USE if bitmap.in_use else 0)
    return rpc.BitmapFacts(bitmap.name, bitmap.granularity, flags)


def _concern_records(concerns: tuple[Concern, ...]) -> tuple[rpc.ConcernFacts, ...]:
    return tuple(rpc.ConcernFacts(str(each.level), each.text) for each in concerns[: rpc.LIST_MAX])


def _concerns_of(found: tuple[rpc.ConcernFacts, ...]) -> tuple[Concern, ...]:
    return tuple(Concern(Level(each.level), each.text) for each in found)


def _image_record(image: ImageInfo) -> rpc.ImageFacts:
    backing = image.backing
    return rpc.ImageFacts(
        format=image.format,
        capacity=min(image.capacity, 2**64 - 1),  # of a hostile image it may be anything
        encryption=image.encryption,
        compat=image.compat,
        cluster_size=image.cluster_size,
        has_features=int(image.features is not None),
        features=tuple(sorted(image.features or ())),
        backing=None if backing is None else os.fsdecode(backing.name),
        backing_format=None if backing is None else backing.format,
        data_file=None if image.data_file is None else os.fsdecode(image.data_file),
        snapshots=image.snapshots,
        refcount_bits=image.refcount_bits,
        compression=image.compression,
        subformat=image.subformat,
        extents=tuple(os.fsdecode(name) for name in image.extents[: rpc.LIST_MAX]),
        bitmaps=image.bitmaps,
        state=str(image.state),
        reasons=image.reasons[: rpc.LIST_MAX],
        harmless=image.harmless[: rpc.LIST_MAX],
    )


def _image_of(found: rpc.ImageFacts) -> ImageInfo:
    backing = None
    if found.backing is not None:
        backing = BackingRef(os.fsencode(found.backing), found.backing_format)
    return ImageInfo(
        format=found.format,
        capacity=found.capacity,
        encryption=found.encryption,
        compat=found.compat,
        cluster_size=found.cluster_size,
        features=frozenset(found.features) if found.has_features else None,
        backing=backing,
        data_file=None if found.data_file is None else os.fsencode(found.data_file),
        snapshots=found.snapshots,
        refcount_bits=found.refcount_bits,
        compression=found.compression,
        subformat=found.subformat,
        extents=tuple(map(os.fsencode, found.extents)),
        bitmaps=found.bitmaps,
        state=ImageState(found.state),
        reasons=found.reasons,
        harmless=found.harmless,
    )


# Requests


def amend_record(vol: StorageVol, change: HeaderChange) -> rpc.VolAmendArgs:
    """Return the wish to amend a volume."""
    return rpc.VolAmendArgs(vol, _choice(change.lazy_refcounts), change.compat)


def change_of(args: rpc.VolAmendArgs) -> HeaderChange:
    """Return what a wish asks to be changed.

    :raise InvalidArgument: it cannot be understood.
    """
    return HeaderChange(_chosen(args.lazy_refcounts, "lazy_refcounts"), args.compat)


def convert_record(vol: StorageVol, options: ConvertOptions) -> rpc.VolConvertArgs:
    """Return the wish to convert a volume."""
    return rpc.VolConvertArgs(
        vol=vol,
        format=options.format,
        compat=options.compat,
        cluster_size=options.cluster_size,
        lazy_refcounts=_choice(options.lazy_refcounts),
        extended_l2=_choice(options.extended_l2),
        compress=_word(options.compress),
        subformat=options.subformat,
        flatten=int(options.flatten),
        durability=_word(options.durability),
        secret=options.secret,
    )


def convert_options(args: rpc.VolConvertArgs) -> ConvertOptions:
    """Return how a wish asks a volume to be converted.

    :raise InvalidArgument: it cannot be understood.
    """
    return ConvertOptions(
        format=args.format,
        compat=args.compat,
        cluster_size=args.cluster_size,
        lazy_refcounts=_chosen(args.lazy_refcounts, "lazy_refcounts"),
        extended_l2=_chosen(args.extended_l2, "extended_l2"),
        compress=compression(args.compress),
        subformat=args.subformat,
        flatten=bool(args.flatten),
        durability=durability(args.durability),
        secret=args.secret,
    )


def clone_record(
    pool: StoragePool, xml: str, source: StorageVol, flags: int, options: CloneOptions
) -> rpc.VolCloneArgs:
    """Return the wish for a clone."""
    return rpc.VolCloneArgs(
        pool=pool,
        xml=xml,
        clonevol=source,
        flags=flags,
        backing=str(options.backing),
        compress=_word(options.compress),
        durability=_word(options.durability),
        secret=options.secret,
        source_secret=options.source_secret,
    )


def clone_options(args: rpc.VolCloneArgs) -> CloneOptions:
    """Return how a wish asks for a clone.

    :raise InvalidArgument: it cannot be understood.
    """
    return CloneOptions(
        backing=clone_backing(args.backing),
        compress=compression(args.compress),
        durability=durability(args.durability),
        secret=args.secret,
        source_secret=args.source_secret,
    )


def _word(value: Compression | Durability | None) -> str | None:
    return None if value is None else str(value)


def _choice(value: bool | None) -> int:
    return _AS_IT_IS if value is None else int(value)


def _chosen(number: int, what: str) -> bool | None:
    if number > _AS_IT_IS:
        raise InvalidArgument(f"{what} cannot be {number}")
    return None if number == _AS_IT_IS else bool(number)
