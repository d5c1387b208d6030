"""One qemu-storage-daemon for one operation: started shut in, told what to do, and ended.

It gets all it needs by inherited descriptors: the control connection, the images, the secrets (as
files in memory), a listening socket. None of them can be seen in its arguments.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from storaged.command import Child, environment, find_program, start
from storaged.errors import ConfigUnsupported, OperationFailed, StorageError, system_errors
from storaged.formats.errors import WrongPassphrase
from storaged.job import Job
from storaged.qsd.graph import Image, ImageFile, Node

if TYPE_CHECKING:
    from storaged.qsd.monitor import Monitor

PROGRAM: Final = "qemu-storage-daemon"
#: The Debian package that has it.
PACKAGE: Final = "qemu-system-common"
_CONFINE: Final = Path(__file__).with_name("confine.py")

#: How long it may take to open an image, in seconds: a hostile one may want a password tried for
#: hours.
PATIENCE: Final = 60.0
#: What the daemon may have: address space in bytes, descriptors, and no core with guests' data.
_LIMITS: Final = {"AS": 3 << 30, "NOFILE": 1024, "CORE": 0}
#: The longest file that a daemon may write which only reads images, in bytes.
_SCRATCH: Final = 1 << 20
#: What a job fails with that measures how long a passphrase takes, on a host that is too busy ...
_TOO_BUSY: Final = "Unable to get accurate CPU usage"
#: ... and how often it is tried: each time is a throw of dice, and short if it fails.
_TRIES: Final = 20
#: What it says of an encrypted image and the secret for it.
_NO_KEYSLOT: Final = "Invalid password, cannot unlock any keyslot"
#: How long a daemon that was told to quit may take, in seconds: it writes what it has cached.
_QUIT_PATIENCE: Final = 60.0
#: How long one that has hung up may take to be gone, in seconds.
_DEATH_PATIENCE: Final = 1.0


class Daemon:
    """A running daemon; a context that ends with it.

    It is told to close its images and end. Where the block failed it has a second for that before
    it is killed. The kernel kills it should the thread that started it end before.

    :param doing: what is done, for messages: ``create a vdi image``.
    :param files: all that it may open.
    :param secrets: what its nodes refer to as ``key-secret``.
    :param job: hears of the progress, and stops the work by its cancel.
    :param listener: a listening socket on which it serves NBD.
    :raise ConfigUnsupported: it is not installed.
    :raise CommandFailed: it cannot be started, or has died.
    """

    def __init__(
        self,
        doing: str,
        files: Sequence[ImageFile],
        *,
        secrets: Mapping[str, bytes] | None = None,
        job: Job[Any] | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self._doing = doing
        self._files = files
        self._secrets = secrets or {}
        self._job = job
        self._listener = listener
        self._paths: dict[ImageFile, str] = {}
        self._child: Child
        self._monitor: Monitor

    def __enter__(self) -> Self:
        program = find_program(PROGRAM, os.environ)
        if program is None:
            raise ConfigUnsupported(
                f"cannot {self._doing}: {PROGRAM} is not installed",
                advice=f"Install the package that has it: apt-get install {PACKAGE}.",
            )
        with ExitStack() as given, system_errors(f"Cannot {self._doing}"):
            ours, theirs = socket.socketpair()
            given.callback(theirs.close)
            try:
                self._child = self._start(program, theirs, given)
            except BaseException:
                ours.close()
                raise
        try:
            with self._telling():
                # slow to import, and most never need it
                from storaged.qsd.monitor import Monitor

                self._monitor = Monitor(ours, self._tick)
        except BaseException:
            ours.close()
            self._child.close(patience=0)
            raise
        self._log_what_is_lacking()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._quit(_QUIT_PATIENCE)
            elif any(file.writable for file in self._files):
                # else an image would stay marked as in use
                with suppress(StorageError):
                    self._quit(_DEATH_PATIENCE)
        finally:
            self._child.close(patience=0)
            self._monitor.close()

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._child.pid

    @property
    def lacking(self) -> tuple[str, ...]:
        """What protections the kernel did not give it, one line each."""
        lines = self._child.said().splitlines()
        return tuple(line for line in lines if line.startswith("confined without "))

    def path(self, file: ImageFile) -> str:
        """Return what the daemon finds one of its files under."""
        return self._paths[file]

    def execute(self, command: str, *, patience: float = PATIENCE, **arguments: object) -> Any:
        """Run a command, with ``_`` in the names of its arguments for ``-``.

        :param patience: how long it may take, in seconds; the job's cancel ends it before.
        :raise OperationFailed: the daemon refuses.
        :raise WrongPassphrase: a secret does not open the image that it is for.
        :raise Timeout: it took too long.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._telling():
            return self._monitor.execute(command, named, patience)

    def run_job(self, command: str, *, figures: bool = True, **arguments: object) -> None:
        """Run a command that starts a job and see the job through; as `execute` otherwise.

        :param figures: whether the job counts bytes, and our job is to have its progress.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._telling():
                    self._monitor.run_job(command, named, figures=figures)
                return
            except OperationFailed as err:
                if not tries_left or _TOO_BUSY not in err.detail:
                    raise

    def add(self, node: Node) -> None:
        """Open a node."""
        with self._telling():
            self._monitor.execute("blockdev-add", node, PATIENCE)

    def open_image(self, image: Image, name: str) -> str:
        """Open an image with all that belongs to it; return the name of its node."""
        for node in image.nodes(name, self.path):
            self.add(node)
        return name

    def failure(self) -> Exception | None:
        """Return the error for a daemon that has died, None while it runs."""
        return None if self._child.wait(_DEATH_PATIENCE) is None else self._child.failure()

    def _start(self, program: str, monitor: socket.socket, given: ExitStack) -> Child:
        """Start it; what only it needs is closed with *given*."""
        confined: list[str] = []
        kept = [monitor.fileno()]
        for file in self._files:
            if file not in self._paths:
                fd = file.fd if file.writable else _reopened(file.fd, given)
                self._paths[file] = f"/proc/self/fd/{fd}"
                confined += ["--write" if file.writable else "--read", str(fd)]
                kept.append(fd)
        argv = [program, "--chardev", f"socket,id=m,fd={monitor.fileno()}", "--monitor", "m"]
        for name, secret in self._secrets.items():
            fd = _memory_file(secret, given)
            argv += ["--object", f"secret,id={name},file=/proc/self/fd/{fd}"]
            kept.append(fd)
        if self._listener is not None:
            fd = self._listener.fileno()
            argv += ["--nbd-server", f"addr.type=fd,addr.str={fd},max-connections=1"]
            kept.append(fd)
        limits = dict(_LIMITS)
        if not any(file.writable for file in self._files):
            limits["FSIZE"] = _SCRATCH
        for limit, number in limits.items():
            confined += ["--limit", f"{limit}={number}"]
        confined += ["--parent", str(os.getpid())]
        return start(
            [_python(), "-I", "-S", str(_CONFINE), *confined, "--", *argv],
            environment({}),
            keep=kept,
            shown=(PROGRAM, *argv[1:]),
        )

    def _log_what_is_lacking(self) -> None:
        for line in self.lacking:
            import logging  # slow, and hardly ever needed

            logging.getLogger(__name__).info("%s runs %s", PROGRAM, line)

    def _tick(self, done: int | None, total: int | None) -> None:
        if self._job is not None:
            self._job.checkpoint(done, total)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say what was done in errors of the daemon's, and tell of its death as such."""
        try:
            yield
        except OperationFailed as err:
            if _NO_KEYSLOT in err.detail:
                raise WrongPassphrase("no key slot opens with this passphrase") from err
            raise OperationFailed(f"cannot {self._doing}: {err.detail}") from err
        except ConnectionError as err:
            raise self.failure() or self._child.failure() from err

    def _quit(self, patience: float) -> None:
        with self._telling():
            self._monitor.quit(patience)
        if self._child.wait(patience) != 0:
            raise self._child.failure()


def _python() -> str:
    """Return an interpreter: a program that embeds one says that it is itself."""
    own = sys.executable or ""
    return own if Path(own).name.startswith("python") else "/usr/bin/python3"


def _reopened(fd: int, given: ExitStack) -> int:
    """Return a descriptor of the same file that can only be read, *fd* where there is none."""
    try:
        fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return fd
    given.callback(os.close, fd)
    return fd


def _memory_file(content: bytes, given: ExitStack) -> int:
    fd = os.memfd_create("secret", os.MFD_CLOEXEC)
    given.callback(os.close, fd)
    os.write(fd, content)
    return fd
