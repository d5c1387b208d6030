"""What the tests of the engine share."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Backend
from storaged.driver import Driver
from storaged.model import PoolDef
from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from tests.doubles import Control, make_double

#: Who nobody is on every Linux.
NOBODY = 65534
#: What the engine imports where it is used.
_LATE = (
    "ctypes",
    "storaged.backends._content",
    "storaged.formats.convert",
    "storaged.formats.qcow2_amend",
    "storaged.formats.qcow2_writer",
    "storaged.formats.raw_writer",
)


@pytest.fixture
def ordinary_directory() -> Iterator[Path]:
    """A directory of an ordinary user, who this process is during the test."""
    directory = Path(tempfile.mkdtemp(prefix="storaged-test-"))
    was_root = os.geteuid() == 0
    # Loaded at their first use, and Python may lie where that user may not read.
    for late in _LATE:
        importlib.import_module(late)
    try:
        if was_root:
            os.chown(directory, NOBODY, NOBODY)
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        yield directory
    finally:
        if was_root:
            os.seteuid(0)
            os.setegid(0)
        shutil.rmtree(directory)


@dataclass
class Engine:
    """Engines of one test over one root, all with the same double as a pool type."""

    root: Path
    directory: Path
    backend: type[Backend]
    control: Control
    opened: list[Storage] = field(default_factory=list)

    def open(self, **options: Any) -> Storage:
        """Open an engine; the one before must be closed, unless this one only reads."""
        options.setdefault("durability", "none")
        options.setdefault("lock_timeout", 0)
        options.setdefault("backends", {"double": self.backend})
        storage = open_storage(self.root, **options)
        self.opened.append(storage)
        return storage

    def close(self) -> None:
        self.control.release_all()
        for storage in self.opened:
            storage.close()

    def definition(self, name: str = "p", kind: str = "double", **given: Any) -> PoolDef:
        """Return the definition of a pool over a directory of its own, which is made."""
        target = self.directory / name
        target.mkdir(exist_ok=True)
        given.setdefault("target", str(target))
        return PoolDef(kind, name, **given)

    def pool(self, name: str = "p", kind: str = "double", storage: Storage | None = None) -> Pool:
        """Define and start a pool in the engine that was opened last."""
        pool = (storage or self.opened[-1]).define_pool(self.definition(name, kind))
        pool.start()
        return pool


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine that is not open yet."""
    directory = tmp_path / "pools"
    directory.mkdir()
    made = Engine(tmp_path / "root", directory, *make_double())
    yield made
    made.close()


@pytest.fixture
def storage(engine: Engine) -> Storage:
    """An open engine without pools."""
    return engine.open()


@pytest.fixture
def control(engine: Engine) -> Control:
    """What controls the pools of type double."""
    return engine.control


@pytest.fixture
def pool(engine: Engine, storage: Storage) -> Pool:
    """A started pool "p" of type double."""
    return engine.pool()


@pytest.fixture
def events(storage: Storage) -> list[str]:
    """What has been told so far: the names of events, "REFRESH" for a finished refresh."""
    told: list[str] = []
    storage.subscribe(lambda e: told.append("REFRESH" if e.lifecycle is None else e.lifecycle.name))
    return told


def driver_of(held: Pool | Storage) -> Driver:
    """Return the engine in this process behind a handle."""
    found = held.engine if isinstance(held, Storage) else held._engine
    assert isinstance(found, Driver)
    return found


def idle(pool: Pool) -> bool:
    """Tell whether nothing is left of any work: no job, no lease, no announcement."""
    volumes = driver_of(pool)._table.by_ref(pool.ref)
    left = (volumes.pool.jobs, len(volumes.pool.leases), volumes._making._announced)
    return not any(left) and volumes.pool._exclusive is None
