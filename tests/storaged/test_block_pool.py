"""A pool of block devices through a whole engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from storaged.backend import Backend, Descriptor, Host, WipeAlgorithm
from storaged.errors import OperationInvalid, VolumeBusy
from storaged.model import PoolDef
from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from tests.backends.blocks import MIB, Devices, content, fill

pytestmark = pytest.mark.kernel("loop")

SIZE = 8 * MIB


class Disks(Devices):
    """The devices of the class are the volumes of every pool."""

    descriptor: ClassVar[Descriptor] = Descriptor("disks")
    all: ClassVar[dict[str, str]]

    def __init__(self, definition: PoolDef, host: Host) -> None:
        super().__init__(self.all)
        self.definition, self.host = definition, host


@pytest.fixture
def device(loop_device: Callable[..., str]) -> str:
    return loop_device(8)


@pytest.fixture
def path(device: str, tmp_path: Path) -> Path:
    """The name under which the device is known."""
    link = tmp_path / "lun"
    link.symlink_to(device)
    return link


@pytest.fixture
def storage(tmp_path: Path, path: Path) -> Iterator[Storage]:
    kind: type[Backend] = type("Mine", (Disks,), {"all": {"lun": str(path)}})
    with open_storage(tmp_path / "root", backends={"disks": kind}, lock_timeout=0) as made:
        yield made


@pytest.fixture
def pool(storage: Storage) -> Pool:
    made = storage.define_pool(PoolDef("disks", "blocks", target="/dev"))
    made.start()
    return made


def test_what_is_told_of_a_volume(storage: Storage, pool: Pool, path: Path) -> None:
    volume = pool.volume("lun")
    info = volume.info()
    assert (info.capacity, info.allocation) == (SIZE, SIZE)
    text = volume.xml()
    assert "<volume type='block'>" in text
    assert f"<path>{path}</path>" in text
    assert "<key>key-lun</key>" in text
    assert storage.volume_by_path(path).name == storage.volume_by_key("key-lun").name == "lun"


def test_bytes_go_in_and_out(pool: Pool, device: str, tmp_path: Path) -> None:
    fill(device)
    data = tmp_path / "data"
    with data.open("wb") as file:
        file.write(os.urandom(MIB))
        file.seek(6 * MIB)
        file.write(os.urandom(2 * MIB))
    volume = pool.volume("lun")
    assert volume.upload(data, sparse=True) == SIZE
    assert content(device) == data.read_bytes()
    out = tmp_path / "out"
    assert volume.download(out, sparse=True) == SIZE
    assert out.read_bytes() == data.read_bytes()
    assert out.stat().st_blocks * 512 < 4 * MIB


def test_wiping(pool: Pool, device: str) -> None:
    fill(device)
    job = pool.volume("lun").wipe(WipeAlgorithm.ZERO, wait=False)
    job.result()
    assert content(device) == bytes(SIZE)
    assert job.done == job.total == SIZE


def test_a_clone_in_a_directory(storage: Storage, pool: Pool, device: str, tmp_path: Path) -> None:
    with Path(device).open("r+b") as file:
        file.write(b"data")
    target = tmp_path / "files"
    target.mkdir()
    files = storage.define_pool(PoolDef("dir", "files", target=str(target)))
    files.start()
    copy = files.clone(pool.volume("lun"), "copy.qcow2", format="qcow2")
    assert copy.info().capacity == SIZE
    assert b"data" in (target / "copy.qcow2").read_bytes()


def test_what_is_in_use_is_refused(pool: Pool, device: str) -> None:
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(VolumeBusy):
            pool.volume("lun").wipe()
    finally:
        os.close(fd)
    pool.volume("lun").wipe()


def test_another_device_is_refused_until_a_refresh(
    pool: Pool, path: Path, loop_device: Callable[..., str]
) -> None:
    volume = pool.volume("lun")
    other = loop_device(9)
    fill(other)
    path.unlink()
    path.symlink_to(other)
    assert volume.info().capacity == SIZE
    with pytest.raises(OperationInvalid, match="is not what it was"):
        volume.wipe()
    assert content(other) == b"x" * 9 * MIB
    pool.refresh()
    assert volume.info().capacity == 9 * MIB
    volume.wipe()
    assert content(other) == bytes(9 * MIB)
