"""What libvirt keeps once a process: each thread's last error, the handler of errors, the loop.

The interface has it so: `registerErrorHandler` and `virEventRegisterImpl` name no connection.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from storaged.libvirt.eventloop import EventLoop

#: code, domain, message, level, three strings, two integers
ErrorTuple = tuple[int, int, str | None, int, str | None, str | None, str | None, int, int]
ErrorHandler = Callable[[Any, ErrorTuple], object]

#: What the default handler calls the parts that a client of storage hears of.
_DOMAINS: Final = {
    5: "XML Util",
    7: "XML-RPC",
    9: "Config File",
    13: "Remote Driver",
    18: "Storage Driver",
    19: "Network Driver",
    20: "Domain Config",
    22: "Node Device Driver",
    26: "Network Interface Driver",
    30: "Secrets Driver",
    33: "Network Filter Driver",
    35: "Domain Snapshot",
    38: "I/O Stream Utils",
    44: "Capabilities Utils",
    45: "URI Utils",
    46: "Authentication Utils",
    47: "DBus Utils",
    50: "SSH transport layer",
    53: "Identity",
    55: "Access Manager",
    60: "Polkit",
    62: "Admin Interface",
    69: "Domain Checkpoint",
}


class _LastError(threading.local):
    error: ErrorTuple | None = None


class Process:
    """The state of this process."""

    def __init__(self) -> None:
        self._last = _LastError()
        self._handler: tuple[ErrorHandler, Any] | None = None
        #: the loop that connections tell their events through; None as long as there is none
        self.loop: EventLoop | None = None

    @property
    def last_error(self) -> ErrorTuple | None:
        """The error of the last call of this thread; None if it had none."""
        return self._last.error

    def reset(self) -> None:
        """Forget the last error of this thread, as each call does when it begins."""
        self._last.error = None

    def set_handler(self, handler: ErrorHandler | None, context: Any) -> None:
        """Have *handler* called with each error; None brings the default back."""
        self._handler = None if handler is None else (handler, context)

    def report(self, error: ErrorTuple) -> None:
        """Take note of an error, and tell the handler."""
        self._last.error = error
        if self._handler is None:
            domain = _DOMAINS.get(error[1], "")
            print(f"libvirt: {domain} error : {error[2]}", file=sys.stderr)
            return
        handler, context = self._handler
        handler(context, error)


PROCESS: Final = Process()
