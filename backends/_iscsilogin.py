"""Logging in to a target and out again, with nothing left behind of either.

The record and the interface of a login that did not succeed are removed, if they were made for it;
a record that was there is as it was; and no password stays in any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from storaged import tool
from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsiface import release_interface, settle_interface
from storaged.backends._iscsiloan import LONG, Loan, alone, new_loan, read_loans
from storaged.backends._iscsinode import find_node, interface_of, own_initiator
from storaged.backends._iscsiportal import Portal
from storaged.backends._iscsireach import reach
from storaged.backends._iscsisession import Session, matching, read_session, read_sessions
from storaged.errors import (
    Cancelled,
    CommandTimeout,
    InternalError,
    OperationFailed,
    StorageError,
    Timeout,
)
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
        """Make the session. Call `conclude` when it is kept that it is ours.

        :raise StorageError: it cannot be made; nothing of it is left. What comes of a login that
            was given up is ours when the next one finds it.
        """
        self._require_initiator()
        reach(self.portal, job)
        try:
            self._try(_values(credentials), job)
            job.checkpoint()  # iscsiadm is not stopped half-way by a cancel
            found = self.session()
            if found is None:
                raise InternalError(
                    f"iscsiadm has logged in to {self.target}, but there is no session"
                )
        except BaseException as err:
            self._undo(err)
            raise
        return found

    def is_left(self, session: Session) -> bool:
        """Tell whether a session comes of a login of ours that nobody has come back from."""
        return any(loan.is_of(session) for loan in self._loans())

    def is_open(self) -> bool:
        """Tell whether a login was begun that nobody has come back from."""
        return bool(self._loans())

    def conclude(self) -> None:
        """Forget how the session was made, because somebody has kept that it is ours."""
        for loan in self._loans():
            loan.end()

    def clear(self, interface: str | None, job: Job[Any] | None = None) -> None:
        """Remove what was made for a session that has ended.

        :param interface: that of the session, None if it is not known.
        """
        with alone(job):
            self.conclude()
            if interface is None and self.initiator is not None:
                interface = interface_of(self.initiator)
            if interface is not None:
                release_interface(interface)

    def _loans(self) -> list[Loan]:
        """Return the loans of this login, but those of another engine that is at it."""
        wanted = (self.target, self.portal, self.initiator)
        loans = (loan for loan in read_loans() if loan.is_for(*wanted))
        return [loan for loan in loans if loan.is_mine or loan.is_abandoned]

    def _undo(self, err: BaseException) -> None:
        """Remove what a login that failed, or was cancelled, has made nevertheless."""
        goes_on = not isinstance(err, StorageError) or isinstance(err, (Cancelled, CommandTimeout))
        try:
            session = self.session()
            if session is not None and any(loan.is_of(session) for loan in self._loans()):
                iscsiadm.logout(session.id)
                goes_on = False
            if goes_on:  # without us, in iscsid
                with alone(None, patience=LONG):
                    for loan in self._loans():
                        loan.give_up()
            else:
                self.clear(None)
        except StorageError as left:
            err.add_note(f"what the login has made is left: {left.message}")

    def _require_initiator(self) -> None:
        tool.find("iscsiadm")  # without it there is no name either
        if self.initiator is None and own_initiator() is None:
            raise OperationFailed(
                "this host has no name as an iSCSI initiator",
                advice="Give it one: echo InitiatorName=$(iscsi-iname) "
                "> /etc/iscsi/initiatorname.iscsi; systemctl restart iscsid",
            )

    def _borrow(self, values: Mapping[str, str], job: Job[Any], group: int | None = None) -> Loan:
        """Return a record to log in with, made if there is none, that holds *values*."""
        before = [session.id for session in read_sessions()]
        with alone(job):
            interface = settle_interface(self.initiator, job)
            portal = self.portal if group is None else self.portal.in_group(group)
            node = find_node(self.target, portal, interface)
            where = (self.target, portal if node is None else node.portal)
            loan = new_loan(*where, self.initiator, interface, before, made=node is None)
            if node is None:
                iscsiadm.new_node(*where, interface, job)
            return loan.lend(values)

    def _try(self, values: Mapping[str, str], job: Job[Any]) -> None:
        loan = self._borrow(values, job)
        try:
            _log_in(loan, job)
        except (OperationFailed, Timeout) as err:  # some targets hang up where others refuse
            offered = self._offered(loan, err, job)
            if not loan.made or offered in (None, loan.portal.group):
                raise
            self.conclude()
            _log_in(self._borrow(values, job, offered), job)

    def _offered(self, loan: Loan, refused: StorageError, job: Job[Any]) -> int | None:
        """Return the portal group in which the target is offered, None if that is not known.

        :raise OperationFailed: it is not offered; the advice tells what is.
        """
        try:
            found = iscsiadm.discover(self.portal, loan.interface, job, timeout=_LOGIN_TIMEOUT)
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


def _log_in(loan: Loan, job: Job[Any]) -> None:
    try:
        iscsiadm.login(loan.target, loan.portal, loan.interface, job)
    finally:
        with alone(None, patience=LONG):
            loan.settle()


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
