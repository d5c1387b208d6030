"""How data move through the engine: out of a source, into a sink, holes told as holes; wiping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from storaged.formats.handle import Bytes


class WipeAlgorithm(IntEnum):
    """What a wipe overwrites with; the numbers stand on the wire."""

    ZERO = 0
    NNSA = 1
    DOD = 2
    BSI = 3
    GUTMANN = 4
    SCHNEIER = 5
    PFITZNER7 = 6
    PFITZNER33 = 7
    RANDOM = 8
    TRIM = 9


class Hole(NamedTuple):
    """A stretch of zeros in a transfer, in bytes."""

    length: int


class Source(Protocol):
    """Where a download comes from."""

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece, at most *size* bytes of data; ``b""`` at the end.

        Holes are told only by a sparse source, and may be longer than *size*.
        """
        ...

    def close(self) -> None:
        """Let go. Calling it again does nothing."""
        ...


class Sink(Protocol):
    """Where an upload goes. Bytes that were written stay, whatever ends the transfer.

    A sink may also have ``write_many(parts: Sequence[Bytes]) -> None``, which takes several
    pieces, at most 1024, in their order and in fewer steps than `write`; `write_all` uses it.
    """

    def write(self, data: Bytes) -> None:
        """Take the next bytes; they have reached the file when this returns.

        What goes over a network may still be on its way: `finish` waits for it.

        :raise SystemFailure: also with ENOSPC when the announced length is exceeded; and what has
            become of bytes that were on their way.
        """
        ...

    def hole(self, length: int) -> None:
        """Make the next *length* bytes read as zeros, and never shorten the volume."""
        ...

    def finish(self) -> None:
        """End the transfer as complete, made durable as the engine's setting asks."""
        ...

    def abort(self) -> None:
        """End the transfer. Calling it after an end does nothing."""
        ...


def write_all(sink: Sink, parts: Sequence[Bytes]) -> None:
    """Have a sink take several pieces, at once if it can.

    :raise SystemFailure: as `Sink.write`; pieces before the one that failed may be written.
    """
    at_once: Callable[[Sequence[Bytes]], None] | None = getattr(sink, "write_many", None)
    if at_once is not None and len(parts) > 1:
        at_once(parts)
        return
    for part in parts:
        sink.write(part)
