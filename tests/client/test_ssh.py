"""Links through a real ssh daemon on this host, to libvirt's own daemon."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from storaged.client.link import CloseReason, RemoteFailure
from storaged.client.opening import open_link
from storaged.client.ssh import SSHTransport
from storaged.rpc import storage
from storaged.rpc.record import Void
from storaged.rpc.storage import VolStreamArgs
from tests.client.scripted import until
from tests.storaged.libvirtd import Libvirtd

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
#: where Debian's python3-libvirt lives
SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass
class SSHDaemon:
    """A running ssh daemon."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    def uri(self, path: str = "/system", **params: str | Path) -> str:
        given = {
            "keyfile": self.directory / "user",
            "known_hosts": self.directory / "known",
            "no_tty": "1",
            **params,
        }
        query = "&".join(f"{name}={quote(str(value))}" for name, value in given.items())
        return f"storage+ssh://root@127.0.0.1:{self.port}{path}?{query}"


@pytest.fixture(scope="module")
def ssh_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHDaemon]:
    """An ssh daemon of the tests' own, with keys of its own."""
    program = shutil.which("sshd")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("openssh is not installed")
    if os.geteuid() != 0:
        pytest.skip("an ssh daemon for logins needs root")
    directory = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    host_key = (directory / "host.pub").read_text()
    (directory / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    (directory / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {directory}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # it drops its rights in there
    log = directory / "log"
    process = subprocess.Popen([program, "-D", "-f", directory / "config", "-E", log])
    try:
        deadline = time.monotonic() + 20
        while not log.exists() or "listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield SSHDaemon(directory, port, process)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def remote_socket(libvirt_daemon: Libvirtd) -> Path:
    return libvirt_daemon.root / "run/libvirt/libvirt-sock"


def test_netcat(ssh_daemon: SSHDaemon, remote_socket: Path, tmp_path: Path) -> None:
    if shutil.which("nc") is None:
        pytest.skip("netcat is not installed")
    uri = ssh_daemon.uri(socket=remote_socket)
    with open_link(uri) as link:
        assert link.uri == uri
        assert link.encrypted
        xml = f"<pool type='dir'><name>s</name><target><path>{tmp_path}</path></target></pool>"
        pool = link.call(storage.POOL_CREATE_XML, storage.XMLArgs(xml)).pool
        xml = "<volume><name>v</name><capacity unit='MiB'>8</capacity></volume>"
        volume = link.call(storage.VOL_CREATE_XML, storage.PoolXMLArgs(pool, xml)).vol
        data = os.urandom(8 << 20)
        sink = link.open_stream(storage.VOL_UPLOAD, VolStreamArgs(volume, 0, 0, 0))
        sink.send(data)
        sink.finish()
        source = link.open_stream(storage.VOL_DOWNLOAD, VolStreamArgs(volume, 0, 0, 0))
        found = bytearray()
        while piece := source.receive(1 << 20):
            assert isinstance(piece, bytes)
            found += piece
        source.finish()
        assert found == data
        link.call(storage.POOL_DESTROY, storage.PoolArgs(pool))


def test_child_is_reaped(ssh_daemon: SSHDaemon, remote_socket: Path) -> None:
    link = open_link(ssh_daemon.uri(socket=remote_socket))
    transport = link._transport  # type: ignore[attr-defined]
    assert isinstance(transport, SSHTransport)
    child = transport._child
    assert Path(f"/proc/{child.pid}").exists()
    link.close()
    assert not Path(f"/proc/{child.pid}").exists()


def test_connection_that_breaks(ssh_daemon: SSHDaemon, remote_socket: Path) -> None:
    reasons: list[int] = []
    with open_link(ssh_daemon.uri(socket=remote_socket)) as link:
        link.on_close(reasons.append)
        link._transport._child._process.kill()  # type: ignore[attr-defined]
        until(lambda: reasons)
        assert not link.alive
        with pytest.raises(RemoteFailure, match="client socket is closed"):
            link.call(storage.NUM_OF_POOLS, Void())
    assert reasons == [CloseReason.EOF]


def test_helper_is_taken_where_it_is(
    ssh_daemon: SSHDaemon, remote_socket: Path, tmp_path: Path
) -> None:
    """The login of our ssh daemon finds one first that says how it was called."""
    helper = tmp_path / "virt-ssh-helper"
    helper.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\nexec nc -U {remote_socket}\n')
    helper.chmod(0o755)
    wrapper = tmp_path / "ssh"
    # What ssh would hand to the login shell is handed to one here, with our helper in its path.
    wrapper.write_text(
        f'#!/bin/sh\nfor last; do :; done\nPATH={tmp_path}:$PATH exec sh -c "$last"\n'
    )
    wrapper.chmod(0o755)
    for proxy in ("auto", "native"):
        with open_link(ssh_daemon.uri(command=wrapper, proxy=proxy), readonly=True) as link:
            assert link.call(storage.NUM_OF_POOLS, Void()).num == 0
    assert (tmp_path / "called").read_text() == "-r storage:///system\n" * 2


def test_the_real_helper(ssh_daemon: SSHDaemon, libvirt_daemon: Libvirtd, tmp_path: Path) -> None:
    """Libvirt's own helper, where it sees the daemon at the place where it looks for it."""
    if shutil.which("virt-ssh-helper") is None:
        pytest.skip("virt-ssh-helper is not installed")
    run = libvirt_daemon.root / "var/run"
    if not run.is_symlink():
        run.symlink_to("/run")
    wrapper = tmp_path / "ssh"
    wrapper.write_text(
        f'#!/bin/sh\nfor last; do :; done\nexec nsenter -t {libvirt_daemon.pid} -m sh -c "$last"\n'
    )
    wrapper.chmod(0o755)
    for proxy in ("auto", "native", "netcat"):
        with open_link(ssh_daemon.uri(command=wrapper, proxy=proxy)) as link:
            assert link.call(storage.NUM_OF_POOLS, Void()).num == 0


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"socket": "/nope/sock"}, "nope"),
        ({"keyfile": "/nope/key", "socket": "/x"}, "Permission denied"),
        ({"known_hosts": "/dev/null", "socket": "/x"}, "Host key verification failed"),
        ({"netcat": "/nope/nc", "socket": "/x"}, "not found"),
    ],
)
def test_what_ssh_says_is_told(ssh_daemon: SSHDaemon, params: dict[str, str], said: str) -> None:
    with pytest.raises(RemoteFailure) as caught:
        open_link(ssh_daemon.uri(**params))
    error = caught.value.error
    assert (error.code, error.domain) == (38, 7)
    assert said in str(error.message)
    assert str(error.message).startswith(("End of file while reading data: ", "Cannot "))


USER = """
import importlib, os, sys
libvirt, uri, directory = importlib.import_module(sys.argv[1]), sys.argv[2], sys.argv[3]
libvirt.registerErrorHandler(lambda *_: None, None)
conn = libvirt.open(uri)
print(conn.getURI() == uri, conn.getType(), conn.isSecure(), conn.isEncrypted(), conn.isAlive())
xml = f"<pool type='dir'><name>u</name><target><path>{directory}</path></target></pool>"
pool = conn.storagePoolCreateXML(xml)
print([each.name() for each in conn.listAllStoragePools()], conn.listStoragePools())
volume = pool.createXML("<volume><name>v</name><capacity unit='MiB'>4</capacity></volume>")
data = os.urandom(4 << 20)
pieces = [data[at : at + 262120] for at in range(0, len(data), 262120)]
stream = conn.newStream()
volume.upload(stream, 0, len(data))
stream.sendAll(lambda *_: pieces.pop(0) if pieces else b"", None)
print(stream.finish(), open(volume.path(), "rb").read() == data)
found = bytearray()
stream = conn.newStream()
volume.download(stream, 0, 0)
stream.recvAll(lambda _stream, piece, _opaque: found.extend(piece), None)
print(stream.finish(), found == data)
print(volume.delete(), pool.destroy())
for wrong in (uri.replace("storage", "qemu", 1), uri.replace("/system", "/session")):
    try:
        libvirt.open(wrong)
    except libvirt.libvirtError as err:
        print(err.err)
"""


@pytest.mark.parametrize("kind", ["libvirtd", "storaged"])
def test_under_libvirts_names(
    ssh_daemon: SSHDaemon, request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """What libvirt-python does over ssh we do, with either daemon at the other end."""
    if shutil.which("nc") is None:
        pytest.skip("netcat is not installed")
    fixture = {"libvirtd": "libvirt_uri", "storaged": "daemon_uri"}[kind]
    path = request.getfixturevalue(fixture).partition("socket=")[2]
    login = f"root@127.0.0.1:{ssh_daemon.port}"
    query = f"keyfile={ssh_daemon.directory}/user&no_verify=1&no_tty=1&proxy=netcat&socket={path}"
    uri = f"storage+ssh://{login}/system?{query}"
    told = []
    for python, module in ((sys.executable, "storaged.libvirt"), (SYSTEM_PYTHON, "libvirt")):
        known = subprocess.run([python, "-c", f"import {module}"], cwd=PROJECT, capture_output=True)
        if known.returncode:
            continue  # libvirt-python is not installed
        done = subprocess.run(
            [python, "-W", "ignore", "-c", USER, module, uri, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=PROJECT,
        )
        told.append(done.stdout)
        assert done.returncode == 0, done.stderr
    lines = told[0].splitlines()
    assert lines[:2] == ["True storage 1 0 1", "['u'] ['u']"]
    assert lines[2:5] == ["0 True", "0 True", "0 0"]
    assert len(lines) == 7
    for other in told[1:]:
        assert other.splitlines() == lines


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(RemoteFailure, match="Connection refused"):
        open_link(f"storage+ssh://127.0.0.1:{port}/system?no_tty=1")
