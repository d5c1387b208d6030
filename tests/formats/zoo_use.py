"""What can be done with an inhabitant of the zoo that only looks: each way a function of a handle.

They return a word for the answer; `FormatError` is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from types import MappingProxyType

from storaged.formats import probe, qcow2_check, vmdk_check
from storaged.formats.disk import Disk, Stretch
from storaged.formats.handle import Handle
from storaged.formats.identify import identify
from storaged.formats.qcow2_bitmaps import read_bitmaps
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import read_snapshots
from storaged.formats.vmdk_describe import describe
from storaged.formats.vmdk_read import VmdkDisk

#: Whoever maps or reads a disk stops at some bound of time: here after so many stretches ...
STRETCHES = 2000
#: ... and so many bytes, in steps of so many.
READ, STEP = 4 << 20, 1 << 20


def use_probe(handle: Handle) -> str:
    return str(probe.probe(handle))


def use_identify(handle: Handle) -> str:
    return str(identify(handle, name="own.vmdk"))


def use_check(handle: Handle) -> str:
    check = qcow2_check.check if _is_qcow2(handle) else vmdk_check.check
    return "; ".join(check(handle).findings)


def use_map(handle: Handle) -> str:
    disk = opened(handle)
    end = 0
    for stretch in _stretches(disk):
        assert (stretch.offset, stretch.length > 0) == (end, True)
        end += stretch.length
    assert end <= disk.size()
    return f"mapped {end}"


def use_read(handle: Handle) -> str:
    disk = opened(handle)
    done = 0
    for stretch in _stretches(disk):
        length = min(stretch.length, STEP)
        assert len(disk.pread(length, stretch.offset)) == length
        done += length
        if done >= READ:
            break
    last = min(disk.size(), STEP)
    assert len(disk.pread(last + 1, disk.size() - last)) == last
    return f"read {done}"


def use_lists(handle: Handle) -> str:
    """List what is inside: snapshots and bitmaps, or the files that hold a VMDK."""
    if _is_qcow2(handle):
        return f"{len(read_snapshots(handle))} {len(read_bitmaps(handle))}"
    return f"{len(describe(handle, name=b'own.vmdk').extents)} extents"


USES: MappingProxyType[str, Callable[[Handle], str]] = MappingProxyType(
    {
        "probe": use_probe,
        "identify": use_identify,
        "check": use_check,
        "map": use_map,
        "read": use_read,
        "lists": use_lists,
    }
)


def opened(handle: Handle) -> Disk:
    """Open the disk alone: nothing that it names is given."""
    return Qcow2Disk(handle) if _is_qcow2(handle) else VmdkDisk(handle)


def _stretches(disk: Disk) -> Iterator[Stretch]:
    return islice(disk.stretches(0, disk.size()), STRETCHES)


def _is_qcow2(handle: Handle) -> bool:
    return handle.pread(4, 0) == b"QFI\xfb"
