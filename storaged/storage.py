"""The library: `open_storage` gives a `Storage`, which has pools, which have volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any
from uuid import UUID

from storaged.backend import Backend, Durability
from storaged.driver import Driver, open_driver
from storaged.ensure import Ensured, ensure_pool
from storaged.errors import InvalidArgument, NoSuchPool, PoolExists
from storaged.events import Event
from storaged.filters import PoolFilter
from storaged.job import Job, Progress
from storaged.model import PoolDef, PoolType
from storaged.paths import Paths
from storaged.poolhandle import Pool
from storaged.registry import Registry
from storaged.volumehandle import Volume
from storaged.worker import Limits


class Storage:
    """An open engine: the pools of one state directory.

    Use it as a context manager, or `close` it. It may be used from several threads.
    """

    def __init__(self, driver: Driver, uri: str) -> None:
        self.driver = driver
        self.uri = uri

    def __repr__(self) -> str:
        return f"<Storage {self.uri}>"

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and let other engines in. Pools stay active."""
        self.driver.close()

    @property
    def readonly(self) -> bool:
        """Whether nothing can be changed through this engine."""
        return self.driver.readonly

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Iterable[str] = (),
    ) -> list[Pool]:
        """Return the pools, sorted by name; None lets both kinds pass, no types let all pass."""
        wanted = PoolFilter(0)
        for choice, yes, no in (
            (active, PoolFilter.ACTIVE, PoolFilter.INACTIVE),
            (persistent, PoolFilter.PERSISTENT, PoolFilter.TRANSIENT),
            (autostart, PoolFilter.AUTOSTART, PoolFilter.NO_AUTOSTART),
        ):
            if choice is not None:
                wanted |= yes if choice else no
        kinds = frozenset(str(kind) for kind in types)
        found = [Pool(self.driver, ref) for ref in self.driver.pools(wanted)]
        if kinds:
            found = [pool for pool in found if self._has_type(pool, kinds)]
        return sorted(found, key=lambda pool: pool.name)

    def pool(self, name: str) -> Pool:
        """Return a pool by its name.

        :raise NoSuchPool: there is none; the advice names those there are.
        """
        return Pool(self.driver, self.driver.pool_lookup_by_name(name))

    def pool_by_uuid(self, uuid: UUID | str) -> Pool:
        """Return a pool by its uuid.

        :raise InvalidArgument: that is no uuid.
        """
        if isinstance(uuid, str):
            try:
                uuid = UUID(uuid)
            except ValueError as err:
                raise InvalidArgument(f"malformed uuid '{uuid}'") from err
        return Pool(self.driver, self.driver.pool_lookup_by_uuid(uuid))

    def pool_by_target(self, path: str | os.PathLike[str]) -> Pool:
        """Return the active pool with this target path."""
        return Pool(self.driver, self.driver.pool_lookup_by_target_path(os.fspath(path)))

    def volume_by_path(self, path: str | os.PathLike[str]) -> Volume:
        """Return a volume of an active pool by its path."""
        return Volume(self.driver, self.driver.volume_lookup_by_path(os.fspath(path)))

    def volume_by_key(self, key: str) -> Volume:
        """Return a volume of an active pool by its key."""
        return Volume(self.driver, self.driver.volume_lookup_by_key(key))

    def define_pool(self, definition: PoolDef | str, *, validate: bool = False) -> Pool:
        """Keep a pool's definition (or its XML); it is not started.

        :param validate: check the XML against the schema first.
        :raise OperationFailed: another pool has the name, the uuid or the source.
        """
        return Pool(self.driver, self.driver.pool_define(self._parsed(definition, validate)))

    def create_pool(
        self,
        definition: PoolDef | str,
        *,
        build: bool = False,
        overwrite: bool | None = None,
        validate: bool = False,
    ) -> Pool:
        """Start a pool that is forgotten when it stops."""
        ref, job = self.driver.pool_create(
            self._parsed(definition, validate), build=build, overwrite=overwrite
        )
        job.complete()
        return Pool(self.driver, ref)

    def ensure_pool(self, definition: PoolDef | str, *, autostart: bool = True) -> Ensured[Pool]:
        """Have a pool defined, built, started, and started at boot; never formats anything.

        A pool of this name that is defined differently is left so, and the differences are told.
        """
        done = ensure_pool(self.driver, self._parsed(definition), autostart=autostart)
        pool = Pool(self.driver, done.object)
        return Ensured(pool, done.changed, done.actions, done.differences)

    def ensure_dir_pool(
        self, name: str, path: str | os.PathLike[str], *, autostart: bool = True
    ) -> Pool:
        """Have a started pool over a directory, which is made if it is not there.

        :raise PoolExists: there is a pool of this name, but over something else.
        """
        definition = PoolDef(PoolType.DIR, name, target=os.path.abspath(path))  # noqa: PTH100
        with suppress(NoSuchPool):
            found = self.pool(name).definition()
            if (found.type, found.target) != (definition.type, definition.target):
                raise PoolExists(
                    f"pool '{name}' already exists with uuid {found.uuid}",
                    advice=f"It is of type '{found.type}' on '{found.target}': use another name.",
                )
        return self.ensure_pool(definition, autostart=autostart).object

    def find_sources(self, pool_type: str, spec: str | None = None) -> str:
        """Return the sources that a type of pool could be made of, as XML."""
        return self.driver.find_sources(pool_type, spec)

    def capabilities(self) -> str:
        """Return what each pool type can do here, as XML."""
        return self.driver.pool_capabilities()

    def jobs(self) -> list[Progress]:
        """Return the progress of the jobs under way in this engine, the oldest first."""
        return [job.progress() for job in self.driver.jobs()]

    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id.

        :raise InvalidArgument: there is none.
        """
        return self.driver.job(number)

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have *callback* called for each event; returns a function that ends it."""
        return self.driver.events.subscribe(callback)

    def problems(self) -> list[str]:
        """Return which files of the state directories could not be used, and why."""
        return list(self.driver.problems())

    def _has_type(self, pool: Pool, kinds: Container[str]) -> bool:
        try:
            return pool.definition().type in kinds
        except NoSuchPool:  # it has gone since it was listed
            return False

    def _parsed(self, definition: PoolDef | str, validate: bool = False) -> PoolDef:
        if isinstance(definition, PoolDef):
            return definition
        return self.driver.parse_definition(definition, validate=validate)


def open_storage(
    root: str | os.PathLike[str] | None = None,
    *,
    session: bool = False,
    autostart: bool = False,
    readonly: bool = False,
    lock_timeout: float = 30.0,
    durability: Durability | str = Durability.FULL,
    backends: dict[str, type[Backend]] | None = None,
    limits: Limits | None = None,
) -> Storage:
    """Open an engine in this process.

    :param root: put configuration, state and sockets below this directory.
    :param session: an ordinary user's engine, in that user's directories.
    :param autostart: start the pools that are to be started at boot, once a boot.
    :param readonly: change nothing and take no lock: works beside another engine.
    :param lock_timeout: how long to wait for another embedded engine, in seconds.
    :param durability: "full": what succeeded survives a loss of power; "none": the kernel has it.
    :param backends: further pool types by name.
    :param limits: bounds of the threads that touch storage.
    :raise ResourceBusy: another engine holds the state directory.
    """
    if root is not None:
        paths = Paths.below(root, session=session)
    elif session:
        paths = Paths.session(os.environ)
    else:
        paths = Paths.system()
    driver = open_driver(
        paths,
        readonly=readonly,
        autostart=autostart,
        lock_timeout=lock_timeout,
        durability=Durability(durability),
        registry=Registry(backends),
        limits=limits,
    )
    return Storage(driver, paths.uri)
