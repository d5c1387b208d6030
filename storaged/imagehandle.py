"""What a caller of the library does with the image in a volume."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from storaged.facts import VolumeRef
from storaged.job import Job
from storaged.named import Named
from storaged.request import outcome
from storaged.units import parse_size

if TYPE_CHECKING:
    from storaged.formats.checkreport import CheckReport
    from storaged.imaging import Compression, ConvertOptions, Durability, Inspection


class ConvertWishes(TypedDict, total=False):
    """What a volume becomes; what is not said stays. Sizes: bytes, or "64 KiB"."""

    #: raw, qcow2 or vmdk
    format: str
    #: qcow2: "0.10" is version 2, "1.1" version 3
    compat: str
    cluster_size: int | str
    lazy_refcounts: bool
    extended_l2: bool
    #: qcow2: pack the data
    compress: Compression | Literal["zlib", "zstd"]
    #: vmdk: monolithicSparse or streamOptimized
    subformat: str
    #: take in the data of the backing chain
    flatten: bool
    #: whether success survives a loss of power; the engine's setting if it is not said
    durability: Durability | Literal["full", "none"]
    #: the passphrase of the volume
    secret: bytes
    #: although internal snapshots are lost, or overlays have the old format on record
    force: bool


class VolumeImage(Named[VolumeRef]):
    """The image in a volume: checked, inspected, and changed without its content."""

    @overload
    def check(self, *, force: bool = ..., wait: Literal[True] = ...) -> CheckReport: ...
    @overload
    def check(self, *, force: bool = ..., wait: Literal[False]) -> Job[CheckReport]: ...
    def check(self, *, force: bool = False, wait: bool = True) -> CheckReport | Job[CheckReport]:
        """Check the tables of the image. Nothing is changed.

        :param force: also while a virtual machine writes to it; what is found may be in transit.
        :raise OperationUnsupported: the format has no tables.
        :raise VolumeBusy: somebody writes to it.
        """
        return outcome(self._engine.volume_check(self.ref, force=force), wait)

    @overload
    def inspect(self, *, wait: Literal[True] = ...) -> Inspection: ...
    @overload
    def inspect(self, *, wait: Literal[False]) -> Job[Inspection]: ...
    def inspect(self, *, wait: bool = True) -> Inspection | Job[Inspection]:
        """Tell what the image is, what it refers to, who has it open and who is an overlay of it.

        It does so for every image, however damaged or hostile.
        """
        return outcome(self._engine.volume_inspect(self.ref), wait)

    @overload
    def rebase(
        self, backing: VolumeImage | str | os.PathLike[str] | None,
        backing_format: str | None = ..., *, force: bool = ..., wait: Literal[True] = ...,
    ) -> None: ...  # fmt: skip
    @overload
    def rebase(
        self, backing: VolumeImage | str | os.PathLike[str] | None,
        backing_format: str | None = ..., *, force: bool = ..., wait: Literal[False],
    ) -> Job[None]: ...  # fmt: skip
    def rebase(
        self,
        backing: VolumeImage | str | os.PathLike[str] | None,
        backing_format: str | None = None,
        *,
        force: bool = False,
        wait: bool = True,
    ) -> Job[None] | None:
        """Have a qcow2 refer to another backing file, or with None to none.

        Only the header changes: where the volume has no data of its own, it shows what the new
        backing file has. It must hold the same data there as the old one.

        :param backing_format: of a path; that of a volume is known.
        :param force: although the new backing file is not there or not sound.
        :raise VolumeBusy: somebody has the volume open; no force helps.
        """
        if isinstance(backing, VolumeImage):
            found = self._engine.volume_info(backing.ref)
            path: str | None = found.path
            backing_format = backing_format or found.format
        else:
            path = None if backing is None else os.fspath(backing)
        job = self._engine.volume_rebase(self.ref, path, backing_format, force=force)
        return outcome(job, wait)

    @overload
    def set_backing_format(
        self, format: str, *, force: bool = ..., wait: Literal[True] = ...
    ) -> None: ...
    @overload
    def set_backing_format(
        self, format: str, *, force: bool = ..., wait: Literal[False]
    ) -> Job[None]: ...
    def set_backing_format(
        self, format: str, *, force: bool = False, wait: bool = True
    ) -> Job[None] | None:
        """Record the format of the backing file, so that nobody has to guess it.

        :param force: although that file is not there, or not of this format.
        """
        job = self._engine.volume_set_backing_format(self.ref, format, force=force)
        return outcome(job, wait)

    @overload
    def amend(
        self, *, lazy_refcounts: bool | None = ..., compat: str | None = ...,
        wait: Literal[True] = ...,
    ) -> None: ...  # fmt: skip
    @overload
    def amend(
        self, *, lazy_refcounts: bool | None = ..., compat: str | None = ...,
        wait: Literal[False],
    ) -> Job[None]: ...  # fmt: skip
    def amend(
        self,
        *,
        lazy_refcounts: bool | None = None,
        compat: str | None = None,
        wait: bool = True,
    ) -> Job[None] | None:
        """Change features of a qcow2 that stand in its header.

        :param compat: "1.1" makes a version 3 of it; the way back is `convert`.
        """
        from storaged.imaging import HeaderChange

        job = self._engine.volume_amend(self.ref, HeaderChange(lazy_refcounts, compat))
        return outcome(job, wait)

    @overload
    def convert(self, *, wait: Literal[True] = ..., **wishes: Unpack[ConvertWishes]) -> None: ...
    @overload
    def convert(self, *, wait: Literal[False], **wishes: Unpack[ConvertWishes]) -> Job[None]: ...
    def convert(self, *, wait: bool = True, **wishes: Unpack[ConvertWishes]) -> Job[None] | None:
        """Write the image anew in its place: another format, version or cluster size, compressed.

        The name leads to the old image until the new one is whole, and then to that.

        :param wishes: the fields of `ConvertWishes`.
        :raise OperationInvalid: something would be lost, and not ``force``.
        :raise VolumeBusy: somebody has it open; no force helps.
        """
        job = self._engine.volume_convert(
            self.ref, _options(wishes), force=wishes.get("force", False)
        )
        return outcome(job, wait)


def _options(wishes: ConvertWishes) -> ConvertOptions:
    """Return what is wished as a value.

    :raise InvalidArgument: a word that means nothing.
    :raise TypeError: a wish that there is not.
    """
    from storaged.imaging import ConvertOptions, compression, durability

    unknown = wishes.keys() - ConvertWishes.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown wishes: {', '.join(sorted(unknown))}")
    return ConvertOptions(
        format=wishes.get("format"),
        compat=wishes.get("compat"),
        cluster_size=parse_size(wishes.get("cluster_size", 0)),
        lazy_refcounts=wishes.get("lazy_refcounts"),
        extended_l2=wishes.get("extended_l2"),
        compress=compression(wishes.get("compress")),
        subformat=wishes.get("subformat"),
        flatten=wishes.get("flatten", False),
        durability=durability(wishes.get("durability")),
        secret=wishes.get("secret"),
    )
