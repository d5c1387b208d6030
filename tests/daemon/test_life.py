"""A daemon from its start to its end, as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import storaged
from storaged.version import VERSION
from tests.daemon.running import (
    Daemon,
    configure,
    connect,
    environment,
    launch,
    log_of,
    storaged_daemon,
)
from tests.storaged.libvirtd import libvirtd

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

VIRSH = pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is not installed")


def virsh(daemon: Daemon, *words: str, readonly: bool = False) -> str:
    done = subprocess.run(
        ["virsh", "-q", *(["-r"] if readonly else []), "-c", daemon.uri(readonly), *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def until(holds: Callable[[], object], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def refused(root: Path, *arguments: str, **options) -> str:
    """Start a daemon that must end by itself with status 1; return what it said."""
    process = launch(root, *arguments, **options)
    try:
        assert process.wait(30) == 1, log_of(root)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return log_of(root)


def test_start_and_end(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as daemon:
        assert mode(daemon.socket) == 0o700
        assert mode(daemon.readonly_socket) == 0o777
        assert mode(daemon.admin_socket) == 0o700
        pid_file = tmp_path / "run/virtstoraged.pid"
        assert int(pid_file.read_text()) == daemon.pid
        token = tmp_path / "run/libvirt/common/system.token"
        assert (mode(token), len(token.read_text())) == (0o600, 32)
        before = token.read_text()
        assert daemon.stop() == 0
        assert not pid_file.exists()
        assert [path.name for path in daemon.sockets.iterdir() if path.is_socket()] == []
        assert token.read_text() == before  # it is shared with libvirt's daemons
        assert daemon.log == ""  # a daemon that is well is silent


@VIRSH
def test_pools_are_there_before_the_first_client(tmp_path: Path) -> None:
    with storaged.open(tmp_path) as storage:
        storage.ensure_dir_pool("images", tmp_path / "images")
        storage.pool("images").stop()
    (tmp_path / "run/libvirt/storage/autostarted").unlink(missing_ok=True)
    with storaged_daemon(tmp_path) as daemon:
        assert virsh(daemon, "pool-list", "--name").split() == ["images"]
        assert virsh(daemon, "pool-list", "--name", readonly=True).split() == ["images"]
        assert daemon.stop() == 0
    with storaged.open(tmp_path, readonly=True) as storage:
        assert storage.pool("images").active  # a daemon's end stops no pool


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_end_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with storaged_daemon(tmp_path, "--verbose") as daemon, daemon.connect() as client:
        os.kill(daemon.pid, number)
        assert daemon.process.wait(30) == 0
        assert f"{number.name}: ending" in daemon.log
        assert client.recv(1) == b""


@VIRSH
@pytest.mark.slow
def test_the_end_cancels_what_takes_long(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as daemon:
        virsh(daemon, "pool-create-as", "p", "dir", "--target", str(tmp_path))
        virsh(daemon, "vol-create-as", "p", "v", "512M")
        wipe = subprocess.Popen(
            ["virsh", "-c", daemon.uri(), "vol-wipe", "v", "p", "--algorithm", "gutmann"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            info = daemon.connect()  # a client that does nothing is no hindrance
            time.sleep(0.5)
            assert wipe.poll() is None
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 20
            info.close()
            _, said = wipe.communicate(timeout=30)
            assert wipe.returncode != 0
            assert b"operation aborted: wipe was cancelled" in said
        finally:
            wipe.kill()
            wipe.wait()
        assert (tmp_path / "v").stat().st_size == 512 << 20


def test_what_it_takes_from_the_host(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as daemon:
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        (files,) = [line.split() for line in limits.splitlines() if line.startswith("Max open")]
        assert files[3] == files[4]  # as many as it may have
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        umask = "0022" if os.geteuid() == 0 else "0077"
        assert f"Umask:\t{umask}\n" in status
        assert mode(tmp_path / "run/libvirt") == 0o777 & ~int(umask, 8)


def test_a_killed_ones_sockets_are_taken_over(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as first:
        first.kill()
        assert first.socket.is_socket()
        with storaged_daemon(tmp_path) as second:
            assert int((tmp_path / "run/virtstoraged.pid").read_text()) == second.pid


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path) as first:
        said = refused(tmp_path)
        assert "is in use by process" in said
        assert f"process {first.pid} " in said
        first.connect().close()
        assert int((tmp_path / "run/virtstoraged.pid").read_text()) == first.pid


def test_a_socket_that_somebody_serves_is_left(tmp_path: Path) -> None:
    sockets = tmp_path / "run/libvirt"
    sockets.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sockets / "virtstoraged-sock"))
        other.listen()
        said = refused(tmp_path)
        assert f"is served by process {os.getpid()}" in said
        connect(sockets / "virtstoraged-sock").close()
    assert not (tmp_path / "run/virtstoraged.pid").exists()


def test_libvirts_daemon_is_named(tmp_path: Path) -> None:
    with libvirtd(tmp_path) as other:
        said = refused(tmp_path)
        assert f"process {other.pid} (libvirtd)" in said
        assert "systemctl stop libvirtd.service" in said


def test_reload(tmp_path: Path) -> None:
    configure(tmp_path, "max_clients = 50\n")
    with storaged_daemon(tmp_path, "--verbose") as daemon:
        new = tmp_path / "etc/libvirt/storage/new.xml"
        new.parent.mkdir(exist_ok=True)
        new.write_text(
            f"<pool type='dir'><name>new</name><target><path>{tmp_path}</path></target></pool>"
        )
        link = tmp_path / "etc/libvirt/storage/autostart/new.xml"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(new)
        configure(tmp_path, 'max_clients = 60\nunix_sock_rw_perms = "0600"\nwhat = 1\n')
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: "were read again" in daemon.log, daemon.log)
        with storaged.open(tmp_path, readonly=True) as storage:
            assert storage.pool("new").active
        assert "a change of 'unix_sock_rw_perms' holds from the next start on" in daemon.log
        assert "line 3: unknown setting 'what'" in daemon.log
        configure(tmp_path, "access_drivers = [ 'polkit' ]\n")
        os.kill(daemon.pid, signal.SIGHUP)
        until(lambda: "the configuration stays as it was" in daemon.log, daemon.log)
        assert "'access_drivers' cannot be honoured" in daemon.log
        daemon.connect().close()


def test_reloads_one_after_the_other(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path, "--verbose") as daemon:
        for _ in range(20):
            os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(0.005)
        until(lambda: daemon.log.count("were read again") >= 2, daemon.log)
        daemon.connect().close()


@pytest.mark.slow
def test_the_time_without_clients(tmp_path: Path) -> None:
    with storaged_daemon(tmp_path, "--timeout", "1", "--verbose") as daemon:
        client = daemon.connect()
        time.sleep(2.5)
        assert daemon.process.poll() is None
        client.close()
        closed = time.monotonic()
        assert daemon.process.wait(20) == 0
        assert time.monotonic() - closed > 0.9
        assert "no clients and no jobs for 1 s" in daemon.log


def test_a_root_with_a_long_name(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30) / ("longer" * 20)
    with storaged_daemon(root) as daemon:
        daemon.connect(daemon.readonly_socket).close()
    assert not (root / "run/libvirt/virtstoraged-sock").exists()


def test_options(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "storaged.daemon", *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
        )

    assert run("--version").stdout == f"storaged {VERSION}\n"
    text = run("--help").stdout
    for option in ("--verbose", "--daemon", "--config", "--timeout", "--pid-file", "--root"):
        assert option in text
    assert run("--listen").returncode == 2
    assert run("--timeout", "-1").returncode == 2
    assert run("--timeout", "1e3").returncode == 2
    missing = run("--root", str(tmp_path), "--config", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert missing.stderr.startswith("storaged: cannot read configuration file ")


def test_another_pid_file_and_socket_directory(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    configure(tmp_path, f'unix_sock_dir = "{other}"\n')
    pid_file = tmp_path / "my.pid"
    process = launch(tmp_path, "--pid-file", str(pid_file))
    try:
        until((other / "virtstoraged-sock").is_socket, log_of(tmp_path))
        until((other / "virtstoraged-admin-sock").is_socket, log_of(tmp_path))
        assert int(pid_file.read_text()) == process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not pid_file.exists()


def test_going_to_the_background(tmp_path: Path) -> None:
    starter = launch(tmp_path, "--daemon")
    assert starter.wait(30) == 0, log_of(tmp_path)
    pid = int((tmp_path / "run/virtstoraged.pid").read_text())
    try:
        assert pid != starter.pid
        connect(tmp_path / "run/libvirt/virtstoraged-sock").close()  # it is ready already
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert Path(f"/proc/{pid}/fd/2").readlink() == Path("/dev/null")
        assert os.getsid(pid) == pid
        second = launch(tmp_path, "--daemon")
        assert second.wait(30) == 1
        assert f"is in use by process {pid} " in log_of(tmp_path)
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not _lives(pid), "it does not end")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
