"""Loans: what one login changes in iscsiadm's database, and what is to be put back after it.

A password must not be an argument of a program, so what a login needs is written into the record,
and taken out again. A loan says how the record was. It is on the disk before the record is changed,
so that after a crash in the middle whoever comes next puts the record back. A record that is made
for a login is removed after it: iscsid keeps what it needs, and asks the kernel for it when it is
started anew; a record without the password would be in its way then.

A loan outlives its login until it is kept elsewhere that the session is ours. If its lender dies
before that, the session is known by it, and who finds it may end it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from storaged.atomic import make_directory, read_file, remove_file, sweep, write_file
from storaged.backends._iscsiface import release_interface
from storaged.backends._iscsinode import ROOTS, Node, beside, find_node, line_of
from storaged.backends._iscsiportal import Portal, is_name, parse_portal
from storaged.backends._iscsisession import Session, read_sessions
from storaged.errors import StorageError, SystemFailure, Timeout, system_errors
from storaged.process import start_time, this_boot

if TYPE_CHECKING:
    from storaged.job import Job

#: The directory of the loans, below that of the database.
PLACE: Final = "storaged"
#: How long others of us may keep the database to themselves, in seconds.
PATIENCE: Final = 30.0
#: The same where waiting is better than leaving a password: more than all that anybody does alone.
LONG: Final = 240.0
#: How long a session may be in coming after its login was given up, in seconds.
_LATE: Final = 120.0
_FILE_MAX: Final = 1 << 20
_SUFFIX: Final = ".loan"


@dataclass(frozen=True, slots=True)
class Loan:
    """A record that is lent to one login, and the session that comes of it.

    :param path: its file.
    :param portal: that of the record, with its group.
    :param initiator: the name that the login asks for; None is the host's own.
    :param before: the numbers of the sessions that were there before the login.
    :param boot: the boot of this host in which it was lent.
    :param lender: the process that it is lent to; "" is nobody any more.
    :param made: the record is made for the login.
    :param was: the lines of the record that are to be put back; None stands for no line.
    """

    path: Path
    target: str
    portal: Portal
    initiator: str | None
    interface: str
    before: tuple[int, ...]
    boot: str
    lender: str
    made: bool = False
    was: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody will come back from the login."""
        if self.boot != this_boot():
            return True
        pid, _, _ = self.lender.partition("/")
        return not pid.isdecimal() or _process(int(pid)) != self.lender

    @property
    def is_mine(self) -> bool:
        """Whether it is lent to this process."""
        return self.boot == this_boot() and self.lender == _process(os.getpid())

    def is_for(self, target: str, portal: Portal, initiator: str | None) -> bool:
        """Tell whether it is of a login to a target at a portal by an initiator."""
        return (self.target, self.initiator) == (target, initiator) and portal.is_at(
            self.portal.host, self.portal.port
        )

    def node(self, roots: Sequence[Path] = ROOTS) -> Node | None:
        """Return the record, None if there is none."""
        node = find_node(self.target, self.portal, self.interface, roots)
        return node if node is not None and node.portal.group == self.portal.group else None

    def is_of(self, session: Session) -> bool:
        """Tell whether a session can have come of this login."""
        alike = (session.target, session.interface) == (self.target, self.interface)
        return alike and session.id not in self.before and self.boot == this_boot()

    def lend(self, values: Mapping[str, str], roots: Sequence[Path] = ROOTS) -> Loan:
        """Write what the login needs into the record.

        One that is lent already, by another engine, is put back as it was before both.

        :raise InvalidArgument: a value cannot stand in a record; it is not told.
        :raise SystemFailure: the record cannot be read or written; it is as it was.
        """
        lines = {name: line_of(name, value) for name, value in values.items()}
        node = self.node(roots)
        if node is None:
            raise SystemFailure(f"there is no record of {self.target} at {self.portal}")
        loan = replace(self, was={} if self.made else node.lines(lines))
        for other in read_loans(roots):
            if other.path != self.path and other.node(roots) == node:
                loan = replace(loan, made=loan.made or other.made, was={**loan.was, **other.was})
        loan.keep()
        node.change(lines)
        return loan

    def settle(self, roots: Sequence[Path] = ROOTS) -> Loan:
        """Put the record back, or remove it if it was made for this. Twice is no error.

        :raise SystemFailure: it cannot be read or written.
        """
        self._put_back(roots)
        settled = replace(self, made=False, was={})
        if settled != self:
            settled.keep()
        return settled

    def give_up(self, roots: Sequence[Path] = ROOTS) -> None:
        """Settle it, and leave it to whoever finds what may still come: a session, or a record."""
        self._put_back(roots)
        replace(self, was={}, lender="").keep()

    def end(self, roots: Sequence[Path] = ROOTS) -> None:
        """Settle it and forget it. Twice is no error."""
        self._put_back(roots)
        remove_file(self.path, durable=False)

    def keep(self) -> None:
        """Write it to the disk.

        :raise SystemFailure: it cannot be written.
        """
        entry = {**asdict(self), "portal": str(self.portal)}
        del entry["path"]
        make_directory(self.path.parent, durable=True)
        write_file(self.path, json.dumps(entry).encode(), durable=True)

    def _put_back(self, roots: Sequence[Path]) -> None:
        node = self.node(roots)
        if node is not None:
            if self.made:
                node.remove()
            elif self.was:
                node.change(self.was)


def new_loan(
    target: str,
    portal: Portal,
    initiator: str | None,
    interface: str,
    before: Iterable[int],
    *,
    made: bool,
    roots: Sequence[Path] = ROOTS,
) -> Loan:
    """Keep that a login of this process begins; its record is still as it was, or not made.

    :raise SystemFailure: it cannot be kept.
    """
    root = next((root for root in roots if root.is_dir()), roots[0])
    path = root / PLACE / f"{os.urandom(8).hex()}{_SUFFIX}"
    lender = _process(os.getpid()) or ""
    numbers = tuple(sorted(before))
    loan = Loan(path, target, portal, initiator, interface, numbers, this_boot(), lender, made=made)
    loan.keep()
    return loan


def read_loans(roots: Sequence[Path] = ROOTS) -> tuple[Loan, ...]:
    """Return all loans; what is none is left out."""
    paths = (path for root in roots for path in sorted((root / PLACE).glob(f"*{_SUFFIX}")))
    return tuple(loan for path in paths if (loan := _read(path)) is not None)


def _read(path: Path) -> Loan | None:
    with suppress(SystemFailure, ValueError, TypeError, KeyError):
        entry = json.loads(read_file(path, _FILE_MAX) or b"")
        portal = parse_portal(entry["portal"])
        texts = {name: str(entry[name]) for name in ("target", "interface", "boot", "lender")}
        was = entry["was"]
        if portal is not None and isinstance(was, dict) and is_name(texts["target"]):
            return Loan(
                path,
                portal=portal,
                initiator=entry["initiator"],
                before=tuple(entry["before"]),
                made=entry["made"] is True,
                was={name: None if line is None else str(line) for name, line in was.items()},
                **texts,
            )
    return None


def recover(roots: Sequence[Path] = ROOTS) -> None:
    """Put right what those have left who were killed, unless somebody is at it.

    :raise SystemFailure: the database cannot be locked.
    """
    if read_loans(roots):
        with suppress(Timeout), alone(None, roots, patience=0):
            pass


@contextmanager
def alone(
    job: Job[Any] | None, roots: Sequence[Path] = ROOTS, *, patience: float = PATIENCE
) -> Iterator[None]:
    """Keep all others of us from changing the database meanwhile, and clear up after the killed.

    :param patience: how long to wait for others, in seconds.
    :raise Timeout: somebody else does so for longer.
    """
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        yield
        return
    with system_errors(f"cannot lock '{root}'"):
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(directory, root, job, patience)
        _clear_up(roots)
        yield
    finally:
        os.close(directory)


def _lock(directory: int, root: Path, job: Job[Any] | None, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EACCES):
                with system_errors(f"cannot lock '{root}'"):
                    raise
        else:
            return
        if time.monotonic() >= deadline:
            raise Timeout(f"somebody else works on the node database in '{root}'")
        if job is not None:
            job.checkpoint()
        time.sleep(0.02)


def _clear_up(roots: Sequence[Path]) -> None:
    """Settle the loans of the killed, and remove their beginnings of files.

    Who holds the lock is the only one to have begun a file.
    """
    places = {beside(root / kind) for root in roots for kind in ("nodes", "ifaces")}
    for place in (*places, *(root / PLACE for root in roots)):
        sweep(place)
    for loan in read_loans(roots):
        if loan.is_abandoned:
            with suppress(StorageError):  # the next one tries again
                _release(loan, roots)


def _release(loan: Loan, roots: Sequence[Path]) -> None:
    """Settle the loan of a killed login; without a session it is forgotten, and its interface."""
    if loan.node(roots) is not None:  # else it may still come
        loan = loan.settle(roots)
    with system_errors(f"cannot read file '{loan.path}'"):
        age = time.time() - loan.path.stat().st_mtime
    may_come = loan.boot == this_boot() and 0 <= age < _LATE
    if not may_come and not any(map(loan.is_of, read_sessions())):
        loan.end(roots)
        release_interface(loan.interface, roots)


def _process(pid: int) -> str | None:
    """Return what names a process of this boot, None if there is none."""
    started = start_time(pid)
    return None if started is None else f"{pid}/{started}"
