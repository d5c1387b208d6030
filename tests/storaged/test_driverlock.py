"""One engine a state directory: libvirt's daemons, ours, and embedded ones."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storaged.driverlock import DriverLock, EngineKind, HeldLock, Owner
from storaged.errors import ResourceBusy, SystemFailure
from storaged.paths import Paths

ROOT = Path(__file__).parents[2]

#: Holds the lock as an engine does, says so, and ends when its standard input does.
ENGINE = """
import sys
from storaged.driverlock import DriverLock, EngineKind
from storaged.paths import Paths
root, kind, timeout = sys.argv[1:4]
with DriverLock(Paths.below(root)).acquire(
    timeout=float(timeout), kind=EngineKind(kind), socket="/sock" if kind == "daemon" else None
):
    print("held", flush=True)
    sys.stdin.read()
"""

#: Holds the lock as libvirt does, under the name of one of its programs.
LIBVIRT = """
import fcntl, os, sys
with open("/proc/self/comm", "w") as comm:
    comm.write(sys.argv[2])
with open(sys.argv[1], "a+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
    os.unlink(sys.argv[1])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.below(tmp_path / "root")


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that runs a script and waits until it holds the lock."""
    with ExitStack() as stack:

        def run(script: str, *arguments: object) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            return process

        yield run


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def take(paths: Paths, timeout: float = 0, kind: EngineKind = EngineKind.EMBEDDED) -> HeldLock:
    return DriverLock(paths).acquire(timeout=timeout, kind=kind)


def root_of(paths: Paths) -> Path:
    return paths.state.parents[2]


def test_held_and_given_back(paths: Paths) -> None:
    lock = DriverLock(paths)
    assert lock.owner() is None
    with lock.acquire(timeout=0, kind=EngineKind.EMBEDDED) as held:
        assert paths.lock_file.read_text() == str(os.getpid())
        assert lock.owner() == Owner(os.getpid(), EngineKind.EMBEDDED)
    assert lock.owner() is None
    assert paths.lock_file.exists()
    assert not paths.owner_file.exists()
    held.release()
    with take(paths):
        held.release()
        assert lock.owner() is not None


def test_the_pid_is_all_that_the_file_holds(paths: Paths) -> None:
    paths.state.mkdir(parents=True)
    paths.lock_file.write_text("123456789012345\nrubbish")
    with take(paths):
        assert paths.lock_file.read_text() == str(os.getpid())


def test_two_in_one_process(paths: Paths) -> None:
    with take(paths):
        with pytest.raises(ResourceBusy) as caught:
            take(paths, timeout=0.05)
        assert caught.value.pid == os.getpid()
        assert f"process {os.getpid()} (" in str(caught.value)
        assert str(paths.state) in str(caught.value)
        assert "0.05 seconds" in (caught.value.advice or "")
        # To have looked does not give the first one's lock away, as it would with POSIX locks.
        assert DriverLock(paths).owner() == Owner(os.getpid(), EngineKind.EMBEDDED)
    take(paths).release()


def test_two_directories(tmp_path: Path) -> None:
    with take(Paths.below(tmp_path / "a")), take(Paths.below(tmp_path / "b")):
        pass


def test_another_process_is_waited_for(paths: Paths, start: Start) -> None:
    process = start(ENGINE, root_of(paths), "embedded", 0)
    with pytest.raises(ResourceBusy) as caught:
        take(paths)
    assert caught.value.pid == process.pid
    assert f"process {process.pid} (python" in str(caught.value)
    timer = threading.Timer(0.2, end, [process])
    timer.start()
    began = time.monotonic()
    with take(paths, timeout=30):
        assert 0.1 < time.monotonic() - began < 10
        assert paths.lock_file.read_text() == str(os.getpid())
    timer.join()


def test_a_daemon_is_named_at_once(paths: Paths, start: Start) -> None:
    process = start(ENGINE, root_of(paths), "daemon", 0)
    began = time.monotonic()
    with pytest.raises(ResourceBusy) as caught:
        take(paths, timeout=30)
    assert time.monotonic() - began < 5
    assert caught.value.pid == process.pid
    assert "virsh -c 'storage:///system?socket=/sock'" in (caught.value.advice or "")
    assert DriverLock(paths).owner() == Owner(process.pid, EngineKind.DAEMON, "/sock")
    end(process)
    take(paths).release()


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        ("libvirtd", "systemctl stop libvirtd.service libvirtd.socket"),
        ("virtstoraged", "systemctl stop virtstoraged.service virtstoraged.socket"),
        ("mystery", "kill"),
    ],
)
def test_libvirt_is_named_at_once(paths: Paths, start: Start, program: str, advice: str) -> None:
    paths.state.mkdir(parents=True)
    process = start(LIBVIRT, paths.lock_file, program)
    began = time.monotonic()
    with pytest.raises(ResourceBusy) as caught:
        take(paths, timeout=30)
    assert time.monotonic() - began < 5
    assert caught.value.pid == process.pid
    assert f"in use by process {process.pid} ({program})" in str(caught.value)
    assert advice in (caught.value.advice or "")
    assert paths.lock_file.read_text() == str(process.pid)
    end(process)
    assert not paths.lock_file.exists()
    take(paths).release()


def test_libvirt_is_kept_out(paths: Paths) -> None:
    """The kernel refuses a POSIX lock while ours is held, in whatever process."""
    script = (
        "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1)"
    )
    command = [sys.executable, "-c", script, str(paths.lock_file)]
    with take(paths):
        done = subprocess.run(command, capture_output=True, text=True)
        assert "BlockingIOError" in done.stderr
    subprocess.run([*command[:1], "-W", "ignore", *command[1:]], check=True)


def test_the_kernel_frees_the_lock_of_the_dead(paths: Paths, start: Start) -> None:
    process = start(ENGINE, root_of(paths), "daemon", 0)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert paths.owner_file.exists()
    assert DriverLock(paths).owner() is None
    with take(paths):
        assert DriverLock(paths).owner() == Owner(os.getpid(), EngineKind.EMBEDDED)


def test_programs_that_we_start_do_not_hold_it(paths: Paths) -> None:
    held = take(paths)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    ):
        held.release()
        take(paths).release()


def test_a_forked_child_gives_it_back_with_its_parent(paths: Paths) -> None:
    script = """
import os, sys
from storaged.driverlock import DriverLock, EngineKind
from storaged.paths import Paths
lock = DriverLock(Paths.below(sys.argv[1]))
held = lock.acquire(timeout=0, kind=EngineKind.EMBEDDED)
reader, writer = os.pipe()
if child := os.fork():
    held.release()
    lock.acquire(timeout=0, kind=EngineKind.EMBEDDED).release()
    os.close(writer)
    os.waitpid(child, 0)
else:
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)
"""
    command = [sys.executable, "-c", script, str(root_of(paths))]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def test_a_file_that_libvirt_removed_is_not_the_lock(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libvirt unlinks the file when it ends; who had it open by then must look again."""
    real = fcntl.fcntl
    removed: list[int] = []

    def remove_before_lock(fd: int, command: int, argument: bytes) -> object:
        if command == fcntl.F_OFD_SETLK and not removed:
            removed.append(paths.lock_file.stat().st_ino)
            paths.lock_file.rename(paths.lock_file.with_name("removed"))
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", remove_before_lock)
    with take(paths):
        assert removed
        assert paths.lock_file.stat().st_ino != removed[0]
        with pytest.raises(ResourceBusy):
            take(paths)


def test_many_contend_and_all_get_it(paths: Paths, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from storaged.driverlock import DriverLock, EngineKind
from storaged.paths import Paths
with DriverLock(Paths.below(sys.argv[1])).acquire(timeout=60, kind=EngineKind.EMBEDDED):
    count = Path(sys.argv[2])
    count.write_text(str(int(count.read_text()) + 1))
"""
    count = tmp_path / "count"
    count.write_text("0")
    command = [sys.executable, "-c", script, str(root_of(paths)), str(count)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(20)]
    assert [process.wait(120) for process in processes] == [0] * 20
    assert count.read_text() == "20"
    assert DriverLock(paths).owner() is None


def test_many_threads_contend(paths: Paths) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(5):
            with take(paths, timeout=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 16000,
        "null",
        "[]",
        "{}",
        '{"pid": 1, "kind": "daemon", "started": null, "socket": null}',
        '{"pid": 4194305, "kind": "daemon", "started": null, "socket": null}',
        '{"pid": "1", "kind": "daemon", "started": 1, "socket": null}',
        '{"pid": 1, "kind": "emperor", "started": 1, "socket": null}',
        '{"pid": 1, "kind": "daemon", "started": -1, "socket": "/sock"}',
        " " * 20000,
    ],
)
def test_an_owner_that_proves_nothing_is_not_believed(paths: Paths, text: str) -> None:
    with take(paths):
        paths.owner_file.write_text(text)
        assert DriverLock(paths).owner() == Owner(os.getpid())
        with pytest.raises(ResourceBusy, match=f"process {os.getpid()} "):
            take(paths)


def test_the_owner_is_validated_by_its_start(paths: Paths) -> None:
    with take(paths):
        owner = json.loads(paths.owner_file.read_text())
        assert owner["kind"] == "embedded"
        paths.owner_file.write_text(json.dumps({**owner, "kind": "daemon"}))
        found = DriverLock(paths).owner()
        assert found is not None
        assert found.kind is EngineKind.DAEMON
        owner["started"] += 1
        paths.owner_file.write_text(json.dumps({**owner, "kind": "daemon"}))
        assert DriverLock(paths).owner() == Owner(os.getpid())


def test_an_unknown_holder_has_no_name(paths: Paths) -> None:
    with take(paths):
        paths.owner_file.unlink()
        paths.lock_file.write_text("rubbish")
        assert DriverLock(paths).owner() == Owner()
        with pytest.raises(ResourceBusy, match="still in use by another process") as caught:
            take(paths)
        assert caught.value.pid is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/x")])
def test_something_else_in_its_place(paths: Paths, make: Callable[[Path], None]) -> None:
    paths.state.mkdir(parents=True)
    make(paths.lock_file)
    with pytest.raises(SystemFailure) as caught:
        take(paths)
    assert str(paths.lock_file) in str(caught.value)


def test_nothing_is_held_after_a_failure(paths: Paths) -> None:
    paths.owner_file.mkdir(parents=True)
    with pytest.raises(SystemFailure) as caught:
        take(paths)
    assert str(paths.owner_file) in str(caught.value)
    assert DriverLock(paths).owner() is None
    paths.owner_file.rmdir()
    take(paths).release()


def test_as_an_ordinary_user(ordinary_directory: Path) -> None:
    paths = Paths.session({"HOME": str(ordinary_directory)})
    with take(paths):
        assert DriverLock(paths).owner() == Owner(os.getpid(), EngineKind.EMBEDDED)
        assert paths.state.stat().st_mode & 0o777 == 0o700
        assert paths.runtime.stat().st_mode & 0o777 == 0o700


def test_an_ordinary_user_is_told_of_sessions(paths: Paths, ordinary_directory: Path) -> None:
    ordinary_directory.chmod(0o500)
    with pytest.raises(SystemFailure) as caught:
        take(Paths.below(ordinary_directory))
    assert "--session" in (caught.value.advice or "")
    with pytest.raises(SystemFailure) as caught:
        take(Paths.below(ordinary_directory, session=True))
    assert caught.value.advice is None
