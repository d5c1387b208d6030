"""What the tests of the service share: an engine, a connection to it, and calls of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Backend, Durability
from storaged.driver import Driver, open_driver
from storaged.errors import StorageError
from storaged.job import Pending
from storaged.paths import Paths
from storaged.registry import Registry
from storaged.rpc import remote, remoteerror
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.service import Opened, Service, Session
from storaged.worker import Limits
from tests.doubles import PATIENCE, Control, Shelf, make_double, make_layered

#: No pool has this uuid.
NOWHERE = StoragePool("nowhere", b"1" * 16)


@dataclass
class Peer:
    """A client without a wire: it packs what it sends and unpacks what it gets."""

    service: Service
    session: Session = None  # type: ignore[assignment]
    told: list[tuple[AnyProcedure, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls, service: Service, *, opened: bool = True, readonly: bool = False, **how: Any
    ) -> Peer:
        peer = cls(service)
        peer.session = service.session(
            lambda procedure, record: peer.told.append((procedure, record)), **how
        )
        if opened:
            assert peer.call(remote.OPEN, "storage:///system", int(readonly)) == Void()
        return peer

    def start(self, procedure: AnyProcedure, *args: Any) -> Record | Pending[Any] | Opened:
        """Return what the session makes of a call, of arguments that have been on a wire."""
        sent = procedure.args(*args).pack()
        return self.session.call(procedure, procedure.args.unpack(sent))

    def call(self, procedure: AnyProcedure, *args: Any) -> Any:
        """Return the reply to a call, after a wire."""
        outcome = self.start(procedure, *args)
        if isinstance(outcome, Pending):
            outcome = outcome.result(PATIENCE)
        if isinstance(outcome, Opened):
            return outcome
        assert isinstance(outcome, procedure.ret)
        return procedure.ret.unpack(outcome.pack())

    def error(self, procedure: AnyProcedure, *args: Any) -> RemoteError:
        """Return the error that a call ends with, as it would stand on the wire."""
        with pytest.raises(StorageError) as caught:
            self.call(procedure, *args)
        return RemoteError.unpack(remoteerror.describe(caught.value).pack())

    def ready(self, procedure: AnyProcedure, *args: Any) -> bool:
        return self.session.ready(procedure, procedure.args(*args))

    def events(self) -> list[Any]:
        """Return the records of the events that came so far."""
        return [record for _, record in self.told]

    # What many tests need first

    def define(self, name: str, target: Path, kind: str = "dir") -> StoragePool:
        target.mkdir(exist_ok=True)
        defined: StoragePool = self.call(rpc.POOL_DEFINE_XML, pool_xml(name, target, kind), 0).pool
        return defined

    def started(self, name: str, target: Path, kind: str = "dir") -> StoragePool:
        pool = self.define(name, target, kind)
        self.call(rpc.POOL_CREATE, pool, 0)
        return pool

    def made(self, pool: StoragePool, name: str, capacity: int = 4096) -> StorageVol:
        made: StorageVol = self.call(rpc.VOL_CREATE_XML, pool, volume_xml(name, capacity), 0).vol
        return made


def pool_xml(name: str, target: Path, kind: str = "dir", uuid: bytes | None = None) -> str:
    known = f"<uuid>{uuid.hex()}</uuid>" if uuid else ""
    return f"""<pool type='{kind}'><name>{name}</name>{known}
        <target><path>{target}</path></target></pool>"""


def volume_xml(name: str, capacity: int = 4096) -> str:
    return f"""<volume><name>{name}</name><capacity>{capacity}</capacity>
        <allocation>0</allocation></volume>"""


@dataclass(frozen=True)
class Double:
    """A pool type "double", and what controls all pools of it."""

    backend: type[Backend]
    control: Control


@pytest.fixture
def double() -> Iterator[Double]:
    made = Double(*make_double())
    yield made
    made.control.release_all()


@pytest.fixture
def control(double: Double) -> Control:
    """What controls the pools of type double."""
    return double.control


@pytest.fixture
def limits() -> Limits:
    """The bounds of the threads that touch storage."""
    return Limits()


@pytest.fixture
def driver(tmp_path: Path, double: Double, limits: Limits) -> Iterator[Driver]:
    """An open engine without pools."""
    made = open_driver(
        Paths.below(tmp_path / "root"),
        durability=Durability.NONE,
        lock_timeout=0,
        registry=Registry({"double": double.backend, "layered": make_layered(), "shelf": Shelf}),
        limits=limits,
    )
    yield made
    double.control.release_all()
    made.close()


@pytest.fixture
def service(driver: Driver) -> Iterator[Service]:
    """The procedures over that engine."""
    made = Service(driver, token="the-token")
    yield made
    made.close()


@pytest.fixture
def peer(service: Service) -> Peer:
    """An open connection."""
    return Peer.of(service)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The directory of the pool p."""
    (tmp_path / "pools").mkdir()
    return tmp_path / "pools" / "p"


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    """A started pool p."""
    return peer.started("p", target)


@pytest.fixture
def vol(peer: Peer, pool: StoragePool) -> StorageVol:
    """A volume v of the pool p."""
    return peer.made(pool, "v")
