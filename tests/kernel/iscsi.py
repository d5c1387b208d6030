"""iSCSI targets on this machine: tgtd, which is a program, and LIO, which is in the kernel."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.programs import SYSTEM_PATH, eventually, patience, run

#: Where the kernel's target is configured.
_LIO = Path("/sys/kernel/config/target")


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether somebody accepts connections on a port of the loopback interface."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Chap:
    """A user and a password of 12 to 16 characters, as initiators want them."""

    user: str
    password: str


class Tgtd:
    """A tgtd of our own, on a port of its own; its LUN 0 is a controller, disks start at 1."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = free_port()
        # what tells several of them apart for tgtadm; it takes 15 bits
        self._control = str(self.port % (1 << 15))
        self._targets = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def portal(self) -> str:
        """Address and port, as iscsiadm takes them."""
        return f"{self.host}:{self.port}"

    @property
    def control(self) -> str:
        """What tgtadm knows it by: a number below 32768."""
        return str(self.port % (1 << 15))

    def start(self) -> None:
        """Start it, without any target."""
        program = shutil.which("tgtd", path=SYSTEM_PATH)
        assert program is not None
        Path("/run/tgtd").mkdir(exist_ok=True)
        self._targets = itertools.count(1)
        self._process = subprocess.Popen(
            [program, "-f", "-t", "1", "-C", self.control, "--iscsi", f"portal={self.portal}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: listens(self.port, self.host), what="tgtd")

    def admin(self, *words: str) -> str:
        """Run tgtadm against it."""
        return run("tgtadm", "-C", self.control, "--lld", "iscsi", *words)

    def add(self, iqn: str, images: Sequence[Path | str], chap: Chap | None = None) -> int:
        """Add a target with these files (or devices) as LUNs 1, 2, ...; return its number."""
        tid = next(self._targets)
        self.admin("--op", "new", "--mode", "target", "--tid", str(tid), "-T", iqn)
        for number, image in enumerate(images, start=1):
            self.add_lun(tid, number, image)
        if chap is not None:
            account = ("--mode", "account", "--user", chap.user)
            self.admin("--op", "new", *account, "--password", chap.password)
            self.admin("--op", "bind", *account, "--tid", str(tid))
        self.admin("--op", "bind", "--mode", "target", "--tid", str(tid), "-I", "ALL")
        return tid

    def add_lun(self, tid: int, number: int, image: Path | str) -> None:
        """Add a LUN to a target."""
        unit = ("--mode", "logicalunit", "--tid", str(tid), "--lun", str(number))
        self.admin("--op", "new", *unit, "-b", os.fspath(image))

    def remove_lun(self, tid: int, number: int) -> None:
        """Take a LUN from a target."""
        self.admin(
            "--op", "delete", "--mode", "logicalunit", "--tid", str(tid), "--lun", str(number)
        )

    def freeze(self) -> None:
        """Let it answer nobody, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Let it die at once: sessions break, new connections are refused."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(patience(10))
        self._process = None
        for name in (f"socket.{self.control}", f"socket.{self.control}.lock"):
            Path("/run/tgtd", name).unlink(missing_ok=True)


class Lio:
    """Targets in the kernel; each file is a LUN from 0 on."""

    def __init__(self) -> None:
        self.port = free_port()
        self._made: list[Path] = []
        self._stores = itertools.count()
        if not os.path.ismount("/sys/kernel/config"):
            run("mount", "-t", "configfs", "configfs", "/sys/kernel/config")

    @property
    def portal(self) -> str:
        """Address and port, as iscsiadm takes them."""
        return f"127.0.0.1:{self.port}"

    def add(self, iqn: str, images: Sequence[Path]) -> Path:
        """Add a target that lets everybody in; return its portal group's directory."""
        group = _LIO / "iscsi" / iqn / "tpgt_1"
        self._make(_LIO / "iscsi")
        self._make(_LIO / "iscsi" / iqn)
        self._make(group)
        for number, image in enumerate(images):
            store = self._store(image)
            lun = self._make(group / "lun" / f"lun_{number}")
            link = lun / "store"
            link.symlink_to(store)
            self._made.append(link)
        self._make(group / "np" / self.portal)
        for name, value in (
            ("generate_node_acls", 1),
            ("demo_mode_write_protect", 0),
            ("authentication", 0),
        ):
            (group / "attrib" / name).write_text(f"{value}\n")
        self.enable(group)
        return group

    def enable(self, group: Path, *, on: bool = True) -> None:
        """Let a target answer, or drop its sessions and answer no more."""
        (group / "enable").write_text(f"{int(on)}\n")

    def remove(self) -> None:
        """Remove all targets and stores, the last made first."""
        for path in reversed(self._made):
            if path.name == "tpgt_1":
                self.enable(path, on=False)
            if path.is_symlink():
                path.unlink()
            else:
                path.rmdir()
        self._made.clear()

    def _store(self, image: Path) -> Path:
        number = next(self._stores)
        self._make(_LIO / "core")
        self._make(_LIO / "core" / f"fileio_{self.port}")
        store = self._make(_LIO / "core" / f"fileio_{self.port}" / f"store{number}")
        (store / "control").write_text(f"fd_dev_name={image},fd_dev_size={image.stat().st_size}\n")
        (store / "enable").write_text("1\n")
        (store / "wwn" / "vpd_unit_serial").write_text(f"storaged{self.port}{number}\n")
        return store

    def _make(self, directory: Path) -> Path:
        if not directory.exists():
            directory.mkdir()
            if directory.parent != _LIO:  # the fabrics themselves stay
                self._made.append(directory)
        return directory


class Initiator:
    """The iSCSI initiator of this machine: iscsid, which serves every iscsiadm."""

    def __init__(self, name: str = "iqn.2026-01.test.storaged:initiator") -> None:
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start iscsid, unless the machine's own runs."""
        Path("/run/lock/iscsi").mkdir(parents=True, exist_ok=True)
        file = Path("/etc/iscsi/initiatorname.iscsi")
        if not file.exists():
            file.write_text(f"InitiatorName={self.name}\n")
        if _iscsid_answers():
            return
        program = shutil.which("iscsid", path=SYSTEM_PATH)
        assert program is not None
        self._process = subprocess.Popen(
            [program, "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it ends its whole process group with itself
        )
        eventually(_iscsid_answers, what="iscsid")

    def stop(self, before: frozenset[str] = frozenset()) -> None:
        """End the sessions that were not there *before*, forget their nodes, end iscsid."""
        for session in sessions() - before:
            run("iscsiadm", "-m", "session", "-r", session, "--logout", check=False, timeout=20)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(patience(10))
            self._process = None
            for place in ("nodes", "send_targets", "ifaces"):
                shutil.rmtree(Path("/etc/iscsi", place), ignore_errors=True)


def sessions() -> frozenset[str]:
    """Return the numbers of the iSCSI sessions of this machine."""
    found = Path("/sys/class").glob("iscsi_session/session*")
    return frozenset(path.name.removeprefix("session") for path in found)


def _iscsid_answers() -> bool:
    """Tell whether iscsid listens: its socket is abstract, and has this name since ever."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect("\0ISCSIADM_ABSTRACT_NAMESPACE")
        except OSError:
            return False
    return True
