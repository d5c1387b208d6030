"""A daemon that runs: `python -m storaged.daemon`, started, awaited and ended by a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from urllib.parse import quote

from tests.kernel.programs import patience

#: A connected socket; the class below has an attribute of that name.
Connected = socket

PROJECT = Path(__file__).parents[2]

#: What a daemon would take from the one who started the tests.
_FOREIGN = (
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)


class Daemon:
    """A daemon of ours and the files that it serves.

    :param root: its ``etc`` and ``run`` lie below it; what it prints is in ``root/storaged.log``.
    """

    def __init__(self, root: Path, process: subprocess.Popen[bytes], *, session: bool) -> None:
        self.root = root
        self.process = process
        self.session = session

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def sockets(self) -> Path:
        """The directory of its sockets."""
        return self.root / "run/libvirt"

    @property
    def socket(self) -> Path:
        """Where clients that may change things reach it."""
        return self.sockets / "virtstoraged-sock"

    @property
    def readonly_socket(self) -> Path:
        """Where clients that only read reach it."""
        return self.sockets / "virtstoraged-sock-ro"

    @property
    def admin_socket(self) -> Path:
        """Where virt-admin reaches it."""
        return self.sockets / "virtstoraged-admin-sock"

    def uri(self, readonly: bool = False) -> str:
        """Return the URI by which libvirt's clients reach it.

        They have room for 107 bytes of a path: tests that use them need a root with a short name.
        """
        path = self.readonly_socket if readonly else self.socket
        kind = "session" if self.session else "system"
        return f"storage:///{kind}?socket={quote(os.fsencode(path))}"

    @property
    def admin_uri(self) -> str:
        """The URI for ``virt-admin -c``."""
        return f"virtstoraged:///system?socket={quote(os.fsencode(self.admin_socket))}"

    @property
    def log(self) -> str:
        """What it has printed up to now."""
        return log_of(self.root)

    def connect(self, path: Path | None = None) -> Connected:
        """Return a connected socket; *path* is that of `socket` if nothing is said."""
        return connect(path or self.socket)

    def stop(self, timeout: float = 40.0) -> int:
        """Ask it to end and return its exit status; a daemon that has ended is no error."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(patience(timeout))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end in {timeout} s: {self.log}") from None

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


def connect(path: Path) -> Connected:
    """Return a socket that is connected to *path*, however long that is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    found = socket(AF_UNIX, SOCK_STREAM)
    try:
        found.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        found.close()
        raise
    finally:
        os.close(folder)
    return found


def log_of(root: Path) -> str:
    """Return what daemons below *root* have printed."""
    return (root / "storaged.log").read_text(errors="replace")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a daemon: that of the tests, without their own supervisor's."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**kept, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **(extra or {})}


def launch(
    root: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a daemon and do not wait for it.

    :param prefix: a program and its arguments that run the daemon, such as ``setpriv``.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "storaged.log").open("ab") as log:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "storaged.daemon", "--root", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(environ),
            cwd="/",
            pass_fds=pass_fds,
        )


def configure(root: Path, text: str) -> Path:
    """Write the configuration that a daemon below *root* reads, and return the file."""
    path = root / "etc/libvirt/virtstoraged.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@contextmanager
def storaged_daemon(
    root: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    config: str | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Run a daemon on the files below *root*, and end it in its orderly way.

    It is ready when the block begins.

    :param arguments: further options of ``storaged``.
    :param config: text of its configuration file; None leaves what is there.
    """
    if config is not None:
        configure(root, config)
    process = launch(root, *arguments, environ=environ, prefix=prefix)
    daemon = Daemon(root, process, session="--session" in arguments)
    try:
        await_ready(daemon)
        yield daemon
        status = daemon.stop()
        assert status in (0, -9), f"the daemon ended with {status}: {daemon.log}"
    finally:
        if process.poll() is None:
            daemon.kill()


def await_ready(daemon: Daemon, timeout: float = 30.0) -> None:
    """Wait until the daemon accepts clients."""
    deadline = time.monotonic() + patience(timeout)
    while True:
        with suppress(OSError):
            daemon.connect().close()
            return
        if daemon.process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the daemon does not start: {daemon.log}")
        time.sleep(0.01)
