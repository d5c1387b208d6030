"""Moving the bytes of file volumes in and out."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from storaged import imagelock
from storaged.backend import Durability, Sink, Source, Transfers
from storaged.backends._chain import ReadsChains
from storaged.backends._record import unmark
from storaged.backends._streams import DescriptorSink
from storaged.errors import NoSuchVolume, SystemFailure
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.handleflow import HandleSource
from storaged.model import VolumeRecord, VolumeType


class TransfersFiles(ReadsChains, Transfers):
    """The bytes of the file go in and out as they are, whatever the format."""

    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        with self.opened_target() as directory:
            return FileHandle(self.open_fd(directory, volume, writable=writable))

    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        durable = self.host.durability is Durability.FULL
        with self.opened_target() as directory, ExitStack() as stack:
            fd = self._open_stream(directory, volume, writable=True)
            stack.callback(os.close, fd)
            # as in libvirt, several uploads to one volume may be open
            stack.enter_context(imagelock.hold(fd, volume.name, alone=False))
            unmark(fd)
            handle = FileHandle(fd, owned=False)
            end = offset + length if length else None
            return DescriptorSink(stack.pop_all(), handle, offset, end, durable=durable)

    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        with self.opened_target() as directory:
            handle = FileHandle(self._open_stream(directory, volume, writable=False))
        end = max(handle.size(), offset)
        if length:
            end = min(end, offset + length)
        return HandleSource(handle, offset, end, sparse=sparse)

    def _open_stream(self, directory: int, volume: VolumeRecord, *, writable: bool) -> int:
        """Open the file of a volume, or tell of it in libvirt's words for a stream."""
        path = self.path_of(volume.name)
        doing = f"Unable to open stream for '{path}'"
        if volume.type in (VolumeType.DIR, VolumeType.PLOOP):
            raise SystemFailure(doing if writable else f"Unable to read {path}", errno.EISDIR)
        try:
            return self.open_fd(directory, volume, writable=writable)
        except NoSuchVolume as err:
            raise SystemFailure(doing, errno.ENOENT) from err
