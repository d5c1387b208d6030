"""A LUKS 1 container, opened: a handle whose bytes are the plain data.

Source: the LUKS On-Disk Format Specification 1.2.3.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from storaged.formats.handle import Bytes, Extent, Handle
from storaged.formats.luks_cipher import SECTOR, SectorCipher, sector_cipher
from storaged.formats.luks_header import (
    MAX_ITERATIONS,
    WrongPassphrase,
    open_key,
    read_container,
)

__all__ = ["LuksHandle", "WrongPassphrase", "resize", "unlock"]

#: How much is encrypted or decrypted at a time.
_PIECE = 256 << 10


def unlock(
    handle: Handle, passphrase: bytes, *, max_iterations: int = MAX_ITERATIONS
) -> LuksHandle:
    """Open a container with one of its passphrases, which is not kept.

    :param max_iterations: what an attempt may cost, over all key slots.
    :raise WrongPassphrase: no key slot opens with it.
    :raise CorruptImage: the header contradicts itself or the file's size.
    :raise UnsupportedFormat: LUKS 2, another cipher than AES, more iterations than
        *max_iterations* (nothing is derived then), or the package cryptography is missing.
    """
    container = read_container(handle)
    sector_cipher(container.cipher, container.mode, bytearray(container.header.key_bytes)).wipe()
    _, key = open_key(handle, container, passphrase, max_iterations)
    return LuksHandle(
        handle, sector_cipher(container.cipher, container.mode, key), container.payload
    )


def resize(handle: Handle, capacity: int) -> None:
    """Set the length of a container's data without opening it.

    :param capacity: in bytes; rounded up to whole sectors. What is new reads as noise, as with
        QEMU, and what is cut off is lost.
    :raise FormatError: see `unlock`; nothing was changed.
    """
    payload = read_container(handle).payload
    handle.truncate(payload + -(-capacity // SECTOR) * SECTOR)


class LuksHandle:
    """The plain data of a container.

    Nothing in a container is known to be zero: a hole in its file decrypts to noise, as for QEMU
    and cryptsetup. So all is data, zeros take as much space as anything else, and what `truncate`
    adds reads as noise until it is written to.

    Not for use by several threads at a time: a write of part of a sector reads the sector first.

    :param handle: the container; closed with this.
    :param cipher: with the master key, which `close` overwrites.
    :param payload: where the data begin in *handle*, in bytes.
    """

    def __init__(self, handle: Handle, cipher: SectorCipher, payload: int) -> None:
        self._handle = handle
        self._cipher: SectorCipher | None = cipher
        self._payload = payload

    def size(self) -> int:
        """Return the length of the data in bytes, of whole sectors."""
        return max(self._handle.size() - self._payload, 0) // SECTOR * SECTOR

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the data end."""
        cipher = self._open()
        end = min(offset + length, self.size())
        parts = []
        while offset < end:
            stop = min(end, offset - offset % SECTOR + _PIECE)
            parts.append(self._read(cipher, offset, stop))
            if len(parts[-1]) < stop - offset:
                break  # the file became shorter
            offset = stop
        return b"".join(parts)

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Write all of *data* at *offset*; the container grows by whole sectors where needed."""
        cipher = self._open()
        with memoryview(data).cast("B") as view:
            done = 0
            while done < len(view):
                begin = offset + done
                stop = min(offset + len(view), begin - begin % SECTOR + _PIECE)
                self._write(cipher, view[done : stop - offset], begin)
                done = stop - offset

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Write zeros, encrypted: space cannot be given back."""
        zeros = memoryview(bytes(min(max(length, 0), _PIECE)))
        end = offset + length
        while offset < end:
            step = min(end - offset, _PIECE - offset % SECTOR)
            self.pwrite(zeros[:step], offset)
            offset += step

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield one extent of data: encrypted zeros look like anything else."""
        end = min(offset + length, self.size())
        if offset < end:
            yield Extent(offset, end - offset, data=True)

    def truncate(self, size: int) -> None:
        """Set the length, rounded up to whole sectors; what is new reads as noise."""
        self._open()
        self._handle.truncate(self._payload + -(-size // SECTOR) * SECTOR)

    def flush(self) -> None:
        """Return when all that was written survives a loss of power."""
        self._handle.flush()

    def fileno(self) -> int | None:
        """Return None: no file has these bytes."""
        return None

    def close(self) -> None:
        """Overwrite the key and close the container. Calling it again does nothing."""
        if self._cipher is not None:
            self._cipher.wipe()
            self._cipher = None
            self._handle.close()

    def _open(self) -> SectorCipher:
        if self._cipher is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._cipher

    def _read(self, cipher: SectorCipher, begin: int, end: int) -> bytes:
        """Read a stretch of at most a piece, through the sectors around it."""
        first, last = begin // SECTOR, -(-end // SECTOR)
        sealed = self._handle.pread((last - first) * SECTOR, self._payload + first * SECTOR)
        whole = len(sealed) // SECTOR * SECTOR
        if not whole:
            return b""
        plain = cipher.decrypt(sealed[:whole], first)
        return plain[begin - first * SECTOR : end - first * SECTOR]

    def _write(self, cipher: SectorCipher, data: memoryview, offset: int) -> None:
        """Write at most a piece; sectors of which it is only a part are read before."""
        first, end = offset // SECTOR, offset + len(data)
        last = -(-end // SECTOR)
        plain: Bytes = data
        if offset % SECTOR or end % SECTOR:
            around = bytearray((last - first) * SECTOR)
            for sector in {first, last - 1}:
                old = self._read(cipher, sector * SECTOR, (sector + 1) * SECTOR)
                at = (sector - first) * SECTOR
                around[at : at + len(old)] = old
            around[offset - first * SECTOR : end - first * SECTOR] = data
            plain = around
        self._handle.pwrite(cipher.encrypt(plain, first), self._payload + first * SECTOR)
