"""The driver: one engine over one state directory, with a method for each call of the API.

It is free of any protocol: the library, the command line and a daemon call the same methods. Calls
that only read return at once; calls that touch storage for long return a started `Job`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from storaged.autostart import Autostart
from storaged.backend import CloneOptions, Durability, Host
from storaged.driverlock import DriverLock, EngineKind, HeldLock
from storaged.errors import InvalidArgument, NoSuchPool
from storaged.events import Events
from storaged.filters import ALL, PoolFilter
from storaged.hotplug import Hotplug
from storaged.job import Job
from storaged.known import Known
from storaged.model import PoolInfo, PoolRef, VolumeRef
from storaged.paths import Paths, require_program
from storaged.poolcalls import PoolCalls
from storaged.poolstate import Services
from storaged.registry import Registry
from storaged.restore import Restore
from storaged.secrets.calls import SecretCalls
from storaged.secrets.source import KeptSecrets
from storaged.settings import PolicyStore
from storaged.state import StateStore
from storaged.table import PoolTable
from storaged.volumecalls import VolumeCalls
from storaged.watch import Watch
from storaged.worker import Limits

#: How long an opening waits for all storage that it must look at, in seconds.
OPEN_PATIENCE = 2.0
#: How long a close waits for jobs that it cancelled, in seconds.
CLOSE_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Overview:
    """A pool in figures.

    :param volumes: how many are known.
    :param stuck: how many operations wait for storage that does not answer.
    """

    info: PoolInfo
    volumes: int
    stuck: int


class Driver(PoolCalls, VolumeCalls, SecretCalls):
    """An open engine. `close` it, or use it as a context manager.

    :param held: the lock on the state directory; None for an engine that only reads.
    """

    def __init__(self, services: Services, held: HeldLock | None, secrets: KeptSecrets) -> None:
        table = PoolTable()
        PoolCalls.__init__(self, services, table)
        VolumeCalls.__init__(self, services, table)
        SecretCalls.__init__(self, secrets)
        self._restore = Restore(services, table, self._definitions, patience=OPEN_PATIENCE)
        self._known = Known(table)
        self._autostart = Autostart(services)
        self._watch: Watch | None = None
        self._held = held
        self._problems: tuple[str, ...] = ()
        self.closed = False

    @property
    def readonly(self) -> bool:
        """Whether the engine was opened for reading only."""
        return self._services.readonly

    @property
    def is_local(self) -> bool:
        """Whether the paths of the volumes are paths of this host."""
        return True

    @property
    def is_session(self) -> bool:
        """Whether it is an ordinary user's engine."""
        return self._services.host.session

    @property
    def known(self) -> Known:
        """What can be answered from memory."""
        return self._known

    @property
    def events(self) -> Events:
        """Where to subscribe to events."""
        return self._services.events

    def problems(self) -> tuple[str, ...]:
        """Return which files of the state directories could not be used, and why."""
        return *self._problems, *self._kept.problems()

    def jobs(self) -> list[Job[Any]]:
        """Return the jobs under way on pools and volumes, the oldest first."""
        found = {job.id: job for pool in self._table.all() for job in pool.under_way()}
        return [found[number] for number in sorted(found)]

    def is_needed(self) -> bool:
        """Tell whether something would be lost or left undone if the engine was closed now.

        Those are jobs, secrets that are in memory only, pools that are still to be started, and
        those whose storage does not answer.
        """
        return bool(
            self.jobs()
            or self._autostart.is_waiting()
            or self._kept.has_ephemeral()
            or any(pool.snapshot.info.outage for pool in self._table.all())
        )

    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id.

        :raise InvalidArgument: there is none.
        """
        for job in self.jobs():
            if job.id == number:
                return job
        raise InvalidArgument(f"no job with id {number} is under way")

    def on_job(self, subscriber: Callable[[Job[Any]], None]) -> Callable[[], None]:
        """Have *subscriber* called with each job that begins to work; returns what ends that."""
        return self._services.feed.subscribe(subscriber)

    def overviews(self) -> list[Overview]:
        """Return a few figures of each pool, in no order, without a look at any storage."""
        return [
            Overview(pool.snapshot.info, len(pool.index), len(pool.workers.stuck()))
            for pool in self._table.all()
        ]

    def require_active(self, ref: PoolRef) -> None:
        """Raise libvirt's error unless a pool is active."""
        self._table.by_ref(ref).pool.require_active()

    def require_inactive(self, ref: PoolRef, kind: str) -> None:
        """Raise what *kind* ("build", "delete") would raise for the state of the pool."""
        self._table.by_ref(ref).pool.require_inactive(kind)

    def pool_infos(self, wanted: PoolFilter = ALL) -> list[PoolInfo]:
        """Return state and figures of the pools that pass a filter, in no order."""
        found = []
        for ref in self.pools(wanted):
            with suppress(NoSuchPool):  # it has gone since it was listed
                found.append(self.pool_info(ref))
        return found

    # Definitions that come as documents

    def pool_define_xml(self, text: str, *, validate: bool = False) -> PoolRef:
        """Keep the definition that a document holds."""
        return self.pool_define(self.parse_definition(text, validate=validate))

    def pool_create_xml(
        self,
        text: str,
        *,
        build: bool = False,
        overwrite: bool | None = None,
        validate: bool = False,
    ) -> Job[PoolRef]:
        """Start the pool that a document describes, and do not keep it."""
        definition = self.parse_definition(text, validate=validate)
        ref, job = self.pool_create(definition, build=build, overwrite=overwrite)
        return job.giving(lambda _: ref)

    def volume_create_xml(
        self,
        pool: PoolRef,
        text: str,
        *,
        preallocate_metadata: bool = False,
        validate: bool = False,
    ) -> Job[VolumeRef]:
        """Make the volume that a document describes."""
        request = self.parse_volume(pool, text, validate=validate)
        return self.volume_create(pool, request, preallocate_metadata=preallocate_metadata)

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
        """Make the volume that a document describes from another one."""
        request = self.parse_volume(pool, text, clone=True)
        return self.volume_clone(
            pool,
            request,
            source,
            reflink=reflink,
            preallocate_metadata=preallocate_metadata,
            options=options,
        )

    # Its life

    def autostart(self, *, again: bool = False) -> None:
        """Start the pools that are to be started at boot, once a boot.

        What fails is a problem of the pool, and is tried again (`storaged.autostart`), also by the
        next engine. All of them together are waited for no longer than `OPEN_PATIENCE`.

        :param again: all that are inactive, also if it was done in this boot.
        """
        store, pools = self._services.store, self._table.all()
        if again or store.needs_autostart():
            self._autostart.note(pools)
            store.mark_autostarted()
        begun = self._autostart.begin(pools)
        deadline = time.monotonic() + OPEN_PATIENCE
        for job in begun:
            job.wait(max(deadline - time.monotonic(), 0))

    def watch(self) -> None:
        """Watch storage that can go away, until the engine is closed.

        See `storaged.watch` for servers, `storaged.hotplug` for devices.
        """
        if self._watch is None:
            self._watch = Watch(self._table, self._services)
            self._watch.begin()
            Hotplug(self._table, self._services).begin()

    def close(self) -> None:
        """Cancel what is under way, wait for it within a bound, and let other engines in.

        Pools stay active. Calling it again does nothing.
        """
        if self.closed:
            return
        self.closed = True
        self._services.closed.set()
        self._autostart.end()
        if self._watch is not None:
            self._watch.end()
        scans = [job for volumes in self._table.volumes() for job in volumes.scans.under_way()]
        under_way: list[Job[Any]] = [*self.jobs(), *scans]
        for job in under_way:
            job.cancel()
        deadline = time.monotonic() + CLOSE_PATIENCE
        for job in under_way:
            job.wait(max(deadline - time.monotonic(), 0))
        # What did not end in time must not write into what is another engine's from now on.
        self._services.store.readonly = True
        for volumes in self._table.volumes():
            volumes.pool.release()
        self._kept.close()
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Opening

    def begin(self, *, watch: bool, autostart: bool) -> None:
        """Read the state directories, and go to work as `watch` and `autostart` say.

        Storage is looked at only where nothing else can tell whether a pool is active: once a boot,
        and then within `OPEN_PATIENCE`.
        """
        self._problems = self._restore.load()
        self._autostart.recall(self._table.all())
        if watch:
            self.watch()
        if autostart:
            self.autostart()

    def reload(self) -> None:
        """Read the state directories again, and start what is to be started at boot.

        Pools that are new appear, changed definitions hold, and what was removed stays.
        """
        self._require_changes()
        self._problems = self._restore.reload()
        self.autostart(again=True)


def open_driver(
    paths: Paths,
    *,
    readonly: bool = False,
    autostart: bool = False,
    watch: bool = False,
    lock_timeout: float = 30.0,
    durability: Durability = Durability.FULL,
    registry: Registry | None = None,
    limits: Limits | None = None,
    kind: EngineKind = EngineKind.EMBEDDED,
    socket: str | None = None,
    rbd_python: str | None = None,
) -> Driver:
    """Open the engine over *paths*.

    :param readonly: change nothing, and take no lock: works beside another engine.
    :param watch: notice when storage goes away and when it comes back.
    :param lock_timeout: how long to wait for another embedded engine, in seconds.
    :param rbd_python: see `Host.rbd_python`; `InvalidArgument` is raised if it is no program.
    :raise ResourceBusy: a daemon holds the state directory, or an embedded engine did for too long.
    :raise SystemFailure: the state directories cannot be made or read.
    """
    if rbd_python is not None:
        require_program("rbd_python", rbd_python)
    held = None
    if not readonly:
        held = DriverLock(paths).acquire(timeout=lock_timeout, kind=kind, socket=socket)
    try:
        durable = durability is Durability.FULL
        secrets = KeptSecrets(paths, readonly=readonly, durable=durable, kind=kind, socket=socket)
        # who only reads makes no files, and so needs no name for them
        name = "" if readonly else _host_id(paths)
        host = Host(name, durability, paths.is_session, secrets=secrets, rbd_python=rbd_python)
        services = Services(
            host=host,
            store=StateStore(paths, readonly=readonly),
            events=Events(),
            registry=registry or Registry(),
            policies=PolicyStore(paths, readonly=readonly),
            limits=limits or Limits(),
            readonly=readonly,
        )
        driver = Driver(services, held, secrets)
        driver.begin(watch=watch, autostart=autostart and not readonly)
    except BaseException:
        if held is not None:
            held.release()
        raise
    return driver


def _host_id(paths: Paths) -> str:
    """Return 12 hexadecimal digits that name this host and this state directory.

    They tell apart the files of all that work in one directory, over NFS or below another root.
    """
    import hashlib  # slow, and not needed by those who only read

    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    name = f"{machine or os.uname().nodename}\0{paths.state}"
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
