"""What the objects of one connection share: the link, and who still holds it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from storaged.client.link import Link
from storaged.libvirt.errors import refuse_writing, reporting
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record

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

    def hold(self) -> Handle:
        """Take note of one holder more; return the handle."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> int:
        """Take note that a holder let go; return how many are left. Without any the link ends."""
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
        with reporting(function or procedure.name):
            return self.link.call(procedure, args)

    def check_writable(self, function: str) -> None:
        """Refuse a call that changes something, on a connection that may only read.

        :raise libvirtError: with code 29.
        """
        if self.link.readonly:
            refuse_writing(function)
