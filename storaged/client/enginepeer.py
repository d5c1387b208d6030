"""How the remote engine asks the other side, in its two dialects.

`Peer` is what the engine needs. `ExtendedPeer` is storaged's own daemon: facts come in one message,
errors with their advice, long work as jobs. `storaged.client.engineplain` is any other daemon.
"""

# ruff: noqa: D102 -- what the methods do is said once, at `Peer`

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from storaged.client.enginejobs import JobBoard
from storaged.client.enginevalues import failures, pool_info, volume_info
from storaged.client.link import Link
from storaged.errors import Unsupported
from storaged.facts import Outage, PoolInfo, PoolRef, PoolState, VolumeInfo, VolumeRef
from storaged.job import Job
from storaged.rpc import extension, storage
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record, Void
from storaged.wirenames import pool_record, pool_ref, volume_record

if TYPE_CHECKING:
    from storaged.settings import PoolPolicy

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)
T = TypeVar("T")

#: `extension.PoolFactsArgs.flags`: read the figures if nobody has yet; read them again.
_READ, _READ_AGAIN = 1, 2

#: What to do where the other side is libvirt's own daemon.
NOT_STORAGED = "The other side is not storaged. Run storaged there to have it."


class Peer(ABC):
    """The other side of a connection."""

    #: whether a hole in an upload leaves alone what lies behind it: libvirt's daemons cut it off
    keeps_behind_holes = False
    #: whether it can be asked to validate the document of a volume: libvirt 9.0 trips over the flag
    validates_volumes = False

    def __init__(self, link: Link) -> None:
        self.link = link

    @abstractmethod
    def call(self, procedure: Procedure[A, R], args: A) -> R:
        """Call what ends soon.

        :raise StorageError: what it raises there.
        """

    @abstractmethod
    def begin(
        self,
        work: Job[Any],
        procedure: Procedure[A, R],
        args: A,
        convert: Callable[[R], T],
        *,
        force: bool = False,
    ) -> Job[T]:
        """Call what may take long.

        :param work: kind, pool and volume of the job, for a side that does not tell them.
        :param convert: makes the job's result of what the call returns.
        :param force: do it although a virtual machine has the volume open.
        :raise Unsupported: the other side cannot be forced.
        """

    def require_images(self, what: str) -> None:
        """Refuse what only storaged can do with an image, where the other side is not that.

        :param what: what was to be done, such as ``check a volume``.
        :raise Unsupported: it cannot.
        """
        raise Unsupported(f"libvirt cannot {what}", advice=NOT_STORAGED)

    def require_forced_stop(self) -> None:
        """Refuse to stop a pool by force where the other side cannot.

        :raise Unsupported: it cannot.
        """
        raise Unsupported("libvirt cannot stop a pool by force", advice=NOT_STORAGED)

    @abstractmethod
    def pool_infos(self, flags: int) -> list[PoolInfo]:
        """Return state and figures of the pools that pass libvirt's filter."""

    @abstractmethod
    def pool_info(self, ref: PoolRef, *, figures: bool) -> PoolInfo:
        """Return the state of a pool; with *figures* they are read if nobody has yet."""

    @abstractmethod
    def require_target(self, ref: PoolRef) -> None:
        """Raise if the target of an active pool is not what it was at the start."""

    @abstractmethod
    def volume_infos(self, pool: PoolRef) -> list[VolumeInfo]:
        """Return the figures of all volumes of a pool."""

    @abstractmethod
    def volume_info(self, ref: VolumeRef) -> VolumeInfo:
        """Return the figures of a volume after one fresh look."""

    @abstractmethod
    def volume_users(self, ref: VolumeRef) -> list[VolumeRef]:
        """Return the volumes that need one."""

    @abstractmethod
    def policy(self, ref: PoolRef) -> PoolPolicy:
        """Return the defaults for new volumes of a pool."""

    @abstractmethod
    def set_policy(self, ref: PoolRef, policy: PoolPolicy) -> None:
        """Set the defaults for new volumes of a pool."""

    def secret_documents(self, flags: int) -> tuple[str, ...] | None:
        """Return the XML of the secrets that pass libvirt's filter; None: each has to be asked for.

        :raise StorageError: what it raises there.
        """
        return None

    @abstractmethod
    def jobs(self) -> list[Job[Any]]:
        """Return the jobs under way."""

    @abstractmethod
    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    @abstractmethod
    def problems(self) -> tuple[str, ...]:
        """Return what is wrong with the files of the engine."""


class ExtendedPeer(Peer):
    """Storaged, with the program of its own."""

    keeps_behind_holes = True
    validates_volumes = True

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._board = JobBoard(link)

    def call(self, procedure: Procedure[A, R], args: A) -> R:
        wish = extension.CallArgs(procedure.number, args.pack())
        return procedure.ret.unpack(self._ask(extension.CALL, wish).ret)

    def begin(
        self,
        work: Job[Any],
        procedure: Procedure[A, R],
        args: A,
        convert: Callable[[R], T],
        *,
        force: bool = False,
    ) -> Job[T]:
        flags = extension.CallFlag.FORCE if force else 0
        return self._board.begin(procedure, args, convert, flags=flags)

    def require_images(self, what: str) -> None:
        if self.link.extension_level() < extension.IMAGES_LEVEL:
            raise Unsupported(
                f"the daemon there is too old to {what}",
                advice="Update storaged there, or work without it: storagectl --embedded",
            )

    def require_forced_stop(self) -> None:
        if self.link.extension_level() < extension.OUTAGES_LEVEL:
            raise Unsupported(
                "the daemon there is too old to stop a pool by force",
                advice="Update storaged there.",
            )

    def pool_infos(self, flags: int) -> list[PoolInfo]:
        listed = self._ask(extension.POOL_LIST, extension.PoolListArgs(flags)).pools
        infos = [self._measured(pool_info(facts)) for facts in listed]
        outages = self._outages(infos)
        return [replace(info, outage=outages.get(info.ref)) for info in infos] if outages else infos

    def _outages(self, infos: list[PoolInfo]) -> dict[PoolRef, Outage]:
        """Return since when and why storage does not answer, if that of any of these does not."""
        if not any(info.state is PoolState.INACCESSIBLE for info in infos):
            return {}
        if self.link.extension_level() < extension.OUTAGES_LEVEL:
            return {}
        found = self._ask(extension.OUTAGES, Void()).outages
        return {pool_ref(one.pool): Outage(one.since / 1000, one.why) for one in found}

    def _measured(self, info: PoolInfo) -> PoolInfo:
        """Have the figures of an active pool read if nobody has yet: a list does not do that."""
        if info.state is PoolState.RUNNING and not info.space.capacity:
            return self.pool_info(info.ref, figures=True)
        return info

    def pool_info(self, ref: PoolRef, *, figures: bool) -> PoolInfo:
        info = pool_info(self._facts(ref, _READ if figures else 0))
        outages = self._outages([info])
        return replace(info, outage=outages.get(info.ref)) if outages else info

    def require_target(self, ref: PoolRef) -> None:
        self._facts(ref, _READ_AGAIN)

    def _facts(self, ref: PoolRef, flags: int) -> extension.PoolFacts:
        wish = extension.PoolFactsArgs(pool_record(ref), flags)
        return self._ask(extension.POOL_FACTS, wish).facts

    def volume_infos(self, pool: PoolRef) -> list[VolumeInfo]:
        return [volume_info(pool, facts) for page in self._pages(pool) for facts in page]

    def _pages(self, pool: PoolRef) -> Iterator[tuple[extension.VolFacts, ...]]:
        after: str | None = None
        while True:
            wish = extension.VolPageArgs(pool_record(pool), after, extension.PAGE_MAX)
            page = self._ask(extension.VOL_PAGE, wish)
            yield page.vols
            if not page.more or not page.vols:
                return
            after = page.vols[-1].vol.name

    def volume_info(self, ref: VolumeRef) -> VolumeInfo:
        wish = extension.VolFactsArgs(volume_record(ref))
        return volume_info(ref.pool, self._ask(extension.VOL_FACTS, wish).facts)

    def volume_users(self, ref: VolumeRef) -> list[VolumeRef]:
        if self.link.extension_level() < extension.IMAGES_LEVEL:
            return []
        found = self._ask(extension.VOL_USERS, extension.VolFactsArgs(volume_record(ref))).vols
        pools = {ref.pool.name: ref.pool}
        for name in {vol.pool for vol in found} - set(pools):
            wish = storage.Name(name)
            pools[name] = pool_ref(self.call(storage.POOL_LOOKUP_BY_NAME, wish).pool)
        return [VolumeRef(pools[vol.pool], vol.name, vol.key) for vol in found]

    def policy(self, ref: PoolRef) -> PoolPolicy:
        from storaged.settings import PoolPolicy

        wish = extension.PolicyArgs(pool_record(ref))
        found = self._ask(extension.POLICY_GET, wish).policy
        return PoolPolicy(found.owner, found.group, found.mode, found.thin_pool)

    def set_policy(self, ref: PoolRef, policy: PoolPolicy) -> None:
        wanted = extension.Policy(policy.owner, policy.group, policy.mode, policy.thin_pool)
        self._ask(extension.POLICY_SET, extension.PolicySetArgs(pool_record(ref), wanted))

    def secret_documents(self, flags: int) -> tuple[str, ...] | None:
        if self.link.extension_level() < extension.SECRETS_LEVEL:
            return None
        return self._ask(extension.SECRET_LIST, extension.SecretListArgs(flags)).documents

    def jobs(self) -> list[Job[Any]]:
        listed = self._ask(extension.JOB_LIST, Void()).jobs
        return [self._board.known(facts) for facts in listed]

    def job(self, number: int) -> Job[Any]:
        return self._board.known(self._ask(extension.JOB_GET, extension.JobId(number)).job)

    def close(self) -> None:
        super().close()
        self._board.lose()

    def problems(self) -> tuple[str, ...]:
        return self._ask(extension.PROBLEMS, Void()).strings

    def _ask(self, procedure: Procedure[A, R], args: A) -> R:
        with failures():
            return self.link.call(procedure, args)
