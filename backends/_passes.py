"""The overwriting patterns that are known by name, and how one pass over a file is made.

Sources: NNSA Policy Letter NAP-14.1-C, DoD 5220.22-M section 8-306 (d), the 1999 guideline of the
German BSI, Gutmann's paper of 1996, Schneier's "Applied Cryptography", Pfitzner's two methods.
Where a method wants a verification, its last pattern is a fixed one, so that it can be verified.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from storaged.backend import WipeAlgorithm
from storaged.formats.handle import Handle

#: Bytes in a piece: a multiple of three, because some of Gutmann's patterns have three bytes.
_PIECE = 3 << 18


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the data.

    :param pattern: repeated over and over; empty for random bytes.
    :param verify: read it back instead of writing it.
    """

    pattern: bytes = b""
    verify: bool = False


RANDOM = Pass()


def _fixed(*patterns: int | bytes) -> tuple[Pass, ...]:
    return tuple(Pass(bytes([one]) if isinstance(one, int) else one) for one in patterns)


_TRIPLES = _fixed(b"\x92\x49\x24", b"\x49\x24\x92", b"\x24\x92\x49")
_GUTMANN = (
    *(RANDOM,) * 4,
    *_fixed(0x55, 0xAA),
    *_TRIPLES,
    *_fixed(*range(0x00, 0x100, 0x11)),
    *_TRIPLES,
    *_fixed(b"\x6d\xb6\xdb", b"\xb6\xdb\x6d", b"\xdb\x6d\xb6"),
    *(RANDOM,) * 4,
)

PASSES: dict[WipeAlgorithm, tuple[Pass, ...]] = {
    WipeAlgorithm.ZERO: _fixed(0x00),
    WipeAlgorithm.NNSA: (RANDOM, RANDOM, *_fixed(0x00), Pass(b"\x00", verify=True)),
    WipeAlgorithm.DOD: (RANDOM, *_fixed(0x00, 0xFF), Pass(b"\xff", verify=True)),
    WipeAlgorithm.BSI: _fixed(0xFF, 0xFE, 0xFD, 0xFB, 0xF7, 0xEF, 0xDF, 0xBF, 0x7F),
    WipeAlgorithm.GUTMANN: _GUTMANN,
    WipeAlgorithm.SCHNEIER: (*_fixed(0x00, 0xFF), *(RANDOM,) * 5),
    WipeAlgorithm.PFITZNER7: (RANDOM,) * 7,
    WipeAlgorithm.PFITZNER33: (RANDOM,) * 33,
    WipeAlgorithm.RANDOM: (RANDOM,),
}


def run_pass(
    handle: Handle,
    stretches: Iterable[tuple[int, int]],
    one: Pass,
    moved: Callable[[int], None],
) -> None:
    """Make one pass over some stretches of a file, and bring it to the disk.

    :param stretches: (offset, length) of each.
    :param moved: called with the bytes of each piece.
    :raise OSError: EIO if a verification finds something else than was written.
    """
    repeated = (one.pattern * _PIECE)[:_PIECE]
    for start, size in stretches:
        offset, end = start, start + size
        while offset < end:
            length = min(_PIECE, end - offset)
            piece = memoryview(repeated)[:length] if one.pattern else os.urandom(length)
            if not one.verify:
                handle.pwrite(piece, offset)
            elif handle.pread(length, offset) != piece:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += length
            moved(length)
    fd = handle.fileno()
    if fd is None:
        return
    os.fdatasync(fd)
    # What is read back is to come from the disk.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
