"""A message bus of the test's own with polkit on it: the real one, or a double that answers.

The real polkit reads its actions from a fixed place, so it runs in a file system view of its own,
where ours are the only ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
_POLKITD = ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd", "/usr/lib/policykit-1/polkitd")

_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_type="method_return"/> <allow send_type="error"/>
    <allow receive_type="method_call"/> <allow receive_type="signal"/>
    <allow receive_type="method_return"/> <allow receive_type="error"/>
  </policy>
</busconfig>
"""

_IN_ITS_VIEW = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /usr/share/polkit-1/actions
cp "$1" /usr/share/polkit-1/actions/
exec "$2" --no-debug
"""


@contextmanager
def message_bus() -> Iterator[str]:
    """Run a bus and yield its address, for ``DBUS_SYSTEM_BUS_ADDRESS``.

    It lies where other users may enter, which the directories of tests do not allow.
    """
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("dbus-daemon is not installed")
    with tempfile.TemporaryDirectory(prefix="storaged-bus-") as name:
        Path(name).chmod(0o755)
        with _message_bus(program, Path(name)) as address:
            yield address


@contextmanager
def _message_bus(program: str, directory: Path) -> Iterator[str]:
    path, config = directory / "bus", directory / "bus.conf"
    config.write_text(_BUS.format(path=path))
    with (directory / "bus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--nofork", f"--config-file={config}"], stdout=log, stderr=log
        )
    try:
        _await(path.exists, process, directory / "bus.log")
        path.chmod(0o666)
        yield f"unix:path={path}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def real_polkit(directory: Path, address: str) -> Iterator[None]:
    """Run the real polkit on a bus, with the actions that are shipped."""
    program = next((one for one in _POLKITD if Path(one).exists()), None)
    if program is None or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("polkitd (package polkitd), root and unshare are needed")
    policy = PROJECT / "packaging/polkit/org.libvirt.unix.policy"
    argv = ["unshare", "-m", "sh", "-c", _IN_ITS_VIEW, "sh", str(policy), program]
    with _on_bus(argv, directory, address):
        yield


@contextmanager
def double_of_polkit(directory: Path, address: str, answer: str) -> Iterator[Path]:
    """Run a double whose answer is as told; yield the file in which it notes what it was asked.

    :param answer: ``yes``, ``no``, ``challenge``, ``dismissed``, ``fault`` or ``silence``.
    """
    noted = directory / "asked"
    argv = [sys.executable, str(Path(__file__).with_name("polkitdouble.py")), answer, str(noted)]
    with _on_bus(argv, directory, address):
        yield noted


@contextmanager
def _on_bus(argv: list[str], directory: Path, address: str) -> Iterator[None]:
    log = directory / "polkit.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address, "PYTHONPATH": str(PROJECT)},
        )
    try:
        _await(lambda: _is_there(address), process, log)
        yield
    finally:
        process.kill()
        process.wait()


def _is_there(address: str) -> bool:
    from storaged.server import polkit

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        return polkit.unavailable() is None


def _await(ready, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"it does not start: {log.read_text()}")
        time.sleep(0.02)
