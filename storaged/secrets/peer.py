"""A client of whoever else keeps the secrets of this host: libvirt's daemon of secrets.

One connection serves one question, or the few that make up one call of ours. All of it is bounded
by a deadline, and what the daemon says is not trusted with more memory than the protocol allows.

What a client of ours asks is asked in the client's name, so that the daemon decides what it may see
and do. What we ask for a pool or a volume is asked in our own, with the token that the daemons of
this host share and that only its superuser can read: that opens private secrets too.

Source: libvirt's behaviour.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar
from uuid import UUID

from storaged.atomic import read_file
from storaged.errors import AccessDenied, Domain, NoSuchSecret, StorageError, SystemFailure, Timeout
from storaged.paths import Paths, printable
from storaged.process import start_time
from storaged.rpc import remote, secret
from storaged.rpc.errors import RPCError
from storaged.rpc.identity import Identity, parameters
from storaged.rpc.packet import Kind, Packet, Splitter, Status, pack
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError, revive
from storaged.rpc.storage import XMLArgs
from storaged.secrets.document import format_secret, parse_secret
from storaged.secrets.values import ALL, SecretDef, SecretFilter, SecretKind
from storaged.secrets.wirenames import secret_named, secret_record

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)

#: The longest path that fits into the address of a socket on Linux, in bytes.
_PATH_MAX: Final = 107
#: The largest packet to take: a list of 16,384 secrets with long names, in bytes.
_PACKET_MAX: Final = 16 * 1024 * 1024
#: The longest token, in bytes.
_TOKEN_MAX: Final = 4096
#: What a connection fails with where nobody listens any more.
_NOBODY: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)


class PeerSecrets:
    """The secrets of another daemon, over one connection; a context manager.

    :param sock: connected.
    :param shown: the path of the socket, for messages.
    :param caller: for whom we ask; None for this process, as the daemon sees it.
    :param deadline: when to give up, of `time.monotonic`.
    """

    def __init__(
        self,
        paths: Paths,
        sock: socket.socket,
        shown: str,
        *,
        caller: Identity | None,
        deadline: float,
    ) -> None:
        self._paths = paths
        self._sock = sock
        self._shown = shown
        self._caller = caller
        self._deadline = deadline
        self._serial = 0
        self._splitter = Splitter(_PACKET_MAX)
        self._open = False

    def all(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """Return the secrets that pass a filter, in no order; one question for each of them."""
        found = []
        for one in self.names(wanted):
            with suppress(NoSuchSecret):  # it has gone since
                found.append(self._document(secret_record(one)))
        return found

    def names(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """Return uuid and use of the secrets that pass a filter, in one question."""
        wish = secret.ListSecretsArgs(1, int(wanted))
        return [secret_named(one) for one in self._call(secret.LIST_ALL_SECRETS, wish).secrets]

    def by_uuid(self, uuid: UUID) -> SecretDef:
        """Return a secret.

        :raise NoSuchSecret: there is none.
        """
        return self._document(secret_record(SecretDef(uuid)))

    def by_usage(self, kind: SecretKind, usage_id: str) -> SecretDef:
        """Return the secret for a thing.

        :raise NoSuchSecret: there is none.
        """
        found = self._call(secret.LOOKUP_BY_USAGE, secret.UsageArgs(kind.number, usage_id))
        return self._document(found.secret)

    def value(self, known: SecretDef) -> bytes:
        """Return the value of a secret.

        :raise NoSuchSecret: there is none, or it has no value.
        :raise InvalidSecret: it is private, and we are none of the host's daemons.
        """
        return self._call(secret.GET_VALUE, secret.SecretFlagsArgs(secret_record(known))).value

    def define(self, known: SecretDef) -> None:
        """Have a definition kept.

        :raise InternalError: it contradicts one that is there.
        """
        self._call(secret.DEFINE_XML, XMLArgs(format_secret(known), 0))

    def set_value(self, known: SecretDef, value: bytes) -> None:
        """Give a secret its value."""
        self._call(secret.SET_VALUE, secret.SetValueArgs(secret_record(known), value, 0))

    def undefine(self, known: SecretDef) -> None:
        """Have a secret and its value forgotten."""
        self._call(secret.UNDEFINE, secret.SecretArgs(secret_record(known)))

    def __enter__(self) -> PeerSecrets:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._open and error is None:
                with suppress(StorageError):
                    self._ask(remote.CLOSE, Void())
        finally:
            self._sock.close()

    def _document(self, named: secret.Secret) -> SecretDef:
        text = self._call(secret.GET_XML_DESC, secret.SecretFlagsArgs(named)).xml
        return parse_secret(text)

    def _call(self, procedure: Procedure[A, R], args: A) -> R:
        if not self._open:
            self._begin()
            self._open = True
        return self._ask(procedure, args)

    def _begin(self) -> None:
        """Prove who we are, name the driver, and say for whom we ask."""
        types = self._ask(remote.AUTH_LIST, Void()).types
        if remote.AuthType.NONE not in types:
            if remote.AuthType.POLKIT not in types:
                raise AccessDenied(
                    f"'{self._shown}' wants a password for its secrets", domain=Domain.RPC
                )
            self._ask(remote.AUTH_POLKIT, Void())
        where = "session" if self._paths.is_session else "system"
        self._ask(remote.OPEN, remote.OpenArgs(f"secret:///{where}", 0))
        if self._caller is not None:
            token = self._token() if self._caller.elevated else None
            params = parameters(self._caller, token)
            self._ask(remote.SET_IDENTITY, remote.IdentityArgs(params, 0))

    def _token(self) -> str | None:
        """Return the token that the daemons of this host share, None if we may not know it."""
        with suppress(SystemFailure):
            found = read_file(self._paths.sockets / "common/system.token", _TOKEN_MAX)
            return found.decode("ascii", "replace") if found else None
        return None

    def _ask(self, procedure: Procedure[A, R], args: A) -> R:
        """Make one call.

        :raise StorageError: what the daemon answered.
        :raise Timeout: it did not answer in time.
        :raise SystemFailure: the connection broke.
        """
        self._serial += 1
        number, serial = procedure.number, self._serial
        packet = pack(procedure.program, number, Kind.CALL, serial, Status.OK, args.pack())
        try:
            self._sock.settimeout(self._left())
            self._sock.sendall(packet)
            while True:
                for got in self._receive():
                    if isinstance(got, Packet) and got.header.serial == serial:
                        return self._reply(procedure, got)
        except TimeoutError:
            raise self.too_slow() from None
        except OSError as err:
            detail = f"Cannot ask for secrets at '{self._shown}'"
            raise SystemFailure(detail, err.errno or errno.EIO, domain=Domain.RPC) from err

    def _receive(self) -> list[Any]:
        self._sock.settimeout(self._left())
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return self._splitter.feed(data)

    def _reply(self, procedure: Procedure[A, R], packet: Packet) -> R:
        header = packet.header
        if header.kind != Kind.REPLY or header.procedure != procedure.number:
            raise RPCError(f"an answer to another call than {procedure.name}")
        if header.status != Status.OK:
            raise revive(RemoteError.unpack(packet.payload))
        return procedure.ret.unpack(packet.payload)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.too_slow()
        return left

    def too_slow(self) -> Timeout:
        """Return the error for a daemon that does not answer."""
        return Timeout(
            f"the secret daemon at '{self._shown}' does not answer",
            domain=Domain.SECRET,
            advice="See what it does: systemctl status virtsecretd libvirtd",
        )


def connect(
    paths: Paths, path: Path, *, caller: Identity | None, patience: float
) -> PeerSecrets | None:
    """Connect to a daemon; return None where nobody listens.

    :param caller: for whom we ask; None for this process, as the daemon sees it.
    :param patience: how long the connection may live, in seconds.
    :raise SystemFailure: it cannot be told.
    :raise Timeout: it takes no connections.
    """
    deadline = time.monotonic() + patience
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer = PeerSecrets(paths, sock, printable(path), caller=caller, deadline=deadline)
    try:
        sock.settimeout(patience)
        _connect(sock, path)
    except OSError as err:
        sock.close()
        if err.errno in _NOBODY:
            return None
        if isinstance(err, TimeoutError) or err.errno == errno.EAGAIN:
            raise peer.too_slow() from None
        detail = f"Failed to connect socket to '{printable(path)}'"
        raise SystemFailure(detail, err.errno or errno.EIO, domain=Domain.RPC) from err
    return peer


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect, also where the path does not fit into the address of a socket."""
    if len(os.fsencode(path)) <= _PATH_MAX:
        sock.connect(os.fspath(path))
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def ourselves() -> Identity:
    """Return who we are, as one of the host's daemons."""
    pid = os.getpid()
    return Identity(
        uid=os.geteuid(), gid=os.getegid(), pid=pid, started=start_time(pid), elevated=True
    )
