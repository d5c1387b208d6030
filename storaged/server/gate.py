"""Who may pass: what a client must do before its calls are served.

Source: libvirt's rules: each socket has one way to prove who one is, and the superuser need not on
sockets that ask polkit.
"""

from __future__ import annotations

from typing import Protocol

from storaged.rpc.errors import AuthFailed, RPCError
from storaged.rpc.program import Access, AnyProcedure
from storaged.rpc.remote import AuthListRet, AuthType
from storaged.service import Identity


class Authority(Protocol):
    """Who is asked whether a client may manage storage, such as polkit."""

    def check(self, identity: Identity, *, readonly: bool) -> None:
        """Return if the client may. It may wait for a person, so it is called on a thread.

        :raise AuthFailed: it may not.
        :raise AuthCancelled: the person dismissed the question.
        :raise AuthUnavailable: there is nobody to ask.
        """
        ...


class Gate:
    """The gate of one connection.

    :param kind: how clients of this socket prove who they are.
    """

    def __init__(self, kind: AuthType, identity: Identity) -> None:
        self._kind = kind
        self._identity = identity
        self.passed = kind is AuthType.NONE
        #: whether somebody is being asked about the client
        self.asking = False

    def require(self, procedure: AnyProcedure) -> None:
        """Raise if a call may not be served yet.

        :raise RPCError: the client has to prove first who it is.
        """
        if procedure.access is not Access.ANYBODY:
            self.require_passed()

    def require_passed(self) -> None:
        """Raise if the client has not proved who it is.

        :raise RPCError: it has not.
        """
        if not self.passed:
            raise RPCError("authentication required")

    def ways(self) -> AuthListRet:
        """Return the one way to prove who one is; it lets the superuser pass."""
        if self._kind is AuthType.POLKIT and self._identity.uid == 0:
            self.passed = True
        return AuthListRet((AuthType.NONE if self.passed else self._kind,))

    def require_asking(self, kind: AuthType) -> None:
        """Raise if this is not the way of the socket, is under way, or no longer needed.

        :raise AuthFailed: always with libvirt's one text.
        """
        if self.passed or self.asking or kind is not self._kind:
            raise AuthFailed("authentication failed")
