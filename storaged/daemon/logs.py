"""Where the log goes and how much of it: libvirt's filters and outputs over Python's logging.

``log_filters`` is a list of ``LEVEL:MATCH`` with blanks between, where the first that matches the
source of a record decides; ``log_outputs`` one of ``LEVEL:stderr``, ``LEVEL:file:PATH``,
``LEVEL:syslog:NAME`` and ``LEVEL:journald``. Levels are 1 debug, 2 info, 3 warning, 4 error.

Source: libvirt's description of its logging.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from storaged.atomic import make_directory
from storaged.daemon.journal import JOURNAL, JournalHandler
from storaged.daemon.standarderror import StandardErrorHandler
from storaged.errors import InvalidArgument, StorageError, system_errors

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"

#: Answers that tell of a client's question rather than of a fault: not worth more than debug.
_QUIET = frozenset((42, 43, 49, 50, 53, 55, 57, 62, 66, 72, 80, 95, 96, 101, 108))

#: How parts of storaged are called in filters that were written for libvirt.
_SOURCES = (
    ("storaged.server", "rpc.server"),
    ("storaged.rpc", "rpc"),
    ("storaged.daemon", "daemon"),
    ("storaged.backends", "storage.backend"),
    ("storaged", "storage"),
    ("asyncio", "rpc.asyncio"),
)


class OutputKind(StrEnum):
    """Where records go."""

    STDERR = "stderr"
    FILE = "file"
    SYSLOG = "syslog"
    JOURNALD = "journald"


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The least level, 1 to 4, of records whose source matches."""

    level: int
    match: str

    def __str__(self) -> str:
        return f"{self.level}:{self.match}"

    def matches(self, source: str) -> bool:
        """Tell whether the filter decides about a source."""
        pattern = self.match if "*" in self.match else f"*{self.match}*"
        return fnmatchcase(source, pattern)


@dataclass(frozen=True, slots=True)
class LogOutput:
    """Where records of at least a level, 1 to 4, go. *where* is a path or the name for syslog."""

    level: int
    kind: OutputKind
    where: str = ""

    def __str__(self) -> str:
        parts = (str(self.level), self.kind, self.where)
        return ":".join(part for part in parts if part)


def parse_filters(text: str) -> tuple[LogFilter, ...]:
    """Return the filters of a list such as ``1:storage 3:rpc``.

    :raise InvalidArgument: an item is none; names it.
    """
    found = []
    for item in text.split():
        level, colon, match = item.partition(":")
        if not colon or not match or level not in ("1", "2", "3", "4"):
            raise InvalidArgument(
                f"'{item}' is no log filter: LEVEL:MATCH with a level from 1 to 4"
            )
        found.append(LogFilter(int(level), match.removeprefix("+")))
    return tuple(found)


def parse_outputs(text: str) -> tuple[LogOutput, ...]:
    """Return the outputs of a list such as ``3:journald 1:file:/var/log/storaged.log``.

    :raise InvalidArgument: an item is none; names it.
    """
    return tuple(_output(item) for item in text.split())


def _output(item: str) -> LogOutput:
    level, _, rest = item.partition(":")
    name, colon, where = rest.partition(":")
    try:
        kind = OutputKind(name)
    except ValueError:
        kind = None
    if kind is None or level not in ("1", "2", "3", "4"):
        raise InvalidArgument(
            f"'{item}' is no log output: LEVEL:stderr, LEVEL:journald, LEVEL:file:PATH "
            "or LEVEL:syslog:NAME with a level from 1 to 4"
        )
    named = kind in (OutputKind.FILE, OutputKind.SYSLOG)
    if named != bool(where) or (colon and not named):
        what = "needs a path or a name" if named else "takes nothing"
        raise InvalidArgument(f"log output '{item}': '{kind}' {what} after it")
    if kind is OutputKind.FILE and not where.startswith("/"):
        raise InvalidArgument(f"log output '{item}': the path of the file must be absolute")
    return LogOutput(int(level), kind, where)


def source_of(name: str) -> str:
    """Return what filters call the source of a logger's records."""
    for prefix, source in _SOURCES:
        if name == prefix or name.startswith(prefix + "."):
            return source + name[len(prefix) :]
    return name


class Logs:
    """The log of the process, to be changed while it runs. It owns Python's root logger.

    :param environ: tells whether the standard error leads to the journal.
    :param file: where the log goes by default if the standard error leads nowhere; None if it does.
    """

    def __init__(
        self, environ: Mapping[str, str], *, file: Path | None = None, journal: str = JOURNAL
    ) -> None:
        self._environ = environ
        self._file = file
        self._journal = journal
        self._handlers: tuple[logging.Handler, ...] = ()
        self._level = 3
        self._sieve = _Sieve()
        self.filters: tuple[LogFilter, ...] = ()
        self.outputs: tuple[LogOutput, ...] = ()

    def start(self, level: int, filters: str, outputs: str) -> None:
        """Set all at once, as the configuration says; also after a change of it.

        :raise StorageError: something in it is wrong or cannot be opened; nothing was changed.
        """
        wanted = parse_filters(filters)
        before, self._level = self._level, level
        try:
            self.set_outputs(outputs)
        except StorageError:
            self._level = before
            raise
        self._use(wanted)

    def set_filters(self, text: str | None) -> None:
        """Take filters in place of those that hold; nothing takes all away.

        :raise InvalidArgument: an item is no filter; nothing was changed.
        """
        self._use(parse_filters(text or ""))

    def set_outputs(self, text: str | None) -> None:
        """Take outputs in place of those that hold; nothing means the default one.

        Files are opened anew, so that one that was moved away is let go.

        :raise InvalidArgument: an item is no output; nothing was changed.
        :raise SystemFailure: one cannot be opened; nothing was changed.
        """
        wanted = parse_outputs(text or "") or (self._default(),)
        opened: list[logging.Handler] = []
        try:
            for output in wanted:
                opened.append(self._open(output))  # noqa: PERF401 -- those opened must be closed
        except BaseException:
            for handler in opened:
                handler.close()
            raise
        root = logging.getLogger()
        for handler in opened:
            root.addHandler(handler)
        self._drop(self._handlers)
        self._handlers, self.outputs = tuple(opened), wanted
        self._set_level()

    def close(self) -> None:
        """Let go of all outputs."""
        self._drop(self._handlers)
        self._handlers = ()

    def filters_text(self) -> str:
        """Return the filters as a configuration would have them."""
        return " ".join(map(str, self.filters))

    def outputs_text(self) -> str:
        """Return the outputs as a configuration would have them."""
        return " ".join(map(str, self.outputs))

    def _use(self, filters: tuple[LogFilter, ...]) -> None:
        self.filters = filters
        self._set_level()

    def _set_level(self) -> None:
        """Have loggers make only those records that some source may need."""
        self._sieve.use(self._level, self.filters)
        least = min((self._level, *(one.level for one in self.filters)))
        logging.getLogger().setLevel(_LEVELS[least])

    def _default(self) -> LogOutput:
        """Return the output that is used where none is set.

        It is the standard error; but where that leads to the journal, or nowhere, the journal
        itself, and a file where there is none.
        """
        journal = Path(self._journal).is_socket()
        if journal and (self._file is not None or _leads_to_journal(self._environ)):
            return LogOutput(self._level, OutputKind.JOURNALD)
        if self._file is not None:
            make_directory(self._file.parent)
            return LogOutput(self._level, OutputKind.FILE, str(self._file))
        return LogOutput(self._level, OutputKind.STDERR)

    def _open(self, output: LogOutput) -> logging.Handler:
        handler: logging.Handler
        with system_errors(f"cannot open log output '{output}'"):
            if output.kind is OutputKind.FILE:
                handler = _open_file(output.where)
            elif output.kind is OutputKind.SYSLOG:
                handler = logging.handlers.SysLogHandler(
                    "/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON
                )
                handler.ident = f"{output.where}[{os.getpid()}]: "
            elif output.kind is OutputKind.JOURNALD:
                handler = JournalHandler(address=self._journal)
            else:
                handler = StandardErrorHandler()
        if output.kind in (OutputKind.FILE, OutputKind.STDERR):
            handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
        handler.setLevel(_LEVELS[output.level])
        # Asked again after the sieve, which may have lowered the record.
        handler.addFilter(
            lambda record: self._sieve.filter(record) and record.levelno >= handler.level
        )
        return handler

    def _drop(self, handlers: tuple[logging.Handler, ...]) -> None:
        root = logging.getLogger()
        for handler in handlers:
            root.removeHandler(handler)
            with suppress(OSError):
                handler.close()


class _Sieve:
    """Lets through what the filters, and the level where none matches, let through."""

    def __init__(self) -> None:
        self._level = logging.WARNING
        self._filters: tuple[LogFilter, ...] = ()
        self._known: dict[str, int] = {}

    def use(self, level: int, filters: tuple[LogFilter, ...]) -> None:
        self._level, self._filters, self._known = _LEVELS[level], filters, {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG and _is_quiet(record):
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        least = self._known.get(record.name)
        if least is None:
            source = source_of(record.name)
            levels = (_LEVELS[one.level] for one in self._filters if one.matches(source))
            least = self._known[record.name] = next(levels, self._level)
        return record.levelno >= least


def _is_quiet(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    code = error.code if isinstance(error, StorageError) else getattr(record, "code", None)
    return code in _QUIET


def _open_file(path: str) -> logging.Handler:
    # The log may name what only root may see: 0600, as libvirt makes it.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.close(fd)
    return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")


def _leads_to_journal(environ: Mapping[str, str]) -> bool:
    """Tell whether the standard error is the stream that systemd gave us for the journal."""
    with suppress(OSError):
        found = os.fstat(2)
        return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False
