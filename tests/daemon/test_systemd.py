"""What is said to systemd, and the sockets that it hands over."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from storaged.daemon.systemd import Activated, Notifier, activated
from storaged.errors import InternalError
from tests.daemon.running import (
    PROJECT,
    Daemon,
    await_ready,
    configure,
    connect,
    environment,
    launch,
    log_of,
    storaged_daemon,
)

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

HANDOVER = str(Path(__file__).with_name("handover.py"))


class Supervisor:
    """The end of a notification socket that systemd has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(20)

    def next(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    abstract = f"@storaged-test-{os.getpid()}-{time.monotonic_ns()}"
    address = abstract if request.param == "abstract" else str(tmp_path / "notify")
    with closing(Supervisor(address)) as found:
        yield found


def test_what_is_said(supervisor: Supervisor, tmp_path: Path) -> None:
    with storaged_daemon(tmp_path, environ={"NOTIFY_SOCKET": supervisor.address}) as daemon:
        assert supervisor.next() == {"READY": "1", "STATUS": "Serving"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        os.kill(daemon.pid, signal.SIGHUP)
        reloading = supervisor.next()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert reloading["RELOADING"] == "1"
        assert before <= int(reloading["MONOTONIC_USEC"]) <= after
        assert supervisor.next()["READY"] == "1"
        os.kill(daemon.pid, signal.SIGTERM)
        assert supervisor.next()["STOPPING"] == "1"


def test_the_watchdog_is_fed(supervisor: Supervisor, tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "400000"}
    with storaged_daemon(tmp_path, environ=environ):
        assert "READY" in supervisor.next()
        began = time.monotonic()
        for _ in range(4):
            assert supervisor.next() == {"WATCHDOG": "1"}
        assert 0.3 < time.monotonic() - began < 10


def test_whose_watchdog_it_is() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.of(environ).watchdog == 2
    assert environ == {}  # programs that we start are not to speak for us
    other = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    assert Notifier.of(other).watchdog == 0
    assert Notifier.of({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "x"}).watchdog == 0


def test_a_supervisor_that_is_gone_is_no_error(tmp_path: Path) -> None:
    for address in (None, str(tmp_path / "nobody"), "relative", "@nobody"):
        notifier = Notifier.of({} if address is None else {"NOTIFY_SOCKET": address})
        notifier.ready("x")
        notifier.stopping()


# Sockets that are handed over


@contextmanager
def handed_over(
    root: Path, units: dict[str, int], *arguments: str, names: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a daemon with sockets of these units and modes; they lie in ``root/units``."""
    directory = root / "units"
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        sockets = []
        for unit, mode in units.items():
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.bind(str(directory / unit))
            (directory / unit).chmod(mode)
            made.listen(5)
            sockets.append(made)
        fds = [made.fileno() for made in sockets]
        joined = ":".join(units) if names is None else names
        prefix = [sys.executable, HANDOVER, joined, *map(str, fds), "--"]
        process = launch(root, *arguments, prefix=prefix, pass_fds=fds)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize("brand", ["virtstoraged", "storaged"])
def test_activation(tmp_path: Path, brand: str) -> None:
    units = {f"{brand}.socket": 0o600, f"{brand}-admin.socket": 0o600, f"{brand}-ro.socket": 0o666}
    configure(tmp_path, 'unix_sock_dir = "/nonexistent"\n')  # the units say where
    with handed_over(tmp_path, units) as process:
        with connect(tmp_path / f"units/{brand}.socket") as client:
            client.sendall(
                bytes.fromhex("0000001c200080860000000100000042000000000000000000000000")
            )
            select.select([client], [], [], 30)
            assert client.recv(100).hex().endswith("0000000100000000")  # no authentication
        assert not (tmp_path / "run/libvirt/virtstoraged-sock").exists()
        process.terminate()
        assert process.wait(30) == 0, log_of(tmp_path)
    assert (tmp_path / f"units/{brand}.socket").is_socket()  # they are systemd's


@pytest.mark.parametrize(
    ("units", "names", "said"),
    [
        ({"virtstoraged-tls.socket": 0o600}, None, "as 'virtstoraged-tls.socket', which nobody"),
        ({"virtstoraged.socket": 0o600}, "-", "without LISTEN_FDNAMES"),
        ({"virtstoraged.socket": 0o600}, "a:b", "1 sockets were handed over with 2 names"),
        ({"virtstoraged.socket": 0o600, "storaged.socket": 0o600}, None, "handed over twice"),
        ({"virtstoraged.socket": 0o666}, None, "everybody may write to the socket"),
        ({"virtstoraged.socket": 0o660}, None, "which unix_sock_group does not name"),
    ],
)
def test_what_is_not_accepted(
    tmp_path: Path, units: dict[str, int], names: str | None, said: str
) -> None:
    configure(tmp_path, 'auth_unix_rw = "none"\n')
    with handed_over(tmp_path, units, names=names) as process:
        assert process.wait(30) == 1
        assert said in log_of(tmp_path)


def test_a_group_that_the_configuration_names(tmp_path: Path) -> None:
    configure(tmp_path, f'auth_unix_rw = "none"\nunix_sock_group = "{os.getegid()}"\n')
    with handed_over(tmp_path, {"storaged.socket": 0o660}) as process:
        connect(tmp_path / "units/storaged.socket").close()
        time.sleep(0.1)
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert "unix_sock_group" not in log_of(tmp_path)


def test_sockets_of_another_process_are_left() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "storaged.socket"}
    assert activated(environ) == Activated()
    assert environ == {}
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "what"}
    with pytest.raises(InternalError, match="which nobody serves"):
        activated(environ)


def test_the_tool_of_systemd(tmp_path: Path) -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("systemd-socket-activate is not installed")
    path = tmp_path / "run/libvirt/virtstoraged-sock"
    path.parent.mkdir(parents=True)
    prefix = ["sh", "-c", 'umask 077; exec "$@"', "sh", tool, "-l", str(path)]
    prefix += ["--fdname=virtstoraged.socket", f"-EPYTHONPATH={PROJECT}"]
    process = launch(tmp_path, prefix=prefix)
    try:
        daemon = Daemon(tmp_path, process, session=False)
        await_ready(daemon)  # the tool starts the daemon at the first connection
        with connect(path) as client:
            client.settimeout(30)
            client.sendall(
                bytes.fromhex("0000001c200080860000000100000042000000000000000000000000")
            )
            assert client.recv(100), daemon.log
        assert daemon.stop() == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# What is shipped


def test_units_are_sound() -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    units = sorted((PROJECT / "packaging/systemd").glob("storaged*.s*"))
    assert len(units) == 4
    done = subprocess.run(
        [tool, "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    ours = [line for line in done.stderr.splitlines() if "storaged" in line]
    # the program is not installed where the unit looks for it
    assert [line for line in ours if "is not executable" not in line] == []


def test_units_hand_over_names_that_are_known(tmp_path: Path) -> None:
    for unit in (PROJECT / "packaging/systemd").glob("*.socket"):
        text = unit.read_text()
        (name,) = [
            line.partition("=")[2]
            for line in text.splitlines()
            if line.startswith("FileDescriptorName=")
        ]
        assert name == unit.name.replace("storaged", "virtstoraged")
