"""Which engine a command uses: the daemon that is there, else one in this process.

An URI that was given decides. Else storaged's daemon is asked, or libvirt's own, by their sockets:
those of the host, of this user with ``--session``, or below the directory of ``--root``. Where
nobody listens, the engine runs in this process; on the host's pools only root may do that, so an
ordinary user gets a session. What was tried on the way stands in the advice of an error.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from storaged.errors import OperationFailed, ResourceBusy, StorageError, SystemFailure

if TYPE_CHECKING:
    from storaged import Storage
    from storaged.cli.invocation import Invocation
    from storaged.paths import Paths

#: The sockets of the daemons that serve storage, the best first.
_SOCKETS = ("virtstoraged-sock", "libvirt-sock")
_ALL_DRIVERS = "libvirt-sock"
#: What an attempt to connect says where nobody listens.
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENXIO)
_NOT_FOR_US = (errno.EACCES, errno.EPERM)
_START = "systemctl start storaged.socket"


@dataclass(slots=True)
class Chooser:
    """One choice of an engine.

    :param writes: whether something will be changed.
    :param driver: which one is needed: libvirt's daemon of all drivers gives one a connection.
    """

    call: Invocation
    writes: bool
    driver: str = "storage"
    #: the places where nobody was, and why not
    tried: list[tuple[str, str]] = field(default_factory=list)

    def open(self) -> Storage:
        """Return what was chosen, open.

        :raise StorageError: the place that was chosen cannot be used.
        """
        import storaged

        if self.call.connect is not None:
            return storaged.connect(self.call.connect)
        if not self.call.embedded:
            found = self._daemon()
            if found is not None:
                return found
        return self._embedded()

    def open_daemon(self, what: str) -> Storage:
        """Return a daemon, connected.

        :param what: what needs one, for the error.
        :raise OperationFailed: there is none; the advice lists where it was looked for.
        """
        import storaged

        if self.call.connect is not None:
            return storaged.connect(self.call.connect)
        found = None if self.call.embedded else self._daemon()
        if found is None:
            advice = f"{self._listed()} To have one: {_START}".strip()
            raise OperationFailed(f"{what} needs a daemon, and none answers", advice=advice)
        return found

    def _daemon(self) -> Storage | None:
        paths = self._paths()
        for name in _SOCKETS:
            found = self._attempt(str(paths.sockets / name))
            if found is not None:
                return found
        return self._owner(paths)

    def _owner(self, paths: Paths) -> Storage | None:
        """Return the daemon that holds the state directory, wherever it listens."""
        if not os.path.exists(paths.owner_file):  # noqa: PTH110 -- also where it may not be seen
            return None
        from storaged.driverlock import DriverLock, EngineKind

        try:
            owner = DriverLock(paths).owner()
        except StorageError:
            return None
        if owner is None or owner.kind is not EngineKind.DAEMON or owner.socket is None:
            return None
        if any(place == owner.socket for place, _ in self.tried):
            return None
        return self._attempt(owner.socket)

    def _attempt(self, socket: str) -> Storage | None:
        """Return what listens there, connected; None if nobody does."""
        import storaged

        try:
            owner = Path(socket).stat().st_uid
        except OSError as err:
            self.tried.append((socket, err.strerror or str(err)))
            return None
        try:
            return storaged.connect(self._uri(socket, owner))
        except SystemFailure as err:
            if err.errno in _NOBODY:
                self.tried.append((socket, os.strerror(err.errno)))
                return None
            if err.errno not in _NOT_FOR_US:
                raise
            if self.writes:
                err.advice = self._let_in(socket)
                raise
        return storaged.connect(self._uri(socket + "-ro", owner), readonly=True)

    def _uri(self, socket: str, owner: int) -> str:
        """Return the URI of a daemon on this host, which serves a session unless it is root's."""
        from storaged.client.uri import quote

        kind = "session" if owner or self.call.session else "system"
        driver = self.driver if Path(socket).name.startswith(_ALL_DRIVERS) else "storage"
        return f"{driver}:///{kind}?socket={quote(socket)}"

    def _let_in(self, socket: str) -> str:
        group = _group_of(socket)
        join = f"Members of the group {group} may: adduser USER {group}. " if group else ""
        return f"{join}Or use storage of your own: storagectl --session"

    def _embedded(self) -> Storage:
        import storaged

        call = self.call
        try:
            return storaged.open(
                call.root,
                session=self._is_session(),
                readonly=not self.writes,
                lock_timeout=call.lock_timeout,
            )
        except ResourceBusy as err:
            raise self._explained(err) from err
        except StorageError as err:
            raise self._explained(err) from None

    def _explained(self, err: StorageError) -> StorageError:
        err.advice = f"{err.advice or ''} {self._listed()}".strip() or None
        return err

    def _listed(self) -> str:
        if not self.tried:
            return ""
        return f"Tried first: {', '.join(f'{place} ({why})' for place, why in self.tried)}."

    def _is_session(self) -> bool:
        return self.call.session or (self.call.root is None and os.geteuid() != 0)

    def _paths(self) -> Paths:
        from storaged.paths import Paths

        if self.call.root is not None:
            return Paths.below(self.call.root)
        return Paths.session(os.environ) if self.call.session else Paths.system()


def _group_of(socket: str) -> str | None:
    """Return the group that may use a socket, None if only its owner may."""
    import grp

    try:
        status = Path(socket).stat()
        return grp.getgrgid(status.st_gid).gr_name if status.st_mode & 0o020 else None
    except (OSError, KeyError):
        return None
