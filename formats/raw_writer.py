"""Raw images filled with the content of a disk."""

from __future__ import annotations

from storaged.formats import raw
from storaged.formats.handle import Bytes, Checkpoint, Handle
from storaged.formats.writer import Place, Writer

#: Blocks of most file systems; of a device whose zeros are written, something worth a call.
_UNIT = 4096
_DEVICE_UNIT = 65536


class RawWriter(Writer):
    """Puts every byte where the disk has it.

    :param capacity: of the disk, in bytes.
    :param zeroed: False: the target, a device, may hold old data, so that zeros are written too.
    :param allocation: bytes to take from the file system before anything is written; as in libvirt,
        what exceeds *capacity* makes the file longer.
    :param checkpoint: called with the bytes allocated so far and *allocation*.
    :raise OSError: ENOSPC where the space is not there.
    """

    def __init__(
        self, handle: Handle, capacity: int, *,
        zeroed: bool = True, allocation: int = 0, checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        self.unit = _UNIT if zeroed else _DEVICE_UNIT
        self.blank = zeroed
        self.needs_zeros = not zeroed
        self._handle = handle
        self._length = max(capacity, allocation)
        if allocation:
            raw.create(handle, 0, allocation=allocation, checkpoint=checkpoint)

    def place(self, offset: int, length: int) -> Place:
        """Claim room where the disk has it."""
        return Place(self._handle, offset, length)

    def write(self, offset: int, data: Bytes) -> None:
        """Write where the disk has it."""
        self._handle.pwrite(data, offset)

    def zero(self, offset: int, length: int) -> None:
        """Make a part read as zeros, unless it does."""
        if not self.blank:
            self._handle.write_zeroes(offset, length)

    def finish(self) -> None:
        """Give the file its length.

        :raise OSError: ENOSPC if a device is shorter than the disk.
        """
        self._handle.truncate(self._length)
