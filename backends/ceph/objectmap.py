"""Maps of objects: which of an image's objects exist, and which have changed since a snapshot.

Source: Ceph's RBD image format 2: its features object-map and fast-diff, and their encoding.
"""

from __future__ import annotations

import struct

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
#: Bytes of the head of a map: its length, version and number of objects.
_LEAST = 18

#: Of a byte with the states of four objects: how many exist; whether one has changed since the last
#: snapshot. A state is 0: it does not exist, 1: it does, and has changed, 2: it is
#: about to be removed, 3: it does, and has not changed.
_STATES = [[byte >> shift & 3 for shift in (6, 4, 2, 0)] for byte in range(256)]
_COUNT = bytes(sum(state & 1 for state in states) for states in _STATES)
_CHANGED = bytes(any(state in (1, 2) for state in states) for states in _STATES)


def used_of(objects: bytes, size: int, order: int) -> int:
    """Return the bytes of the objects that exist; the last one counts as far as the image goes."""
    used = sum(objects.translate(_COUNT)) << order
    last, left = (size - 1) >> order, size & ((1 << order) - 1)
    place, shift = divmod(last, 4)
    if left and place < len(objects) and objects[place] >> (6 - 2 * shift) & 1:
        used -= (1 << order) - left
    return min(used, size)  # the last objects of a striped image are not full either


def states_of(reply: bytes) -> bytes | None:
    """Return the states of a map of objects, two bits each, the first ones uppermost.

    None: there are more than were read, or it is no such map.
    """
    if len(reply) < _LEAST:
        return None
    (head,) = _U32.unpack_from(reply)
    (count,) = _U64.unpack_from(reply, 10)
    start = 4 + head
    states = reply[start : start + -(-count // 4)]
    return None if len(states) * 4 < count else states


def has_changed(objects: bytes) -> bool:
    """Tell whether an object was written or removed since the last snapshot."""
    return any(objects.translate(_CHANGED))
