"""The errors of connections to a daemon, in the same tree as all others.

::

    StorageError
    ├── NoConnection             5   nobody serves this URI
    ├── OperationDenied         29   not through a read-only connection
    ├── RPCError                39   a message that breaks the wire protocol
    │   ├── AuthFailed          45   a client that is not who it must be
    │   ├── AuthCancelled       79   the user dismissed the question
    │   └── AuthUnavailable     94   nobody is there to ask the user
    ├── NoSuchServer            95   of the daemon's administration
    └── NoSuchClient            96   of the daemon's administration

Sources: libvirt's public error numbers and the prefix that its clients see before each detail.
"""

from __future__ import annotations

from storaged.errors import Domain, StorageError


class NoConnection(StorageError):
    """Nobody serves the URI of a connection."""

    code = 5
    prefix = "no connection driver available for %s"


class OperationDenied(StorageError):
    """A call that changes something, through a connection that may only read."""

    code = 29
    prefix = "operation forbidden: %s"


class RPCError(StorageError):
    """A message breaks the wire protocol, or comes when it may not."""

    code = 39

    def __init__(
        self, detail: str, *, advice: str | None = None, domain: Domain = Domain.RPC
    ) -> None:
        super().__init__(detail, advice=advice, domain=domain)


class AuthFailed(RPCError):
    """A client did not prove who it is, or is not let in."""

    code = 45
    prefix = "authentication failed: %s"


class AuthCancelled(RPCError):
    """The user dismissed the question for a password."""

    code = 79
    prefix = "authentication cancelled: %s"


class AuthUnavailable(RPCError):
    """A password is needed, but there is no agent that could ask for it."""

    code = 94
    prefix = "authentication unavailable: %s"


class NoSuchServer(StorageError):
    """The daemon has no server of this name."""

    code = 95
    prefix = "Server not found: %s"


class NoSuchClient(StorageError):
    """The daemon's server has no client with this id."""

    code = 96
    prefix = "Client not found: %s"
