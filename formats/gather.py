"""Reading scattered pieces of a disk together.

The clusters of an image that was in use lie anywhere in its file. A read for each would cost more
than the bytes do, so what lies close together is read in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storaged.formats.disk import Kind, Stretch
from storaged.formats.handle import Handle
from storaged.formats.move import read

#: Two pieces of a file with a gap of no more than this between them are read in one go ...
_NEAR = 32 << 10
#: ... which is no longer than this.
_LONGEST = 4 << 20


def gather(
    source: Handle, pieces: Iterable[Stretch], start: int, end: int
) -> bytes | bytearray | None:
    """Return a disk's bytes from *start* to *end*; None if they are zeros.

    :param pieces: what of it is not zeros, all within *start* and *end*; pieces of kind ZERO are
        passed over.
    :raise OSError: EIO if a file ends before a piece does.
    :raise FormatError: packed data are damaged.
    """
    pieces = [piece for piece in pieces if piece.kind is not Kind.ZERO]
    if not pieces:
        return None
    first = pieces[0]
    if len(pieces) == 1 and first.length == end - start:
        return _piece(source, first)
    buffer = bytearray(end - start)
    lying = [piece for piece in pieces if piece.kind is Kind.DATA]
    for group in _groups(lying):
        _read_group(group, buffer, start)
    for piece in pieces:
        if piece.kind is not Kind.DATA:
            place = piece.offset - start
            buffer[place : place + piece.length] = _piece(source, piece)
    return buffer


def _piece(source: Handle, piece: Stretch) -> bytes:
    if piece.file is not None:
        return read(piece.file, piece.length, piece.host, piece.host + piece.length)
    return read(source, piece.length, piece.offset, piece.offset + piece.length)


def _groups(pieces: list[Stretch]) -> Iterator[list[Stretch]]:
    """Yield pieces of one file that are to be read in one go."""
    pieces.sort(key=lambda piece: (id(piece.file), piece.host))
    group: list[Stretch] = []
    end = 0
    for piece in pieces:
        if group and (
            piece.file is not group[0].file
            or piece.host > end + _NEAR
            or piece.host + piece.length > group[0].host + _LONGEST
        ):
            yield group
            group = []
        end = max(end, piece.host + piece.length) if group else piece.host + piece.length
        group.append(piece)
    if group:
        yield group


def _read_group(group: list[Stretch], buffer: bytearray, start: int) -> None:
    file, base = group[0].file, group[0].host
    if file is None:
        return
    end = max(piece.host + piece.length for piece in group)
    with memoryview(read(file, end - base, base, end)) as data:
        for piece in group:
            place, host = piece.offset - start, piece.host - base
            buffer[place : place + piece.length] = data[host : host + piece.length]
