"""Reader of qcow2 images: what a guest would see, and where each byte lies.

Source: the qcow2 specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from storaged.formats import layers, packing, qcow2
from storaged.formats.disk import Disk, Kind, Stretch
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import CompressionType, Header, Incompatible
from storaged.formats.qcow2_header import SoundHeader, read_sound_header
from storaged.formats.qcow2_snapshots import Snapshot
from storaged.formats.qcow2_tables import Mapping, Piece


class Qcow2Disk(Disk):
    """The disk in a qcow2 image. Several threads may read it at a time.

    The handles belong to it from then on; if it cannot be made they remain the caller's.

    :param handle: the image.
    :param backing: the disk of its backing image, which may be shorter or longer. Without one,
        what the image leaves to it reads as zeros.
    :param data_file: the external data file, where the image has one.
    :param snapshot: read this internal snapshot in place of the active state.
    :raise FormatError: if it is no qcow2 image, or has no use for *data_file*.
    :raise CorruptImage: if it contradicts itself or the file's size.
    :raise UnsupportedFormat: if it is encrypted or needs a data file that is not given; for a
        version or a feature that nobody here knows.
    """

    def __init__(
        self,
        handle: Handle,
        *,
        backing: Handle | None = None,
        data_file: Handle | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        sound = read_sound_header(handle)
        header = sound.header
        _check_readable(sound, data_file)
        if snapshot is None:
            self._size = sound.info.capacity
            table, entries = header.fixed.l1_table_offset, header.fixed.l1_size
        else:
            self._size = _snapshot_size(snapshot, sound)
            table, entries = snapshot.l1_table_offset, snapshot.l1_size
        self.unit = header.cluster_size
        self._image = handle
        self._backing = backing
        self._data_file = data_file
        self._data = handle if data_file is None else data_file
        self._compression = CompressionType(header.compression_type)
        self._mapping = Mapping(
            handle,
            header,
            table,
            entries,
            file_size=sound.file_size,
            data_size=None if data_file is None else data_file.size(),
        )
        #: the L2 entry and the content of the cluster that was unpacked last
        self._unpacked: tuple[int, bytes] = (0, b"")

    def size(self) -> int:
        """Return the virtual size in bytes."""
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the disk ends.

        :raise CorruptImage: the image contradicts itself there.
        :raise UnsupportedFormat: for zstd clusters where the package is not installed.
        """
        end = min(offset + length, self._size)
        parts = [self._read(piece) for piece in self._mapping.walk(offset, end)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stretches(self, offset: int, length: int, *, chain: bool = True) -> Iterator[Stretch]:
        """Yield how a part of the disk is kept: in order, without gaps, adjoining ones joined.

        :param chain: False tells of this image alone: what it leaves to its backing image is
            ABSENT then.
        :raise CorruptImage: the image contradicts itself there; what packed clusters hold is not
            looked at.
        """
        own = layers.joined(self._own(offset, min(offset + length, self._size)))
        if not chain or self._backing is None:
            return own
        return layers.joined(layers.over(own, self._backing))

    def close(self) -> None:
        """Close the handles it was given. Calling it again does nothing."""
        with ExitStack() as stack:
            for handle in (self._image, self._backing, self._data_file):
                if handle is not None:
                    stack.callback(handle.close)

    def _own(self, offset: int, end: int) -> Iterator[Stretch]:
        data, file = Kind.DATA, self._data
        for start, length, kind, host in self._mapping.walk(offset, end):
            if kind is data:
                yield Stretch(start, length, kind, 0, file, host)
            else:
                yield Stretch(start, length, kind)

    def _read(self, piece: Piece) -> bytes:
        if piece.kind is Kind.DATA:
            return layers.read_padded(self._data, piece.length, piece.host)
        if piece.kind is Kind.COMPRESSED:
            start = piece.offset % self.unit
            return self._unpack(piece.host)[start : start + piece.length]
        if piece.kind is Kind.ABSENT and self._backing is not None:
            return layers.read_padded(self._backing, piece.length, piece.offset)
        return bytes(piece.length)

    def _unpack(self, entry: int) -> bytes:
        known, data = self._unpacked
        if known == entry:
            return data
        place = self._mapping.packed(entry)
        try:
            data = packing.unpack(
                self._compression, self._image.pread(place.length, place.offset), self.unit
            )
        except CorruptImage as err:
            raise CorruptImage(f"compressed cluster at {place.offset}: {err}") from err
        self._unpacked = (entry, data)
        return data


def _check_readable(sound: SoundHeader, data_file: Handle | None) -> None:
    if sound.info.encryption is not None:
        raise UnsupportedFormat("the image is encrypted: it cannot be read natively")
    external = sound.header.has(Incompatible.DATA_FILE)
    if external and data_file is None:
        raise UnsupportedFormat("the data lie in an external file, which was not given")
    if data_file is not None and not external:
        raise FormatError("a data file was given but the image has none")


def _snapshot_size(snapshot: Snapshot, sound: SoundHeader) -> int:
    """Return the snapshot's virtual size after a check of where its L1 table lies."""
    header, offset, entries = sound.header, snapshot.l1_table_offset, snapshot.l1_size
    name = f"snapshot {snapshot.id!a}"
    if 8 * entries > qcow2.MAX_L1_BYTES:
        raise CorruptImage(f"{name}: L1 table of {entries} entries")
    if entries and (offset % header.cluster_size or not offset):
        raise CorruptImage(f"{name}: L1 table at {offset} is not aligned to a cluster")
    if entries and offset + 8 * entries > sound.file_size:
        raise CorruptImage(f"{name}: L1 table at {offset} reaches beyond the end of the file")
    if snapshot.disk_size is None:
        return sound.info.capacity
    if entries < _l1_entries(header, snapshot.disk_size):
        raise CorruptImage(f"{name}: L1 table of {entries} entries is too small for its size")
    return snapshot.disk_size // qcow2.SECTOR * qcow2.SECTOR


def _l1_entries(header: Header, size: int) -> int:
    extended = header.has(Incompatible.EXTENDED_L2)
    return qcow2.l1_entries(size, header.cluster_size, extended)
