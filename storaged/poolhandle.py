"""What a caller of the library holds of a pool.

A handle names a pool of an engine and keeps no state, so that it never goes stale: every property
asks. Long work is done when a method returns; with ``wait=False`` the method returns the `Job` at
once, whose ``result`` is what it would have returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack, overload
from uuid import UUID

from storaged.facts import PoolInfo, PoolRef, VolumeInfo, VolumeRef
from storaged.job import Job
from storaged.named import Named
from storaged.request import (
    CloneWishes,
    VolumeOptions,
    clone_format,
    clone_request,
    outcome,
    volume_request,
)
from storaged.volumehandle import Volume

if TYPE_CHECKING:
    from storaged.ensure import Ensured
    from storaged.model import PoolDef, VolumeDef
    from storaged.settings import PoolPolicy


class Pool(Named[PoolRef]):
    """A storage pool of an engine."""

    @property
    def uuid(self) -> UUID:
        """The uuid, unique everywhere."""
        return self.ref.uuid

    @property
    def active(self) -> bool:
        """Whether the pool is started."""
        return self._engine.pool_state(self.ref).active

    @property
    def persistent(self) -> bool:
        """Whether the pool has a configuration file."""
        return self._engine.pool_state(self.ref).persistent

    @property
    def autostart(self) -> bool:
        """Whether the pool is started at boot."""
        return self._engine.pool_state(self.ref).autostart

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the pool, for people."""
        return self.info().problems

    def info(self) -> PoolInfo:
        """Return state, figures and problems of the pool at this moment."""
        return self._engine.pool_info(self.ref)

    def definition(self, *, inactive: bool = False) -> PoolDef:
        """Return what the pool is; with *inactive* what it will be after the next stop."""
        return self._engine.pool_definition(self.ref, inactive=inactive)

    def xml(self, *, inactive: bool = False) -> str:
        """Return the pool's XML as libvirt prints it."""
        return self._engine.pool_xml(self.ref, inactive=inactive)

    def set_autostart(self, on: bool) -> None:
        """Have the pool started at boot, or not.

        :raise InternalError: the pool is transient.
        """
        self._engine.pool_set_autostart(self.ref, autostart=on)

    @overload
    def start(
        self, *, build: bool = ..., overwrite: bool | None = ..., wait: Literal[True] = ...
    ) -> None: ...
    @overload
    def start(
        self, *, build: bool = ..., overwrite: bool | None = ..., wait: Literal[False]
    ) -> Job[None]: ...
    def start(
        self, *, build: bool = False, overwrite: bool | None = None, wait: bool = True
    ) -> Job[None] | None:
        """Start the pool and scan it.

        :param build: make its storage first, as `build` does.
        :param overwrite: build with formatting; False refuses where something is found.
        :raise OperationInvalid: it is active already.
        """
        job = self._engine.pool_start(self.ref, build=build, overwrite=overwrite)
        return outcome(job, wait)

    @overload
    def stop(self, *, force: bool = ..., wait: Literal[True] = ...) -> None: ...
    @overload
    def stop(self, *, force: bool = ..., wait: Literal[False]) -> Job[None]: ...
    def stop(self, *, force: bool = False, wait: bool = True) -> Job[None] | None:
        """Stop the pool. Its volumes stay; a transient pool is forgotten.

        :param force: although its storage does not answer (a lazy unmount) or jobs are under way,
            which are cancelled; what was not written yet may be lost.
        :raise OperationInvalid: it is not active.
        :raise InternalError: jobs are under way; the advice names them.
        """
        return outcome(self._engine.pool_stop(self.ref, force=force), wait)

    @overload
    def build(self, *, overwrite: bool | None = ..., wait: Literal[True] = ...) -> None: ...
    @overload
    def build(self, *, overwrite: bool | None = ..., wait: Literal[False]) -> Job[None]: ...
    def build(self, *, overwrite: bool | None = None, wait: bool = True) -> Job[None] | None:
        """Make the pool's storage: the directory, and with *overwrite* the file system.

        :param overwrite: None formats nothing; False formats only what is empty; True whatever is
            there.
        :raise OperationInvalid: the pool is active.
        """
        return outcome(self._engine.pool_build(self.ref, overwrite=overwrite), wait)

    @overload
    def delete(self, *, wait: Literal[True] = ...) -> None: ...
    @overload
    def delete(self, *, wait: Literal[False]) -> Job[None]: ...
    def delete(self, *, wait: bool = True) -> Job[None] | None:
        """Remove the storage of the inactive, empty pool; its definition stays."""
        return outcome(self._engine.pool_delete(self.ref), wait)

    def undefine(self) -> None:
        """Forget the inactive pool; its storage stays."""
        self._engine.pool_undefine(self.ref)

    @overload
    def refresh(self, *, wait: Literal[True] = ...) -> None: ...
    @overload
    def refresh(self, *, wait: Literal[False]) -> Job[None]: ...
    def refresh(self, *, wait: bool = True) -> Job[None] | None:
        """Scan the pool. Runs beside its jobs."""
        return outcome(self._engine.pool_refresh(self.ref), wait)

    def names(self) -> list[str]:
        """Return the names of the volumes, sorted."""
        return sorted(self._engine.volume_names(self.ref))

    def volumes(self) -> list[Volume]:
        """Return the volumes, sorted by name."""
        refs = sorted(self._engine.volumes(self.ref), key=lambda ref: ref.name)
        return [Volume(self._engine, ref) for ref in refs]

    def infos(self) -> list[VolumeInfo]:
        """Return the known figures of all volumes, sorted by name, without a look at each."""
        return sorted(self._engine.volume_infos(self.ref), key=lambda info: info.ref.name)

    def volume(self, name: str) -> Volume:
        """Return a volume by its name.

        :raise NoSuchVolume: there is none, also not after a look at the storage.
        """
        return Volume(self._engine, self._engine.volume_lookup_by_name(self.ref, name))

    @overload
    def create(
        self,
        name: str,
        capacity: int | str | None = ...,
        *,
        wait: Literal[True] = ...,
        **how: Unpack[VolumeOptions],
    ) -> Volume: ...
    @overload
    def create(
        self,
        name: str,
        capacity: int | str | None = ...,
        *,
        wait: Literal[False],
        **how: Unpack[VolumeOptions],
    ) -> Job[Volume]: ...
    def create(
        self,
        name: str,
        capacity: int | str | None = None,
        *,
        wait: bool = True,
        **how: Unpack[VolumeOptions],
    ) -> Volume | Job[Volume]:
        """Make a volume.

        :param capacity: bytes, or text such as "20 GiB"; None takes that of the backing image.
        :param how: the fields of `VolumeOptions`; thin if nothing is said.
        :raise VolumeExists: the name is taken.
        """
        return self._create(
            volume_request(name, capacity, how),
            preallocate_metadata=how.get("preallocate_metadata", False),
            secret=how.get("secret"),
            wait=wait,
        )

    @overload
    def create_volume(
        self,
        definition: VolumeDef | str,
        *,
        preallocate_metadata: bool = ...,
        validate: bool = ...,
        wait: Literal[True] = ...,
    ) -> Volume: ...
    @overload
    def create_volume(
        self,
        definition: VolumeDef | str,
        *,
        preallocate_metadata: bool = ...,
        validate: bool = ...,
        wait: Literal[False],
    ) -> Job[Volume]: ...
    def create_volume(
        self,
        definition: VolumeDef | str,
        *,
        preallocate_metadata: bool = False,
        validate: bool = False,
        wait: bool = True,
    ) -> Volume | Job[Volume]:
        """Make a volume from its definition or XML, with libvirt's meaning of what is left out.

        :param definition: without an allocation the volume is allocated in full.
        :param validate: check the XML against the schema first.
        """
        if not isinstance(definition, str):
            return self._create(definition, preallocate_metadata=preallocate_metadata, wait=wait)
        job = self._engine.volume_create_xml(
            self.ref, definition, preallocate_metadata=preallocate_metadata, validate=validate
        )
        return outcome(job.giving(self._handle), wait)

    @overload
    def clone_volume(
        self,
        definition: VolumeDef | str,
        source: Volume,
        *,
        reflink: bool = ...,
        preallocate_metadata: bool = ...,
        wait: Literal[True] = ...,
    ) -> Volume: ...
    @overload
    def clone_volume(
        self,
        definition: VolumeDef | str,
        source: Volume,
        *,
        reflink: bool = ...,
        preallocate_metadata: bool = ...,
        wait: Literal[False],
    ) -> Job[Volume]: ...
    def clone_volume(
        self,
        definition: VolumeDef | str,
        source: Volume,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
        wait: bool = True,
    ) -> Volume | Job[Volume]:
        """Make a volume in this pool from *source*, a volume of any active pool.

        :param reflink: share the data or fail; False shares them where it can be done.
        """
        engine = self._engine
        clone = engine.volume_clone_xml if isinstance(definition, str) else engine.volume_clone
        job = clone(
            self.ref,
            definition,  # type: ignore[arg-type]  # of the one kind or of the other
            source.ref,
            reflink=reflink,
            preallocate_metadata=preallocate_metadata,
        )
        return outcome(job.giving(self._handle), wait)

    @overload
    def clone(
        self, source: Volume, name: str, *, wait: Literal[True] = ..., **wishes: Unpack[CloneWishes]
    ) -> Volume: ...
    @overload
    def clone(
        self, source: Volume, name: str, *, wait: Literal[False], **wishes: Unpack[CloneWishes]
    ) -> Job[Volume]: ...
    def clone(
        self, source: Volume, name: str, *, wait: bool = True, **wishes: Unpack[CloneWishes]
    ) -> Volume | Job[Volume]:
        """Make a volume in this pool from *source*, a volume of any active pool.

        By default it holds all of the data and refers to no other file, whatever the source does.

        :param wishes: the fields of `CloneWishes`.
        :raise VolumeExists: the name is taken.
        :raise ConfigUnsupported: what is wished cannot be had; the text names it.
        """
        info = source.info()
        alike = source.pool == self or wishes.get("format")
        format = info.format if alike else clone_format(info, self.definition())
        request, options = clone_request(name, info, wishes, format)
        job = self._engine.volume_clone(
            self.ref,
            request,
            source.ref,
            reflink=wishes.get("reflink", False),
            # a raw one is full by its allocation alone
            preallocate_metadata=wishes.get("full", False) and request.format == "qcow2",
            options=options,
        )
        return outcome(job.giving(self._handle), wait)

    def ensure_volume(
        self, name: str, capacity: int | str | None, **how: Unpack[VolumeOptions]
    ) -> Ensured[Volume]:
        """Have a volume there; takes what `create` takes. One that is too small grows."""
        from storaged.ensure import Ensured, ensure_volume

        request = volume_request(name, capacity, how)
        metadata = how.get("preallocate_metadata", False)
        done = ensure_volume(
            self._engine,
            self.ref,
            request,
            preallocate_metadata=metadata,
            secret=how.get("secret"),
        )
        return Ensured(self._handle(done.object), done.changed, done.actions, done.differences)

    def policy(self) -> PoolPolicy:
        """Return the defaults for new volumes: owner, group, mode."""
        return self._engine.pool_policy(self.ref)

    def set_policy(self, policy: PoolPolicy) -> None:
        """Set the defaults for new volumes. Kept apart from libvirt's files."""
        self._engine.pool_set_policy(self.ref, policy)

    def _create(
        self,
        request: VolumeDef,
        *,
        preallocate_metadata: bool,
        wait: bool,
        secret: bytes | None = None,
    ) -> Volume | Job[Volume]:
        job = self._engine.volume_create(
            self.ref, request, preallocate_metadata=preallocate_metadata, secret=secret
        )
        return outcome(job.giving(self._handle), wait)

    def _handle(self, ref: VolumeRef) -> Volume:
        return Volume(self._engine, ref)
