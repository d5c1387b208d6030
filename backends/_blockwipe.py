"""Overwriting block devices.

A device is overwritten from its first byte to its last, in stretches that are brought to the disk
one by one: so what is told of the progress is true, a cancel takes hold at once, and an error of
the disk is told with its place. Where a device keeps old blocks (thin volumes, most flash) no
program can promise that the old data are gone.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from storaged.backend import WipeAlgorithm, Wipes
from storaged.backends._blocklook import LooksAtDevices
from storaged.backends._blockopen import DeviceHandle
from storaged.backends._passes import PASSES, Pass, run_pass
from storaged.errors import ArgumentUnsupported, system_errors
from storaged.formats import syscalls
from storaged.job import Job
from storaged.model import VolumeRecord

#: Bytes that are overwritten, and brought to the disk, at a time; a multiple of a pass's piece.
_STRETCH: Final = 3 << 24
#: Bytes that are discarded at a time.
_DISCARD: Final = 1 << 30
_NO_DISCARD: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})


class WipesDevices(LooksAtDevices, Wipes):
    """The whole device is overwritten, or discarded."""

    def wipe(
        self,
        volume: VolumeRecord,
        algorithm: WipeAlgorithm,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        with self.locked_device(volume, force=force) as device:
            if algorithm is WipeAlgorithm.TRIM:
                self._discard(device, volume, job)
            else:
                self._overwrite(device, volume, PASSES[algorithm], job)
        return self.look_again(volume)

    def _overwrite(
        self, device: DeviceHandle, volume: VolumeRecord, passes: tuple[Pass, ...], job: Job[Any]
    ) -> None:
        size = device.size()
        total, done = size * len(passes), 0
        job.checkpoint(0, total)

        def moved(length: int) -> None:
            nonlocal done
            done += length
            job.checkpoint(done, total)

        for one in passes:
            for start in range(0, size, _STRETCH):
                length = min(_STRETCH, size - start)
                with self._failing(volume, start, start + length):
                    if one.pattern == b"\0" and not one.verify:
                        device.write_zeroes(start, length, unmap=False)
                        device.flush()
                        moved(length)
                    else:
                        run_pass(device, [(start, length)], one, moved)

    def _discard(self, device: DeviceHandle, volume: VolumeRecord, job: Job[Any]) -> None:
        """Discard all: what the device reads as then is its own affair.

        :raise ArgumentUnsupported: it cannot; nothing was discarded. libvirt's text.
        """
        fd, size = device.descriptor, device.size()
        job.checkpoint(0, size)
        for start in range(0, size, _DISCARD):
            length = min(_DISCARD, size - start)
            with self._failing(volume, start, start + length):
                try:
                    syscalls.discard(fd, start, length)
                except OSError as err:
                    if err.errno not in _NO_DISCARD:
                        raise
                    raise ArgumentUnsupported(
                        "'trim' algorithm not supported",
                        advice="The device has no such command; overwrite it instead.",
                    ) from err
            job.checkpoint(start + length, size)
        with self._failing(volume, 0, size):
            device.flush()

    def _failing(self, volume: VolumeRecord, start: int, end: int) -> system_errors:
        path = self.device_path(volume)
        return system_errors(
            f"failed to wipe volume '{path}'", advice=f"It failed between byte {start} and {end}."
        )
