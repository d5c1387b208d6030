"""What capacity a volume is to get, and may get: where its data end, what the pool has left."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from storaged.backend import Transfers
from storaged.errors import InvalidArgument, NoSpace, OperationUnsupported, system_errors
from storaged.formats.handle import Handle
from storaged.job import Job
from storaged.model import VolumeRecord
from storaged.pool import PoolObject
from storaged.units import MAX_SIZE, format_size

#: Formats of volumes whose bytes are those of the disk.
_PLAIN: Final = ("raw", None)
#: How much is read at a time where only its bytes tell whether there are data, in bytes.
_PIECE: Final = 4 << 20


def wanted_size(record: VolumeRecord, capacity: int, *, delta: bool, shrink: bool) -> int:
    """Return what capacity is asked for, in bytes.

    :param delta: *capacity* is by how much it grows, or with *shrink* by how much it shrinks.
    :raise InvalidArgument: no volume is so large.
    """
    if delta:
        step = -min(capacity, record.capacity) if shrink else capacity
        capacity = record.capacity + step
    if capacity > MAX_SIZE:
        raise InvalidArgument(f"capacity {capacity} is above {MAX_SIZE} bytes")
    return capacity


def check_size(
    pool: PoolObject,
    record: VolumeRecord,
    wanted: int,
    *,
    allocate: bool,
    shrink: bool,
    force: bool,
    job: Job[Any],
) -> None:
    """Refuse a capacity that a volume is not to get; for a worker, for it may read the volume.

    :param wanted: in bytes.
    :param shrink: a smaller one is allowed, down to where the data end; with *force* below that.
    :raise InvalidArgument: smaller without *shrink*, or data would be cut.
    :raise OperationUnsupported: it cannot be told where the data end.
    :raise NoSpace: it is to be allocated, and the pool has too little left.
    """
    if wanted < record.capacity:
        smallest = record.allocation
        if shrink:
            smallest = 0 if force else _data_end(pool, record, wanted, job)
        if wanted < smallest:
            raise InvalidArgument(
                "can't shrink capacity below existing allocation",
                advice=f"The smallest safe size is {smallest} bytes ({format_size(smallest)}).",
            )
        if not shrink:
            raise InvalidArgument(
                "Can't shrink capacity below current capacity unless shrink flag explicitly "
                "specified",
                advice="What lies beyond the new end is lost. If that is meant: --shrink",
            )
    available = pool.snapshot.info.space.available
    if allocate and pool.space_known and wanted - record.allocation > available:
        raise NoSpace(
            "Not enough space left in storage pool",
            advice=f"{format_size(available)} are left in '{pool.name}'.",
        )


def check_needless(record: VolumeRecord, secret: bytes | None) -> None:
    """Refuse a passphrase for a volume that has none.

    :raise InvalidArgument: whoever gave it means another volume, or takes this one for encrypted.
    """
    image = record.image
    if secret is not None and (image is None or image.encryption is None):
        raise InvalidArgument(
            f"a secret was given for volume '{record.name}', which is not encrypted"
        )


def _data_end(pool: PoolObject, record: VolumeRecord, wanted: int, job: Job[Any]) -> int:
    """Return where the last data of a volume end, as a guest counts, in bytes.

    :param wanted: where they may end: what lies before is not looked at closely.
    :raise OperationUnsupported: that cannot be told.
    """
    backend = pool.backend
    if not isinstance(backend, Transfers):
        return 0
    try:
        disk = backend.open_disk(record)
    except OperationUnsupported as err:
        raise OperationUnsupported(
            f"it cannot be told where the data of volume '{record.name}' end: {err.detail}",
            advice="If what lies beyond the new end can be lost: --shrink --force",
        ) from err
    with closing(disk) as handle, system_errors(f"cannot read volume '{record.name}'"):
        size = handle.size()
        # a raw volume with LUKS is longer than its capacity, by its header
        header = size - record.capacity if record.format in _PLAIN else 0
        ends = (offset + length for offset, length, data in handle.map(0, size) if data)
        end = max(ends, default=0)
        if end == size and record.format in _PLAIN:
            # Devices, and some file systems, do not tell where their holes are.
            end = _last_data(handle, wanted + header, end, job)
        return max(end - header, 0)


def _last_data(handle: Handle, start: int, end: int, job: Job[Any]) -> int:
    """Return the end of the last bytes that are not zeros between two offsets, or *start*."""
    while end > start:
        job.checkpoint()
        begin = max(end - _PIECE, start)
        data = handle.pread(end - begin, begin).rstrip(b"\0")
        if data:
            return begin + len(data)
        end = begin
    return end
