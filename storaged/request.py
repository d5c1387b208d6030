"""Requests for volumes made in Python: thin, and qcow2 as version 3, unless said otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast

from storaged.errors import ConfigUnsupported, InvalidArgument
from storaged.job import Job
from storaged.units import parse_size

if TYPE_CHECKING:
    from storaged.facts import VolumeInfo
    from storaged.imaging import CloneBacking, CloneOptions, Compression, Durability
    from storaged.model import BackingStore, PoolDef, VolumeDef
    from storaged.volumehandle import Volume

T = TypeVar("T")


class VolumeOptions(TypedDict, total=False):
    """What may be said of a new volume beside its name and capacity. Sizes: bytes, or "20 GiB"."""

    #: raw (the default), qcow2, vmdk, dir
    format: str | None
    #: bytes to take at once, 0 by default; None is all of the capacity
    allocation: int | str | None
    #: the image this one is an overlay of; its format is recorded
    backing: Volume | str | os.PathLike[str] | None
    backing_format: str | None
    #: qcow2: "0.10" is version 2, "1.1" (the default) version 3
    compat: str | None
    #: qcow2: 512 bytes to 2 MiB, a power of two
    cluster_size: int | str
    lazy_refcounts: bool
    extended_l2: bool
    #: qcow2: make all tables at once
    preallocate_metadata: bool
    mode: int | None
    owner: int | None
    group: int | None
    #: btrfs: without copy on write
    nocow: bool
    #: a passphrase: the volume is encrypted with LUKS
    secret: bytes


class CloneWishes(TypedDict, total=False):
    """How a volume is cloned. What is not said of the new volume is as in the source."""

    #: bytes, or "20 GiB"; at least that of the source
    capacity: int | str
    #: raw, qcow2 or vmdk
    format: str
    #: what becomes of the source's backing chain: "flatten" (the default), "keep" or "linked"
    backing: CloneBacking | Literal["flatten", "keep", "linked"]
    #: qcow2: pack the data
    compress: Compression | Literal["zlib", "zstd"]
    #: share the data with the source or fail
    reflink: bool
    #: raw, qcow2: have all of the capacity on the storage; else what the source has no data for
    #: takes no space
    full: bool
    compat: str
    cluster_size: int | str
    lazy_refcounts: bool
    extended_l2: bool
    mode: int | None
    owner: int | None
    group: int | None
    nocow: bool
    #: whether success survives a loss of power; the engine's setting if it is not said
    durability: Durability | Literal["full", "none"]
    #: a passphrase: the clone is encrypted with LUKS
    secret: bytes
    #: the passphrase of the source
    source_secret: bytes


def outcome(job: Job[T], wait: bool) -> T | Job[T]:
    """Return the result of *job* if it is to be waited for, else the job itself."""
    return job.complete() if wait else job


def volume_request(name: str, capacity: int | str | None, how: VolumeOptions) -> VolumeDef:
    """Return the request for a volume.

    :param capacity: None takes that of the backing image.
    :raise InvalidArgument: there is neither a capacity nor a backing image, or no such version.
    :raise TypeError: an option that there is not.
    """
    # slow to load, and few commands need them
    from storaged.model import Encryption, Permissions, VolumeDef

    unknown = how.keys() - VolumeOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown volume options: {', '.join(sorted(unknown))}")
    backing = how.get("backing")
    secret = how.get("secret")
    if capacity is None and backing is None:
        raise InvalidArgument("a volume without a backing image needs a capacity")
    kind = how.get("format", "raw")
    if how.get("compat"):
        from storaged.imaging import check_compat

        check_compat(how["compat"])
    compat = how.get("compat") or ("1.1" if kind == "qcow2" else None)
    features = {feature for feature in ("lazy_refcounts", "extended_l2") if how.get(feature, False)}
    allocation = how.get("allocation", 0)
    return VolumeDef(
        name=name,
        capacity=0 if capacity is None else parse_size(capacity),
        allocation=None if allocation is None else parse_size(allocation),
        format=kind,
        permissions=Permissions(how.get("mode"), how.get("owner"), how.get("group")),
        compat=compat,
        cluster_size=parse_size(how.get("cluster_size", 0)),
        features=frozenset(features) if features or compat == "1.1" else None,
        nocow=how.get("nocow", False),
        encryption=None if secret is None else Encryption("luks"),
        backing=None if backing is None else _backing(backing, how.get("backing_format")),
    )


def clone_request(
    name: str, source: VolumeInfo, wishes: CloneWishes, format: str | None
) -> tuple[VolumeDef, CloneOptions]:
    """Return the request for a clone and how it is to be made.

    :param format: what it gets if no wish says otherwise.
    :raise InvalidArgument: a word that means nothing, or a capacity below the source's.
    :raise ConfigUnsupported: all of the capacity is to be taken, and the format cannot do that.
    :raise TypeError: a wish that there is not.
    """
    from dataclasses import replace

    from storaged import imaging

    unknown = wishes.keys() - CloneWishes.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown wishes: {', '.join(sorted(unknown))}")
    options = imaging.CloneOptions(
        backing=imaging.clone_backing(wishes.get("backing", "flatten")),
        compress=imaging.compression(wishes.get("compress")),
        durability=imaging.durability(wishes.get("durability")),
        secret=wishes.get("secret"),
        source_secret=wishes.get("source_secret"),
    )
    linked = options.backing is imaging.CloneBacking.LINKED
    alike = {key: value for key, value in wishes.items() if key in VolumeOptions.__annotations__}
    alike.pop("backing", None)
    how = cast(VolumeOptions, alike)
    how["format"] = wishes.get("format") or ("qcow2" if linked else format)
    if wishes.get("full", False):
        _check_full(how, linked=linked)
        how["allocation"] = None
    request = volume_request(name, wishes.get("capacity", source.capacity), how)
    if not linked:
        check_capacity(request, source)
    alike_format = not linked and how["format"] == source.format
    if alike_format and not how.keys() & {"compat", "lazy_refcounts", "extended_l2"}:
        request = replace(request, compat=None, features=None)  # those of the source
    return request, options


def clone_format(source: VolumeInfo, pool: PoolDef) -> str | None:
    """Return the format of a clone in *pool* if none is asked for: the source's, where it can be.

    Volumes that are no files hold no images.
    """
    from storaged.traits import VolumeType, traits_of

    holds_images = traits_of(pool.type).volume_type is VolumeType.FILE
    return source.format if holds_images or source.format is None else "raw"


def _check_full(how: VolumeOptions, *, linked: bool) -> None:
    kind = how.get("format") or "raw"
    if linked:
        raise InvalidArgument("a linked clone takes no space for data: they stay in the source")
    if kind not in ("raw", "iso", "qcow2") or (kind == "qcow2" and "secret" in how):
        what = f"an encrypted {kind}" if "secret" in how else f"a clone of format {kind}"
        raise ConfigUnsupported(
            f"{what} cannot take all of its capacity beforehand",
            advice="raw and qcow2 that is not encrypted can.",
        )


def check_capacity(clone: VolumeDef, source: VolumeInfo) -> None:
    """Refuse a clone that could not hold its source; libvirt's own call would make it larger.

    :raise InvalidArgument: naming both sizes.
    """
    if clone.capacity < source.capacity:
        raise InvalidArgument(
            f"a clone of {clone.capacity} bytes is smaller than its source,"
            f" which has {source.capacity}",
            advice="Clone it as large as it is, and shrink the clone then: storagectl vol resize"
            " --shrink",
        )


def _backing(backing: Volume | str | os.PathLike[str], recorded: str | None) -> BackingStore:
    from storaged.model import BackingStore

    if isinstance(backing, str | os.PathLike):
        return BackingStore(os.fspath(backing), recorded)
    return BackingStore(backing.path, recorded or backing.info().format)
