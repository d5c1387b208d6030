"""A pool of type dir on a fresh directory, and ways to fill it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import PLAIN_CLONE, CloneOptions, Durability, Host, ImageSource
from storaged.backends.dir import Dir
from storaged.job import Job
from storaged.model import Permissions, PoolDef, PoolType, VolumeDef, VolumeRecord


def new_job(kind: str = "test") -> Job[Any]:
    return Job(kind, "vms")


@dataclass
class Pool:
    """A backend and its directory, with the two steps of a create in one."""

    backend: Dir
    path: Path

    def create(self, name: str, capacity: int = 0, **options: Any) -> VolumeRecord:
        prealloc = options.pop("preallocate_metadata", False)
        options.setdefault("allocation", 0)
        secret = options.pop("secret", None)
        planned = self.backend.plan(
            VolumeDef(name, capacity, **options), preallocate_metadata=prealloc
        )
        return self.backend.create(planned, new_job(), preallocate_metadata=prealloc, secret=secret)

    def clone(
        self,
        name: str,
        source: VolumeRecord,
        *,
        reflink: bool = False,
        how: CloneOptions = PLAIN_CLONE,
        origin: Pool | None = None,
        **options: Any,
    ) -> VolumeRecord:
        options.setdefault("allocation", 0)
        full = options.pop("preallocate_metadata", False)
        planned = self.backend.plan_clone(
            VolumeDef(name, **options), source, preallocate_metadata=full, options=how
        )
        with (origin or self).opened(source) as image:
            return self.backend.clone(
                planned, image, new_job(), reflink=reflink, preallocate_metadata=full, options=how
            )

    @contextmanager
    def opened(self, source: VolumeRecord) -> Iterator[ImageSource]:
        """The source of a clone."""
        with closing(self.backend.open_image(source)) as handle:
            path = str(self.path / source.name)
            yield ImageSource(source, handle, path, lambda: self.backend.open_disk(source))

    def refresh(self, known: dict[str, VolumeRecord] | None = None) -> dict[str, VolumeRecord]:
        return self.backend.refresh(known or {}, new_job()).volumes

    def look(self, name: str) -> VolumeRecord:
        record = self.backend.look(name, None)
        assert record is not None
        return record

    def names(self) -> list[str]:
        """What really lies in the directory."""
        return sorted(entry.name for entry in self.path.iterdir())


MakePool = Callable[..., Pool]


def make_pool(
    path: Path,
    *,
    host: Host | None = None,
    permissions: Permissions = Permissions(),  # noqa: B008 - a frozen value
    **options: Any,
) -> Pool:
    host = host or Host(id="testhost", durability=Durability.NONE)
    definition = PoolDef(PoolType.DIR, "vms", target=str(path), permissions=permissions, **options)
    return Pool(Dir(definition, host), path)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    target = tmp_path / "vms"
    target.mkdir()
    return make_pool(target)


@pytest.fixture
def storage_daemon(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """A function: ``storage_daemon(path, read_only=False, format="qcow2")`` has QEMU open an image.

    A block device needs ``driver="host_device"``.
    It returns the process id; the processes are gone at the end.
    """
    tool = shutil.which("qemu-storage-daemon")
    if tool is None:
        pytest.skip("qemu-storage-daemon is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def run(
        path: Path, *, read_only: bool = False, format: str = "qcow2", driver: str = "file"
    ) -> int:
        pidfile = tmp_path / f"qsd-{len(started)}.pid"
        mode = "on" if read_only else "off"
        socket = tmp_path / f"qsd-{len(started)}.sock"
        export = ["--export", "type=nbd,id=x,node-name=n" + ("" if read_only else ",writable=on")]
        started.append(
            subprocess.Popen(
                [
                    tool,
                    "--pidfile",
                    pidfile,
                    "--blockdev",
                    f"driver={driver},node-name=f,filename={path},read-only={mode}",
                    "--blockdev",
                    f"driver={format},node-name=n,file=f,read-only={mode}",
                    "--nbd-server",
                    f"addr.type=unix,addr.path={socket}",
                    *export,
                ]
            )
        )
        deadline = time.monotonic() + 20
        while not pidfile.exists():
            assert started[-1].poll() is None, "qemu-storage-daemon ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return started[-1].pid

    yield run
    for process in started:
        process.kill()
        process.wait()
