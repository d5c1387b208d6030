"""How the layers of a disk go together: an image over its backing image, stretch by stretch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storaged.formats.disk import Kind, Stretch, stretches_of
from storaged.formats.handle import Handle


def joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Yield *stretches*, which follow on each other, with those joined that are kept alike.

    Data are joined only where they lie one behind the other in the same file.
    """
    rest = iter(stretches)
    last = next(rest, None)
    if last is None:
        return
    for stretch in rest:
        if _continues(last, stretch):
            length = last.length + stretch.length
            last = Stretch(last.offset, length, last.kind, last.depth, last.file, last.host)
        else:
            yield last
            last = stretch
    yield last


def over(own: Iterable[Stretch], backing: Handle) -> Iterator[Stretch]:
    """Yield an image's stretches; in place of what is absent those of its backing disk.

    Where the backing disk has ended the stretch is absent there as well, hence of depth 1.
    """
    size = backing.size()
    for stretch in own:
        if stretch.kind is not Kind.ABSENT:
            yield stretch
            continue
        offset, end = stretch.offset, stretch.offset + stretch.length
        if offset < size:
            for below in stretches_of(backing, offset, min(end, size) - offset):
                yield below._replace(depth=below.depth + 1)
                offset = below.offset + below.length
        if offset < end:
            yield Stretch(offset, end - offset, Kind.ABSENT, 1)


def read_padded(file: Handle, length: int, offset: int) -> bytes:
    """Return exactly *length* bytes: zeros follow where the file or the disk has ended."""
    data = file.pread(length, offset)
    return data if len(data) == length else data.ljust(length, b"\0")


def _continues(last: Stretch, stretch: Stretch) -> bool:
    return (
        last.kind is stretch.kind
        and last.depth == stretch.depth
        and last.file is stretch.file
        and (stretch.kind is not Kind.DATA or last.host + last.length == stretch.host)
    )
