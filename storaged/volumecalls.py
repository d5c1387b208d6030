"""The calls on volumes: one method a call of the API.

What changes a volume returns a started `Job`.
"""

from __future__ import annotations

from functools import partial

from storaged import volxml
from storaged.backend import PLAIN_CLONE, CloneOptions, Sink, Source, WipeAlgorithm
from storaged.dependants import Loss
from storaged.errors import BadArgument, InvalidArgument
from storaged.imagecalls import ImageCalls
from storaged.imaging import check_secrets
from storaged.job import Job
from storaged.model import PoolRef, VolumeDef, VolumeRef
from storaged.poolcalls import require_writable
from storaged.streams import Streams
from storaged.transfer import File
from storaged.volumes import Guard, Volumes
from storaged.volxml import CapacityRule


class VolumeCalls(ImageCalls):
    """The calls on volumes."""

    # Changes

    def parse_volume(
        self, pool: PoolRef, text: str, *, clone: bool = False, validate: bool = False
    ) -> VolumeDef:
        """Return the request that an XML document holds, for a create or for a clone."""
        pool_type = self._table.by_ref(pool).pool.snapshot.definition.type
        rule = CapacityRule.NONE if clone else CapacityRule.OPTIONAL
        return volxml.parse_volume(text, pool_type, capacity=rule, validate=validate)

    def volume_create(
        self,
        pool: PoolRef,
        request: VolumeDef,
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
    ) -> Job[VolumeRef]:
        """Make a volume. It is listed from the first moment and there only when it is whole.

        :param secret: the passphrase of one that is to be encrypted.
        """
        require_writable(self._services)
        check_secrets(secret)
        volumes = self._table.by_ref(pool)
        return volumes.create(request, preallocate_metadata=preallocate_metadata, secret=secret)

    def volume_clone(
        self,
        pool: PoolRef,
        request: VolumeDef,
        source: VolumeRef,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
        options: CloneOptions | None = None,
    ) -> Job[VolumeRef]:
        """Make a volume from another one, of this pool or of any active one."""
        require_writable(self._services)
        volumes = self._table.by_ref(pool)
        origin = self._table.by_ref(source.pool)
        return volumes.clone(
            request,
            origin,
            origin.find(source.name),
            reflink=reflink,
            preallocate_metadata=preallocate_metadata,
            options=options or PLAIN_CLONE,
        )

    def volume_delete(
        self,
        ref: VolumeRef,
        *,
        force: bool = False,
        snapshots: bool = False,
        protect: bool = True,
    ) -> Job[None]:
        """Delete a volume.

        :param force: although a virtual machine has it open, or other volumes need it.
        :param snapshots: with the snapshots that it has, where the pool's type knows them.
        :param protect: not if other volumes need it as their backing file.
        """
        require_writable(self._services)
        volumes = self._table.by_ref(ref.pool)
        check = self._guard(volumes, Loss.DELETE) if protect and not force else None
        return volumes.delete(ref.name, force=force, snapshots=snapshots, check=check)

    def volume_resize(
        self,
        ref: VolumeRef,
        capacity: int,
        *,
        allocate: bool = False,
        delta: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
        protect: bool = True,
    ) -> Job[None]:
        """Change the capacity of a volume.

        :param force: although data are cut off, a virtual machine has it open, or other volumes
            need what is to be cut off.
        :param secret: the passphrase of an encrypted one, where the change needs it.
        :param protect: no smaller one if other volumes need it as their backing file.
        :raise InvalidArgument: a capacity of 0 that is neither a delta nor a shrink; a secret for
            a volume that is not encrypted.
        """
        require_writable(self._services)
        if capacity == 0 and not (delta or shrink):
            raise BadArgument(
                "capacity in virStorageVolResize cannot be zero without 'delta' or 'shrink' "
                "flags set",
                function="virStorageVolResize",
                argument="capacity",
            )
        check_secrets(secret)
        volumes = self._table.by_ref(ref.pool)
        check = self._guard(volumes, Loss.SHRINK) if shrink and protect and not force else None
        return volumes.resize(
            ref.name,
            capacity,
            allocate=allocate,
            delta=delta,
            shrink=shrink,
            force=force,
            secret=secret,
            check=check,
        )

    def volume_wipe(
        self, ref: VolumeRef, algorithm: int = 0, *, force: bool = False, protect: bool = True
    ) -> Job[None]:
        """Overwrite a volume.

        :param force: although a virtual machine has it open, or other volumes need it.
        :param protect: not if other volumes need it as their backing file.
        :raise InvalidArgument: no such algorithm.
        """
        require_writable(self._services)
        try:
            pattern = WipeAlgorithm(algorithm)
        except ValueError as err:
            raise InvalidArgument(f"wiping algorithm {algorithm} not supported") from err
        volumes = self._table.by_ref(ref.pool)
        check = self._guard(volumes, Loss.WIPE) if protect and not force else None
        return volumes.wipe(ref.name, pattern, force=force, check=check)

    def volume_upload(self, ref: VolumeRef, offset: int = 0, length: int = 0) -> Sink:
        """Open a volume for an upload piece by piece; its ``finish`` or ``abort`` ends it."""
        require_writable(self._services)
        return self._streams(ref).open_upload(ref.name, offset, length)

    def volume_download(
        self, ref: VolumeRef, offset: int = 0, length: int = 0, *, sparse: bool = False
    ) -> Source:
        """Open a volume for a download piece by piece; its ``close`` ends it."""
        return self._streams(ref).open_download(ref.name, offset, length, sparse=sparse)

    def volume_upload_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        """Write a file into a volume; the job gives the bytes moved."""
        require_writable(self._services)
        return self._streams(ref).upload_file(ref.name, file, offset, length, sparse=sparse)

    def volume_download_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        """Write a volume into a file; the job gives the bytes moved."""
        return self._streams(ref).download_file(ref.name, file, offset, length, sparse=sparse)

    def _guard(self, volumes: Volumes, loss: Loss) -> Guard:
        """Return what refuses work on a volume that others need; call it before the job begins.

        The job waits for scans that begin here: so no job is in the way of what it waits for.
        """
        self._dependants.begin()
        return partial(self._dependants.require_none, volumes, loss=loss)

    def _streams(self, ref: VolumeRef) -> Streams:
        return Streams(self._table.by_ref(ref.pool))
