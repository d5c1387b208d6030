"""Records of the log as datagrams with fields, for systemd's journal.

Source: systemd's description of the native journal protocol.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import socket
import struct
from contextlib import suppress

from storaged.errors import StorageError

JOURNAL = "/run/systemd/journal/socket"

#: How long a full journal may hold us up, in seconds; what it does not take then is lost. Once it
#: has been too slow, nothing waits until it takes something again.
_PATIENCE = 0.2

#: Priorities of syslog, by the level from which on they are used.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (0, 7),
)

#: What a record may say in ``extra``, and the field it becomes.
_EXTRA = {
    "pool": "STORAGED_POOL",
    "volume": "STORAGED_VOLUME",
    "job": "STORAGED_JOB",
    "client": "STORAGED_CLIENT",
}

#: All that is written is written; nothing can be changed by the reader's other peers.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def priority(level: int) -> int:
    """Return the priority of syslog for a level of Python's logging."""
    return next(number for least, number in _PRIORITIES if level >= least)


class JournalHandler(logging.Handler):
    """Sends records to the journal.

    :param identifier: the name of the program there.
    """

    def __init__(self, identifier: str = "storaged", address: str = JOURNAL) -> None:
        super().__init__()
        self._identifier = identifier
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; what the journal does not take is lost."""
        try:
            data = encoded(self._fields(record))
        except Exception:
            self.handleError(record)
            return
        with suppress(OSError):
            try:
                self._send(data)
            except (TimeoutError, BlockingIOError):
                self._socket.settimeout(0)
            else:
                self._socket.settimeout(_PATIENCE)

    def close(self) -> None:
        """Close the way to the journal."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields: dict[str, object] = {
            "MESSAGE": self.format(record),
            "PRIORITY": priority(record.levelno),
            "SYSLOG_IDENTIFIER": self._identifier,
            "SYSLOG_PID": os.getpid(),
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName or "",
            "THREAD_NAME": record.threadName or "",
            "LIBVIRT_SOURCE": record.name,
        }
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StorageError):
            fields["LIBVIRT_CODE"] = error.code
            fields["LIBVIRT_DOMAIN"] = int(error.domain)
        for name, field in _EXTRA.items():
            if (value := getattr(record, name, None)) is not None:
                fields[field] = value
        return fields

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._address)
        except OSError as err:
            if err.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """Send what is too large for a datagram as a sealed file in memory."""
        fd = os.memfd_create("storaged-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._socket.sendmsg([], rights, 0, self._address)
        finally:
            os.close(fd)


def encoded(fields: dict[str, object]) -> bytes:
    """Return fields as the journal reads them; a value of several lines has its length before."""
    parts: list[bytes] = []
    for name, value in fields.items():
        text = str(value).encode(errors="backslashreplace")
        if b"\n" in text:
            parts += [name.encode(), b"\n", struct.pack("<Q", len(text)), text, b"\n"]
        else:
            parts += [name.encode(), b"=", text, b"\n"]
    return b"".join(parts)
