"""Who keeps the secrets at this moment, and their values for those who use them.

A daemon of libvirt's secret driver is asked where one runs. Where none does, libvirt's files serve:
they are read without any lock, and written under libvirt's, which from the first change on is held
until the engine is closed. Nobody else can become their keeper then; before, anybody can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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

    uses: dict[tuple[int, str], UUID]
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
        #: serialises taking and giving back the lock
        self._turn = threading.Lock()
        self._names: _Names | None = None
        self._searching = threading.Lock()

    # For the calls of the API

    @contextmanager
    def reading(self) -> Iterator[Keeper]:
        """Give whoever keeps the secrets now.

        :raise ResourceBusy: another daemon keeps them, and cannot be asked.
        :raise StorageError: whoever keeps them does not answer.
        """
        asked = self._daemon(_PATIENCE)
        if asked is None:
            yield self._local
        else:
            with asked:
                yield asked

    @contextmanager
    def changing(self) -> Iterator[Keeper]:
        """Give whoever keeps the secrets now, for a change.

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
        asked = self._daemon(_PATIENCE)
        if asked is not None:
            with asked:
                yield asked
        else:
            self._hold()
            yield self._local
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
            held, self._held = self._held, None
            if held is not None:
                self._local.forget()
                held.release()

    # For pools and volumes

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        """Return the value of a secret, also of a private one.

        :raise NoSuchSecret: there is none, or it has no value.
        :raise InvalidArgument: it is for something else.
        :raise StorageError: whoever keeps the secrets does not answer, or does not tell us.
        """
        kind = SecretKind(usage.value)
        with self.reading() as keeper:
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
            raise known.error.with_traceback(None)  # it may be raised again
        return known.uses.get((kind.number, name))

    def _ask_names(self) -> _Names | None:
        """Ask a daemon for all its secrets; None where there is no daemon."""
        uses: dict[tuple[int, str], UUID] = {}
        error = None
        try:
            asked = self._daemon(_FIND_PATIENCE)
            if asked is None:
                return None
            with asked:
                for one in asked.names():
                    uses[one.usage_type, one.usage_id] = UUID(bytes=one.uuid)
        except StorageError as err:
            error = err
        return _Names(uses, error, time.monotonic() + _FIND_AGE)

    # Who keeps them

    def _daemon(self, patience: float) -> PeerSecrets | None:
        """Return a connection to the daemon that keeps the secrets; None: their files serve.

        :raise ResourceBusy: a daemon keeps them that cannot be asked.
        """
        if self._held is not None:
            return None
        asked = self._connect("virtsecretd-sock", patience)
        if asked is not None:
            return asked
        owner = self._lock.owner()
        if owner is None or self._held is not None:
            return None
        asked = self._connect("libvirt-sock", patience)
        if asked is None and owner.socket is not None:
            asked = self._connect(owner.socket, patience)
        if asked is None and owner.kind is EngineKind.DAEMON:
            raise self._busy(owner)
        return asked  # an embedded engine keeps its secrets in the files

    def _connect(self, name: str, patience: float) -> PeerSecrets | None:
        path = self._paths.sockets / name
        if self._socket is not None:
            with suppress(OSError):
                if path.samefile(self._socket):
                    return None
        if not path.exists():
            return None
        from storaged.secrets import peer  # the protocol is slow to load, and rarely needed

        return peer.connect(self._paths, path, patience=patience)

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
        """Take libvirt's lock of the secrets, unless we have it.

        :raise ResourceBusy: somebody else has taken it just now.
        """
        with self._turn:
            self._require_open()
            if self._held is None:
                make_directory(self._paths.sockets, mode=self._paths.public_mode)
                make_directory(self._paths.secrets_state)
                self._held = self._lock.acquire(timeout=1, kind=self._kind, socket=self._socket)

    def _require_open(self) -> None:
        if self._closed:
            raise OperationInvalid("the engine was closed", advice="Open another one.")


def _uuid(found: SecretDef | None) -> UUID | None:
    return None if found is None else found.uuid
