"""What a pool's backend asks the process that has librbd, and what its answers mean.

The connection is made when it is first needed, kept, and made anew after trouble; nobody waits for
it longer than the time-outs of the pool allow.
"""

from __future__ import annotations

import base64
import errno
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from storaged.backend import Host, SecretUsage
from storaged.backends.ceph.monitors import shown
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    MissingBackend,
    NoSpace,
    NoSuchVolume,
    OperationInvalid,
    StorageError,
    SystemFailure,
    Timeout,
    Unsupported,
    VolumeBusy,
    VolumeExists,
)
from storaged.isolate import ChildDied, Isolated, Reply, ServiceError, Session
from storaged.job import Job
from storaged.model import PoolDef

_SERVICE: Final = "storaged.backends.ceph.service"
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
#: Our own time-outs, in seconds; librados has none, or minutes. A pool's options replace them.
TIMEOUTS: Final = {
    "client_mount_timeout": 10,
    "rados_mon_op_timeout": 10,
    "rados_osd_op_timeout": 30,
}
#: How much longer than the longest of them one answer may take, in seconds.
_MARGIN: Final = 5.0
#: No time-out is longer, in seconds.
_LONGEST: Final = 86400
_CEPH_PACKAGES: Final = "apt-get install python3-rados python3-rbd"
#: A host's name with a port; an IPv6 address needs brackets then.
_WITH_PORT: Final = re.compile(r"(\[[^]]*\]|[^:]*):(\d{1,5})")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Link:
    """The connection of one pool.

    :param changed: called with the name of the image that another client says it has changed, or
        with None if it may be any; must not wait.
    """

    def __init__(
        self, definition: PoolDef, host: Host, changed: Callable[[str | None], None]
    ) -> None:
        self._definition = definition
        self._host = host
        source = definition.source
        # a namespace of a Ceph pool is written as Ceph's own tools write it
        self.pool, _, self.namespace = (source.name or "").partition("/")
        self._monitors = [_monitor(host.name, host.port) for host in source.hosts]
        self.hosts = ",".join(shown(name, port) for name, port in self._monitors)
        self._options = {
            **{name: str(seconds) for name, seconds in TIMEOUTS.items()},
            "rbd_default_format": "2",
            **dict(definition.config_options),
        }
        #: the process whose connection is of no use any more
        self._lost: Session | None = None
        #: the address of the newest process, unless that was let go of in peace
        self._address: str | None = None
        #: what tells the pool from all others, once it has been connected to
        self.identity: list[Any] | None = None
        self._child = Isolated(
            host.rbd_python or _python(),
            _SERVICE,
            greet=self._greet,
            hear=lambda _name, fact: changed(fact),
        )

    @property
    def timeout(self) -> float:
        """How long an answer may take, in seconds."""
        return max(self._seconds(name) for name in TIMEOUTS) + _MARGIN

    @property
    def pid(self) -> int | None:
        """The process that has librbd, None while there is none."""
        return self._child.pid

    def ask(
        self,
        verb: str,
        doing: str,
        *,
        volume: str | None = None,
        job: Job[Any] | None = None,
        again: bool = False,
        **words: Any,
    ) -> Any:
        """Ask for something and return the answer.

        :param doing: what is tried, in libvirt's words.
        :param volume: the name of the one it is about.
        :param again: ask once more if the process dies of it, or the connection is of no use any
            more: it only looks at things.
        :raise StorageError: what went wrong.
        """
        if job is not None:
            job.checkpoint()
        with self.translated(doing, volume):
            session = self._child.session()
            try:
                return session.begin(verb, words).take(self.timeout, job)
            except (ServiceError, ChildDied) as err:
                if isinstance(err, ServiceError):
                    if not _is_lost(err):
                        raise
                    self._lose(session)
                if not again or (session.ended and session is not self._lost):
                    raise
            return self._child.session().begin(verb, words).take(self.timeout, job)

    def begin(self, verb: str, doing: str, **words: Any) -> Reply:
        """Ask for something whose answer is taken later, within `translated`."""
        with self.translated(doing):
            return self._child.begin(verb, **words)

    @contextmanager
    def translated(self, doing: str, volume: str | None = None) -> Iterator[None]:
        """Translate what the other process says into errors of ours: the one place for it.

        :param doing: what is tried, in libvirt's words.
        :param volume: the name of the one it is about.
        """
        try:
            yield
        except ServiceError as err:
            raise self._meaning(err, doing, volume) from err
        except Timeout as err:
            raise self._silent(doing) from err

    def session(self) -> Session:
        """Return the process of this moment, connected: what is opened in it ends with it.

        :raise StorageError: the connection does not come about.
        """
        with self.translated("failed to open the RBD image"):
            return self._child.session()

    def close(self) -> None:
        """End the connection; a later question makes another one."""
        if self.pid is not None:  # it may still have something to bring to its end
            self._address = None
        self._child.close()

    def kill(self) -> None:
        """End the connection at once, whatever waits for it."""
        self._child.kill()
        self._child.close()

    def _lose(self, session: Session) -> None:
        """Give up a connection: a new one finds what has taken the pool's place."""
        self._lost = session
        session.kill("has lost its connection to the Ceph pool")

    def _greet(self, session: Session) -> None:
        """Connect a new process.

        :raise StorageError: what is wrong: monitors, user and key, pool or namespace.
        """
        definition = self._definition
        auth = definition.source.auth
        user = key = None
        if auth is not None:
            if auth.type != "ceph":
                raise ConfigUnsupported(f"auth type '{auth.type}' is not supported by rbd pools")
            user = auth.username
            value = self._host.secrets.value(SecretUsage.CEPH, auth.secret)
            key = base64.b64encode(value).decode()
        words = {
            "hosts": self._monitors,
            "user": user,
            "key": key,
            "options": list(self._options.items()),
            "pool": self.pool,
            "namespace": self.namespace,
            "dead": self._address,
        }
        connecting = f"failed to connect to the RADOS monitor on: {self.hosts}"
        try:
            self.identity, self._address = session.begin("connect", words).take(self.timeout)
        except ServiceError as err:
            raise self._meaning(err, connecting, None) from err
        except Timeout as err:
            raise self._silent(connecting) from err
        except ChildDied as err:
            raise ChildDied(f"cannot connect to Ceph: {err.detail}") from err
        if words["dead"] is not None:
            session.begin("sweep", {})  # what it was about to remove

    def _seconds(self, name: str) -> float:
        """Return one of the time-outs; we wait for so long also where Ceph has no limit (0)."""
        given = self._options[name]
        seconds = int(given) if given.isdecimal() else 0
        return min(seconds, _LONGEST) or TIMEOUTS[name]

    def _meaning(self, err: ServiceError, doing: str, volume: str | None) -> StorageError:
        found = self._of_connection(err) or _of_volume(err, volume)
        if found is not None:
            return found
        if err.errno == errno.ETIMEDOUT:
            return self._silent(doing)
        if err.errno in _FULL:
            return NoSpace(
                "Not enough space left in storage pool",
                advice="The Ceph cluster is full, or the pool has come to its quota: ceph df",
            )
        if err.kind in ("PermissionError", "PermissionDeniedError"):
            return SystemFailure(
                doing,
                errno.EACCES,
                advice=f"The user may not do that. To see what he may: ceph auth get {self._user}",
            )
        if err.errno == errno.ESHUTDOWN:
            return SystemFailure(
                doing,
                errno.ESHUTDOWN,
                advice="The cluster had shut us out (ceph osd blocklist ls); a new connection is"
                " made, so that it can be tried again.",
            )
        if err.errno:
            return SystemFailure(doing, err.errno)
        return InternalError(f"{doing}: {err.kind}: {err}")

    @property
    def _user(self) -> str:
        auth = self._definition.source.auth
        return "client.admin" if auth is None else f"client.{auth.username}"

    def _refusal(self, number: int) -> str:
        """Return what can be done where monitors answer, and do not let us in."""
        auth = self._definition.source.auth
        if auth is None:
            return "The monitors answer, and let nobody in without a key: the pool needs an <auth>."
        if number == errno.EINVAL:
            named = auth.secret.uuid or f"ceph/{auth.secret.usage}"
            return (
                f"The value of the secret is no key of Ceph. Set it: ceph auth print-key"
                f" {self._user} | storagectl secret set-value {named} --base64 --file -"
            )
        if number == errno.EOPNOTSUPP:
            return "The monitors answer, and know no cephx: the pool must have no <auth>."
        return (
            f"The monitors answer, and refuse {self._user} with the key of the secret, or know no"
            f" cephx. Compare it with: ceph auth get {self._user}"
        )

    def _of_connection(self, err: ServiceError) -> StorageError | None:
        connecting = f"failed to connect to the RADOS monitor on: {self.hosts}"
        match err.kind:
            case "NoBindings":
                return MissingBackend(
                    "the Python bindings of Ceph, rados and rbd, are missing", advice=_CEPH_PACKAGES
                )
            case "BadOption":
                return InternalError(f"failed to set RADOS option: {err}")
            case "Unreachable":
                return SystemFailure(
                    connecting, errno.ETIMEDOUT, advice=f"No monitor answers: {err}"
                )
            case "Refused":
                return SystemFailure(connecting, err.errno, advice=self._refusal(err.errno))
            case "NotConnected":
                return SystemFailure(
                    connecting,
                    err.errno,
                    advice=f"{err} answers and lets nobody in. Is there a quorum of monitors? ceph"
                    " quorum_status",
                )
            case "NoSuchPool":
                return SystemFailure(
                    f"failed to create the RBD IoCTX. Does the pool '{self.pool}' exist?",
                    errno.ENOENT,
                    advice="The cluster answers, and has no such pool: ceph osd pool ls",
                )
            case "NoSuchNamespace":
                return SystemFailure(
                    f"failed to create the RBD IoCTX. Does the namespace '{self.namespace}' of"
                    f" pool '{self.pool}' exist?",
                    errno.ENOENT,
                    advice=f"Make it: rbd namespace create {self.pool}/{self.namespace}",
                )
        return None

    def _silent(self, doing: str) -> SystemFailure:
        return SystemFailure(
            doing,
            errno.ETIMEDOUT,
            advice="The Ceph cluster does not answer: monitors or OSDs are down: ceph status",
        )


def _is_lost(err: ServiceError) -> bool:
    """Tell whether an error says that the connection is of no use any more."""
    return err.kind == "NoSuchPool" or err.errno == errno.ESHUTDOWN


def _of_volume(err: ServiceError, name: str | None) -> StorageError | None:
    """Return what an error says of one volume, None if it says nothing of one."""
    if name is None:
        return None
    match err.kind:
        case "ImageNotFound":
            return NoSuchVolume(f"no storage vol with matching name '{name}'")
        case "ImageExists":
            return VolumeExists(f"'{name}'")
        case "ImageInUse" | "ImageBusy":
            return VolumeBusy(
                f"volume '{name}' is in use by other clients: {err}",
                advice="A client that has died is seen for some 30 s more.",
            )
        case "HasClones":
            return VolumeBusy(
                f"volume '{name}' has clones that need its data: {err}",
                advice="Delete them first, or make them independent:"
                " storagectl vol convert POOL/CLONE --flatten",
            )
        case "NotCloneable":
            return Unsupported(f"image '{err}' can have no copy-on-write clones")
        case "HasSnapshots":
            return OperationInvalid(
                f"volume '{name}' has snapshots: {err}",
                advice="To delete them with it: --snapshots",
            )
    return None


def _monitor(name: str, port: int) -> tuple[str, int]:
    """Return name and port of a monitor: ``virsh pool-define-as`` has no option for the port."""
    both = None if port else _WITH_PORT.fullmatch(name)
    return (name, port) if both is None else (both[1], int(both[2]))


def _python() -> str:
    """Return an interpreter that has the bindings: ours, else the system's, which may have them."""
    if sys.executable and all(map(_is_own, ("rados", "rbd"))):
        return sys.executable
    return _SYSTEM_PYTHON


def _is_own(module: str) -> bool:
    """Tell whether a module belongs to our interpreter, whatever ``PYTHONPATH`` and users add."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    places = (sys.prefix, sys.base_prefix)
    return found is not None and any(
        Path(found.origin or "").is_relative_to(place) for place in places
    )
