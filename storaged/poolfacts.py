"""What an engine keeps of one pool: its definition, state and snapshot, its index, its backend.

`PoolFacts.snapshot` is what queries read: immutable, replaced in one assignment when an operation
ends. The lock guards changes of state and is never held while storage is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from storaged.backend import Ability, Backend, Watched, require
from storaged.errors import InternalError, OperationInvalid, StorageError
from storaged.facts import Outage
from storaged.index import VolumeIndex
from storaged.job import Job
from storaged.lease import Leases
from storaged.model import (
    Permissions,
    PoolDef,
    PoolInfo,
    PoolRef,
    PoolState,
    SecretRef,
    Space,
    VolumeDef,
    VolumeRecord,
)
from storaged.poolstate import Phase, Retry, Services, Snapshot
from storaged.worker import Workers

A = TypeVar("A", bound=Ability)

#: Kinds of problems that a start or a stop does not end.
_LASTING = ("policy",)


class PoolFacts:
    """The facts of one pool.

    :param definition: what its configuration, or its live state, says.
    """

    def __init__(self, definition: PoolDef, services: Services) -> None:
        self.services = services
        self.lock = threading.Lock()
        self.name = definition.name
        self.ref = PoolRef(definition.name, definition.uuid)
        self.workers = Workers(definition.name, services.limits)
        self.leases = Leases()
        #: the secrets that volumes were made with since the last refresh, by their names
        self.made_with: dict[str, SecretRef] = {}
        #: volume jobs under way, by their id
        self.jobs: dict[int, Job[Any]] = {}
        self.index = VolumeIndex(target=definition.target)
        #: counts starts and stops: what began in another epoch has no say any more
        self.epoch = 0
        self.scanned = False
        #: a look has found what others changed, and no refresh event has told of it yet
        self.untold = False
        #: names that changed since the running scan began; None while none runs
        self.touched: set[str] | None = None
        self.phase = Phase.INACTIVE
        self.persistent = False
        self.autostart = False
        self.removed = False
        #: it is being started, and its storage is somebody else's matter still
        self.untouched = False
        #: the storage does not answer, as far as the watch can tell
        self.outage: Outage | None = None
        #: an autostart that is to be tried again; `decide` ends that
        self.retry: Retry | None = None
        #: takes the pool out of the table that it is in
        self.forget: Callable[[], None] = lambda: None
        self._definition = definition
        self._pending: PoolDef | None = None
        self._exclusive: Job[Any] | None = None
        self._space: Space | None = None
        self._permissions: Permissions | None = None
        self._problems: dict[str, str] = {}
        self._backend: Backend | None = None
        self._load_backend()
        self.publish()

    # Queries: no lock, no waiting

    @property
    def snapshot(self) -> Snapshot:
        """What is known of the pool at this moment."""
        found = self._snapshot
        if found.info.active:
            outage = self.outage or self.workers.outage()
            return found if outage is None else _inaccessible(found, outage)
        problems = found.info.problems
        if (retry := self.retry) is not None and retry.why:
            problems = (*problems, str(retry))
        if (silence := self._silent_start()) is not None:
            problems = (silence, *problems)
        return found if problems is found.info.problems else _with_problems(found, problems)

    @property
    def target(self) -> str | None:
        """The target path of what runs, or will run at the next start."""
        return self._definition.target

    @property
    def active(self) -> bool:
        """Whether volumes can be worked on."""
        return self.phase is Phase.ACTIVE

    @property
    def watched(self) -> Watched | None:
        """The backend, if its storage can go away under an active pool."""
        backend = self._backend
        return backend if isinstance(backend, Watched) else None

    @property
    def backend(self) -> Backend:
        """The mechanism of the pool.

        :raise InternalError: nobody brings the pool's type; with libvirt's text.
        """
        if self._backend is None:
            self.services.registry.find(self._definition.type)
            self._load_backend()
            if self._backend is None:
                raise InternalError(
                    f"pool type '{self._definition.type}' cannot be used",
                    advice=self._problems.get("backend"),
                )
        return self._backend

    def release(self) -> None:
        """Let go of what only this process has of the storage, because the engine ends."""
        if self._backend is not None:
            with suppress(StorageError):
                self._backend.release()

    @property
    def space_known(self) -> bool:
        """Whether the figures of the pool were read since it was started."""
        return self._space is not None

    @property
    def target_problem(self) -> str | None:
        """What is wrong with the target of the active pool, as far as it is known."""
        return self._problems.get("target")

    def under_way(self) -> list[Job[Any]]:
        """Return the jobs that work on the pool or its volumes, scans and looks aside."""
        exclusive = self._exclusive
        return [*list(self.jobs.values()), *([] if exclusive is None else [exclusive])]

    def able(self, ability: type[A]) -> A:
        """Return the backend of the active pool, typed as having *ability*.

        :raise OperationInvalid: the pool is not active.
        :raise Unsupported: its type lacks the ability.
        """
        self.require_active()
        return require(self.backend, ability)

    def require_active(self) -> None:
        """Raise libvirt's error unless the pool is active.

        :raise OperationInvalid: it is not.
        """
        if self.phase is not Phase.ACTIVE:
            raise self.inactive()

    def inactive(self) -> OperationInvalid:
        """Return libvirt's error for what needs an active pool."""
        problem = next(iter(self.snapshot.info.problems), "")
        advice = f"Start it: storagectl pool start {self.name}"
        return OperationInvalid(
            f"storage pool '{self.name}' is not active",
            advice=f"{problem} {advice}".strip() if problem else advice,
        )

    def require_under_way(self, job: Job[Any]) -> None:
        """Raise unless *job* still is one of the pool's. Call it with the lock held.

        :raise OperationInvalid: the pool was stopped by force meanwhile.
        """
        if job.id not in self.jobs:
            raise OperationInvalid(f"storage pool '{self.name}' is not active")

    def path_of(self, volume: VolumeRecord | VolumeDef) -> str:
        """Return the path of a volume."""
        return volume.path or f"{self._definition.target}/{volume.name}"

    def key_of(self, volume: VolumeRecord | VolumeDef) -> str:
        """Return the key of a volume."""
        return volume.key or self.path_of(volume)

    def _silent_start(self) -> str | None:
        """Return what is to be told of a start whose storage does not answer."""
        job = self._exclusive if self.phase is Phase.STARTING else None
        silent = 0.0 if job is None else job.silent_for()
        if silent < self.services.limits.answers_within:
            return None
        return (
            f"is starting up, but there was no answer for {silent:.0f} s; to let go of it: "
            f"storagectl pool stop {self.name} --force"
        )

    def decide(self) -> None:
        """Take it that somebody has decided whether the pool is to run: no autostart is left."""
        with self.lock:
            self.retry = None
            with suppress(StorageError):  # what stays there is at worst one more try
                self.services.store.remove_unstarted(self.ref.uuid)

    # Changes: with the lock held

    def publish(self) -> None:
        """Replace the snapshot by one of the present state. Call it with the lock held."""
        active = self.phase in (Phase.ACTIVE, Phase.STOPPING)
        self._snapshot = Snapshot(
            definition=self._definition,
            pending=self._pending,
            info=PoolInfo(
                ref=self.ref,
                state=PoolState.RUNNING if active else PoolState.INACTIVE,
                persistent=self.persistent,
                autostart=self.autostart,
                space=self._space or Space(),
                problems=tuple(dict.fromkeys(self._problems.values())),
                type=self._definition.type,
                target=self._definition.target,
            ),
            permissions=self._permissions or self._definition.permissions,
        )

    def define(self, definition: PoolDef) -> None:
        """Take a new definition: at once, or after the stop if the pool is active."""
        if self.phase is Phase.INACTIVE:
            self._definition = definition
            self._pending = None
            self.index = VolumeIndex(target=definition.target)
            self._load_backend()
        else:
            self._pending = definition
        self.persistent = True
        self.publish()

    def run_with(self, definition: PoolDef) -> None:
        """Take *definition* for the next run only; the present one comes back after the stop."""
        if self.persistent:
            self._pending = self._definition
        self._definition = definition
        self.index = VolumeIndex(target=definition.target)
        self._load_backend()
        self.publish()

    def settle(self, phase: Phase) -> None:
        """Come to rest, active or inactive, and forget what belonged to the state before.

        A pool that is not kept is gone when it is inactive.
        """
        if phase is Phase.INACTIVE and not self.persistent:
            self.forget()
        self.phase = phase
        self.untouched = False
        self.epoch += 1
        self._answers()
        self.index = VolumeIndex(target=self._definition.target)
        self.scanned = self.untold = False
        self.made_with.clear()
        self._space = self._permissions = None
        self._problems = {k: v for k, v in self._problems.items() if k in _LASTING}
        if phase is Phase.INACTIVE and self._pending is not None:
            self._definition, self._pending = self._pending, None
        if phase is Phase.INACTIVE:
            self._load_backend()
        self.publish()

    def lose(self, outage: Outage, epoch: int) -> bool:
        """Take it that the storage does not answer; tell whether that is new. Takes the lock.

        :param epoch: when it was found; another one has nothing to do with it.
        """
        with self.lock:
            if epoch != self.epoch or self.phase is not Phase.ACTIVE:
                return False
            known = self.outage
            self.outage = outage if known is None else Outage(known.since, outage.why)
            self.workers.refuse(self.outage)
            return known is None

    def regain(self) -> None:
        """Take it that the storage answers. Call it with the lock held."""
        self._answers()
        self.workers.give_up_stuck()

    def _answers(self) -> None:
        self.outage = None
        self.workers.refuse(None)

    def measured(self, space: Space, permissions: Permissions | None) -> None:
        """Take figures that were just read."""
        self._space = space
        if permissions is not None:
            self._permissions = permissions
        self.publish()

    def use_space(self, delta: int) -> None:
        """Count *delta* more bytes as allocated (fewer if negative)."""
        counts = self._backend is None or self._backend.descriptor.counts
        if self._space is None or delta == 0 or not counts:
            return
        capacity, allocation, available = (
            self._space.capacity,
            max(self._space.allocation + delta, 0),
            max(self._space.available - delta, 0),
        )
        self._space = Space(capacity, allocation, available)
        self.publish()

    def problem(self, kind: str, text: str | None) -> None:
        """Set the pool's problem of one kind, or clear it with None."""
        if self._problems.get(kind) == text:
            return
        if text is None:
            self._problems.pop(kind, None)
        else:
            self._problems[kind] = text
        self.publish()

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a volume's record."""
        self.index.put(record)
        self.touch(record.name)

    def drop(self, name: str) -> VolumeRecord | None:
        """Remove a volume's record and return it."""
        self.touch(name)
        self.made_with.pop(name, None)
        return self.index.remove(name)

    def touch(self, name: str) -> None:
        """Note that what a running scan says of *name* may be out of date."""
        if self.touched is not None:
            self.touched.add(name)

    def _load_backend(self) -> None:
        self._backend = None
        try:
            kind = self.services.registry.find(self._definition.type)
            self._backend = kind(self._definition, self.services.host)
        except StorageError as err:
            self._problems["backend"] = f"{err.detail}: {err.advice}" if err.advice else err.detail
        except Exception as err:  # foreign code: it must not take the other pools down
            self._problems["backend"] = f"the backend of '{self._definition.type}' failed: {err!r}"
        else:
            self._problems.pop("backend", None)


def _inaccessible(found: Snapshot, outage: Outage) -> Snapshot:
    found = _with_problems(found, (str(outage), *found.info.problems))
    info = replace(found.info, state=PoolState.INACCESSIBLE, outage=outage)
    return replace(found, info=info)


def _with_problems(found: Snapshot, problems: tuple[str, ...]) -> Snapshot:
    return replace(found, info=replace(found.info, problems=problems))
