"""The remote engine beside a daemon that is not storaged: libvirt's calls and nothing else.

Facts that libvirt has no call for come out of the XML. A call cannot be followed or cancelled, so
its job shows no progress, and its cancel says so.
"""

# ruff: noqa: D102 -- what the methods do is said once, at `Peer`

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from storaged.client.enginepeer import NOT_STORAGED, Peer
from storaged.client.enginestreams import run
from storaged.client.enginevalues import failures, read_pool, read_volume
from storaged.errors import (
    InternalError,
    InvalidArgument,
    NoSpace,
    NoSuchPool,
    NoSuchVolume,
    OperationFailed,
    OperationInvalid,
    PoolBusy,
    PoolExists,
    StorageError,
    SystemFailure,
    Unsupported,
    VolumeBusy,
)
from storaged.facts import PoolInfo, PoolRef, PoolState, Space, VolumeInfo, VolumeRef
from storaged.job import Job
from storaged.rpc import storage
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record
from storaged.wirenames import pool_record, pool_ref, volume_record

if TYPE_CHECKING:
    from storaged.settings import PoolPolicy

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)
T = TypeVar("T")

#: The flag of a pool's XML that asks for the definition that is kept.
_INACTIVE = 1


#: What tells apart errors to which libvirt gives the same code, in the words of its messages.
_KINDS: tuple[tuple[type[StorageError], type[StorageError], str], ...] = (
    (OperationFailed, PoolExists, "already exists with uuid"),
    (OperationFailed, PoolExists, "is already defined with uuid"),
    (OperationFailed, PoolExists, "Storage source conflict with pool"),
    (OperationFailed, NoSpace, "Not enough free space"),
    (InternalError, PoolBusy, "has asynchronous jobs running"),
    (OperationInvalid, VolumeBusy, "is still in use"),
    (OperationInvalid, VolumeBusy, "is still being allocated"),
    (OperationInvalid, VolumeBusy, "is being built"),
)


def _told_apart(err: StorageError) -> StorageError:
    """Return an error of libvirt's as one of the class that it has here."""
    for broad, kind, words in _KINDS:
        if type(err) is broad and words in err.detail:
            return kind(err.detail, advice=err.advice, domain=err.domain)
    return err


class PlainJob(Job[T]):
    """A call under way that nobody can stop."""

    def cancel(self) -> None:
        """Say that it cannot be done.

        :raise Unsupported: the call goes on, also when the connection is closed.
        """
        if not self.ended:
            raise Unsupported(f"a {self.kind} cannot be cancelled there", advice=NOT_STORAGED)

    def complete(self) -> T:
        """Return the result; who is interrupted meanwhile just stops waiting."""
        return self.result()


class PlainPeer(Peer):
    """Libvirt's own daemon."""

    def call(self, procedure: Procedure[A, R], args: A) -> R:
        try:
            with failures():
                return self.link.call(procedure, args)
        except StorageError as err:
            raise _told_apart(err) from None

    def begin(
        self,
        work: Job[Any],
        procedure: Procedure[A, R],
        args: A,
        convert: Callable[[R], T],
        *,
        force: bool = False,
    ) -> Job[T]:
        if force:
            raise Unsupported("libvirt has no force", advice=NOT_STORAGED)
        job: PlainJob[T] = PlainJob(work.kind, work.pool, work.volume)
        return run(job, lambda _job: convert(self.call(procedure, args)))

    def pool_infos(self, flags: int) -> list[PoolInfo]:
        listed = self.call(storage.LIST_ALL_POOLS, storage.ListPoolsArgs(1, flags)).pools
        infos = []
        for record in listed:
            with suppress(NoSuchPool):  # it has gone since it was listed
                infos.append(self.pool_info(pool_ref(record), figures=True))
        return infos

    def pool_info(self, ref: PoolRef, *, figures: bool) -> PoolInfo:
        record = pool_record(ref)
        wish = storage.PoolArgs(record)
        found = self.call(storage.POOL_GET_INFO, wish)
        text = self.call(storage.POOL_GET_XML_DESC, storage.PoolFlagsArgs(record)).xml
        definition = read_pool(text)
        return PoolInfo(
            ref=PoolRef(definition.name, ref.uuid),
            state=PoolState(found.state),
            persistent=bool(self.call(storage.POOL_IS_PERSISTENT, wish).num),
            autostart=bool(self.call(storage.POOL_GET_AUTOSTART, wish).num),
            space=Space(found.capacity, found.allocation, found.available),
            type=definition.type,
            target=definition.target,
        )

    def require_target(self, ref: PoolRef) -> None:
        """Do nothing: libvirt does not notice."""

    def volume_infos(self, pool: PoolRef) -> list[VolumeInfo]:
        kind = self._kind(pool)
        wish = storage.ListVolsArgs(pool_record(pool), 1)
        infos = []
        for vol in self.call(storage.POOL_LIST_ALL_VOLUMES, wish).vols:
            with suppress(NoSuchVolume, SystemFailure):  # it has gone since it was listed
                infos.append(self._info(VolumeRef(pool, vol.name, vol.key), kind))
        return infos

    def volume_info(self, ref: VolumeRef) -> VolumeInfo:
        return self._info(ref, self._kind(ref.pool))

    def _info(self, ref: VolumeRef, kind: str) -> VolumeInfo:
        wish = storage.VolFlagsArgs(volume_record(ref))
        found = read_volume(self.call(storage.VOL_GET_XML_DESC, wish).xml, kind)
        return VolumeInfo(
            ref=VolumeRef(ref.pool, ref.name, found.key or ref.key),
            type=found.type,
            capacity=found.capacity,
            allocation=found.allocation or 0,
            physical=found.physical,
            format=found.format,
            path=found.path or "",
        )

    def _kind(self, pool: PoolRef) -> str:
        wish = storage.PoolFlagsArgs(pool_record(pool))
        return read_pool(self.call(storage.POOL_GET_XML_DESC, wish).xml).type

    def volume_users(self, ref: VolumeRef) -> list[VolumeRef]:
        """Return none: libvirt does not tell."""
        return []

    def policy(self, ref: PoolRef) -> PoolPolicy:
        raise Unsupported("libvirt keeps no defaults for new volumes", advice=NOT_STORAGED)

    def set_policy(self, ref: PoolRef, policy: PoolPolicy) -> None:
        raise Unsupported("libvirt keeps no defaults for new volumes", advice=NOT_STORAGED)

    def jobs(self) -> list[Job[Any]]:
        """Return none: libvirt does not tell."""
        return []

    def job(self, number: int) -> Job[Any]:
        raise InvalidArgument(f"no job with id {number} is under way", advice=NOT_STORAGED)

    def problems(self) -> tuple[str, ...]:
        """Return none: libvirt does not tell."""
        return ()
