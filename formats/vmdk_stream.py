"""The markers of a stream-optimized extent, from the first grain to the end of the stream.

Source: VMware's Virtual Disk Format 1.1, "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from storaged.formats.handle import Handle
from storaged.formats.verdict import Verdict
from storaged.formats.vmdk import Marker
from storaged.formats.vmdk_descriptor import SECTOR
from storaged.formats.vmdk_tables import Geometry

#: Markers between two calls of a checkpoint.
_A_STEP = 1024


class MarkerType(IntEnum):
    """What follows a marker that is not a grain's."""

    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


def walk(
    file: Handle,
    geometry: Geometry,
    allocated: int,
    verdict: Verdict,
    step: Callable[[int], None],
) -> None:
    """Follow the markers; tell where they do not lead to the footer and the end of the file.

    :param allocated: how many grains the tables have.
    :param step: called now and then, with the disk's size.
    """
    size = file.size()
    place = geometry.over_head * SECTOR
    grains = count = 0
    before = None
    while place + SECTOR <= size:
        count += 1
        if not count % _A_STEP:
            step(geometry.capacity)
        marker, kind = _read(file, place)
        if marker.size:
            grains += 1
            place += -(-(Marker.length() + marker.size) // SECTOR) * SECTOR
            continue
        if kind == MarkerType.END_OF_STREAM and not marker.val:
            break
        if kind not in tuple(MarkerType):
            verdict.corrupt("a marker of type {} at byte {}", kind, place)
            return
        before = kind
        place += SECTOR + marker.val * SECTOR
    if place + SECTOR != size or before != MarkerType.FOOTER:
        verdict.corrupt("the stream ends at byte {} of {} without a footer before", place, size)
    if grains > allocated:
        verdict.leaks += grains - allocated
        verdict.note("{} grains of the stream are in no table", grains - allocated)


def _read(file: Handle, place: int) -> tuple[Marker, int]:
    """Return a marker, and its type if it is not a grain's."""
    raw = file.pread(Marker.length() + 4, place)
    return Marker.unpack(raw), int.from_bytes(raw[Marker.length() :], "little")
