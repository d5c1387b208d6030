"""An image that QEMU has open: nothing that would change it below QEMU is done."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storaged import imagelock
from storaged.backend import WipeAlgorithm
from storaged.errors import VolumeBusy
from storaged.imagebackend import ChangesHeaders
from storaged.model import BackingStore
from tests.backends.conftest import Pool, new_job

MIB = 1 << 20
Open = Callable[[Path, str], int]


def resize(pool: Pool, name: str) -> None:
    pool.backend.resize(pool.look(name), 2 * MIB, new_job())


def wipe(pool: Pool, name: str) -> None:
    pool.backend.wipe(pool.look(name), WipeAlgorithm.ZERO, new_job())


def delete(pool: Pool, name: str) -> None:
    pool.backend.delete(pool.look(name), new_job())


def rebase(pool: Pool, name: str) -> None:
    assert isinstance(pool.backend, ChangesHeaders)
    pool.backend.rebase(pool.look(name), BackingStore("base", "raw"), new_job(), force=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Open]:
    """A function that has a stopped virtual machine open an image; it returns the process id."""
    tool = shutil.which("qemu-system-x86_64")
    if tool is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def run(path: Path, format: str) -> int:
        argv = [
            tool, "-S", "-name", "guest=web1", "-machine", "pc,accel=tcg", "-m", "16",
            "-display", "none", "-nodefaults", "-drive", f"file={path},format={format},if=virtio",
            "-qmp", "stdio",
        ]  # fmt: skip
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe))
        await_machine(started[-1])
        status = path.stat()
        assert any(user.locking for user in imagelock.holders(status.st_dev, status.st_ino))
        return started[-1].pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def await_machine(process: subprocess.Popen[bytes]) -> None:
    """Wait until it answers: it has opened its disks, for the second time, only then."""
    assert process.stdin is not None
    assert process.stdout is not None
    for command in (b"qmp_capabilities", b"query-status"):
        process.stdin.write(b'{"execute": "%s"}\n' % command)
        process.stdin.flush()
    for line in process.stdout:
        if b"prelaunch" in line or b'"running"' in line:
            return
    raise AssertionError("qemu ended")


def refused(pool: Pool, work: Callable[[Pool, str], None], pid: int, who: str) -> None:
    before = (pool.path / "disk").read_bytes()
    with pytest.raises(VolumeBusy) as caught:
        work(pool, "disk")
    assert caught.value.code == 55
    assert f"{who} (pid {pid})" in (caught.value.advice or "")
    assert (pool.path / "disk").read_bytes() == before


@pytest.mark.parametrize("work", [resize, wipe, delete, rebase], ids=lambda work: work.__name__)
def test_storage_daemon(
    pool: Pool, storage_daemon: Callable[..., int], work: Callable[[Pool, str], None]
) -> None:
    pool.create("base", MIB)
    pool.create("disk", MIB, format="qcow2")
    pid = storage_daemon(pool.path / "disk")
    refused(pool, work, pid, "qemu-storage-da")


@pytest.mark.parametrize("work", [resize, wipe, delete], ids=lambda work: work.__name__)
def test_storage_daemon_with_a_raw_image(
    pool: Pool, storage_daemon: Callable[..., int], work: Callable[[Pool, str], None]
) -> None:
    pool.create("disk", MIB)
    pid = storage_daemon(pool.path / "disk", format="raw")
    refused(pool, work, pid, "qemu-storage-da")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("work", [resize, wipe, delete], ids=lambda work: work.__name__)
def test_virtual_machine(
    pool: Pool, machine: Open, work: Callable[[Pool, str], None], format: str
) -> None:
    """Also while it is stopped: it goes on with what it knew."""
    pool.create("disk", MIB, format=format)
    pid = machine(pool.path / "disk", format)
    refused(pool, work, pid, "virtual machine 'web1', qemu-system-x86")
