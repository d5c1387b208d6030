"""Until when a message that has begun to come must be whole."""

from __future__ import annotations

from storaged.rpc.packet import Splitter
from storaged.server.limits import Bounds


class MessageDeadline:
    """The time limit of the message under way, which grows with its length.

    :param splitter: what cuts the bytes of the connection into messages.
    """

    def __init__(self, splitter: Splitter, bounds: Bounds) -> None:
        self._splitter = splitter
        self._bounds = bounds
        self._due: float | None = None
        #: whether the length of the message counts already
        self._sized = False

    def settle(self, now: float, *, whole: bool) -> None:
        """Take note that something came.

        :param whole: whether another message, or a part of data, was completed by it.
        """
        splitter = self._splitter
        if not splitter.unfinished:
            self._due = None
            return
        if self._due is None or whole:
            self._due = now + self._bounds.message_time
            self._sized = False
        if not self._sized and splitter.missing:
            self._sized = True
            self._due += splitter.missing / self._bounds.message_rate

    def postpone(self, seconds: float) -> None:
        """Take note of time in which nothing was read."""
        if self._due is not None:
            self._due += seconds

    def passed(self, now: float) -> bool:
        """Tell whether the message should have been whole by now."""
        return self._due is not None and now > self._due
