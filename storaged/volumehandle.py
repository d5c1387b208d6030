"""What a caller of the library holds of a volume.

A handle names a volume of an engine and keeps no state, so that it never goes stale: every property
asks. Long work is done when a method returns; with ``wait=False`` the method returns the `Job` at
once, whose ``result`` is what it would have returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from storaged.errors import Unsupported
from storaged.facts import VolumeInfo
from storaged.flow import Sink, Source, WipeAlgorithm
from storaged.imagehandle import VolumeImage
from storaged.job import Job
from storaged.request import (
    VolumeOptions,
    check_capacity,
    clone_format,
    outcome,
    volume_request,
)
from storaged.units import parse_size

if TYPE_CHECKING:
    from storaged.access import AccessReport
    from storaged.model import VolumeDef
    from storaged.poolhandle import Pool
    from storaged.transfer import File


class ResizeOptions(TypedDict, total=False):
    """How a volume is resized."""

    #: take the space at once
    allocate: bool
    #: the capacity given is by how much, not how large
    delta: bool
    #: allow a smaller capacity, down to where the data end
    shrink: bool
    #: also below that, although a virtual machine has the volume open, or others need it
    force: bool
    #: the passphrase of an encrypted volume
    secret: bytes


class Volume(VolumeImage):
    """A volume of a pool."""

    #: libvirt's names of the wiping patterns
    Wipe = WipeAlgorithm

    def __repr__(self) -> str:
        return f"<Volume {self.ref.pool.name}/{self.name}>"

    @property
    def key(self) -> str:
        """The key, unique on the host; for files it is the path."""
        return self.ref.key

    @property
    def path(self) -> str:
        """Where a virtual machine finds the volume."""
        return self._engine.volume_path(self.ref)

    @property
    def pool(self) -> Pool:
        """The pool the volume is in."""
        from storaged.poolhandle import Pool  # it imports this module

        return Pool(self._engine, self.ref.pool)

    @property
    def problem(self) -> str | None:
        """What is wrong with the volume, for people; None if nothing is."""
        return self.info().problem

    def info(self) -> VolumeInfo:
        """Return the volume's figures after one fresh look at it."""
        return self._engine.volume_info(self.ref)

    def users(self, *, patience: float | None = None) -> list[Volume]:
        """Return the volumes that need this one, as a backing file or another part of theirs.

        :param patience: seconds to wait for pools that have not been read yet; None waits for all.
            A daemon has read its pools.
        :raise Timeout: they could not be read in that time.
        """
        found = self._engine.volume_users(self.ref, patience=patience)
        return [Volume(self._engine, ref) for ref in found]

    def definition(self) -> VolumeDef:
        """Return all there is to say of the volume."""
        return self._engine.volume_definition(self.ref)

    def xml(self) -> str:
        """Return the volume's XML as libvirt prints it."""
        return self._engine.volume_xml(self.ref)

    @overload
    def delete(
        self, *, force: bool = ..., snapshots: bool = ..., wait: Literal[True] = ...
    ) -> None: ...
    @overload
    def delete(
        self, *, force: bool = ..., snapshots: bool = ..., wait: Literal[False]
    ) -> Job[None]: ...
    def delete(
        self, *, force: bool = False, snapshots: bool = False, wait: bool = True
    ) -> Job[None] | None:
        """Delete the volume.

        :param force: although a virtual machine has it open, or other volumes need it.
        :param snapshots: with the snapshots that it has, as an image of Ceph can have them.
        :raise VolumeBusy: it is open elsewhere, or a job uses it.
        :raise OperationInvalid: other volumes need it as a backing file, or it has snapshots; the
            advice names them.
        :raise Unsupported: *snapshots*, but volumes of this type of pool have none of their own.
        """
        job = self._engine.volume_delete(self.ref, force=force, snapshots=snapshots)
        return outcome(job, wait)

    @overload
    def resize(
        self, capacity: int | str, *, wait: Literal[True] = ..., **how: Unpack[ResizeOptions]
    ) -> None: ...
    @overload
    def resize(
        self, capacity: int | str, *, wait: Literal[False], **how: Unpack[ResizeOptions]
    ) -> Job[None]: ...
    def resize(
        self, capacity: int | str, *, wait: bool = True, **how: Unpack[ResizeOptions]
    ) -> Job[None] | None:
        """Change the capacity.

        :param capacity: the new one, bytes or text such as "20 GiB".
        :param how: ``allocate`` takes the space at once; ``delta``: *capacity* is by how much;
            ``shrink`` allows a smaller one, down to where the data end; ``force`` also below that,
            although a virtual machine has it open, or other volumes need what is cut off.
        :raise InvalidArgument: it would cut data, or shrink unasked; a secret for a volume that is
            not encrypted, or one that is not bytes. Nothing has changed.
        :raise OperationInvalid: smaller, and other volumes need it; the advice names them.
        """
        job = self._engine.volume_resize(self.ref, parse_size(capacity), **how)
        return outcome(job, wait)

    @overload
    def wipe(
        self, algorithm: WipeAlgorithm = ..., *, force: bool = ..., wait: Literal[True] = ...
    ) -> None: ...
    @overload
    def wipe(
        self, algorithm: WipeAlgorithm = ..., *, force: bool = ..., wait: Literal[False]
    ) -> Job[None]: ...
    def wipe(
        self,
        algorithm: WipeAlgorithm = WipeAlgorithm.ZERO,
        *,
        force: bool = False,
        wait: bool = True,
    ) -> Job[None] | None:
        """Overwrite what the volume holds; it stays as an empty volume of the same capacity.

        :param force: although a virtual machine has it open, or other volumes need it.
        :raise OperationInvalid: other volumes need it as a backing file; the advice names them.
        :raise OperationUnsupported: it is an encrypted qcow2, whose header needs a passphrase.
        """
        return outcome(self._engine.volume_wipe(self.ref, algorithm, force=force), wait)

    @overload
    def upload(
        self, source: File, *, offset: int = ..., length: int = ..., sparse: bool = ...,
        wait: Literal[True] = ...,
    ) -> int: ...  # fmt: skip
    @overload
    def upload(
        self, source: File, *, offset: int = ..., length: int = ..., sparse: bool = ...,
        wait: Literal[False],
    ) -> Job[int]: ...  # fmt: skip
    def upload(
        self,
        source: File,
        *,
        offset: int = 0,
        length: int = 0,
        sparse: bool = False,
        wait: bool = True,
    ) -> int | Job[int]:
        """Write a file's bytes into the volume and return how many they were.

        :param source: a path, or a file open in binary mode, read from where it stands.
        :param offset: where in the volume to begin, in bytes.
        :param length: at most so many bytes; 0 is all there are.
        :param sparse: keep holes of the source holes.
        """
        job = self._engine.volume_upload_file(
            self.ref, source, offset=offset, length=length, sparse=sparse
        )
        return outcome(job, wait)

    @overload
    def download(
        self, target: File, *, offset: int = ..., length: int = ..., sparse: bool = ...,
        wait: Literal[True] = ...,
    ) -> int: ...  # fmt: skip
    @overload
    def download(
        self, target: File, *, offset: int = ..., length: int = ..., sparse: bool = ...,
        wait: Literal[False],
    ) -> Job[int]: ...  # fmt: skip
    def download(
        self,
        target: File,
        *,
        offset: int = 0,
        length: int = 0,
        sparse: bool = False,
        wait: bool = True,
    ) -> int | Job[int]:
        """Write the volume's bytes into a file and return how many they were.

        :param target: a path, which is made or replaced, or a file open in binary mode.
        :param sparse: make holes where the volume has them.
        """
        job = self._engine.volume_download_file(
            self.ref, target, offset=offset, length=length, sparse=sparse
        )
        return outcome(job, wait)

    def open_upload(self, offset: int = 0, length: int = 0) -> Sink:
        """Open the volume for an upload piece by piece; ``finish`` or ``abort`` ends it."""
        return self._engine.volume_upload(self.ref, offset, length)

    def open_download(self, offset: int = 0, length: int = 0, *, sparse: bool = False) -> Source:
        """Open the volume for a download piece by piece; ``close`` ends it."""
        return self._engine.volume_download(self.ref, offset, length, sparse=sparse)

    @overload
    def clone_to(
        self, name: str, *, pool: Pool | None = ..., capacity: int | str | None = ...,
        reflink: bool = ..., wait: Literal[True] = ..., **how: Unpack[VolumeOptions],
    ) -> Volume: ...  # fmt: skip
    @overload
    def clone_to(
        self, name: str, *, pool: Pool | None = ..., capacity: int | str | None = ...,
        reflink: bool = ..., wait: Literal[False], **how: Unpack[VolumeOptions],
    ) -> Job[Volume]: ...  # fmt: skip
    def clone_to(
        self,
        name: str,
        *,
        pool: Pool | None = None,
        capacity: int | str | None = None,
        reflink: bool = False,
        wait: bool = True,
        **how: Unpack[VolumeOptions],
    ) -> Volume | Job[Volume]:
        """Make a copy of the volume.

        :param pool: where; the same pool if None.
        :param capacity: a larger one for the copy; None keeps it.
        :param reflink: share the data or fail; False shares them where it can be done.
        :param how: the fields of `VolumeOptions`; the format is the source's if none is given, and
            raw where volumes are no files.
        """
        info = self.info()
        if "format" not in how:
            how["format"] = info.format
            if pool is not None and pool != self.pool:
                how["format"] = clone_format(info, pool.definition())
        request = volume_request(name, info.capacity if capacity is None else capacity, how)
        check_capacity(request, info)
        alike = how["format"] == info.format
        if alike and not how.keys() & {"compat", "lazy_refcounts", "extended_l2"}:
            from dataclasses import replace

            request = replace(request, compat=None, features=None)  # those of the source
        target = pool or self.pool
        metadata = how.get("preallocate_metadata", False)
        if wait:
            return target.clone_volume(
                request, self, reflink=reflink, preallocate_metadata=metadata
            )
        return target.clone_volume(
            request, self, reflink=reflink, preallocate_metadata=metadata, wait=False
        )

    def access(self, user: str | int) -> AccessReport:
        """Tell whether a user can open the volume, and if not who stops whom.

        :raise Unsupported: the volume is on another host.
        """
        from storaged.access import check_access

        if not self._engine.is_local:
            raise Unsupported(
                "access to a volume is looked at on its own host",
                advice=f"Run there: storagectl vol access {self.path}",
            )

        return check_access(self.path, user)
