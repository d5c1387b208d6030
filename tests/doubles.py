"""A backend that fails and hangs on demand, and what tests need around an engine.

`make_double` makes a class of its own for each test, so that nothing is shared. It is a pool of
type dir in all that it does: its volumes are real files.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from storaged.backend import (
    Backend,
    Descriptor,
    Figures,
    HasSnapshots,
    Host,
    ImageSource,
    Refresh,
    Sink,
    Source,
)
from storaged.backends.dir import Dir
from storaged.errors import Domain, OperationInvalid, StorageError
from storaged.formats.checkreport import CheckReport
from storaged.formats.handle import Handle
from storaged.imaging import ConvertOptions
from storaged.job import Job
from storaged.model import PoolDef, Space, VolumeDef, VolumeRecord

#: How long a test waits for what must come, in seconds: generous, for a busy machine.
PATIENCE = 20.0
#: A query that waits for nothing must be answered within this, also on a busy machine.
PROMPT = 2.0


@dataclass
class _Gate:
    """Where an operation is held: lively (it shows signs of life and can be cancelled) or not."""

    opened: threading.Event
    lively: bool


class Control:
    """What the operations of a double do, by their names; "" is all of them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._gates: dict[str, _Gate] = {}
        self._faults: dict[str, StorageError] = {}

    def hold(self, operation: str, *, lively: bool = False) -> None:
        """Let nobody through: as a dead server does, or with *lively* as slow work does."""
        self._gates[operation] = _Gate(threading.Event(), lively)

    def release(self, operation: str) -> None:
        gate = self._gates.pop(operation, None)
        if gate is not None:
            gate.opened.set()

    def release_all(self) -> None:
        for operation in tuple(self._gates):
            self.release(operation)

    def fail(self, operation: str, error: StorageError) -> None:
        self._faults[operation] = error

    def mend(self, operation: str) -> None:
        self._faults.pop(operation, None)

    def wait_for(self, operation: str, calls: int = 1) -> None:
        """Return when the operation has been called so often in all."""
        eventually(lambda: self.calls[operation] >= calls)

    def enter(self, operation: str, job: Job[Any] | None = None) -> None:
        with self._lock:
            self.calls[operation] += 1
        gate = self._gates.get(operation) or self._gates.get("")
        if gate is not None and gate.lively and job is not None:
            while not gate.opened.wait(0.005):
                job.checkpoint(job.done + 4096, 600 << 20)
        elif gate is not None:
            gate.opened.wait()
        if operation in self._faults:
            raise self._faults[operation]


class Double(Dir):
    """A pool of type dir with a `Control` before each of its operations."""

    control: ClassVar[Control]

    def check(self) -> bool:
        self.control.enter("check")
        return super().check()

    def start(self, job: Job[Any]) -> None:
        self.control.enter("start", job)
        super().start(job)

    def stop(self, job: Job[Any]) -> None:
        self.control.enter("stop", job)
        super().stop(job)

    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        self.control.enter("build", job)
        super().build(job, overwrite=overwrite)

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        self.control.enter("refresh", job)
        found = super().refresh(known, job)
        self.control.enter("refreshed", job)
        return found

    def measure(self) -> Figures:
        self.control.enter("measure")
        return super().measure()

    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        self.control.enter("look")
        return super().look(name, known)

    def describe(self, record: VolumeRecord) -> VolumeDef:
        self.control.enter("describe")
        return super().describe(record)

    def create(self, volume: VolumeDef, job: Job[Any], **how: Any) -> VolumeRecord:
        self.control.enter("create", job)
        return super().create(volume, job, **how)

    def clone(
        self, volume: VolumeDef, source: ImageSource, job: Job[Any], **how: Any
    ) -> VolumeRecord:
        self.control.enter("clone", job)
        return super().clone(volume, source, job, **how)

    def delete(self, volume: VolumeRecord, job: Job[Any], *, force: bool = False) -> None:
        self.control.enter("delete", job)
        super().delete(volume, job, force=force)
        self.control.enter("deleted", job)

    def resize(
        self, volume: VolumeRecord, capacity: int, job: Job[Any], **how: Any
    ) -> VolumeRecord:
        self.control.enter("resize", job)
        return super().resize(volume, capacity, job, **how)

    def wipe(
        self, volume: VolumeRecord, algorithm: Any, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        self.control.enter("wipe", job)
        return super().wipe(volume, algorithm, job, force=force)

    def check_image(self, volume: VolumeRecord, job: Job[Any], **how: Any) -> CheckReport:
        self.control.enter("check_image", job)
        return super().check_image(volume, job, **how)

    def rewrite(
        self, volume: VolumeRecord, options: ConvertOptions, job: Job[Any], **how: Any
    ) -> VolumeRecord:
        self.control.enter("rewrite", job)
        return super().rewrite(volume, options, job, **how)

    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        self.control.enter("open_image")
        return super().open_image(volume, writable=writable)

    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        self.control.enter("upload")
        return super().upload(volume, offset, length)

    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        self.control.enter("download")
        return super().download(volume, offset, length, sparse=sparse)


def make_double(kind: str = "double") -> tuple[type[Backend], Control]:
    """Return a backend class for a pool type, and what controls all pools of it."""
    control = Control()
    made = type(
        "Double", (Double,), {"descriptor": Descriptor(kind, volume_formats=("raw",)),
                              "control": control}
    )  # fmt: skip
    return made, control


class Layered(Double, HasSnapshots):
    """A pool whose volumes can have snapshots; the tests make them."""

    #: the snapshots of volumes, by the names of those
    snapshots: ClassVar[dict[str, list[str]]]

    def delete(
        self, volume: VolumeRecord, job: Job[Any], *, force: bool = False, snapshots: bool = False
    ) -> None:
        if snapshots:
            self.snapshots.pop(volume.name, None)
        if kept := self.snapshots.get(volume.name):
            raise OperationInvalid(f"volume '{volume.name}' has snapshots: {', '.join(kept)}")
        super().delete(volume, job, force=force)


def make_layered(kind: str = "layered") -> type[Layered]:
    """Return a backend class for a pool type whose volumes can have snapshots."""
    made = {"descriptor": Descriptor(kind), "control": Control(), "snapshots": {}}
    return type("Layered", (Layered,), made)


class Shelf(Backend):
    """A pool type that only lists, and whose volumes have keys and paths of their own."""

    descriptor = Descriptor("shelf")
    #: what every pool of this class holds
    volumes: ClassVar[Mapping[str, tuple[str, str]]] = {
        "one": ("key-of-one", "shelf://one"),
        "two": ("key-of-two", "shelf://two"),
    }

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(definition, host)
        self.scans = 0

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        self.scans += 1
        found = {
            name: VolumeRecord(name, 100, 50, key=key, path=path)
            for name, (key, path) in self.volumes.items()
        }
        return Refresh(found, Space(1000, 100, 900))


def eventually(holds: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Return when *holds* does; fail if that takes too long."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


@contextmanager
def refused(
    code: int, message: str | None = None, domain: Domain = Domain.STORAGE
) -> Iterator[pytest.ExceptionInfo[StorageError]]:
    """Expect an error of libvirt's *code* and *domain* whose whole text is *message*."""
    with pytest.raises(StorageError) as caught:
        yield caught
    error = caught.value
    assert (error.code, error.domain) == (code, domain), error
    if message is not None:
        assert str(error) == message


@contextmanager
def promptly(limit: float = PROMPT) -> Iterator[None]:
    """Fail if the block takes longer than what waits for nothing may take."""
    before = time.monotonic()
    yield
    taken = time.monotonic() - before
    assert taken < limit, f"it took {taken:.2f} s"
