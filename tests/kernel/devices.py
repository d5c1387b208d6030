"""Block devices to test on: loops, the guest's disks, faults by device-mapper, scsi_debug."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kernel.programs import eventually, in_guest, run

#: A sector, as device-mapper counts.
SECTOR = 512


def settle(seconds: int = 10) -> None:
    """Wait until udev has worked off its events, where it runs."""
    if Path("/run/udev/control").exists():
        run("udevadm", "settle", f"--timeout={seconds * 10 if in_guest() else seconds}")


def size_of(device: str | Path) -> int:
    """Return the size of a block device in bytes."""
    with Path(device).open("rb") as file:
        return file.seek(0, os.SEEK_END)


@contextmanager
def attached(image: Path, *, partitions: bool = False) -> Iterator[str]:
    """Make a loop device of a file, for a while; what lies on it is taken down at the end."""
    flags = ["--partscan"] if partitions else []
    device = run("losetup", "--find", "--show", *flags, image).strip()
    try:
        yield device
    finally:
        take_down(device)
        run("losetup", "--detach", device)
        backing = Path("/sys/block", Path(device).name, "loop/backing_file")
        # the kernel lets go of it when the last who looked at it has closed it
        eventually(lambda: not _reads(backing, str(image)), what=f"the end of {device}")


def _reads(file: Path, text: str) -> bool:
    try:
        return file.read_text().startswith(text)
    except OSError:
        return False


def take_down(device: str | Path) -> None:
    """Unmount a device and its partitions, and remove what device-mapper has built on them."""
    name = Path(device).resolve().name
    parts = [path.name for path in Path("/sys/class/block", name).glob(f"{name}*")]
    for part in (*parts, name):
        _unmount(f"/dev/{part}")
        for holder in list(Path("/sys/class/block", part, "holders").glob("dm-*")):
            take_down(f"/dev/{holder.name}")
            _remove_mapping(holder.name)


def _remove_mapping(node: str) -> None:
    try:
        mapping = Path("/sys/class/block", node, "dm/name").read_text().strip()
    except OSError:
        return  # it went with another
    # a suspended one would hang whatever looks at it
    run("dmsetup", "resume", mapping, check=False)
    run("dmsetup", "remove", "--retry", "--force", mapping)


def _unmount(device: str) -> None:
    number = Path(device).stat().st_rdev if Path(device).exists() else 0
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields = line.split()
        if fields[2] == wanted:
            run("umount", fields[4].encode().decode("unicode_escape"))


def wipe(device: str | Path) -> None:
    """Take down what uses a device, and make it read as zeroes again."""
    take_down(device)
    settle()
    if "discard" not in run("blkdiscard", "--force", "--zeroout", device, check=False):
        return
    run("wipefs", "--all", "--force", device)


def disk_by_serial(serial: str) -> str:
    """Return the node of one of the guest's disks: DISK0, DISK1 (virtio), LUN0, LUN1 (SCSI).

    :raise AssertionError: there is none.
    """
    for block in sorted(Path("/sys/block").iterdir()):
        if serial in _serials(block):
            return f"/dev/{block.name}"
    raise AssertionError(f"this machine has no disk with the serial {serial}")


def _serials(block: Path) -> set[str]:
    found = set()
    for file in ("serial", "device/vpd_pg80"):
        try:
            data = (block / file).read_bytes()
        except OSError:
            continue
        # page 0x80 of the vital product data starts with four bytes of its own
        found.add((data[4:] if file.endswith("pg80") else data).decode(errors="replace").strip())
    return found


class Mapper:
    """Devices of device-mapper that fail, or hang, on demand; all go at the end of the test."""

    def __init__(self, prefix: str, stack: ExitStack) -> None:
        self._prefix = prefix
        self._stack = stack
        self._count = 0

    def create(self, table: str, *, rules: bool = True) -> str:
        """Make a device of a table (as dmsetup takes it) and return its path.

        :param rules: let udev look at it; on a slow device that takes its time.
        """
        name = f"{self._prefix}-{self._count}"
        self._count += 1
        quiet = [] if rules else ["--noudevrules", "--noudevsync"]
        run("dmsetup", "create", name, *quiet, "--table", table)
        device = f"/dev/mapper/{name}"
        self._stack.callback(self._remove, name)
        if not Path(device).exists():
            run("dmsetup", "mknodes", name)
        return device

    def linear(self, device: str) -> str:
        """Return a device that passes all through: to be suspended, or to `break_` later."""
        return self.create(f"0 {_sectors(device)} linear {device} 0")

    def error(self, size: int) -> str:
        """Return a device of *size* bytes on which every read and write fails."""
        return self.create(f"0 {size // SECTOR} error")

    def half(self, device: str, good: int) -> str:
        """Return a device whose first *good* bytes work, and no others."""
        first, all_ = good // SECTOR, _sectors(device)
        return self.create(f"0 {first} linear {device} 0\n{first} {all_ - first} error")

    def failing_writes(self, device: str) -> str:
        """Return a device that can be read, and whose writes fail."""
        return self.create(f"0 {_sectors(device)} flakey {device} 0 0 100 1 error_writes")

    def flakey(self, device: str, up: int, down: int) -> str:
        """Return a device that works for *up* seconds, fails for *down* seconds, and so on."""
        return self.create(f"0 {_sectors(device)} flakey {device} 0 {up} {down}")

    def delay(self, device: str, milliseconds: int) -> str:
        """Return a device each of whose requests takes so long."""
        table = f"0 {_sectors(device)} delay {device} 0 {milliseconds}"
        return self.create(table, rules=False)

    def suspend(self, mapped: str) -> None:
        """Let all who read or write the device hang (nothing kills them), until `resume`."""
        run("dmsetup", "suspend", "--noflush", "--nolockfs", Path(mapped).name)

    def resume(self, mapped: str) -> None:
        """Let them go on."""
        run("dmsetup", "resume", Path(mapped).name)

    def break_(self, mapped: str) -> None:
        """Let every request of the device fail from now on, those that hang too."""
        name = Path(mapped).name
        size = run("dmsetup", "table", name).split()[1]
        run("dmsetup", "load", name, "--table", f"0 {size} error")
        run("dmsetup", "resume", name)

    def fail_writes(self, mapped: str) -> None:
        """Let every write to a `linear` device fail from now on; it can still be read."""
        name = Path(mapped).name
        _, size, _, below, offset = run("dmsetup", "table", name).split()
        table = f"0 {size} flakey {below} {offset} 0 100 1 error_writes"
        run("dmsetup", "load", name, "--table", table)
        run("dmsetup", "resume", name)

    def remove(self, mapped: str) -> None:
        """Remove the device; who uses it gets errors."""
        self._remove(Path(mapped).name)

    def _remove(self, name: str) -> None:
        if not Path(f"/dev/mapper/{name}").exists():
            return
        # first of all: what is suspended hangs whoever looks at it
        run("dmsetup", "resume", name, check=False)
        take_down(f"/dev/mapper/{name}")
        run("dmsetup", "remove", "--retry", "--force", name)


def _sectors(device: str) -> int:
    return size_of(device) // SECTOR


@contextmanager
def scsi_hosts(**parameters: int) -> Iterator[list[str]]:
    """Give the nodes of disks that the module scsi_debug makes up; *parameters* are its own.

    Such as ``dev_size_mb=32, num_tgts=2, max_luns=2, add_host=1``.
    """
    run("modprobe", "-r", "scsi_debug", check=False)
    before = _scsi_disks()
    count = parameters.get("add_host", 1) * parameters.get("num_tgts", 1)
    count *= parameters.get("max_luns", 1)
    run("modprobe", "scsi_debug", *(f"{name}={value}" for name, value in parameters.items()))
    try:
        # the kernel looks for them in its own time
        eventually(lambda: len(_scsi_disks() - before) == count, what=f"{count} disks")
        settle()
        yield sorted(f"/dev/{name}" for name in _scsi_disks() - before)
    finally:
        for name in _scsi_disks() - before:
            take_down(f"/dev/{name}")
        settle()
        run("modprobe", "-r", "scsi_debug")


def _scsi_disks() -> set[str]:
    return {path.name for path in Path("/sys/block").glob("sd*")}
