"""The guest as QEMU sees it: its disks, its command line, its time, its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.vm.packages import PreparationError, run

#: What init.sh prints when it is only asked whether a guest gets so far.
PROBE = "vm-probe-ok"
#: Seconds within which a guest must get so far for KVM to be of use.
_PROBE_LIMIT = 10
#: Accelerators and the processor that goes with them.
ACCELERATORS: Mapping[str, tuple[str, ...]] = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", "tcg,thread=multi", "-cpu", "max"),
}
_SYSTEM = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Disk:
    """A sparse disk of the guest. *serial* names it there."""

    serial: str
    mebibytes: int
    scsi: bool = False


#: The first is mounted at /scratch; the tests find the others by their serials.
SCRATCH = Disk("scratch", 12 << 10)
DISKS = (
    Disk("DISK0", 10 << 10),
    Disk("DISK1", 2 << 10),
    Disk("LUN0", 512, scsi=True),
    Disk("LUN1", 512, scsi=True),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest that can be booted.

    :param place: where its initrd and disks are made; what is in ``out`` there is its /out. Guests
        that run side by side share it and have a *number* each.
    """

    vmlinux: Path
    layer: Path
    place: Path
    number: int = 0
    memory: int = 2048
    processors: int = 2

    @property
    def out(self) -> Path:
        """What the guest sees as /out."""
        return self.place / "out"

    @property
    def kernel_log(self) -> Path:
        """What its kernel said."""
        return self.out / f"kernel.{self.number}.log"

    @property
    def status(self) -> Path:
        """Where it tells at its end whether all went well: 0 or 1."""
        return self.out / f"guest.{self.number}.status"

    @property
    def tree(self) -> Path:
        """What lies over all else in the guest's root: a copy of the checkout, by its path."""
        return self.place / "tree"

    @property
    def initrd(self) -> Path:
        """Its first root."""
        return self.place / "initrd.img"

    def kernel_words(self, accelerator: str, *parameters: str) -> list[str]:
        """Return the command that boots the kernel, without devices.

        QEMU gets a signal if we die, whatever of.
        """
        line = ("console=ttyS0", "panic=-1", "oops=panic", "quiet", "mitigations=off", *parameters)
        return [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *ACCELERATORS[accelerator],
            *("-machine", "q35", "-smp", str(self.processors), "-m", str(self.memory)),
            *("-kernel", str(self.vmlinux), "-initrd", str(self.initrd)),
            *("-append", " ".join(line)),
        ]

    def words(self, accelerator: str) -> list[str]:
        """Return the whole command; the console is on its standard output."""
        console = f"stdio,id=console,signal=off,logfile={self.out}/console.{self.number}.log"
        command = [
            *self.kernel_words(accelerator, f"guest={self.number}"),
            *("-serial", f"file:{self.kernel_log}", "-device", "virtio-rng-pci"),
            *("-device", "virtio-serial-pci", "-chardev", console),
            *("-device", "virtconsole,chardev=console", "-device", "virtio-scsi-pci,id=hba"),
        ]
        for tag, path, options in (
            ("host", Path("/"), ",readonly=on,multidevs=remap"),
            ("layer", self.layer, ",readonly=on"),
            ("tree", self.tree, ",readonly=on"),
            ("out", self.out, ""),
        ):
            command += [
                "-virtfs",
                f"local,path={path},mount_tag={tag},security_model=none{options}",
            ]
        for number, disk in enumerate((SCRATCH, *DISKS)):
            command += self._disk_words(number, disk)
        return command

    def _disk_words(self, number: int, disk: Disk) -> Iterator[str]:
        image = self._image(disk)
        options = "format=raw,if=none,cache=unsafe,discard=unmap"
        yield from ("-drive", f"file={image},id=drive{number},{options}")
        common = f"drive=drive{number},serial={disk.serial}"
        yield "-device"
        if disk.scsi:
            wwn = 0x5000C500_15EA7100 + number
            yield f"scsi-hd,bus=hba.0,scsi-id=0,lun={number},wwn={wwn},{common}"
        else:
            yield f"virtio-blk-pci,{common}"

    def _image(self, disk: Disk) -> Path:
        return self.place / f"{disk.serial}.{self.number}.img"

    def make_disks(self) -> None:
        """Make the disks, empty, and a file system on the first."""
        for disk in (SCRATCH, *DISKS):
            with self._image(disk).open("wb") as file:
                file.truncate(disk.mebibytes << 20)
        mkfs = shutil.which("mke2fs", path=_SYSTEM) or "mke2fs"
        options = ("-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0")
        run(mkfs, *options, self._image(SCRATCH))


def run_machines(machines: Sequence[Machine], accelerator: str, limit: float) -> bool:
    """Run guests side by side to their ends; tell whether all came within *limit* seconds.

    What they print is shown, a line at a time. Whatever happens, the processes have ended
    afterwards.
    """
    until = time.monotonic() + limit
    with ExitStack() as stack:
        guests = []
        for machine in machines:
            guest = stack.enter_context(_running(machine.words(accelerator), subprocess.PIPE))
            head = f"{machine.number}| " if len(machines) > 1 else ""
            shown = threading.Thread(target=_show, args=(guest.stdout, head))
            shown.start()
            stack.callback(shown.join)
            guests.append(guest)
            # its end ends the thread: the process goes first
            stack.callback(guest.kill)
        try:
            for guest in guests:
                guest.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
    return True


def _show(lines: IO[bytes] | None, head: str) -> None:
    for line in lines or ():
        print(head + line.decode(errors="replace").rstrip("\r\n"), flush=True)


def pick_accelerator(machine: Machine, memory: Path, environ: Mapping[str, str]) -> str:
    """Return "kvm" if a guest gets anywhere with it, else "tcg"; $VM_ACCEL decides before.

    That /dev/kvm opens, and even that it makes a guest, proves nothing: in a guest whose host does
    not pass on the processor's virtualisation, KVM may emulate, at a thousandth of the speed.

    :param memory: a file that keeps the answer until this machine boots again.
    """
    chosen = environ.get("VM_ACCEL")
    if chosen:
        if chosen not in ACCELERATORS:
            raise PreparationError(
                f"VM_ACCEL is '{chosen}' and not one of {', '.join(ACCELERATORS)}"
            )
        return chosen
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if memory.exists():
        known = memory.read_text().split()
        if len(known) == 2 and known[0] == boot and known[1] in ACCELERATORS:
            return known[1]
    answer = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _probe(machine) else "tcg"
    memory.write_text(f"{boot} {answer}\n")
    return answer


def _probe(machine: Machine) -> bool:
    log = machine.place / "probe.log"
    words = [*machine.kernel_words("kvm", PROBE), "-serial", f"file:{log}"]
    with _running(words, subprocess.DEVNULL) as qemu:
        try:
            qemu.wait(_PROBE_LIMIT)
        except subprocess.TimeoutExpired:
            return False
    return log.exists() and PROBE in log.read_text(errors="replace")


@contextmanager
def _running(words: list[str], output: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU in a session of its own: a Ctrl-C is for us, who then end it."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as err:
        raise PreparationError(f"{words[0]} is not installed") from err
    with process:
        try:
            yield process
        finally:
            process.kill()
