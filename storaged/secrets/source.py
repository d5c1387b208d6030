"""Who keeps the secrets at this moment, and their values for those who use them.

A daemon of libvirt's secret driver is asked where one runs. Where none does, libvirt's files serve:
they are read without any lock, and written under libvirt's. It is held during a change, and as long
as there are secrets in memory only: nobody else can become their keeper then, and anybody else can
at other times.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from storaged.atomic import make_directory
from storaged.driverlock import DriverLock, EngineKind, HeldLock, Owner
from storaged.errors import (
    Domain,
    InvalidArgument,
    OperationInvalid,
    ResourceBusy,
    StorageError,
)
from storaged.mechanism import SecretUsage
from storaged.paths import Paths, printable
from storaged.secrets.files import SecretFiles
from storaged.secrets.local import Keeper, LocalSecrets
from storaged.secrets.values import SecretDef, SecretKind
from storaged.source import SecretRef

if TYPE_CHECKING:
    from storaged.rpc.identity import Identity
    from storaged.secrets.peer import PeerSecrets

#: How long a daemon may take for all that one call asks of it, in seconds.
_PATIENCE: Final = 5.0
#: How long the search for a default secret waits for a daemon, in seconds: less than a query does.
_FIND_PATIENCE: Final = 0.15
#: How long what a daemon said of its secrets holds for such a search, in seconds.
_FIND_AGE: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Names:
    """What a daemon said of its secrets, or why it did not.

    :param until: how long it holds, of `time.monotonic`.
    """

    uses: dict[tuple[SecretKind, str | None], UUID]
    error: StorageError | None
    until: float


class KeptSecrets:
    """The secrets of a host, or of a user. Also a `storaged.mechanism.SecretSource`.

    It may be used from several threads.

    :param readonly: change nothing, and take no lock.
    :param kind: what sort of program we are, for others who want the lock.
    :param socket: where we can be reached, so that we do not ask ourselves.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        readonly: bool = False,
        durable: bool = True,
        kind: EngineKind = EngineKind.EMBEDDED,
        socket: str | None = None,
    ) -> None:
        self._paths = paths
        self._readonly = readonly
        self._kind = kind
        self._socket = socket
        lasting = kind is EngineKind.DAEMON
        self._local = LocalSecrets(SecretFiles(paths.secrets, durable=durable), lasting=lasting)
        places = replace(paths, state=paths.secrets_state, runtime=paths.runtime / "secrets")
        self._lock = DriverLock(places)
        self._held: HeldLock | None = None
        self._closed = False
        #: serialises changes of what we keep ourselves: the lock is taken and given back in them
        self._turn = threading.Lock()
        self._names: _Names | None = None
        self._searching = threading.Lock()

    # For the calls of the API

    @contextmanager
    def reading(
        self, caller: Identity | None = None, *, elevated: bool = False
    ) -> Iterator[Keeper]:
        """Give whoever keeps the secrets now.

        :param caller: for whom another daemon is asked; None for this process.
        :param elevated: it is asked as one of the host's daemons.
        :raise ResourceBusy: another daemon keeps them, and cannot be asked.
        :raise StorageError: whoever keeps them does not answer.
        """
        asked = self._daemon(_PATIENCE, caller, elevated=elevated)
        if asked is None:
            yield self._local
        else:
            with asked:
                yield asked

    @contextmanager
    def changing(self, caller: Identity | None = None) -> Iterator[Keeper]:
        """Give whoever keeps the secrets now, for a change.

        :param caller: as for `reading`.
        :raise InvalidArgument: we were opened for reading only.
        :raise OperationInvalid: we were closed.
        :raise ResourceBusy: somebody else keeps them, and cannot be asked.
        :raise StorageError: whoever keeps them does not answer.
        """
        if self._readonly:
            raise InvalidArgument(
                "this engine was opened read-only", advice="Open it without readonly=True."
            )
        self._require_open()
        asked = self._daemon(_PATIENCE, caller)
        if asked is not None:
            with asked:
                yield asked
        else:
            with self._turn:
                self._hold()
                try:
                    yield self._local
                finally:
                    if not self._local.has_ephemeral():
                        self._release()
        self._names = None

    def problems(self) -> tuple[str, ...]:
        """Return which of the files could not be used, and why."""
        try:
            return self._local.problems()
        except StorageError as err:
            return (err.message,)

    def has_ephemeral(self) -> bool:
        """Tell whether there are secrets that end with this process."""
        return self._local.has_ephemeral()

    def close(self) -> None:
        """Forget what is in memory only, and let others keep the secrets."""
        with self._turn:
            self._closed = True
            self._local.forget()
            self._release()

    # For pools and volumes

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        """Return the value of a secret, also of a private one.

        :raise NoSuchSecret: there is none, or it has no value.
        :raise InvalidArgument: it is for something else.
        :raise StorageError: whoever keeps the secrets does not answer, or does not tell us.
        """
        kind = SecretKind(usage.value)
        with self.reading(elevated=True) as keeper:
            if ref.uuid is not None:
                found = keeper.by_uuid(ref.uuid)
            else:
                found = keeper.by_usage(kind, ref.usage or "")
            if found.usage is not kind:
                raise InvalidArgument(
                    f"secret with uuid {found.uuid} is of type '{found.usage}'"
                    f" not expected '{kind}' type",
                    domain=Domain.SECRET,
                )
            return keeper.value(found)

    def find(self, usage: SecretUsage, name: str) -> UUID | None:
        """Return the secret for the thing *name*, None if there is none.

        A daemon is asked for all of them at once, and what it said holds for two seconds.

        :raise StorageError: whoever keeps the secrets does not answer within 0.15 seconds.
        """
        kind = SecretKind(usage.value)
        if self._held is not None:
            return _uuid(self._local.find(kind, name))
        with self._searching:
            known = self._names
            if known is None or known.until < time.monotonic():
                known = self._names = self._ask_names()
        if known is None:
            return _uuid(self._local.find(kind, name))
        if known.error is not None:
            raise _again(known.error)
        return known.uses.get((kind, name))

    def _ask_names(self) -> _Names | None:
        """Ask a daemon for all its secrets; None where there is no daemon."""
        uses: dict[tuple[SecretKind, str | None], UUID] = {}
        error = None
        try:
            asked = self._daemon(_FIND_PATIENCE, elevated=True)
            if asked is None:
                return None
            with asked:
                uses = {(one.usage, one.usage_id): one.uuid for one in asked.names()}
        except StorageError as err:
            error = err
        return _Names(uses, error, time.monotonic() + _FIND_AGE)

    # Who keeps them

    def _daemon(
        self, patience: float, caller: Identity | None = None, *, elevated: bool = False
    ) -> PeerSecrets | None:
        """Return a connection to the daemon that keeps the secrets; None: their files serve.

        :raise ResourceBusy: a daemon keeps them that cannot be asked.
        """

        def connect(name: str) -> PeerSecrets | None:
            path = self._paths.sockets / name
            if not path.exists() or self._is_ours(path):
                return None
            from storaged.secrets import peer  # the protocol is slow to load, and rarely needed

            whom = peer.ourselves() if elevated else caller
            return peer.connect(self._paths, path, caller=whom, patience=patience)

        if self._held is not None:
            return None
        asked = connect("virtsecretd-sock")
        if asked is not None:
            return asked
        owner = self._lock.owner()
        if owner is None or owner.pid == os.getpid():  # a change of ours may be under way
            return None
        asked = connect("libvirt-sock")
        if asked is None and owner.socket is not None:
            asked = connect(owner.socket)
        if asked is None and owner.kind is EngineKind.DAEMON:
            raise self._busy(owner)
        return asked  # an embedded engine keeps its secrets in the files

    def _is_ours(self, path: Path) -> bool:
        """Tell whether it is us that clients reach at *path*: we would wait for ourselves.

        The kernel cannot be asked: where systemd listens for us, it names systemd.
        """
        if self._socket is not None:
            with suppress(OSError):
                return path.samefile(self._socket)
        return False

    def _busy(self, owner: Owner) -> ResourceBusy:
        who = f"process {owner.pid} ({owner.program})" if owner.pid else "another process"
        return ResourceBusy(
            f"secrets are kept by {who}, which cannot be asked for them",
            pid=owner.pid,
            domain=Domain.SECRET,
            advice=f"It should listen in '{printable(self._paths.sockets)}'. If it is no longer"
            " needed, stop it.",
        )

    def _hold(self) -> None:
        """Take libvirt's lock of the secrets, unless we have it. Call it in turn.

        :raise ResourceBusy: somebody else has taken it just now.
        """
        self._require_open()
        if self._held is None:
            make_directory(self._paths.sockets, mode=self._paths.public_mode)
            make_directory(self._paths.secrets_state)
            self._held = self._lock.acquire(timeout=1, kind=self._kind, socket=self._socket)

    def _release(self) -> None:
        """Give the lock back, if we have it. Call it in turn."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _require_open(self) -> None:
        if self._closed:
            raise OperationInvalid("the engine was closed", advice="Open another one.")


def _again(error: StorageError) -> StorageError:
    """Return an error like *error*: several threads may raise it, each with a story of its own."""
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    return copied


def _uuid(found: SecretDef | None) -> UUID | None:
    return None if found is None else found.uuid
