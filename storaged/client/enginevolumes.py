"""The calls on volumes, for an engine behind a connection."""

# ruff: noqa: D102 -- what the calls do is said once, at those of the driver

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storaged.client.engineimages import RemoteImages
from storaged.client.enginevalues import failures, read_volume, validate_volume, write_volume
from storaged.errors import InvalidArgument
from storaged.facts import PoolRef, VolumeInfo, VolumeRef
from storaged.flow import Sink, Source
from storaged.job import Job
from storaged.rpc import storage
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record
from storaged.units import MAX_SIZE
from storaged.wirenames import pool_record, pool_ref, volume_record

if TYPE_CHECKING:
    from storaged.imaging import CloneOptions
    from storaged.model import VolumeDef
    from storaged.transfer import File

# Libvirt's flags.
_PREALLOC_METADATA, _REFLINK, _VALIDATE = 1, 2, 4
_ALLOCATE, _DELTA, _SHRINK = 1, 2, 4
_SPARSE = 1
_WITH_SNAPSHOTS = 2


class RemoteVolumes(RemoteImages):
    """The calls on volumes; `storaged.volumecalls` says what each does."""

    # Queries

    def volume_names(self, pool: PoolRef) -> list[str]:
        return [info.ref.name for info in self._peer.volume_infos(pool)]

    def volumes(self, pool: PoolRef) -> list[VolumeRef]:
        return [info.ref for info in self._peer.volume_infos(pool)]

    def volume_infos(self, pool: PoolRef) -> list[VolumeInfo]:
        return self._peer.volume_infos(pool)

    def volume_lookup_by_name(self, pool: PoolRef, name: str) -> VolumeRef:
        wish = storage.PoolNameArgs(pool_record(pool), name)
        found = self._peer.call(storage.VOL_LOOKUP_BY_NAME, wish).vol
        return VolumeRef(pool, found.name, found.key)

    def volume_lookup_by_key(self, key: str) -> VolumeRef:
        return self._located(self._peer.call(storage.VOL_LOOKUP_BY_KEY, storage.Name(key)).vol)

    def volume_lookup_by_path(self, path: str) -> VolumeRef:
        return self._located(self._peer.call(storage.VOL_LOOKUP_BY_PATH, storage.Name(path)).vol)

    def volume_info(self, ref: VolumeRef) -> VolumeInfo:
        return self._peer.volume_info(ref)

    def volume_definition(self, ref: VolumeRef) -> VolumeDef:
        from dataclasses import replace

        kind = self._peer.pool_info(ref.pool, figures=False).type
        found = read_volume(self.volume_xml(ref), kind)
        # XML cannot hold every name
        path = self.volume_path(ref) if "\\" in (found.path or "") else found.path
        return replace(found, name=ref.name, key=ref.key, path=path)

    def volume_xml(self, ref: VolumeRef) -> str:
        wish = storage.VolFlagsArgs(volume_record(ref))
        return self._peer.call(storage.VOL_GET_XML_DESC, wish).xml

    def volume_path(self, ref: VolumeRef) -> str:
        return self._peer.call(storage.VOL_GET_PATH, storage.VolArgs(volume_record(ref))).name

    def volume_users(self, ref: VolumeRef, *, patience: float | None = None) -> list[VolumeRef]:
        # A daemon has read its volumes when the first client asks, or waits for that once.
        return self._peer.volume_users(ref)

    # Changes

    def volume_create(
        self,
        pool: PoolRef,
        request: VolumeDef,
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
    ) -> Job[VolumeRef]:
        flags = _PREALLOC_METADATA if preallocate_metadata else 0
        text = write_volume(request)
        if secret is None:
            return self._make(pool, text, request.name, flags)
        from storaged.rpc import images

        self._require("encrypt a volume", secret)
        wish = images.VolCreateArgs(pool_record(pool), text, flags, secret)
        return self._new("create", pool, request.name, images.VOL_CREATE, wish)

    def volume_create_xml(
        self,
        pool: PoolRef,
        text: str,
        *,
        preallocate_metadata: bool = False,
        validate: bool = False,
    ) -> Job[VolumeRef]:
        flags = _PREALLOC_METADATA if preallocate_metadata else 0
        if validate and self._peer.validates_volumes:
            flags |= _VALIDATE
        elif validate:
            validate_volume(text)
        return self._make(pool, text, None, flags)

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
        flags = _clone_flags(reflink, preallocate_metadata)
        return self._copy(pool, write_volume(request), request.name, source, flags, options)

    def volume_clone_xml(
        self,
        pool: PoolRef,
        text: str,
        source: VolumeRef,
        *,
        reflink: bool = False,
        preallocate_metadata: bool = False,
        options: CloneOptions | None = None,
    ) -> Job[VolumeRef]:
        flags = _clone_flags(reflink, preallocate_metadata)
        return self._copy(pool, text, None, source, flags, options)

    def volume_delete(
        self, ref: VolumeRef, *, force: bool = False, snapshots: bool = False
    ) -> Job[None]:
        wish = storage.VolFlagsArgs(volume_record(ref), _WITH_SNAPSHOTS if snapshots else 0)
        return self._on_volume("delete", ref, storage.VOL_DELETE, wish, force)

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
    ) -> Job[None]:
        flags = (
            (_ALLOCATE if allocate else 0) | (_DELTA if delta else 0) | (_SHRINK if shrink else 0)
        )
        if secret is not None:
            from storaged.rpc import images

            self._require("take a secret", secret)
            secretive = images.VolResizeArgs(volume_record(ref), capacity, flags, secret)
            return self._on_volume("resize", ref, images.VOL_RESIZE, secretive, force)
        wish = storage.VolResizeArgs(volume_record(ref), capacity, flags)
        return self._on_volume("resize", ref, storage.VOL_RESIZE, wish, force)

    def volume_wipe(self, ref: VolumeRef, algorithm: int = 0, *, force: bool = False) -> Job[None]:
        wish = storage.VolWipePatternArgs(volume_record(ref), int(algorithm))
        return self._on_volume("wipe", ref, storage.VOL_WIPE_PATTERN, wish, force)

    # Bytes in and out

    def volume_upload(self, ref: VolumeRef, offset: int = 0, length: int = 0) -> Sink:
        from storaged.client.enginestreams import StreamSink

        holes = self._peer.keeps_behind_holes
        wish = _part(ref, offset, length, sparse=holes)
        with failures():
            stream = self._peer.link.open_stream(storage.VOL_UPLOAD, wish)
        return StreamSink(stream, holes=holes)

    def volume_download(
        self, ref: VolumeRef, offset: int = 0, length: int = 0, *, sparse: bool = False
    ) -> Source:
        from storaged.client.enginestreams import StreamSource

        wish = _part(ref, offset, length, sparse=sparse)
        with failures():
            stream = self._peer.link.open_stream(storage.VOL_DOWNLOAD, wish)
        return StreamSource(stream, sparse=sparse)

    def volume_upload_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        from storaged.client.enginestreams import upload

        job: Job[int] = Job("upload", ref.pool.name, ref.name)
        return upload(
            job,
            file,
            lambda: self.volume_upload(ref, offset, length),
            length=length,
            sparse=sparse,
        )

    def volume_download_file(
        self, ref: VolumeRef, file: File, *, offset: int = 0, length: int = 0, sparse: bool = False
    ) -> Job[int]:
        from storaged.client.enginestreams import download

        job: Job[int] = Job("download", ref.pool.name, ref.name)
        return download(
            job,
            file,
            lambda: self.volume_download(ref, offset, length, sparse=sparse),
            lambda: max(min(length or MAX_SIZE, self.volume_info(ref).physical - offset), 0),
        )

    def _located(self, found: storage.StorageVol) -> VolumeRef:
        """Return the volume that an answer names, with the uuid of its pool."""
        wish = storage.Name(found.pool)
        pool = pool_ref(self._peer.call(storage.POOL_LOOKUP_BY_NAME, wish).pool)
        return VolumeRef(pool, found.name, found.key)

    def _make(self, pool: PoolRef, text: str, name: str | None, flags: int) -> Job[VolumeRef]:
        wish = storage.PoolXMLArgs(pool_record(pool), text, flags)
        return self._new("create", pool, name, storage.VOL_CREATE_XML, wish)

    def _copy(
        self,
        pool: PoolRef,
        text: str,
        name: str | None,
        source: VolumeRef,
        flags: int,
        options: CloneOptions | None,
    ) -> Job[VolumeRef]:
        if options is None or _is_plain(options):
            plain = storage.PoolCloneArgs(pool_record(pool), text, volume_record(source), flags)
            return self._new("clone", pool, name, storage.VOL_CREATE_XML_FROM, plain)
        from storaged.imagerecords import clone_record
        from storaged.rpc import images

        self._require("clone in this way", options.secret, options.source_secret)
        wish = clone_record(pool_record(pool), text, volume_record(source), flags, options)
        return self._new("clone", pool, name, images.VOL_CLONE, wish)

    def _require(self, what: str, *secrets: bytes | None) -> None:
        self._peer.require_images(what)
        self.require_secrecy(*secrets)

    def _new(
        self,
        kind: str,
        pool: PoolRef,
        name: str | None,
        procedure: Procedure[Any, storage.VolRet],
        wish: Record,
    ) -> Job[VolumeRef]:
        return self._peer.begin(
            Job(kind, pool.name, name),
            procedure,
            wish,
            lambda made: VolumeRef(pool, made.vol.name, made.vol.key),
        )

    def _on_volume(
        self, kind: str, ref: VolumeRef, procedure: Procedure[Any, Any], wish: Any, force: bool
    ) -> Job[None]:
        work: Job[None] = Job(kind, ref.pool.name, ref.name)
        return self._peer.begin(work, procedure, wish, lambda _: None, force=force)


def _is_plain(options: CloneOptions) -> bool:
    """Tell whether libvirt's call can ask for all of it."""
    from storaged.imaging import CloneOptions

    return options == CloneOptions()


def _clone_flags(reflink: bool, preallocate_metadata: bool) -> int:
    return (_REFLINK if reflink else 0) | (_PREALLOC_METADATA if preallocate_metadata else 0)


def _part(ref: VolumeRef, offset: int, length: int, *, sparse: bool) -> storage.VolStreamArgs:
    """Return the wish for a part of a volume.

    :raise InvalidArgument: there can be no such part.
    """
    if offset < 0 or length < 0 or offset > MAX_SIZE - length:
        raise InvalidArgument(f"offset {offset} and length {length} are out of range")
    return storage.VolStreamArgs(volume_record(ref), offset, length, _SPARSE if sparse else 0)
