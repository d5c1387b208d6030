"""The library: `open_storage` gives a `Storage`, which has pools, which have volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from storaged.errors import InvalidArgument, NoSuchPool, PoolExists
from storaged.facts import PoolInfo
from storaged.filters import PoolFilter
from storaged.job import Job, Progress
from storaged.poolhandle import Pool
from storaged.traits import PoolType
from storaged.volumehandle import Volume

if TYPE_CHECKING:
    from storaged.backend import Backend, Durability
    from storaged.engine import Engine
    from storaged.ensure import Ensured
    from storaged.events import Event
    from storaged.model import PoolDef
    from storaged.paths import Paths
    from storaged.secrethandle import Secrets
    from storaged.worker import Limits


class Storage:
    """An open engine: the pools of one state directory, in this process or behind a connection.

    Use it as a context manager, or `close` it. It may be used from several threads.
    """

    def __init__(self, engine: Engine, uri: str) -> None:
        self.engine = engine
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
        """Cancel what is under way through this object, and let go. Pools stay active."""
        self.engine.close()

    @property
    def readonly(self) -> bool:
        """Whether nothing can be changed through this engine."""
        return self.engine.readonly

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Iterable[str] = (),
    ) -> list[Pool]:
        """Return the pools, sorted by name; None lets both kinds pass, no types let all pass."""
        kinds = frozenset(str(kind) for kind in types)
        wanted = _wanted(active, persistent, autostart, kinds)
        found = [Pool(self.engine, ref) for ref in self.engine.pools(wanted)]
        if not kinds <= set(PoolType):  # types of plug-ins have no bits
            found = [pool for pool in found if self._has_type(pool, kinds)]
        return sorted(found, key=lambda pool: pool.name)

    def pool_infos(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Iterable[str] = (),
    ) -> list[PoolInfo]:
        """Return state and figures of the pools that `pools` would return, in one go."""
        kinds = frozenset(str(kind) for kind in types)
        found = self.engine.pool_infos(_wanted(active, persistent, autostart, kinds))
        if kinds:
            found = [info for info in found if info.type in kinds]
        return sorted(found, key=lambda info: info.ref.name)

    def pool(self, name: str) -> Pool:
        """Return a pool by its name.

        :raise NoSuchPool: there is none; the advice names those there are.
        """
        return Pool(self.engine, self.engine.pool_lookup_by_name(name))

    def pool_by_uuid(self, uuid: UUID | str) -> Pool:
        """Return a pool by its uuid.

        :raise InvalidArgument: that is no uuid.
        """
        if isinstance(uuid, str):
            try:
                uuid = UUID(uuid)
            except ValueError as err:
                raise InvalidArgument(f"malformed uuid '{uuid}'") from err
        return Pool(self.engine, self.engine.pool_lookup_by_uuid(uuid))

    def pool_by_target(self, path: str | os.PathLike[str]) -> Pool:
        """Return the active pool with this target path."""
        return Pool(self.engine, self.engine.pool_lookup_by_target_path(os.fspath(path)))

    def volume_by_path(self, path: str | os.PathLike[str]) -> Volume:
        """Return a volume of an active pool by its path."""
        return Volume(self.engine, self.engine.volume_lookup_by_path(os.fspath(path)))

    def volume_by_key(self, key: str) -> Volume:
        """Return a volume of an active pool by its key."""
        return Volume(self.engine, self.engine.volume_lookup_by_key(key))

    def define_pool(self, definition: PoolDef | str, *, validate: bool = False) -> Pool:
        """Keep a pool's definition (or its XML); it is not started.

        :param validate: check the XML against the schema first.
        :raise OperationFailed: another pool has the name, the uuid or the source.
        """
        if not isinstance(definition, str):
            return Pool(self.engine, self.engine.pool_define(definition))
        return Pool(self.engine, self.engine.pool_define_xml(definition, validate=validate))

    def create_pool(
        self,
        definition: PoolDef | str,
        *,
        build: bool = False,
        overwrite: bool | None = None,
        validate: bool = False,
    ) -> Pool:
        """Start a pool that is forgotten when it stops."""
        if not isinstance(definition, str):
            ref, job = self.engine.pool_create(definition, build=build, overwrite=overwrite)
            job.complete()
        else:
            ref = self.engine.pool_create_xml(
                definition, build=build, overwrite=overwrite, validate=validate
            ).complete()
        return Pool(self.engine, ref)

    def ensure_pool(self, definition: PoolDef | str, *, autostart: bool = True) -> Ensured[Pool]:
        """Have a pool defined, built, started, and started at boot; never formats anything.

        A pool of this name that is defined differently is left so, and the differences are told.
        """
        from storaged.ensure import Ensured, ensure_pool

        if isinstance(definition, str):
            definition = self.engine.parse_definition(definition)
        done = ensure_pool(self.engine, definition, autostart=autostart)
        pool = Pool(self.engine, done.object)
        return Ensured(pool, done.changed, done.actions, done.differences)

    def ensure_dir_pool(
        self, name: str, path: str | os.PathLike[str], *, autostart: bool = True
    ) -> Pool:
        """Have a started pool over a directory, which is made if it is not there.

        :raise PoolExists: there is a pool of this name, but over something else.
        """
        from storaged.model import PoolDef

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
        return self.engine.find_sources(pool_type, spec)

    def capabilities(self) -> str:
        """Return what each pool type can do here, as XML."""
        return self.engine.pool_capabilities()

    @property
    def secrets(self) -> Secrets:
        """The secrets that pools and volumes name: passwords and passphrases."""
        from storaged.secrethandle import Secrets

        return Secrets(self.engine)

    def jobs(self) -> list[Progress]:
        """Return the progress of the jobs under way in this engine, the oldest first."""
        return [job.progress() for job in self.engine.jobs()]

    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id.

        :raise InvalidArgument: there is none.
        """
        return self.engine.job(number)

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have *callback* called for each event; returns a function that ends it."""
        return self.engine.events.subscribe(callback)

    def problems(self) -> list[str]:
        """Return which files of the state directories could not be used, and why."""
        return list(self.engine.problems())

    def _has_type(self, pool: Pool, kinds: frozenset[str]) -> bool:
        try:
            return self.engine.pool_state(pool.ref).type in kinds
        except NoSuchPool:  # it has gone since it was listed
            return False


def _wanted(
    active: bool | None, persistent: bool | None, autostart: bool | None, kinds: frozenset[str]
) -> PoolFilter:
    wanted = PoolFilter(0)
    for choice, yes, no in (
        (active, PoolFilter.ACTIVE, PoolFilter.INACTIVE),
        (persistent, PoolFilter.PERSISTENT, PoolFilter.TRANSIENT),
        (autostart, PoolFilter.AUTOSTART, PoolFilter.NO_AUTOSTART),
    ):
        if choice is not None:
            wanted |= yes if choice else no
    if kinds <= set(PoolType):
        for kind in kinds:
            wanted |= PoolFilter[PoolType(kind).name]
    return wanted


def open_storage(
    root: str | os.PathLike[str] | None = None,
    *,
    session: bool = False,
    autostart: bool = False,
    watch: bool = False,
    readonly: bool = False,
    lock_timeout: float = 30.0,
    durability: Durability | str = "full",
    backends: dict[str, type[Backend]] | None = None,
    limits: Limits | None = None,
    rbd_python: str | os.PathLike[str] | None = None,
) -> Storage:
    """Open an engine in this process.

    :param root: put configuration, state and sockets below this directory.
    :param session: an ordinary user's engine, in that user's directories.
    :param autostart: start the pools that are to be started at boot, once a boot; what fails is
        tried again while the engine is open.
    :param watch: notice within 10 s when the server of a pool dies, and when it is back; and at
        once when other hosts change volumes, where the storage tells of it.
    :param readonly: change nothing and take no lock: works beside another engine.
    :param lock_timeout: how long to wait for another embedded engine, in seconds.
    :param durability: "full": what succeeded survives a loss of power; "none": the kernel has it.
    :param backends: further pool types by name.
    :param limits: bounds of the threads that touch storage, and how long it is trusted.
    :param rbd_python: the Python interpreter that has Ceph's bindings, an absolute path; None: this
        one if it has them, else the system's.
    :raise InvalidArgument: *rbd_python* is no program.
    :raise ResourceBusy: another engine holds the state directory.
    """
    from storaged.backend import Durability
    from storaged.driver import open_driver
    from storaged.registry import Registry

    paths = _paths(root, session=session)
    driver = open_driver(
        paths,
        readonly=readonly,
        autostart=autostart,
        watch=watch,
        lock_timeout=lock_timeout,
        durability=Durability(durability),
        registry=Registry(backends),
        limits=limits,
        rbd_python=None if rbd_python is None else os.fspath(rbd_python),
    )
    return Storage(driver, paths.uri)


def _paths(root: str | os.PathLike[str] | None, *, session: bool) -> Paths:
    from storaged.paths import Paths

    if root is not None:
        return Paths.below(root, session=session)
    return Paths.session(os.environ) if session else Paths.system()


def connect(uri: str | None = None, *, readonly: bool = False) -> Storage:
    """Connect to an engine that runs elsewhere: storaged's daemon, or one of libvirt's.

    Beside storaged's daemon everything works as with an engine in this process. Libvirt's daemons
    know no policies and no jobs: what they cannot do raises `Unsupported`.

    :param uri: such as ``storage:///system``, ``qemu+ssh://root@host/system`` or
        ``storage:///embed?root=DIR``; None is resolved as libvirt does.
    :param readonly: change nothing; more users may do that.
    :raise StorageError: nobody answers there, or does not let us in.
    """
    from storaged.client.engine import connect_engine

    engine = connect_engine(uri, readonly=readonly)
    return Storage(engine, engine.uri)
