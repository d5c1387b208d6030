"""The connection to a cluster, to one pool of it, and to one namespace of that."""

from __future__ import annotations

import errno
import importlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from storaged.backends.ceph.monitors import Host, addresses

#: The object that lists the images of a pool, or of a namespace.
DIRECTORY = "rbd_directory"
#: How long those who watch a pool may take to hear of a change, in milliseconds.
_HEARING = 3000
#: How long the end of a watch may take, in seconds.
_LEAVING = 1.0
#: A client that has died is shut out for so long, in seconds: longer than anything of it can last.
_SHUT_OUT = 120
#: The option that says how long a connection may take to come about, and what it is otherwise.
_PATIENCE, _DEFAULT_PATIENCE = "client_mount_timeout", 10.0

#: What is better otherwise than by default: two threads for all that librados and librbd call back
#: are soon both taken where operations wait for each other, and half a minute is long for the owner
#: of a lock to be waited for who has just ended.
_TUNED = (("librados_thread_count", "8"), ("rbd_request_timed_out_seconds", "10"))

Hear = Callable[[str, Any], None]


class NoBindings(Exception):
    """The interpreter has no rados or no rbd."""


class BadOption(Exception):
    """The cluster's client knows no such option, or it cannot have such a value."""


class Refused(Exception):
    """The monitors answer, and do not take the user and his key."""


class NotConnected(Exception):
    """The monitors answer, and the connection does not come about."""


class NoSuchPool(Exception):
    """The cluster has no pool of that name."""


class NoSuchNamespace(Exception):
    """The pool has no namespace of that name."""


def bindings() -> tuple[Any, Any]:
    """Return the modules rados and rbd.

    :raise NoBindings: they are not there.
    """
    try:
        return importlib.import_module("rados"), importlib.import_module("rbd")
    except ImportError as err:
        raise NoBindings(str(err)) from err


class Connection:
    """One client of a cluster.

    :param hosts: the monitors.
    :param key: as cephx has it, in base64; None: without authentication.
    :param options: by which the client's own defaults are replaced, in order.
    :param namespace: "" is the pool's own.
    :param hear: told of what happens to the pool.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        user: str | None,
        key: str | None,
        options: Sequence[tuple[str, str]],
        pool: str,
        namespace: str,
        hear: Hear,
    ) -> None:
        self.rados, self.rbd = bindings()
        self.pool, self.namespace = pool, namespace
        self.cluster = self._connect(hosts, user, key, options)
        self.own = self.cluster.get_instance_id()
        #: as those see it who ask who has an image open
        self.address: str | None = None
        with suppress(AttributeError):  # older bindings
            self.address = str(self.cluster.get_addrs())
        self._hear = hear
        self._lock = threading.Lock()
        self._lost = threading.Event()
        self._watch: Any = None
        #: nobody tells of changes: this user may not watch
        self._deaf = False
        try:
            self.ioctx = self._open()
            self._quick = self._open()
        except BaseException:
            self.cluster.shutdown()
            raise
        self.images = self.rbd.RBD()

    def _connect(
        self,
        hosts: Sequence[Host],
        user: str | None,
        key: str | None,
        options: Sequence[tuple[str, str]],
    ) -> Any:
        cluster = self.rados.Rados(rados_id=user)
        for name, value in _TUNED:
            with suppress(self.rados.Error):  # not all versions know all of them
                cluster.conf_set(name, value)
        given: dict[str, str] = {} if key is None else {"key": key}
        given["auth_supported"] = "none" if key is None else "cephx"
        for name, value in (*given.items(), *options):
            try:
                cluster.conf_set(name, value)
            except self.rados.Error as err:
                raise BadOption(name) from err
        if "mon_host" not in dict(options):
            patience = float(cluster.conf_get(_PATIENCE)) or _DEFAULT_PATIENCE
            began = time.monotonic()
            cluster.conf_set("mon_host", addresses(hosts, patience))
            left = patience - (time.monotonic() - began)
            cluster.conf_set(_PATIENCE, str(max(math.ceil(left), 1)))
        try:
            cluster.connect()
        except self.rados.Error as err:
            number = abs(err.errno or 0)
            refused = number in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)
            text = str(cluster.conf_get("mon_host"))
            raise with_number(Refused if refused else NotConnected, number, text) from err
        return cluster

    def _open(self) -> Any:
        try:
            ioctx = self.cluster.open_ioctx(self.pool)
        except self.rados.ObjectNotFound as err:
            raise NoSuchPool(self.pool) from err
        ioctx.set_namespace(self.namespace)
        # else what a full cluster cannot take would wait for space, and removals with it
        ioctx.set_osdmap_full_try()
        return ioctx

    def require_namespace(self) -> None:
        """Raise unless the namespace is there.

        :raise NoSuchNamespace: it is not.
        """
        if not self.namespace:
            return
        whole = self.cluster.open_ioctx(self.pool)
        try:
            if not self.images.namespace_exists(whole, self.namespace):
                raise NoSuchNamespace(self.namespace)
        finally:
            whole.close()

    def require_pool(self) -> None:
        """Raise unless the pool that was opened is there still, under its name.

        :raise NoSuchPool: it was deleted, and maybe another one made in its place.
        """
        self.cluster.wait_for_latest_osdmap()
        try:
            found = self.cluster.pool_lookup(self.pool)
        except self.rados.ObjectNotFound as err:
            raise NoSuchPool(self.pool) from err
        if found != self.ioctx.get_pool_id():
            raise NoSuchPool(self.pool)

    def shut_out(self, address: str) -> None:
        """End all that a client has, which has died: else that takes until its watches end.

        Users who may not do that have to wait, and so have older bindings.
        """
        with suppress(self.rados.Error, AttributeError):
            self.cluster.blocklist_add(address, _SHUT_OUT)

    def require_space(self) -> None:
        """Raise if the pool takes nothing new: librbd may say something else then.

        :raise rados.NoSpace: it does not.
        """
        name = f"storaged.{self.own}.{threading.get_ident()}"
        with self.rados.WriteOpCtx() as change:
            change.new(0)
            self.ioctx.operate_write_op(change, name)
        self.ioctx.remove_object(name)

    def identity(self) -> list[Any]:
        """Return what tells this pool from all others: cluster, number of the pool, namespace."""
        return [self.cluster.get_fsid(), self.ioctx.get_pool_id(), self.namespace]

    def space(self) -> list[int]:
        """Return bytes that the cluster has, bytes of the pool's objects, bytes that are free."""
        cluster = self.cluster.get_cluster_stats()
        pool = self.ioctx.get_stats()
        return [cluster["kb"] * 1024, pool["num_bytes"], cluster["kb_avail"] * 1024]

    def version(self) -> int:
        """Return a number that changes whenever an image is made, renamed or removed.

        It asks the storage itself: this is also how one sees whether it answers.
        """
        with self._lock:  # the number is that of the last operation of this ioctx
            try:
                self._quick.stat(DIRECTORY)
            except self.rados.ObjectNotFound:
                self.require_pool()
                return 0
            return int(self._quick.get_last_version())

    def read_versioned(self, name: str, length: int) -> tuple[bytes, int]:
        """Return what is in an object, so many bytes at most, and its version then."""
        with self._lock:
            data: bytes = self._quick.read(name, length)
            return data, int(self._quick.get_last_version())

    def listen(self) -> None:
        """See to it that changes are heard of, if those who make them tell; doing it twice is well.

        Some users may only read, and so not listen.
        """
        with self._lock:
            if self._watch is not None and self._lost.is_set():
                lost, self._watch = self._watch, None
                with suppress(self.rados.Error):
                    lost.close()
            if self._watch is not None or self._deaf:
                return
            self._lost.clear()
            try:
                self._watch = self._listen()
            except (self.rados.PermissionError, self.rados.PermissionDeniedError):
                self._deaf = True

    def _listen(self) -> Any:
        for _ in range(2):
            try:
                return self._quick.watch(DIRECTORY, self._told, self._gone)
            except self.rados.ObjectNotFound:  # there has never been an image
                self.require_pool()
                with self.rados.WriteOpCtx() as change:
                    change.new(0)
                    self._quick.operate_write_op(change, DIRECTORY)
        raise NoSuchPool(self.pool)

    def _told(self, _notice: int, teller: int, _watch: int, data: bytes) -> None:
        """Take what another client tells. Called by librados, which must not wait."""
        if teller != self.own:
            self._hear("changed", data.decode(errors="replace") or None)

    def _gone(self, _watch: int, _error: int) -> None:
        """Take note that nothing is heard any more. Called by librados, which must not wait."""
        self._lost.set()
        self._hear("changed", None)

    def tell(self, name: str) -> None:
        """Tell all others who listen which image has changed; nobody is waited for."""
        with suppress(self.rados.Error):  # else they see it by themselves, a moment later
            self.ioctx.aio_notify(DIRECTORY, lambda *_: None, name, _HEARING)

    def is_watched(self, name: str) -> bool:
        """Tell whether another client watches an object, as those do who have an image open.

        They are told that the header of the image has changed, which is what nothing at all means
        to librbd and to the kernel, and they say that they have heard it.
        """
        others: list[bool] = []
        over = threading.Event()

        def heard(_completion: Any, status: int, by: Any, silent: Any) -> None:
            gone = status == -errno.ENOENT
            others.append(not gone and (status < 0 or any(who[0] != self.own for who in by)))
            over.set()

        self.ioctx.aio_notify(name, heard, "", _HEARING)
        return not over.wait(2 * _HEARING / 1000) or others[0]

    def close(self) -> None:
        """Listen no more, else those who tell would wait for us; a moment is enough for that."""
        if self._watch is not None:
            ending = threading.Thread(target=self._unlisten, daemon=True)
            ending.start()
            ending.join(_LEAVING)

    def _unlisten(self) -> None:
        with suppress(self.rados.Error):
            self._watch.close()


def with_number(kind: type[Exception], number: int, text: str) -> Exception:
    """Return an exception that has an error number, as the system's own have one."""
    error = kind(text)
    error.errno = number  # type: ignore[attr-defined]
    return error
