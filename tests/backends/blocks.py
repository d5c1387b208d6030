"""A pool type whose volumes are block devices that a test names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from storaged.backend import Descriptor, Durability, Host, ImageSource, Refresh
from storaged.backends._block import BlockVolumes, ClonesToBlock, device_stamp, size_of
from storaged.job import Job
from storaged.model import PoolDef, PoolType, Space, VolumeDef, VolumeRecord, VolumeType

MIB = 1 << 20
FULL = Host(id="testhost", durability=Durability.FULL)


class Devices(BlockVolumes, ClonesToBlock):
    """The volumes are `devices`, by name."""

    descriptor: ClassVar[Descriptor] = Descriptor("test-devices")

    def __init__(self, devices: Mapping[str, str]) -> None:
        super().__init__(PoolDef(PoolType.DIR, "blocks", target="/dev"), FULL)
        self.devices = dict(devices)

    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        found = {name: self.record(name) for name in self.devices}
        return Refresh(found, Space(0, 0, 0))

    def record(self, name: str) -> VolumeRecord:
        path = self.devices[name]
        rdev = Path(path).stat().st_rdev
        size = size_of(rdev) or 0
        return VolumeRecord(
            name,
            size,
            size,
            size,
            "raw",
            VolumeType.BLOCK,
            device_stamp(rdev, size),
            key=f"key-{name}",
            path=path,
        )

    def plan(self, volume: VolumeDef, **options: Any) -> VolumeDef:
        return self.check_request(volume)

    def create(self, volume: VolumeDef, job: Job[Any], **options: Any) -> VolumeRecord:
        raise NotImplementedError

    def plan_clone(self, volume: VolumeDef, source: VolumeRecord, **options: Any) -> VolumeDef:
        return self.check_clone(volume, source, **options)

    def clone(
        self, volume: VolumeDef, source: ImageSource, job: Job[Any], **options: Any
    ) -> VolumeRecord:
        raise NotImplementedError

    @contextmanager
    def opened(self, record: VolumeRecord) -> Iterator[ImageSource]:
        """The source of a clone."""
        with closing(self.open_image(record)) as handle:
            path = record.path or ""
            yield ImageSource(record, handle, path, lambda: self.open_disk(record))


def fill(path: str, data: bytes = b"x" * MIB) -> None:
    """Overwrite a device with *data*, over and over."""
    size = size_of(Path(path).stat().st_rdev) or 0
    with Path(path).open("r+b", buffering=0) as file:
        for start in range(0, size, len(data)):
            file.write(data[: size - start])


def content(path: str) -> bytes:
    return Path(path).read_bytes()
