"""The daemon's start, what it can reach, and all the ways in which it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import storaged
from storaged import command
from storaged.errors import Cancelled, CommandFailed, ConfigUnsupported, OperationFailed
from storaged.job import Job
from storaged.qsd import Daemon, ImageFile, create
from storaged.qsd import daemon as daemon_module
from tests.qsd.images import MIB, children, needed, open_files, opened

pytestmark = needed


def test_what_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_bytes(bytes(MIB))
    with (
        opened(path, writable=False) as file,
        Daemon("look", [file], secrets={"key": b"hush"}) as daemon,
    ):
        process = Path(f"/proc/{daemon.pid}")
        assert (process / "comm").read_text().startswith("qemu-storage-d")
        assert b"hush" not in (process / "cmdline").read_bytes()
        assert (process / "environ").read_bytes() == b"LC_ALL=C.UTF-8\0"
        assert open_files(daemon.pid) == {
            "/dev/null",
            "/memfd:stderr (deleted)",
            "/memfd:secret (deleted)",
            str(path),
        }
        if not daemon.lacking:
            assert (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_what_it_cannot_reach(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    with opened(tmp_path / "i") as file, Daemon("look", [file]) as daemon:
        if daemon.lacking:
            pytest.skip(f"the kernel does not have it all: {daemon.lacking}")
        for path in ("/etc/passwd", str(other)):
            with pytest.raises(OperationFailed, match="Permission denied"):
                daemon.add({"driver": "file", "node-name": "x", "filename": path})
        for server in (
            {"type": "inet", "host": "127.0.0.1", "port": "22"},
            {"type": "unix", "path": str(tmp_path / "socket")},
        ):
            with pytest.raises(OperationFailed, match="Operation not permitted"):
                daemon.add({"driver": "nbd", "node-name": "x", "server": server})


def test_read_only_is_what_it_gets(tmp_path: Path) -> None:
    """Also where our own descriptor could write."""
    path = tmp_path / "i"
    path.write_bytes(bytes(MIB))
    with path.open("r+b") as ours:
        file = ImageFile(ours.fileno())
        with Daemon("look", [file]) as daemon:
            seen = 0
            for link in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    if (link.parent.parent / "fd" / link.name).readlink() == path:
                        flags = int(link.read_text().split("flags:")[1].split()[0], 8)
                        assert flags & os.O_ACCMODE == os.O_RDONLY
                        seen += 1
            assert seen
            node = {"driver": "file", "node-name": "x", "filename": daemon.path(file)}
            with pytest.raises(OperationFailed, match="denied"):
                daemon.add({**node, "read-only": False})


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "PROGRAM", "no-such-daemon")
    with opened(tmp_path / "i") as file, pytest.raises(ConfigUnsupported) as caught:
        create(file, "vdi", MIB)
    assert "cannot create an image of format 'vdi': no-such-daemon is not" in str(caught.value)
    assert caught.value.advice is not None
    assert "apt-get install qemu-system-common" in caught.value.advice
    assert (tmp_path / "i").stat().st_size == 0


def test_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says before it ends is in the error; nothing is waited for."""
    program = tmp_path / "daemon"
    program.write_text("#!/bin/sh\necho oh dear >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(daemon_module, "find_program", lambda *_: str(program))
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="unexpected exit status 3: oh dear") as caught:
        Daemon("look", []).__enter__()
    assert caught.value.argv[0] == "qemu-storage-daemon"
    assert time.monotonic() - started < 10


def test_dies(tmp_path: Path) -> None:
    def look() -> None:
        with opened(tmp_path / "i") as file, Daemon("look", [file]) as daemon:
            os.kill(daemon.pid, signal.SIGABRT)
            daemon.execute("query-jobs")

    with pytest.raises(CommandFailed, match="fatal signal 6") as caught:
        look()
    assert caught.value.status == -signal.SIGABRT


def test_block_fails(tmp_path: Path) -> None:
    """It is killed, and the error stays what it was."""
    pids = []

    def look() -> None:
        with opened(tmp_path / "i") as file, Daemon("look", [file]) as daemon:
            pids.append(daemon.pid)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        look()
    assert not Path(f"/proc/{pids[0]}").exists()


def test_does_not_answer(tmp_path: Path) -> None:
    """A cancel takes hold although the daemon is stopped, and it is killed all the same."""
    job: Job[None] = Job("look")
    timer = threading.Timer(0.2, job.cancel)

    def look() -> None:
        with opened(tmp_path / "i") as file, Daemon("look", [file], job=job) as daemon:
            os.kill(daemon.pid, signal.SIGSTOP)
            timer.start()
            daemon.execute("query-jobs")

    started = time.monotonic()
    with pytest.raises(Cancelled):
        look()
    timer.join()
    assert time.monotonic() - started < 5


def test_text_is_cleaned(tmp_path: Path) -> None:
    with opened(tmp_path / "i") as file, Daemon("look", [file]) as daemon:
        with pytest.raises(OperationFailed) as caught:
            daemon.execute("block_resize", node_name="a\n\x1b[31m" + 1000 * "b", size=0)
        assert "a??[31mb" in str(caught.value)
        assert len(str(caught.value)) < 600


def test_said_is_bounded() -> None:
    script = "seq 100000 >&2; echo $A; exit 7"
    child = command.start(["sh", "-c", script], {"PATH": "/usr/bin:/bin"}, shown=["sh", "..."])
    assert child.wait(20) == 7
    failure = child.failure()
    assert (failure.argv, failure.status) == (("sh", "..."), 7)
    assert len(failure.stderr) <= 4096
    child.close()
    child.close()
    assert child.said() == failure.stderr


def test_said_is_printable() -> None:
    child = command.start(["sh", "-c", r"printf 'a\033[31mb\nc' >&2"], {"PATH": "/usr/bin:/bin"})
    assert child.wait(20) == 0
    assert child.said() == "a?[31mb\nc"
    child.close()


def test_child_that_does_not_end() -> None:
    child = command.start(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], {})
    assert child.wait(0.2) is None
    child.close(patience=0.1)
    assert child.wait(0) == -signal.SIGKILL


def test_no_such_program() -> None:
    with pytest.raises(CommandFailed, match="cannot run /nope/x: No such file"):
        command.start(["/nope/x"], {})
    assert command.find_program("no-such-program", {"PATH": "/usr/bin"}) is None
    assert command.find_program("sh", {}) in ("/usr/bin/sh", "/bin/sh")


def test_importing_is_light() -> None:
    """Neither asyncio nor the QMP library before an operation begins."""
    code = "import sys, storaged.qsd; print(*sys.modules)"
    root = Path(storaged.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"asyncio", "qemu", "qemu.qmp", "subprocess", "ctypes"} & set(done.stdout.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_ordinary_user(tmp_path: Path) -> None:
    """As in session mode: no privileges at all, other people's images refused."""
    theirs = tmp_path / "theirs"
    theirs.touch(0o600)
    code = (
        "import os, sys\n"
        "from storaged.qsd import Image, ImageFile, create, daemon, export, monitor\n"
        "sys.executable = '/usr/bin/python3'\n"
        "theirs = os.open(sys.argv[1], os.O_RDWR)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "fd = os.memfd_create('image')\n"
        "create(ImageFile(fd, True), 'vdi', 1 << 20)\n"
        "with export(Image(ImageFile(fd, True), 'vdi')) as disk:\n"
        "    disk.pwrite(b'x' * 512, 0)\n"
        "    print(disk.pread(4, 0))\n"
        "try:\n"
        "    create(ImageFile(theirs, True), 'vdi', 1 << 20)\n"
        "except Exception as err:\n"
        "    print(type(err).__name__, err)\n"
    )
    root = Path(storaged.__file__).parent.parent
    if any(not folder.stat().st_mode & 1 for folder in (root, *root.parents)):
        pytest.skip("other users cannot enter the checkout")
    argv = [sys.executable, "-c", "import storaged.nbd, tempfile;" + code, str(theirs)]
    environ = {"TMPDIR": "/tmp", "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, cwd=root, env=environ, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "b'xxxx'", done.stderr
    assert lines[1].startswith("OperationFailed")
    assert "Permission denied" in lines[1]
    assert not children()
