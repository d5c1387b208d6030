"""What the objects of one connection share: the link, and who still holds it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from storaged.client.link import Link, RemoteFailure
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.errors import refuse_writing, reporting
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import RemoteError

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)


class Handle:
    """A link that ends when the connection, and every object made through it, is gone."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._lock = threading.Lock()
        self._holders = 1
        #: called once when the link ends
        self.on_end: Callable[[], None] = lambda: None
        #: called when a call finds that the link has ended by itself
        self.on_lost: Callable[[RemoteError], None] = lambda error: None

    def hold(self) -> Handle:
        """Take note of one holder more; return the handle."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> int:
        """Take note that a holder let go; return how many are left. Without any the link ends.

        When Python ends, the link ends with the process: its thread, which may hold locks, is
        stopped by then.
        """
        if sys.is_finalizing():
            return 0
        with self._lock:
            self._holders -= 1
            left = self._holders
        if left == 0:
            self.on_end()
            self.link.close()
        return left

    def call(self, procedure: Procedure[A, R], args: A, function: str | None = None) -> R:
        """Call a procedure and return what it returns.

        :param function: libvirt's name of the call where it is not the procedure's.
        :raise libvirtError: it failed.
        """
        with reporting(function or procedure.name), self.noticing():
            return self.link.call(procedure, args)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Tell of the end of the link if that is why something fails."""
        try:
            yield
        except RemoteFailure as failure:
            if not self.link.alive:
                self.on_lost(failure.error)
            raise

    def check_writable(self, function: str, domain: int = numbers.VIR_FROM_STORAGE) -> None:
        """Refuse a call that changes something, on a connection that may only read.

        :raise libvirtError: with code 29.
        """
        if self.link.readonly:
            refuse_writing(function, domain)
