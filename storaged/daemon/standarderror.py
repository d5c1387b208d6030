"""Records of the log on the standard error, where a reader that has stopped holds nobody up."""

from __future__ import annotations

import logging
import os
import select
from contextlib import suppress

#: How long a pipe or a terminal that is full may hold us up, in seconds; what it does not take then
#: is lost. Once it has been too slow, nothing waits until it takes something again.
_PATIENCE = 0.2
#: A pipe that has any room takes so much without waiting, in bytes.
_PIECE = select.PIPE_BUF


class StandardErrorHandler(logging.Handler):
    """Writes records, one or more lines each, to a descriptor.

    It stays blocking: whoever else has it, such as a shell, would find it changed.
    """

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._patience = _PATIENCE
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what is not taken is lost, and counted."""
        try:
            text = self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return
        if self._lost:
            text = f"... {self._lost} lines of the log were lost: nobody read them\n{text}"
        with suppress(OSError):  # there is nobody to tell
            if self._write(memoryview(text.encode(errors="backslashreplace"))):
                self._lost, self._patience = 0, _PATIENCE
            else:
                self._lost, self._patience = self._lost + 1, 0.0

    def _write(self, data: memoryview) -> bool:
        """Write *data*; return whether all of it was taken."""
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        while data:
            if not room.poll(self._patience * 1000):
                return False
            data = data[os.write(self._fd, data[:_PIECE]) :]
        return True
