"""Pool type iscsi: the LUNs of a target that this host logs in to are the volumes.

libvirt's behaviour, but: a session is matched by target, portal and initiator; the CHAP secret is
never an argument of a program and does not stay in iscsiadm's database; a session, a record and an
interface that were there before are left as they were; and nothing waits without a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

from storaged.backend import (
    Descriptor,
    DeviceEvent,
    FindsSources,
    Host,
    Plugged,
    Refresh,
    Remembers,
    SecretUsage,
    StopsByForce,
    Watched,
)
from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsiface import require_interface
from storaged.backends._iscsiloan import recover
from storaged.backends._iscsilogin import Credentials, Login
from storaged.backends._iscsiportal import Portal, check_name
from storaged.backends._iscsisession import LOGGED_IN, Session, read_session
from storaged.backends._scsi import Unit, units_of_session
from storaged.backends._scsiunits import ScsiUnits
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    OperationFailed,
    StorageError,
    XMLError,
)
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, SourceDevice, SourceHost, VolumeRecord


class Iscsi(ScsiUnits, FindsSources, StopsByForce, Watched, Plugged, Remembers):
    """The LUNs of an iSCSI target."""

    descriptor: ClassVar[Descriptor] = Descriptor("iscsi")

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        #: the number of the session when it was last seen
        self._number: int | None = None
        #: whether that session is there because we have logged in
        self._ours = False
        #: whether only the database of iscsiadm says so
        self._untold = False

    @classmethod
    def find_sources(
        cls, spec: PoolSource | None, host: Host, job: Job[Any]
    ) -> tuple[PoolSource, ...]:
        if spec is None:
            raise InvalidArgument("hostname must be specified for iscsi sources")
        portal = _portal(spec)
        interface = require_interface(_initiator(spec))
        found = iscsiadm.discover(portal.in_group(1), interface, job)
        names = dict.fromkeys(target for _, target in found)
        at = SourceHost(spec.hosts[0].name, portal.port)
        return tuple(
            PoolSource(hosts=(at,), devices=(SourceDevice(name),), initiator=spec.initiator)
            for name in names
        )

    @classmethod
    def recover(cls) -> None:
        recover()

    @property
    def check_proves(self) -> bool:
        with suppress(StorageError):
            return self._login().is_open()
        return False

    def check(self) -> bool:
        return self._session() is not None

    def start(self, job: Job[Any]) -> None:
        if self._session() is None:
            session = self._login().log_in(self._credentials(), job)
            self._number, self._ours = session.id, True
        self._untold = self._ours

    def stop(self, job: Job[Any]) -> None:
        self._log_out(job, force=False)

    def stop_by_force(self, job: Job[Any]) -> None:
        self._log_out(job, force=True)

    def anchor(self) -> Mapping[str, str | int]:
        session = self._session()
        return {
            "session": session.id if session else -1,
            "ours": int(session is not None and self._ours),
        }

    def hold(self, anchor: Mapping[str, str | int]) -> None:
        number = anchor.get("session")
        self._number = number if isinstance(number, int) and number >= 0 else None
        self._ours = self._number is not None and anchor.get("ours") == 1

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        session = self._answering()
        if self._untold:  # the first scan comes when all is kept that says that the pool is active
            self._login().conclude()
            self._untold = False
        iscsiadm.rescan(session.id, job)
        return self.scan_units(known, job)

    def units(self) -> tuple[Unit, ...]:
        session = self._session()
        return () if session is None else units_of_session(session.device)

    def watch(self) -> None:
        self._answering()

    def concerns(self, event: DeviceEvent) -> bool:
        return self._number is not None and f"/session{self._number}/" in event.path

    def _answering(self) -> Session:
        """Return the session.

        :raise InternalError: there is none.
        :raise OperationFailed: its target does not answer.
        """
        session = self._session()
        if session is None:
            raise InternalError(
                f"cannot find iscsiadm session: no session with {self._login().target}",
                advice=f"Somebody has logged out: storagectl pool stop {self.definition.name}; "
                f"storagectl pool start {self.definition.name}",
            )
        if session.state != LOGGED_IN:
            login = self._login()
            raise OperationFailed(
                f"the target {login.target} at {login.portal.address} does not answer: "
                f"the session is {session.state}",
                advice="The host goes on trying to reach it.",
            )
        return session

    def _session(self) -> Session | None:
        login = self._login()
        session = login.session(self._number)
        if session is not None and session.id != self._number:
            self._number, self._ours = session.id, login.is_left(session)
        return session

    def _log_out(self, job: Job[Any], *, force: bool) -> None:
        """End the session if it is ours, and remove what was made for it."""
        if not self._ours:
            return
        login = self._login()
        session = None if self._number is None else read_session(self._number)
        if session is not None and session.target != login.target:
            session = None
        if session is not None:
            if not force:
                self.require_unused()
            iscsiadm.logout(session.id, job)
        login.clear(session.interface if session else None, job)
        self._number, self._ours = None, False

    def _login(self) -> Login:
        """Return what the definition asks for.

        :raise StorageError: it does not ask for one target at one portal.
        """
        source = self.definition.source
        portal = _portal(source)
        if len(source.devices) != 1:
            raise InternalError("missing source device")
        if source.auth is not None and source.auth.type != "chap":
            raise XMLError("iscsi pool only supports 'chap' auth type")
        return Login(check_name(source.devices[0].path, "target"), portal, _initiator(source))

    def _credentials(self) -> Credentials | None:
        auth = self.definition.source.auth
        if auth is None:
            return None
        return Credentials(auth.username, self.host.secrets.value(SecretUsage.ISCSI, auth.secret))


def _portal(source: PoolSource) -> Portal:
    if len(source.hosts) != 1:
        raise ConfigUnsupported("Expected exactly 1 host for the storage pool")
    return Portal.of_host(source.hosts[0])


def _initiator(source: PoolSource) -> str | None:
    return None if source.initiator is None else check_name(source.initiator, "initiator")
