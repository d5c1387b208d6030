"""LVM of a test's own: its configuration sees nothing but the loop devices of the test.

With device-mapper all works; without it LVM still keeps its metadata, and nothing is activated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import PLAIN_CLONE, CloneOptions, Durability, Host, ImageSource
from storaged.backends.logical import Logical
from storaged.job import Job
from storaged.model import PoolDef, PoolSource, PoolType, SourceDevice, VolumeDef, VolumeRecord
from tests.kernel.features import missing
from tests.kernel.fixtures import LoopDevice
from tests.kernel.programs import run

MIB = 1 << 20
#: What is uploaded is on the disk when that has ended.
DURABLE = Host(id="testhost", durability=Durability.FULL)
DATA = Path(__file__).parent / "data"


def new_job(kind: str = "test") -> Job[Any]:
    return Job(kind, "vg")


@dataclass
class Lab:
    """Devices and groups that only this test's LVM knows."""

    make_device: LoopDevice
    directory: Path
    maps: bool
    devices: list[str] = field(default_factory=list)

    def device(self, mebibytes: int = 64) -> str:
        """A new empty loop device that LVM sees."""
        device = self.make_device(mebibytes)
        self.see(device)
        return device

    def see(self, device: str) -> None:
        """Have LVM see a device."""
        self.devices.append(device)
        self._configure()

    def hide(self, device: str) -> None:
        """Have LVM see a device no more, as if it had been pulled."""
        self.devices.remove(device)
        self._configure()

    def _configure(self) -> None:
        seen = ", ".join([*(f'"a|^{one}$|"' for one in self.devices), '"r|.*|"'])
        on = int(self.maps)
        # autoextend and polling daemons have no place in a test
        (self.directory / "lvm.conf").write_text(
            f'global {{ activation = {on} locking_dir = "{self.directory / "lock"}" }}\n'
            f"devices {{ use_devicesfile = 0 filter = [ {seen} ] }}\n"
            "backup { backup = 0 archive = 0 }\n"
            f"activation {{ udev_sync = {on} monitoring = 0 }}\n"
        )

    def group(self, name: str, *devices: str) -> str:
        """A new volume group."""
        run("vgcreate", "-y", "-qq", name, *(devices or (self.device(),)))
        return name

    def lvm(self, *words: str, check: bool = True) -> str:
        return run("lvm", *words, check=check)

    def names(self, group: str) -> set[str]:
        """What LVM itself says of the volumes of a group."""
        rows = run("lvm", "lvs", "-qq", "--noheadings", "-o", "lv_name", group).splitlines()
        return {row.strip() for row in rows if "WARNING" not in row}

    def pool(self, group: str, *devices: str, **options: Any) -> Logical:
        """The backend of a pool."""
        host = options.pop("host", Host(id="testhost", durability=Durability.NONE))
        source = PoolSource(name=group, devices=tuple(map(SourceDevice, devices)))
        return Logical(PoolDef(PoolType.LOGICAL, group, source=source, **options), host)

    def restore(self, record: Path, group: str, mebibytes: int) -> list[str]:
        """Make a group whose metadata were recorded with vgcfgbackup; return its devices."""
        text = record.read_text()
        uuids = [
            line.split('"')[1]
            for line in text.partition("physical_volumes")[2]
            .partition("logical_volumes")[0]
            .splitlines()
            if line.strip().startswith("id =")
        ]
        devices = [self.device(mebibytes) for _ in uuids]
        for uuid, device in zip(uuids, devices, strict=True):
            run("pvcreate", "-y", "-qq", "--norestorefile", "-u", uuid, device)
        run("vgcfgrestore", "--force", "-f", record, group)
        return devices


def create(pool: Logical, name: str, capacity: int, **options: Any) -> VolumeRecord:
    """Plan and make a volume."""
    secret = options.pop("secret", None)
    planned = pool.plan(VolumeDef(name, capacity, **options))
    return pool.create(planned, new_job("create"), secret=secret)


def volumes(pool: Logical) -> dict[str, VolumeRecord]:
    return pool.refresh({}, new_job()).volumes


def as_made(record: VolumeRecord) -> VolumeRecord:
    """A record without what depends on the machine."""
    return replace(record, stamp=b"", problem=None)


def pool_of(lab: Lab, mebibytes: int = 256, name: str = "vg", **options: Any) -> Logical:
    """A pool that is a new group of one device."""
    device = lab.device(mebibytes)
    return lab.pool(lab.group(name, device), device, **options)


def upload(pool: Logical, record: VolumeRecord, data: bytes) -> None:
    """Send data to a volume, from its first byte on."""
    sink = pool.upload(record, 0, 0)
    try:
        for start in range(0, len(data), MIB):
            sink.write(data[start : start + MIB])
        sink.finish()
    finally:
        sink.abort()


def clone(
    pool: Logical,
    name: str,
    source: VolumeRecord,
    how: CloneOptions = PLAIN_CLONE,
    *,
    reflink: bool = False,
    giving: Any = None,
    **options: Any,
) -> VolumeRecord:
    """Clone a volume of the pool, or of another, *giving*."""
    giving = giving or pool
    planned = pool.plan_clone(VolumeDef(name, **options), source, options=how)
    with closing(giving.open_image(source)) as handle:
        image = ImageSource(source, handle, str(source.path), lambda: giving.open_disk(source))
        return pool.clone(planned, image, new_job("clone"), reflink=reflink, options=how)


def write(record: VolumeRecord, data: bytes, offset: int = 0) -> None:
    with Path(str(record.path)).open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(record: VolumeRecord, length: int, offset: int = 0) -> bytes:
    with Path(str(record.path)).open("rb") as file:
        file.seek(offset)
        return file.read(length)


@pytest.fixture
def lab(tmp_path: Path, loop_device: LoopDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    directory = tmp_path / "lvm"
    (directory / "lock").mkdir(parents=True)
    monkeypatch.setenv("LVM_SYSTEM_DIR", os.fspath(directory))
    monkeypatch.setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
    lab = Lab(loop_device, directory, maps=missing("dm") is None)
    yield lab
    if lab.maps:
        run("vgchange", "-an", "-y", check=False)
