"""The one place that starts other programs.

Every program gets its arguments as a list, never through a shell of ours, and an environment that
is built here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from storaged.errors import CommandFailed, system_errors

if TYPE_CHECKING:
    import subprocess

#: What every program sees of our environment.
_COMMON: Final = ("HOME", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER", "XDG_RUNTIME_DIR")
#: How much of what a program says on its standard error is kept for messages, in bytes.
_STDERR_MAX: Final = 4096
#: How much a program of `start` may say on its standard error, in bytes: it is kept in memory.
_STDERR_ROOM: Final = 1 << 16
#: How long to wait for a program that was killed, in seconds: it may hang in the kernel.
_KILLED: Final = 5.0
#: Where programs are that `PATH` does not name, because it is an ordinary user's or empty.
_PROGRAMS: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def environment(environ: Mapping[str, str], *more: str) -> dict[str, str]:
    """Return the environment of a program: a few names of ours, and one language for its output.

    :param more: further names that this program needs.
    """
    kept = {name: environ[name] for name in (*_COMMON, *more) if name in environ}
    return {**kept, "LC_ALL": "C.UTF-8"}


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of a program, None if it is not installed."""
    import shutil  # slow to import, and most never need it

    places = [*environ.get("PATH", "").split(os.pathsep), *_PROGRAMS]
    return shutil.which(name, path=os.pathsep.join(filter(None, places)))


class Child:
    """A running program that reads nothing and is heard of by its descriptors, errors and end."""

    def __init__(
        self, process: subprocess.Popen[bytes], argv: tuple[str, ...], errors: int
    ) -> None:
        self._process = process
        self._argv = argv
        self._errors = errors
        self._said: str | None = None

    @property
    def pid(self) -> int:
        """The program's process."""
        return self._process.pid

    def said(self) -> str:
        """Return the end of what the program has said on its standard error, in printable text."""
        if self._said is not None:
            return self._said
        text = os.pread(self._errors, _STDERR_ROOM, 0).rstrip(b"\0")[-_STDERR_MAX:]
        # it may quote a hostile file
        shown = (c if c.isprintable() or c == "\n" else "?" for c in text.decode(errors="replace"))
        return "".join(shown).strip()

    def wait(self, timeout: float) -> int | None:
        """Wait for the program to end; return its status, None if *timeout* seconds passed."""
        return _wait(self._process, timeout)

    def failure(self) -> CommandFailed:
        """Return the error for a program that has ended, or does not do what it is there for."""
        status = self._process.poll()
        return CommandFailed(self._argv, 0 if status is None else status, self.said())

    def terminate(self) -> None:
        """Tell the program, and those that it has started, to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the program and those that it has started.

        One that hangs in the kernel ends when it returns from there.
        """
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # the session is its own; its number is nobody else's while nobody has fetched its status
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def reap(self) -> None:
        """Wait for the end of a program that was killed, however long that takes."""
        self._process.wait()
        self.close(patience=0)

    def close(self, *, patience: float = 2.0) -> None:
        """See to it that the program ends. Calling it again does nothing.

        A program that hangs in the kernel is left to its fate: a dead storage must not hold us.

        :param patience: seconds to wait for the program before it is told to end, and again before
            it is killed; 0 kills it at once.
        """
        if self._said is not None:
            return
        if self.wait(patience) is None:
            if patience:
                self._process.terminate()
            if not patience or self.wait(patience) is None:
                self._process.kill()
                self.wait(_KILLED)
        self._said = self.said()
        os.close(self._errors)


def sealed_memory(name: str, room: int) -> int:
    """Return a descriptor of memory that a program can write so many bytes to, and no more.

    :raise OSError: there is none.
    """
    import fcntl  # not where only the client half runs

    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, room)
        # from here on a write beyond the end fails
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(memory)
        raise
    return memory


class User(NamedTuple):
    """Whom a program runs as: a user, a group, and no further groups."""

    uid: int
    gid: int


def start(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    keep: Sequence[int] = (),
    shown: Sequence[str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    user: User | None = None,
) -> Child:
    """Start a program in a session of its own that is talked to by descriptors it inherits.

    What it says on its standard error is kept up to a bound.

    :param environ: the whole environment of the program, see `environment`.
    :param keep: descriptors that it gets under their numbers.
    :param stdin: what it reads; None: nothing.
    :param stdout: where its standard output goes; None: it is thrown away.
    :param user: whom it runs as; None: as we do.
    :param shown: the arguments as errors show them, where *argv* begins with what is only a means.
    :raise CommandFailed: there is no such program, or it cannot be run.
    """
    import subprocess  # slow to import, and most never need it

    argv = tuple(argv)
    with system_errors("Cannot keep the errors of a program"):
        errors = sealed_memory("stderr", _STDERR_ROOM)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=errors,
            env=dict(environ),
            pass_fds=tuple(keep),
            start_new_session=True,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else (),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as err:  # a value: a NUL in it
        os.close(errors)
        why = err.strerror if isinstance(err, OSError) else err
        raise CommandFailed(argv, 127, f"cannot run {argv[0]}: {why}") from err
    return Child(process, argv if shown is None else tuple(shown), errors)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """Wait for the end of a program without asking again and again, as `Popen.wait` would."""
    if timeout <= 0 or process.poll() is not None:
        return process.poll()
    try:
        ending = os.pidfd_open(process.pid)
    except OSError:  # it has ended just now, or we have no descriptor left
        return _ask(process, timeout)
    try:
        watch = select.poll()
        watch.register(ending, select.POLLIN)
        ended = watch.poll(timeout * 1000)
    finally:
        os.close(ending)
    # the kernel may tell of the end a moment before there is a status to fetch
    return _ask(process, 1.0) if ended else process.poll()


def _ask(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    import subprocess  # slow to import; whoever has a child has it

    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None


class ConnectedChild:
    """A running program whose standard input and output are the other end of `socket`.

    :param socket: ours; the program sees the end of its input when it is closed.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], sock: socket.socket, errors: IO[bytes]
    ) -> None:
        self.socket = sock
        self._process = process
        self._errors = errors
        self._said: str | None = None

    @property
    def pid(self) -> int:
        """The program's process."""
        return self._process.pid

    def said(self) -> str:
        """Return the end of what the program has said on its standard error, without blank ends."""
        if self._said is not None:
            return self._said
        file = self._errors.fileno()
        length = os.fstat(file).st_size
        start = max(length - _STDERR_MAX, 0)
        return os.pread(file, _STDERR_MAX, start).decode(errors="replace").strip()

    def wait(self, timeout: float) -> int | None:
        """Wait for the program to end; return its status, None if *timeout* seconds passed."""
        return _wait(self._process, timeout)

    def close(self, *, patience: float = 2.0) -> None:
        """Hang up, and see to it that the program ends. Calling it again does nothing.

        :param patience: seconds to wait for the program before it is told to end, and again before
            it is killed.
        """
        if self._said is not None:
            return
        self.socket.close()
        if self.wait(patience) is None:
            self._process.terminate()
            if self.wait(patience) is None:
                self._process.kill()
                self._process.wait()
        self._said = self.said()
        self._errors.close()


def start_connected(argv: Sequence[str], environ: Mapping[str, str]) -> ConnectedChild:
    """Start a program that is talked to over its standard input and output.

    It stays in our session, so that it can ask for a password on the terminal.

    :param environ: the whole environment of the program, see `environment`.
    :raise CommandFailed: there is no such program, or it cannot be run.
    """
    import subprocess  # slow to import, and most never need it
    import tempfile

    with system_errors("Cannot make a pair of sockets"):
        ours, theirs = socket.socketpair()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 -- the child closes it
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=errors,
            env=dict(environ),
        )
    except (OSError, ValueError) as err:  # a value: a NUL in an argument
        ours.close()
        errors.close()
        why = err.strerror if isinstance(err, OSError) else err
        raise CommandFailed(tuple(argv), 127, f"cannot run {argv[0]}: {why}") from err
    finally:
        theirs.close()
    return ConnectedChild(process, ours, errors)


def spawn_detached(
    argv: Sequence[str], environ: Mapping[str, str], *, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: no terminal ends it, and we need not wait for it.

    It reads nothing and writes where we do.

    :param environ: the whole environment of the program.
    :param keep: descriptors that it gets under their numbers.
    :raise CommandFailed: it cannot be started.
    """
    import subprocess  # slow to import, and most never need it

    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            env=dict(environ),
            pass_fds=tuple(keep),
            start_new_session=True,
        )
    except OSError as err:
        raise CommandFailed(tuple(argv), 127, f"cannot run {argv[0]}: {err.strerror}") from err


def quote_command(argv: Sequence[str]) -> str:
    """Return one line that a POSIX shell reads as these arguments."""
    return shlex.join(argv)
