"""Encrypted volumes on block devices, whose passphrase is a secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storaged.backend import CloneOptions, DeletesVolumes, Descriptor, Host, ImageSource, Resizes
from storaged.backends._blockclone import HEADER_ROOM
from storaged.driver import Driver, open_driver
from storaged.errors import InvalidArgument, NoSpace, NoSuchSecret
from storaged.formats.errors import WrongPassphrase
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.luks_volume import unlock
from storaged.job import Job
from storaged.model import BackingStore, PoolDef, PoolRef, PoolSource, VolumeDef, VolumeRecord
from storaged.paths import Paths
from storaged.registry import Registry
from tests.backends.blocks import MIB, Devices
from tests.backends.volumegroups import Lab, lab
from tests.kernel.devices import size_of
from tests.kernel.programs import run
from tests.secrets.conftest import document, numbered
from tests.secrets.test_volumes import PASSPHRASE

__all__ = ["lab"]

pytestmark = [pytest.mark.kernel("loop"), pytest.mark.slow]

#: What a guest has of a volume on the smallest device, in bytes.
SIZE = 6 * MIB - HEADER_ROOM


class Slots(Devices, DeletesVolumes, Resizes):
    """New volumes are links to the loop devices of the class, until these are used up."""

    descriptor: ClassVar[Descriptor] = Descriptor("slots")
    spare: ClassVar[list[str]]

    def __init__(self, definition: PoolDef, host: Host) -> None:
        self.definition, self.host = definition, host

    @property
    def devices(self) -> dict[str, str]:  # type: ignore[override]
        return {path.name: str(path) for path in Path(self.definition.target or "").iterdir()}

    def create(
        self, volume: VolumeDef, job: Job[Any], *, secret: bytes | None = None, **options: Any
    ) -> VolumeRecord:
        path = self._take(volume)
        if secret is not None:
            self.encrypt_device(path, volume, secret)
        return self.look_again(self.record(volume.name))

    def plan_clone(
        self,
        volume: VolumeDef,
        source: VolumeRecord,
        *,
        options: CloneOptions = CloneOptions(),  # noqa: B008 -- it cannot be changed
        **rest: Any,
    ) -> VolumeDef:
        return self.check_clone(volume, source, options)

    def clone(
        self,
        volume: VolumeDef,
        source: ImageSource,
        job: Job[Any],
        *,
        options: CloneOptions = CloneOptions(),  # noqa: B008 -- it cannot be changed
        **rest: Any,
    ) -> VolumeRecord:
        path = self._take(volume)
        try:
            self.fill_device(path, volume, source, job, options)
        except BaseException:
            Path(path).unlink()
            raise
        return self.look_again(self.record(volume.name))

    def delete(self, volume: VolumeRecord, job: Job[Any], *, force: bool = False) -> None:
        Path(self.device_path(volume)).unlink()

    def resize(
        self, volume: VolumeRecord, capacity: int, job: Job[Any], **options: Any
    ) -> VolumeRecord:
        device = Path(self.device_path(volume)).resolve()
        backing = Path("/sys/block", device.name, "loop/backing_file").read_text().strip()
        with Path(backing).open("r+b") as file:
            file.truncate(capacity)
        run("losetup", "--set-capacity", device)
        return self.look_again(volume)

    def _take(self, volume: VolumeDef) -> str:
        """Give a volume the smallest device that it fits on."""
        path = Path(self.definition.target or "", volume.name)
        for device in sorted(self.spare, key=size_of):
            if size_of(device) >= self.room_for(volume):
                self.spare.remove(device)
                path.symlink_to(device)
                return str(path)
        raise NoSpace(f"no device for {self.room_for(volume)} bytes")


def define_secrets(driver: Driver) -> None:
    """Define a private secret for a volume called /any, and another one."""
    for number, use, value in ((1, "/any", PASSPHRASE), (2, "/other", b"another")):
        driver.secret_define_xml(document(number, use, private=number == 1))
        driver.secret_set_value(numbered(number), value)


@pytest.fixture
def registry(loop_device: Callable[..., str]) -> Registry:
    spare = [loop_device(size) for size in (6, 6, 10)]
    return Registry({"slots": type("Mine", (Slots,), {"spare": spare})})


@pytest.fixture
def driver(paths: Paths, registry: Registry) -> Iterator[Driver]:
    with open_driver(paths, registry=registry) as found:
        yield found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the links of the pool are."""
    path = tmp_path / "slots"
    path.mkdir()
    return path


@pytest.fixture
def pool(driver: Driver, directory: Path) -> PoolRef:
    """An active pool of an engine with secrets."""
    define_secrets(driver)
    ref = driver.pool_define(PoolDef("slots", "p", target=str(directory)))
    driver.pool_start(ref).result()
    return ref


@pytest.fixture
def files(driver: Driver, tmp_path: Path) -> PoolRef:
    """An active pool of files."""
    (tmp_path / "files").mkdir()
    ref = driver.pool_define(PoolDef("dir", "files", target=str(tmp_path / "files")))
    driver.pool_start(ref).result()
    return ref


def volume(name: str, secret: int | str = 1, capacity: int = 4) -> str:
    if isinstance(secret, int):
        secret = f"<secret type='passphrase' uuid='{numbered(secret)}'/>"
    return (
        f"<volume><name>{name}</name><capacity unit='MiB'>{capacity}</capacity><target>"
        f"<format type='raw'/><encryption format='luks'>{secret}</encryption></target></volume>"
    )


@contextmanager
def guest(path: Path, passphrase: bytes = PASSPHRASE) -> Iterator[Handle]:
    """Open what a guest sees of an encrypted volume."""
    fd = os.open(path, os.O_RDWR)
    try:
        yield unlock(FileHandle(fd, owned=False), passphrase)
    finally:
        os.close(fd)


def mark(path: Path) -> None:
    """Have a guest write to the begin and the end of an encrypted volume."""
    with guest(path) as disk:
        disk.pwrite(b"first", 0)
        disk.pwrite(b"last", disk.size() - 4)


def require_marks(path: Path, passphrase: bytes = PASSPHRASE, device: int = 6 * MIB) -> None:
    """Look for what `mark` wrote, in a copy that is as long as its source was."""
    size = device - HEADER_ROOM
    with guest(path, passphrase) as disk:
        assert disk.size() == size
        assert disk.pread(5, 0) == b"first"
        assert disk.pread(4, size - 4) == b"last"


def test_a_life(driver: Driver, pool: PoolRef, directory: Path) -> None:
    driver.secret_define_xml(document(3, "/empty"))
    for secret, error in (
        ("", InvalidArgument),
        ("<secret type='passphrase' usage='/none'/>", NoSuchSecret),
        (9, NoSuchSecret),
        (3, NoSuchSecret),
    ):
        with pytest.raises(error):
            driver.volume_create_xml(pool, volume("a", secret)).result()
        assert (driver.volumes(pool), list(directory.iterdir())) == ([], [])
    made = driver.volume_create_xml(pool, volume("a")).result()
    path = directory / "a"
    mark(path)
    with pytest.raises(WrongPassphrase), guest(path, b"another"):
        pass
    named = f"<secret type='passphrase' uuid='{numbered(1)}'/>"
    assert named in driver.volume_xml(made)
    driver.volume_resize(made, 10 * MIB).result()
    assert named in driver.volume_xml(made)
    with guest(path) as disk:
        assert disk.size() == 10 * MIB - HEADER_ROOM
        assert disk.pread(5, 0) == b"first"
        assert disk.pread(4, SIZE - 4) == b"last"
    driver.pool_refresh(pool).result()
    text = driver.volume_xml(made)
    assert "<encryption format='luks'>" in text
    assert "<secret" not in text
    driver.secret_define_xml(document(4, str(path)))
    assert f"uuid='{numbered(4)}'" in driver.volume_xml(made)
    driver.volume_delete(made).result()
    assert driver.volumes(pool) == []


def test_clones(driver: Driver, pool: PoolRef, directory: Path) -> None:
    """A clone with a container of its own is no larger than its source."""
    source = driver.volume_create_xml(pool, volume("a")).result()
    mark(directory / "a")
    driver.volume_clone_xml(pool, volume("b", 2, 0), source).result()
    require_marks(directory / "b", b"another")
    plain = "<volume><name>c</name><capacity>0</capacity></volume>"
    copy = driver.volume_clone_xml(pool, plain, source).result()  # nobody asked to open it
    container = (directory / "a").read_bytes()
    assert (directory / "c").read_bytes()[: len(container)] == container
    assert "<encryption format='luks'>" in driver.volume_xml(copy)


def test_clones_in_files_and_back(
    paths: Paths, registry: Registry, driver: Driver, pool: PoolRef, files: PoolRef, directory: Path
) -> None:
    driver.volume_create_xml(pool, volume("a")).result()
    mark(directory / "a")
    driver.secret_define_xml(document(5, str(directory / "a")))
    driver.secret_set_value(numbered(5), PASSPHRASE)
    driver.close()
    with open_driver(paths, registry=registry) as other:  # that does not know how it was made
        source = other.volume_lookup_by_name(pool, "a")
        for name, capacity in (("same", SIZE), ("more", 5 * MIB)):
            text = (
                f"<volume><name>{name}</name><capacity>{capacity}</capacity>"
                "<target><format type='qcow2'/></target></volume>"
            )
            copy = other.volume_clone_xml(files, text, source).result()
            assert other.volume_info(copy).capacity == capacity
        locked = other.volume_clone_xml(files, volume("locked", 2, 0), source).result()
        assert other.volume_info(locked).capacity == SIZE
        require_marks(Path(locked.key), b"another")
        other.volume_clone_xml(pool, volume("b", 1, 0), locked).result()
        require_marks(directory / "b")


@pytest.mark.kernel("lvm", "dm", "thin")
def test_logical_volumes(lab: Lab, paths: Paths) -> None:
    lab.group("vg", lab.device(64))
    device = Path("/dev/vg")
    with open_driver(paths) as driver:
        define_secrets(driver)
        definition = PoolDef("logical", "vg", source=PoolSource(name="vg"), target="/dev/vg")
        pool = driver.pool_define(definition)
        driver.pool_start(pool).result()
        source = driver.volume_create_xml(pool, volume("a")).result()
        mark(device / "a")
        clone = driver.volume_clone_xml(pool, volume("b", 2, 0), source).result()
        assert driver.volume_info(clone).capacity == driver.volume_info(source).capacity == 8 * MIB
        require_marks(device / "b", b"another", 8 * MIB)
        driver.volume_resize(source, 12 * MIB).result()
        with guest(device / "a") as disk:
            assert disk.size() == 12 * MIB - HEADER_ROOM
            assert disk.pread(5, 0) == b"first"
        driver.volume_create(pool, VolumeDef("tp", 24 * MIB, format="thin-pool")).result()
        thin = driver.parse_volume(pool, volume("thin"))
        made = driver.volume_create(pool, replace(thin, backing=BackingStore("tp"))).result()
        mark(device / "thin")
        opened = CloneOptions(source_secret=PASSPHRASE)
        driver.volume_clone(pool, VolumeDef("open"), made, options=opened).result()
        assert (device / "open").read_bytes()[:5] == b"first"
        driver.pool_refresh(pool).result()
        assert "<secret" not in driver.volume_xml(source)
        driver.secret_define_xml(document(4, "/dev/vg/a"))
        assert f"uuid='{numbered(4)}'" in driver.volume_xml(source)
        driver.pool_stop(pool).result()
