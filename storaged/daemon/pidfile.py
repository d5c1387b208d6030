"""The file that tells the process id of a running daemon.

It is locked as libvirt's daemons lock theirs, so that neither removes the other's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from storaged.atomic import make_directory
from storaged.driverlock import lock_first_byte
from storaged.errors import ResourceBusy, system_errors
from storaged.paths import printable


class PidFile:
    """A file that holds our process id, until `remove`.

    :raise ResourceBusy: another process has it.
    :raise SystemFailure: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        make_directory(path.parent, mode=0o755)
        while True:
            self._fd = self._open()
            try:
                self._take()
                if self._is_current():
                    self._write()
                    return
            except BaseException:
                os.close(self._fd)
                raise
            # Its last holder removed it before we had the lock: it is nobody's file any more.
            os.close(self._fd)

    def remove(self) -> None:
        """Remove the file. Calling it again does nothing."""
        if self._fd < 0:
            return
        with suppress(OSError):
            if self._is_current():
                self._path.unlink()
        os.close(self._fd)
        self._fd = -1

    def _open(self) -> int:
        with system_errors(f"Failed to open pid file '{printable(self._path)}'"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(self._path, flags, 0o644)

    def _take(self) -> None:
        shown = printable(self._path)
        with system_errors(f"Failed to acquire pid file '{shown}'"):
            if lock_first_byte(self._fd):
                return
            text = os.pread(self._fd, 20, 0).decode(errors="replace").strip()
        pid = int(text) if text.isascii() and text.isdigit() else None
        raise ResourceBusy(
            f"pid file '{shown}' is in use by process {pid or 'unknown'}",
            pid=pid,
            advice="That daemon runs already. Another one needs --pid-file or --root.",
        )

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.lstat())
        except FileNotFoundError:
            return False

    def _write(self) -> None:
        with system_errors(f"Failed to write to pid file '{printable(self._path)}'"):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
