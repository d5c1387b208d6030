"""A real libvirt daemon with nothing but its storage driver, in a file system view of its own.

Where a test asks for it, the driver of secrets comes with it: libvirt's storage driver asks it for
the secret of every encrypted volume that it looks at.

``/etc/libvirt``, ``/run`` and ``/var`` of the daemon are directories of the test, so that neither
the host's libvirt nor its pools are touched, and the test sees what the daemon writes. ``/var/tmp``
is the host's: the benchmark works there, because it is on a disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_DRIVER = "libvirt_driver_storage.so"
_PLACES = ("lib/*/libvirt", "lib64/libvirt", "lib/libvirt")

_SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/libvirt
mount --bind "$1/run/libvirt" /run/libvirt
mount --bind "$1/etc/libvirt" /etc/libvirt
mount --rbind /var/tmp "$1/var/tmp"
mount --rbind "$1/var" /var
exec libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirtd.pid
"""


@dataclass(frozen=True)
class Libvirtd:
    """A running daemon.

    :param root: its ``etc/libvirt`` and ``run/libvirt`` lie below it.
    :param driver: the one that `virsh` opens.
    """

    root: Path
    process: subprocess.Popen[bytes]
    driver: str = "storage"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def socket(self) -> Path:
        return self.root / "run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        return f"{self.driver}:///system?socket={self.socket}"

    def virsh(self, *words: str) -> str:
        """Run one command of virsh and return what it printed."""
        command = ["virsh", "-c", self.uri, "-q", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, script: str) -> str:
        """Run a script that sees the files at the paths at which the daemon sees them."""
        project = Path(__file__).parents[2]
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(project)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """End the daemon in its orderly way."""
        self.process.terminate()
        self.process.wait(30)


def require_libvirtd() -> Path:
    """Return the storage driver's module, or skip where libvirt's daemon cannot be run."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace for libvirtd needs root")
    for tool in ("libvirtd", "virsh", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for place in _PLACES:
        for found in Path("/usr").glob(f"{place}/connection-driver/{_DRIVER}"):
            return found
    pytest.skip(f"{_DRIVER} is not installed")


def launch(root: Path, *, secrets: bool = False, storage: bool = True) -> subprocess.Popen[bytes]:
    """Start a daemon and do not wait; its log is ``root/libvirtd.log``."""
    module = require_libvirtd()
    modules = [module] if storage else []
    if secrets:
        modules.append(module.with_name("libvirt_driver_secret.so"))
    for name in ("lib", "log", "cache", "tmp"):
        (root / "var" / name).mkdir(parents=True, exist_ok=True)
    for name in ("etc/libvirt", "run/libvirt", "drivers"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for module in modules:
        link = root / "drivers" / module.name
        if module.exists() and not link.exists():
            link.symlink_to(module)
    (root / "etc/libvirt/libvirtd.conf").write_text(
        'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
        f'log_outputs = "2:file:{root}/libvirtd.log"\n'
    )
    with (root / "output").open("wb") as output:
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LIBVIRT_DRIVER_DIR": str(root / "drivers")},
        )


@contextmanager
def libvirtd(root: Path, *, secrets: bool = False, storage: bool = True) -> Iterator[Libvirtd]:
    """Run a daemon on the files below *root*, and end it."""
    process = launch(root, secrets=secrets, storage=storage)
    try:
        socket = root / "run/libvirt/libvirt-sock"
        deadline = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                reason = (root / "output").read_text()
                pytest.skip(f"libvirtd does not start on this machine: {reason.strip()}")
            time.sleep(0.02)
        daemon = Libvirtd(root, process, "storage" if storage else "secret")
        daemon.virsh("uri")  # it listens before its drivers are ready, and answers after
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
