"""Logging in to a target and out again, with nothing left behind of either.

The record and the interface of a login that did not succeed are removed, if they were made for it;
a record that was there is as it was; and no password stays in any.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from storaged import tool
from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsiface import release_interface, settle_interface
from storaged.backends._iscsinode import Node, alone, find_node, own_initiator
from storaged.backends._iscsiportal import Portal
from storaged.backends._iscsisession import Session, matching, read_session, read_sessions
from storaged.errors import InternalError, OperationFailed, StorageError, Timeout
from storaged.job import Job

#: How long I/O waits for a target that has gone, in seconds, before it fails: the default of two
#: minutes would hold whoever reads in the kernel, deaf to every signal. The kernel takes it before
#: the login only.
REPLACEMENT_TIMEOUT: Final = 15
#: A target that accepts connections and says nothing is given up after twice this, in seconds.
_LOGIN_TIMEOUT: Final = 10


@dataclass(frozen=True, slots=True)
class Credentials:
    """How this host proves itself to a target by CHAP."""

    user: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """What makes a session the one of a pool.

    :param initiator: the name this host has in it; None is its own.
    """

    target: str
    portal: Portal
    initiator: str | None = None

    def session(self, number: int | None = None) -> Session | None:
        """Return the session, None if there is none.

        :param number: the one it had when it was last seen: a target may send a login elsewhere,
            so that the portal alone does not tell.
        """
        if number is not None:
            found = read_session(number)
            if found is not None and found.target == self.target:
                return found
        sessions = [session for session in read_sessions() if session.target == self.target]
        if not sessions:
            return None
        own = self.initiator is None
        initiator = self.initiator or own_initiator() or ""
        return matching(sessions, self.target, self.portal, initiator, own=own)

    def log_in(self, credentials: Credentials | None, job: Job[Any]) -> Session:
        """Make the session.

        :raise StorageError: it cannot be made; nothing of it is left.
        """
        self._require_initiator()
        iscsiadm.reach(self.portal)
        before = {session.id for session in read_sessions()}
        node = self._node(job)
        try:
            self._try(node, credentials, job)
        except BaseException as err:
            self._undo(node.interface, before, err)
            raise
        found = self.session() or self._redirected(node.interface, before)
        if found is None:
            raise InternalError(f"iscsiadm has logged in to {self.target}, but there is no session")
        return found

    def _redirected(self, interface: str, before: Collection[int]) -> Session | None:
        """Return the session of a login that the target has sent to another portal."""
        for session in read_sessions():
            alike = (session.target, session.interface) == (self.target, interface)
            if alike and session.id not in before:
                return session
        return None

    def recover(self, interface: str, job: Job[Any]) -> bool:
        """Finish a login that somebody was killed in; tell whether there was one.

        :param interface: that of the session which is there.
        """
        with alone(job):
            node = find_node(self.target, self.portal, interface)
            if node is None or not node.is_lent:
                return False
            node.settle()
        return True

    def clear(self, interface: str | None, job: Job[Any] | None = None) -> None:
        """Remove the interface of a session that has ended, if it was made for such.

        :param interface: that of the session, None if it is not known.
        """
        with alone(job):
            interface = interface or self._known_interface()
            if interface is not None:
                release_interface(interface, job)

    def _undo(self, interface: str, before: Collection[int], err: BaseException) -> None:
        """Remove what a login that failed, or was cancelled, has made nevertheless."""
        try:
            session = self.session()
            if session is not None and session.id not in before:
                iscsiadm.logout(session.id)
            self.clear(interface)
        except StorageError as left:
            err.add_note(f"what the login has made is left: {left.message}")

    def _known_interface(self) -> str | None:
        if self.initiator is None:
            return settle_interface(None)
        found = (name for name, iqn in iscsiadm.interfaces() if iqn == self.initiator)
        return next(found, None)

    def _require_initiator(self) -> None:
        tool.find("iscsiadm")  # without it there is no name either
        if self.initiator is None and own_initiator() is None:
            raise OperationFailed(
                "this host has no name as an iSCSI initiator",
                advice="Give it one: echo InitiatorName=$(iscsi-iname) "
                "> /etc/iscsi/initiatorname.iscsi; systemctl restart iscsid",
            )

    def _node(self, job: Job[Any], group: int | None = None) -> Node:
        """Return the record to log in with, made if there is none."""
        with alone(job):
            interface = settle_interface(self.initiator, job)
            portal = self.portal if group is None else self.portal.in_group(group)
            node = find_node(self.target, portal, interface)
            if node is not None:
                return node
            try:
                iscsiadm.new_node(self.target, portal, interface, job)
                node = find_node(self.target, portal, interface)
                if node is None:
                    raise InternalError(f"iscsiadm has made no record of {self.target}")
                node.lend({}, made=True)
            except BaseException:
                with suppress(StorageError):
                    release_interface(interface)
                raise
            return node

    def _try(self, node: Node, credentials: Credentials | None, job: Job[Any]) -> None:
        made = node.is_lent
        try:
            _log_in(node, credentials, job)
        except (OperationFailed, Timeout) as err:  # some targets hang up where others refuse
            offered = self._offered(node, err, job)
            if not made or offered in (None, node.portal.group):
                raise
            _log_in(self._node(job, offered), credentials, job)

    def _offered(self, node: Node, refused: StorageError, job: Job[Any]) -> int | None:
        """Return the portal group in which the target is offered, None if that is not known.

        :raise OperationFailed: it is not offered; the advice tells what is.
        """
        try:
            found = iscsiadm.discover(self.portal, node.interface, job, timeout=_LOGIN_TIMEOUT)
        except StorageError:
            return None
        for portal, target in found:
            if target == self.target and self.portal.is_at(portal.host, portal.port):
                return portal.group
        if all(target != self.target for _, target in found):
            names = ", ".join(sorted({target for _, target in found})[:5]) or "nothing"
            raise OperationFailed(
                f"iSCSI portal {self.portal.address} has no target {self.target}",
                advice=f"It offers to this initiator: {names}.",
            ) from refused
        return None


def _log_in(node: Node, credentials: Credentials | None, job: Job[Any]) -> None:
    with alone(job):
        try:
            node.lend(_values(credentials))
        except BaseException:
            node.settle()
            raise
    try:
        iscsiadm.login(node, job)
    finally:
        with alone(None):
            node.settle()


def _values(credentials: Credentials | None) -> dict[str, str]:
    values = {
        "node.startup": "manual",
        "node.conn[0].startup": "manual",
        "node.session.timeo.replacement_timeout": str(REPLACEMENT_TIMEOUT),
        "node.session.initial_login_retry_max": "2",
        "node.conn[0].timeo.login_timeout": str(_LOGIN_TIMEOUT),
    }
    if credentials is not None:
        # what is no text is refused where it is written, without being told
        secret = credentials.secret.decode(errors="surrogateescape")
        values["node.session.auth.authmethod"] = "CHAP"
        values["node.session.auth.username"] = credentials.user
        values["node.session.auth.password"] = secret
    return values
