"""How a new volume comes to be: its name is taken, it is listed, made, and known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from storaged import imagelock, passphrases
from storaged.backend import Anchored, CloneOptions, LooksAtVolumes
from storaged.concerns import dangers
from storaged.errors import (
    ConfigUnsupported,
    InvalidArgument,
    NameTaken,
    OperationInvalid,
    OperationUnsupported,
    StorageError,
    VolumeExists,
)
from storaged.formats.handle import Handle
from storaged.imagebackend import FollowsChains
from storaged.job import Job
from storaged.model import BackingStore, Permissions, VolumeDef, VolumeRecord, VolumeType
from storaged.pool import PoolObject
from storaged.units import format_size


class Making:
    """The new volumes of one pool.

    A volume is listed while it is made. What lists it is put into the index by `reserve` or `make`
    and replaced at the end; if it still stands there then, the volume was not made.
    """

    def __init__(self, pool: PoolObject) -> None:
        self._pool = pool
        #: what the index holds of volumes that are being made
        self._announced: dict[str, VolumeRecord] = {}

    def with_policy(self, request: VolumeDef) -> VolumeDef:
        """Return a request with the pool's defaults for what it does not say."""
        policy = self._pool.services.policies.require(self._pool.name)
        given = request.permissions
        filled = Permissions(
            mode=policy.mode if given.mode is None else given.mode,
            owner=policy.owner if given.owner is None else given.owner,
            group=policy.group if given.group is None else given.group,
            label=given.label,
        )
        request = request if filled == given else replace(request, permissions=filled)
        return _thin(request, policy.thin_pool)

    def reserve(self, request: VolumeDef, job: Job[Any], taken: StorageError) -> None:
        """Take a name for a new volume, so that no second job can, and list the volume.

        Where it cannot be told yet what path it will get, it is listed once it is planned.

        :raise StorageError: *taken*, if somebody makes, changes or reads a volume of that name.
        :raise OperationInvalid: the pool is not active.
        """
        pool, name = self._pool, request.name
        with pool.lock:
            pool.require_active()
            if pool.leases.held(name):
                raise taken
            pool.leases.write(name, job)
            pool.jobs[job.id] = job
            pool.touch(name)
            if name not in pool.index and isinstance(pool.backend, Anchored):
                self._announce(request, key=None, path=None)

    def ending(self, job: Job[Any]) -> Callable[[], None]:
        """Return what ends what `reserve` began, whatever came of it, with the lock held.

        Calling that again does nothing.
        """
        pool, name = self._pool, job.volume or ""

        def end() -> None:
            if pool.leases.writer(name) is not job:
                return
            pool.leases.release(name, job)
            announced = self._announced.pop(name, None)
            if announced is not None and pool.index.get(name) is announced:
                pool.drop(name)

        return end

    def make(
        self,
        job: Job[Any],
        plan: Callable[[], VolumeDef],
        make: Callable[[VolumeDef], VolumeRecord],
        taken: StorageError,
    ) -> VolumeRecord:
        """Make the volume whose name was reserved for *job*, for its worker.

        :raise StorageError: *taken*, if there is such a volume; whatever *plan* and *make* raise.
        """
        pool, name = self._pool, job.volume or ""
        known = pool.index.get(name)
        if known is not None and known is not self._announced.get(name):
            self._require_free(name, taken)
        try:
            planned = plan()  # it looks whether anything stands at the path
        except StorageError:
            self._require_free(name, taken)  # a volume of that name is what is reported first
            raise
        with pool.lock:
            pool.require_under_way(job)
            self._announce(planned, key=planned.key, path=planned.path)
        try:
            made = make(planned)
        except (NameTaken, VolumeExists):  # by another host, or nobody has looked until now
            self._require_free(name, taken)
            raise
        with pool.lock:
            pool.require_under_way(job)
            pool.put(made)
            passphrases.remember(pool, planned)
            pool.use_space(made.allocation)
        return made

    def _require_free(self, name: str, taken: StorageError) -> None:
        """Look whether the name is taken, by what the index knows and by what it does not."""
        pool = self._pool
        backend = pool.backend
        known = pool.index.get(name)
        if known is self._announced.get(name):
            known = None
        found = known
        if isinstance(backend, LooksAtVolumes):
            found = backend.look(name, known)
            with pool.lock:
                if found is not None:
                    pool.put(found)
                elif known is not None:
                    pool.drop(name)
        if found is not None:
            taken.advice = f"It is at {pool.path_of(found)}, with {format_size(found.capacity)}."
            raise taken

    def _announce(self, volume: VolumeDef, *, key: str | None, path: str | None) -> None:
        """List a volume that is not there yet. Call it with the lock held.

        :param key: None is that of every volume of this name, as for *path*.
        """
        derived = f"{self._pool.target}/{volume.name}"
        self._announced[volume.name] = record = VolumeRecord(
            name=volume.name,
            capacity=volume.capacity,
            allocation=0,
            format=volume.format,
            type=volume.type,
            key=None if key == derived else key,
            path=None if path == derived else path,
            permissions=volume.permissions,
        )
        self._pool.put(record)


def _thin(request: VolumeDef, pool: str | None) -> VolumeDef:
    """Return a request for a sparse volume as one for a volume of a thin pool, if there is one.

    A volume of a thin pool has that as its backing store.
    """
    space = request.allocation
    if pool is None or request.backing is not None or request.format == "thin-pool":
        return request
    if space is None or 0 < request.capacity <= space:
        return request
    return replace(request, backing=BackingStore(pool))


def check_secret(request: VolumeDef, secret: bytes | None) -> None:
    """Refuse a passphrase for a volume that is not to be encrypted.

    :raise InvalidArgument: it would be made in plain.
    """
    if secret is not None and request.encryption is None:
        raise InvalidArgument(
            f"a secret was given for volume '{request.name}', which is not to be encrypted"
        )


def check_link(request: VolumeDef, options: CloneOptions, *, reflink: bool) -> None:
    """Refuse what contradicts a linked clone, which copies nothing.

    :raise InvalidArgument: the text names it.
    """
    wishes = (
        ("shared data", reflink),
        ("compressed data", options.compress is not None),
        ("a backing file of its own", request.backing is not None),
    )
    for what, wanted in wishes:
        if wanted:
            raise InvalidArgument(f"a linked clone has no {what}: its data stay in the source")


def unwritten(handle: Handle, volume: str) -> AbstractContextManager[None]:
    """Keep QEMU's writers from an open volume for as long as it is needed.

    :raise VolumeBusy: one has it open already.
    """
    fd = handle.fileno()
    return nullcontext() if fd is None else imagelock.hold(fd, volume, writing=False)


def overlay_of(request: VolumeDef, source: VolumeRecord, pool: PoolObject) -> VolumeDef:
    """Return the request for an overlay whose backing file is *source*, for a worker.

    :param pool: that of the source.
    :raise OperationUnsupported: it is nothing that another file could refer to.
    :raise OperationInvalid: it is not to be trusted, or its own backing chain is not complete.
    :raise ConfigUnsupported: the overlay is asked to be smaller.
    """
    path = pool.path_of(source)
    if source.type not in (VolumeType.FILE, VolumeType.BLOCK) or not path.startswith("/"):
        raise OperationUnsupported(
            f"volume '{source.name}' has no path on this host that an overlay could refer to",
            advice="Without --linked its data are copied.",
        )
    for danger in dangers(source.concerns):
        raise OperationInvalid(f"volume '{source.name}' cannot be a backing file: {danger}")
    if 0 < request.capacity < source.capacity:
        raise ConfigUnsupported(
            f"a linked clone of {request.capacity} bytes is smaller than its source,"
            f" which has {source.capacity}"
        )
    _require_chain(source, pool)
    return replace(
        request,
        capacity=request.capacity or source.capacity,
        allocation=0,
        format=request.format or "qcow2",
        backing=BackingStore(path, source.format or "raw"),
    )


def _require_chain(source: VolumeRecord, pool: PoolObject) -> None:
    """Refuse a source of which no overlay could be opened, because of what lies below it."""
    backend = pool.backend
    if source.image is None or source.image.backing is None:
        return
    if not isinstance(backend, FollowsChains):
        return
    chain = backend.chain(source)
    for why in (*chain.dangers, *(() if chain.end is None else (chain.end.text,))):
        raise OperationInvalid(
            f"volume '{source.name}' cannot be a backing file: its backing chain is not complete:"
            f" {why}",
            advice=f"What there is of it: storagectl vol inspect {pool.name}/{source.name}",
        )
