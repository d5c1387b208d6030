"""The only parts of an image that a prober may see: its start and its very end."""

from __future__ import annotations

from collections.abc import Callable

#: As much as libvirt reads: an ISO 9660 volume descriptor's first sector ends here.
HEAD_LIMIT = 33280
TAIL_LIMIT = 1024

_STEPS = (512, 4096, HEAD_LIMIT)


class Window:
    """Bounded, lazy view of an untrusted image.

    :param pread: called with (length, offset), returns at most that many bytes.
    :param size: the image file's length in bytes.
    :param head: what was already read of its start.
    """

    __slots__ = ("_asked", "_head", "_pread", "reached", "size")

    def __init__(
        self, pread: Callable[[int, int], bytes], size: int, head: bytes | None = None
    ) -> None:
        self._pread = pread
        self._head = head or b""
        #: how much of the start was asked for: a file may be shorter than its size said
        self._asked = 0 if head is None else max(len(head), _STEPS[0])
        self.size = size
        #: the longest start that `head` was asked for
        self.reached = 0

    def head(self, length: int) -> bytes:
        """Return the first *length* bytes, fewer if the file or the window ends before."""
        length = min(length, HEAD_LIMIT)
        self.reached = max(self.reached, length)
        if length > self._asked:
            self._asked = next(step for step in _STEPS if step >= length)
            self._head = self._pread(self._asked, 0)
        return self._head[:length]

    def at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes from *offset*, fewer where the file or the window ends."""
        length = min(length, HEAD_LIMIT - offset)
        if offset < 0 or length <= 0:
            return b""
        if offset + length <= self._asked:
            return self._head[offset : offset + length]
        return self._pread(length, offset)

    def tail(self, length: int) -> bytes:
        """Return the last *length* bytes, at most 1024; nothing if the file is shorter."""
        length = min(length, TAIL_LIMIT)
        if self.size < length:
            return b""
        return self._pread(length, self.size - length)
