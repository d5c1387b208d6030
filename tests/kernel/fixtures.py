"""The fixtures of kernel-bound tests. A test that uses one is marked with the same features.

All that they make goes at the end of the test, by its own name or id, whatever the test did.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel import devices
from tests.kernel.iscsi import Initiator, Lio, Tgtd, sessions
from tests.kernel.nfs import NfsServer
from tests.kernel.programs import run

LoopDevice = Callable[..., str]
Disk = Callable[[str], str]
ScsiHosts = Callable[..., list[str]]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[LoopDevice]:
    """A function: ``loop_device(64)`` gives a fresh device of 64 MiB, sparse. Needs "loop".

    ``partitions=True`` makes nodes of its partitions.
    """
    with ExitStack() as stack:
        numbers = itertools.count()

        def make(mebibytes: int = 64, *, partitions: bool = False) -> str:
            image = tmp_path / f"loop-{next(numbers)}.img"
            with image.open("wb") as file:
                file.truncate(mebibytes << 20)
            return stack.enter_context(devices.attached(image, partitions=partitions))

        yield make


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A function: ``disk("DISK0")`` gives the node of one of the guest's disks. Needs "disks".

    DISK0 has 10 GiB, DISK1 2 GiB, both virtio; LUN0 and LUN1 are SCSI disks of 512 MiB. It is
    wiped before and after the test; ``/dev/disk/by-id/virtio-DISK0`` leads to it.
    """
    used: list[str] = []

    def give(serial: str) -> str:
        node = devices.disk_by_serial(serial)
        devices.wipe(node)
        used.append(node)
        return node

    yield give
    for node in used:
        devices.wipe(node)


@pytest.fixture
def mapper() -> Iterator[devices.Mapper]:
    """Devices that fail or hang on demand, see `Mapper`. Needs "dm"."""
    with ExitStack() as stack:
        yield devices.Mapper(f"storaged-test-{os.getpid()}", stack)


@pytest.fixture
def scsi_hosts() -> Iterator[ScsiHosts]:
    """A function: ``scsi_hosts(dev_size_mb=32, max_luns=2)`` gives disks. Needs "scsi_debug"."""
    with ExitStack() as stack:

        def make(**parameters: int) -> list[str]:
            return stack.enter_context(devices.scsi_hosts(**parameters))

        yield make


@pytest.fixture
def settle() -> Callable[[], None]:
    """A function that waits until udev has worked off its events."""
    return devices.settle


@pytest.fixture
def tgtd() -> Iterator[Tgtd]:
    """An iSCSI target of our own on a port of its own, without any target. Needs "tgt"."""
    server = Tgtd()
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def lio() -> Iterator[Lio]:
    """The kernel's iSCSI target; much quicker than tgtd. Needs "lio"."""
    server = Lio()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def initiator() -> Iterator[Initiator]:
    """A running iscsid; sessions that the test leaves are ended. Needs "iscsi".

    Name it before `tgtd` or `lio` among the arguments' fixtures, and sessions end after the target:
    name it after them.
    """
    before = sessions()
    daemon = Initiator()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop(before)


@pytest.fixture
def nfs_server() -> Iterator[NfsServer]:
    """A running NFS server without any export. Needs "nfsd" (and "nfs" to mount from it)."""
    server = NfsServer()
    try:
        server.start()
        yield server
    finally:
        server.resume()  # else what still has something of it open hangs
        server.close()


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path`; whatever is mounted below it at the end is unmounted, lazily."""
    yield tmp_path
    below = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for place in reversed(below):
        if Path(place) != tmp_path and Path(place).is_relative_to(tmp_path):
            run("umount", "--lazy", place)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes packets and answers none. Needs "dummy"."""
    run("ip", "link", "add", "storaged0", "type", "dummy")
    try:
        run("ip", "addr", "add", "10.99.99.1/24", "dev", "storaged0")
        run("ip", "link", "set", "storaged0", "up")
        yield "10.99.99.2"
    finally:
        run("ip", "link", "delete", "storaged0")
